"""F85: the network against its formula written out weight by weight, chunks, horizons and scales."""

from __future__ import annotations

import math

import array_api_compat.numpy as xp
import numpy as np
import pytest

from hybridcore.layout import ParamLayout
from hybridcore_nowcast.checkpoints import load_network
from hybridcore_nowcast.errors import CheckpointError
from hybridcore_nowcast.network import NowcastNetwork, shapes
from hybridcore_nowcast.statistics import TensorStatistics

SPEC = ParamLayout.plan([("w", (60, 1), "float32", "cpu", None)]).params[0]


def path(size=60, count=5, seed=0):
    """Snapshots of noisy decays at many rates, one weight standing still."""
    rng = np.random.default_rng(seed)
    start, rates = rng.standard_normal(size), np.linspace(0.7, 0.99, size)
    rows = start * rates ** np.arange(count)[:, None] + 0.01 * rng.standard_normal((count, size))
    rows[:, 3] = 0.5
    return [row.astype(np.float32) for row in rows]


def moved(network, snapshots, windows, chunk=1000):
    displacement = network.bind(SPEC, snapshots, windows, xp, chunk)
    parts = [slice(i, min(i + chunk, 60)) for i in range(0, 60, chunk)]
    return np.concatenate([displacement(part) for part in parts]).astype(np.float64)


def random_network(seed=1, hidden=6, width=4, snapshots=5):
    rng = np.random.default_rng(seed)
    arrays = {n: 0.7 * rng.standard_normal(s) for n, s in shapes(snapshots, hidden, width).items()}
    return NowcastNetwork(arrays, 20.0), arrays


def written_out(w, snapshots, windows, known=1.0):
    """The docstrings' formulas in float64, one weight at a time."""
    m = np.asarray(snapshots, dtype=np.float64)
    count, size = m.shape
    d = np.diff(m, axis=0)
    lengths = [math.sqrt(sum(x * x for x in row)) for row in d]
    speed = math.sqrt((d**2).sum() / d.size)
    spread = m[-1].std() + 1e-6
    context = [d[i] @ d[i + 1] / (lengths[i] * lengths[i + 1]) for i in range(count - 2)]
    context.append(d[0] @ d[-1] / (lengths[0] * lengths[-1]))
    context += [min(max(math.log(lengths[i + 1] / lengths[i]), -2), 2) for i in range(count - 2)]
    context += [min(max(math.log(speed / spread) / 5, -2), 2), math.log(size) / 10, known]
    context += [math.log(windows) / 2, (math.log(windows) / 2) ** 2]
    hidden = np.tanh(w["condition.0.weight"] @ context + w["condition.0.bias"])
    made = w["condition.1.weight"] @ hidden + w["condition.1.bias"]
    width = len(w["weight.1.bias"])
    a, b, c = made[:width], made[width : 2 * width], made[2 * width :]
    out = []
    for j in range(size):
        own = math.sqrt(np.mean((d[:, j] / speed) ** 2)) + 1e-3
        u = d[:, j] / speed / own
        x = np.concatenate([(m[:, j] - m[-1].mean()) / spread, u, [math.log(own)]])
        h = np.tanh(a * (w["weight.0.weight"] @ x) + b)
        h = np.tanh(w["weight.1.weight"] @ h + w["weight.1.bias"])
        out.append((c @ u + (w["weight.2.weight"] @ h)[0]) * own * speed * windows)
    return np.array(out)


@pytest.mark.parametrize("windows", [0.5, 1.0, 7.0])
def test_network_equals_its_formula(windows: float) -> None:
    network, arrays = random_network()
    got, expected = moved(network, path(), windows), written_out(arrays, path(), windows)
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-5 * np.abs(expected).max())


def test_made_up_snapshots_are_straight_and_known_as_such() -> None:
    network, arrays = random_network()
    late = path()[2:]
    made = [late[0] - k * (late[1] - late[0]) for k in (2, 1)]
    expected = written_out(arrays, [*made, *late], 2.0, known=3 / 5)
    np.testing.assert_allclose(moved(network, late, 2.0), expected, atol=2e-4 * np.abs(expected).max())


def test_three_snapshots_are_enough() -> None:
    network, arrays = random_network(snapshots=3)
    assert network.snapshots == 3
    expected = written_out(arrays, path(count=3), 2.0)
    np.testing.assert_allclose(
        moved(network, path(count=3), 2.0), expected, atol=2e-4 * np.abs(expected).max()
    )


@pytest.mark.parametrize("chunk", [1, 7, 59])
def test_chunks_change_nothing_but_rounding(chunk: int) -> None:
    whole = moved(load_network(), path(), 3.0)
    np.testing.assert_allclose(moved(load_network(), path(), 3.0, chunk), whole, rtol=1e-4, atol=1e-6)


def test_statistics_in_chunks_equal_numpy() -> None:
    rows = np.asarray(path(), dtype=np.float64) + 100.0  # far from zero, where squares cancel
    found = TensorStatistics.of([r.astype(np.float32) for r in rows], xp, 7)
    rows = rows.astype(np.float32).astype(np.float64)
    steps = np.diff(rows, axis=0)
    assert found.std == pytest.approx(rows[-1].std(), rel=1e-4)
    assert found.speed == pytest.approx(np.sqrt(np.mean(steps**2)), rel=1e-5)
    np.testing.assert_allclose(found.gram, steps @ steps.T, rtol=1e-4, atol=1e-5)


def test_scaled_weights_have_scaled_displacements() -> None:
    one = moved(load_network(), path(), 3.0)
    thousand = moved(load_network(), [1000 * p for p in path()], 3.0)
    np.testing.assert_allclose(thousand, 1000 * one, rtol=1e-3, atol=0.01 * np.abs(one).max())


def test_horizon_conditions_the_network() -> None:
    """On a path that slows down, the shipped network expects ever less of each further window."""
    lengths = [np.linalg.norm(moved(load_network(), path(), windows)) for windows in (1.0, 4.0, 16.0)]
    assert lengths[0] < lengths[1] < lengths[2]
    per_window = [length / windows for length, windows in zip(lengths, (1.0, 4.0, 16.0), strict=True)]
    assert per_window[0] > 1.1 * per_window[1] > 1.2 * per_window[2]


def test_a_tensor_that_stands_still_stays() -> None:
    assert not moved(load_network(), [path()[0]] * 5, 4.0).any()


@pytest.mark.parametrize("change", ["missing", "shape", "nan"])
def test_a_network_checks_its_arrays(change: str) -> None:
    _, arrays = random_network()
    if change == "missing":
        del arrays["weight.1.bias"]
    elif change == "shape":
        arrays["condition.0.weight"] = arrays["condition.0.weight"][:, 1:]
    else:
        arrays["weight.2.weight"][0, 0] = np.nan
    with pytest.raises(CheckpointError, match=r"arrays of a nowcast network|not finite"):
        NowcastNetwork(arrays, 20.0)

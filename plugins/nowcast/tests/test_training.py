"""F85: the training script fits the network that is shipped: same forward, and it learns from samples."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import array_api_compat.numpy as xp
import numpy as np
import pytest

from hybridcore.layout import ParamLayout
from hybridcore_nowcast.network import NowcastNetwork, inputs
from hybridcore_nowcast.statistics import TensorStatistics

torch = pytest.importorskip("torch")
pytest.importorskip("hybridcore_torch")
sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
record, train, trajectories = map(import_module, ("record", "train", "trajectories"))


def test_training_forward_equals_inference() -> None:
    torch.manual_seed(0)
    w = {name: value.detach() + 0.1 for name, value in train.initial(8, 4).items()}
    network = NowcastNetwork({name: value.numpy() for name, value in w.items()}, 20.0)
    path = list(np.cumsum(np.random.default_rng(0).standard_normal((5, 30)), axis=0).astype(np.float32))
    statistics = TensorStatistics.of(path, xp, 1000)
    x, speed = inputs(np.stack(path), statistics, xp)
    for windows in (0.25, 3.0):
        context = np.append(statistics.context(), windows).astype(np.float32)
        rows = torch.from_numpy(np.broadcast_to(context, (30, context.size)).copy())
        g = train.forward(w, torch.from_numpy(x.T.copy()), rows).numpy()
        spec = ParamLayout.plan([("w", (30, 1), "float32", "cpu", None)]).params[0]
        got = network.bind(spec, path, windows, xp, 1000)(slice(0, 30))
        np.testing.assert_allclose(got, g * speed * windows, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def samples() -> dict[str, np.ndarray]:
    training = trajectories.Training("logistic", "sgd", 0.1, 0, {})
    rows = {name: [] for name in ("x", "context", "speed", "true", "emphasis")}
    record.sample(trajectories.record(training, 200), np.random.default_rng(0), rows, 3, 40)
    return {name: np.concatenate(parts).astype(np.float32) for name, parts in rows.items()}


def test_samples_are_what_they_say(samples: dict[str, np.ndarray]) -> None:
    """The newest displacement, continued, is what `drift` says: speed * x[newest] in units of the truth."""
    count = len(samples["true"])
    assert count > 1000 and all(len(rows) == count for rows in samples.values())
    drift = samples["speed"] * samples["x"][:, 8]
    cosine = drift @ samples["true"] / np.linalg.norm(drift) / np.linalg.norm(samples["true"])
    assert cosine > 0.5
    assert np.mean(samples["true"] ** 2) == pytest.approx(1.0, abs=0.3)


def test_fitting_beats_its_start_and_standing_still(samples: dict[str, np.ndarray]) -> None:
    def loss(arrays) -> float:
        w = {name: torch.as_tensor(value) for name, value in arrays.items()}
        with torch.no_grad():
            g = train.forward(w, torch.from_numpy(samples["x"]), torch.from_numpy(samples["context"]))
        error = samples["speed"] * g.numpy() - samples["true"]
        return float(np.mean(samples["emphasis"] * error**2))

    still = float(np.mean(samples["emphasis"] * samples["true"] ** 2))
    torch.manual_seed(0)
    start = loss({n: v.detach().numpy() for n, v in train.initial(8, 4).items()})
    fitted = train.fit(samples, hidden=8, width=4, steps=60, seed=0)
    assert loss(fitted) < 0.8 * start and loss(fitted) < 0.6 * still
    again = train.fit(samples, hidden=8, width=4, steps=60, seed=0)
    assert all(np.array_equal(fitted[name], again[name]) for name in fitted)

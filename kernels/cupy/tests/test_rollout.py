"""F70: the roll-out of an ensemble against PyTorch's own GRU cell in float64 (CUDA code on the CPU)."""

from __future__ import annotations

import array_api_compat.numpy as xp
import attrs
import numpy as np
import pytest
import torch
from torch.nn import functional as nnf

from hybridcore.kernels import REFERENCE
from hybridcore.kernels.paths import RolloutCase
from hybridcore.protocols import Ensemble, RolloutSizes
from hybridcore_cupy import rollout as module

SMALL = RolloutSizes(
    features=5, actions=3, deterministic=7, stochastic=3, classes=4, hidden=6,
    members=2, samples=2, context=2, horizon=3,
)  # fmt: skip
CASES = {
    "small": (SMALL, 1),
    "several starts": (attrs.evolve(SMALL, samples=3, members=1), 3),
    "no context, one of each": (
        RolloutSizes(
            features=1, actions=1, deterministic=1, stochastic=1, classes=2, hidden=1,
            members=1, samples=1, context=0, horizon=1,
        ),
        1,
    ),
    "wider than a block": (attrs.evolve(SMALL, stochastic=18, hidden=70, deterministic=66, samples=1), 1),
    "as it comes": (RolloutSizes(members=1, samples=1, horizon=2), 1),
}  # fmt: skip


def truth(case):
    """One path after the other, a GRU cell and a softmax of PyTorch for each tick, in float64."""
    wide = case.wide()
    weights = {name: torch.as_tensor(array) for name, array in wide.models.weights.items()}
    features, actions, ahead, noise = map(
        torch.as_tensor, (wide.features, wide.actions, wide.ahead, wide.noise)
    )
    context, members, rows = features.shape[1] - 1, noise.shape[1], noise.shape[2]
    horizon, classes = noise.shape[0] - 1 - 2 * context, wide.models.classes
    result = torch.empty(2, members, rows, horizon, dtype=torch.float64)
    for member in range(members):
        p = {name: array[member] for name, array in weights.items()}
        width, inner = p["gru_h"].shape[0], p["gru_x"].shape[0]
        cell = torch.nn.GRUCell(inner, width, dtype=torch.float64)
        with torch.no_grad():
            cell.weight_ih.copy_(p["gru_x"].T)
            cell.weight_hh.copy_(p["gru_h"].T)
            cell.bias_ih.copy_(p["gru_bx"][0])
            cell.bias_hh.copy_(p["gru_bh"][0])

        def layer(name, *parts, p=p):
            return torch.cat(parts) @ p[name] + p[f"{name}_b"][0]

        for row in range(rows):
            x, a, draws = features[row // (rows // len(features))], actions[row // (rows // len(actions))], 0

            def one_hot(logits, row=row, member=member):
                nonlocal draws
                q = 0.99 * logits.reshape(-1, classes).softmax(-1) + 0.01 / classes
                scores = q.log() + noise[draws, member, row].reshape(-1, classes)
                draws += 1
                return nnf.one_hot(scores.argmax(-1), classes).double().reshape(-1)

            def observe(h, seen, layer=layer, one_hot=one_hot):
                return one_hot(layer("posterior", h, nnf.silu(layer("embed", seen))))

            def advance(h, z, action, layer=layer, one_hot=one_hot, cell=cell):
                with torch.no_grad():
                    h = cell(nnf.silu(layer("enter", z, action))[None], h[None])[0]
                return h, one_hot(layer("prior_out", nnf.silu(layer("prior_in", h))))

            h = torch.zeros(width, dtype=torch.float64)
            z = observe(h, x[0])
            for t in range(context):
                h, _ = advance(h, z, a[t])
                z = observe(h, x[t + 1])
            for t in range(horizon):
                h, z = advance(h, z, a[context] if t == 0 else ahead)
                result[:, member, row, t] = layer("head", nnf.silu(layer("trunk", h, z, x[context])))
    return result.numpy()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("which", ["kernel", "reference"])
def test_f70_rollout_equals_gru_cells(emulated, name, which):
    sizes, starts = CASES[name]
    case = RolloutCase.make(sizes, seed=2, starts=starts)
    assert not case.undecided().any()
    found = case.on(emulated if which == "kernel" else REFERENCE)
    exact = truth(case)
    assert np.abs(exact).max() > 0.05
    for mine, right in zip(found, exact, strict=True):
        assert mine.dtype == np.float32 and mine.shape == right.shape
        assert np.abs(mine - right).max() < 1e-5 * max(1.0, np.abs(right).max())


def test_f70_weights_are_sent_once_and_again_where_they_change(emulated, monkeypatch):
    sent = []
    copy = module._Place.copy
    monkeypatch.setattr(
        module._Place, "copy", lambda self, *a: (sent.append(a[0]) if a[2] == 1 else None, copy(self, *a))
    )
    first, second = RolloutCase.make(SMALL, seed=2), RolloutCase.make(SMALL, seed=3)
    longer = RolloutCase.make(attrs.evolve(SMALL, horizon=40), seed=2)
    for case in (first, first, second, first):
        np.testing.assert_allclose(case.on(emulated)[0], case.on(REFERENCE)[0], atol=1e-5)
    assert [bool(begin) for begin in sent] == [False, True, False, False]
    other_noise = attrs.evolve(first, noise=second.noise)
    np.testing.assert_allclose(other_noise.on(emulated)[0], other_noise.on(REFERENCE)[0], atol=1e-5)
    assert sent[-1] > 0
    moved = attrs.evolve(first, noise=longer.noise)  # wants more memory, which is new
    np.testing.assert_allclose(moved.on(emulated)[1], moved.on(REFERENCE)[1], atol=1e-5)
    assert sent[-1] == 0


def test_f70_new_weights_in_the_place_of_old_ones_are_not_taken_for_them(emulated):
    case = RolloutCase.make(SMALL, seed=2)
    for factor in (1.0, 0.5, 2.0):
        weights = {name: np.float32(factor) * array for name, array in case.models.weights.items()}
        changed = attrs.evolve(case, models=Ensemble(weights, case.models.classes))
        np.testing.assert_allclose(changed.on(emulated)[0], changed.on(REFERENCE)[0], atol=1e-5)


@pytest.mark.parametrize("what", ["float64", "too wide for shared memory"])
def test_f70_what_the_kernel_does_not_take_goes_to_the_reference(emulated, monkeypatch, what):
    sizes = attrs.evolve(SMALL, deterministic=1800, members=1, samples=1, horizon=1)
    case = RolloutCase.make(SMALL).wide() if what == "float64" else RolloutCase.make(sizes)
    monkeypatch.setattr(module, "launch", None)
    for mine, right in zip(case.on(emulated), case.on(REFERENCE), strict=True):
        assert mine.dtype == right.dtype and np.array_equal(mine, right)


def test_f70_a_model_forecasts_through_it(emulated):
    """The dynamics model's own arguments: its forecast with the kernel is the one without."""
    from hybridcore.dynamics.rssm import Rssm, RssmOptions

    model = Rssm(
        RssmOptions(deterministic=8, hidden=8, stochastic=2, classes=4, members=2, samples=2, context=1)
    )
    model.reset(["drift"], np.random.default_rng(0), xp, 50 << 20)
    rng = np.random.default_rng(1)
    x, a = (rng.standard_normal((1, 2, n)).astype(np.float32) for n in (30, model._encoder.size))
    right = model._forecast(x, a, 5)
    model.kernels = emulated
    mine = model._forecast(x, a, 5)
    for part in ("mean", "epistemic", "aleatoric"):
        np.testing.assert_allclose(getattr(mine, part), getattr(right, part), atol=1e-4)

"""Low-rank fine-tuning: what is trained, what is not, and that it starts from the base."""

from __future__ import annotations

import attrs
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybridcore.protocols import Problem
from hybridcore.tasks import pretrained
from hybridcore.tasks.finetune_gpt import FinetuneGpt
from hybridcore.tasks.lora_gpt import LoraGpt
from hybridcore_jax.framework import FRAMEWORK
from hybridcore_jax.models import build_model
from hybridcore_jax.models.lora import corrected

SIZES = {"depth": 1, "width": 16, "heads": 2, "max_bytes": 500_000, "pretrain_steps": 10}
CONFIG = LoraGpt.Config(**SIZES, rank=2, learning_rate=1e-2)
ENDS = ("lora_a", "lora_b")


@pytest.fixture(scope="module")
def problem():
    return LoraGpt(CONFIG).problem(seed=0)


def test_the_correction_is_its_formula():
    rng = np.random.default_rng(0)
    shapes = {"weight": (5, 3), "bias": (5,), "lora_a": (2, 3), "lora_b": (5, 2)}
    params = {f"f.{name}": rng.standard_normal(shape) for name, shape in shapes.items()}
    inputs = rng.standard_normal((7, 3))
    weight = params["f.weight"] + 3.0 * params["f.lora_b"] @ params["f.lora_a"]
    found = corrected(jax.tree.map(jnp.asarray, params), "f", jnp.asarray(inputs), 3.0)
    np.testing.assert_allclose(found, inputs @ weight.T + params["f.bias"], rtol=1e-4, atol=1e-5)


def test_layout_and_optimizer_hold_only_what_is_trained(problem):
    adapter = FRAMEWORK.build(problem, "cpu").adapter
    assert set(adapter.layout.names) == {name for name in problem.weights if name.endswith(ENDS)}
    # qkv, out, up, down: rank * (in + out) each
    assert adapter.layout.total == 2 * (16 + 48 + 16 + 16 + 16 + 64 + 64 + 16)
    moments = [leaf.size for leaf in jax.tree.leaves(adapter.opt_state) if leaf.ndim]
    assert sum(moments) == 2 * adapter.layout.total


def test_training_leaves_the_base_alone_and_lowers_the_loss(problem):
    run = FRAMEWORK.build(problem, "cpu")
    before = run.evaluate()["loss"]
    for _ in range(40):
        run.adapter.train_step(next(run.batches))
    assert run.evaluate()["loss"] < before - 0.01
    for name, leaf in run.adapter.params.items():
        assert np.array_equal(leaf, problem.weights[name]) != name.endswith(ENDS), name


def test_it_starts_from_the_base_itself(problem):
    base = {n: w for n, w in problem.weights.items() if not n.endswith(ENDS)}
    plain = Problem(
        "base", "transformer", CONFIG.shape, base, problem.optimizer, problem.batches, (), problem.validation
    )
    losses = [
        built.evaluate(built.params, None, problem.validation)["loss"]
        for built in (build_model(problem), build_model(plain))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_step_is_adam_on_the_corrections_by_float64_differences(problem):
    """The first AdamW update is the rate times the gradient's sign, almost; the sign by differences."""
    rng = np.random.default_rng(3)
    weights = {n: (w + rng.normal(0.0, 0.3, w.shape)).astype(np.float32) for n, w in problem.weights.items()}
    run = FRAMEWORK.build(attrs.evolve(problem, weights=weights), "cpu")
    batch, name = next(run.batches), "blocks.0.mlp.up.lora_b"
    loss_fn = build_model(problem).loss_fn
    mean = jax.jit(lambda params: loss_fn(params, batch).mean())
    run.adapter.train_step(batch)
    moved = np.asarray(run.adapter.params[name]) - weights[name]
    spots = np.argsort(-abs(rng.standard_normal(weights[name].size)))[:5]
    for spot in spots:
        h = np.zeros(weights[name].size, np.float32)
        h[spot] = 1e-2
        h = h.reshape(weights[name].shape)
        up, down = (float(mean({**weights, name: weights[name] + s * h})) for s in (1, -1))
        if abs(up - down) > 1e-5:
            assert moved.flat[spot] == pytest.approx(-1e-2 * np.sign(up - down), rel=1e-3)


def test_the_base_is_trained_by_jax_where_there_is_no_other(tmp_path, monkeypatch):
    from hybridcore.frameworks import load_framework

    monkeypatch.setattr(pretrained, "_trainer", lambda: load_framework("jax"))
    options = FinetuneGpt.Config(**SIZES)
    base = pretrained.base_weights(options, folder=tmp_path)
    assert all(np.isfinite(w).all() and w.dtype == np.float32 for w in base.values())
    monkeypatch.setattr(pretrained, "_trainer", lambda: pytest.fail("the base is cached"))
    again = pretrained.base_weights(options, folder=tmp_path)
    assert pretrained.checksum(again) == pretrained.checksum(base)
    monkeypatch.setattr("hybridcore.tasks.finetune_gpt.base_weights", lambda options: base)
    problem = FinetuneGpt(options).problem(seed=0)
    run = FRAMEWORK.build(problem, "cpu")
    assert all(np.array_equal(run.adapter.params[name], w) for name, w in base.items())
    before = run.evaluate()["loss"]
    for _ in range(20):
        run.adapter.train_step(next(run.batches))
    assert run.evaluate()["loss"] < before

"""Models of the built-in tasks against NumPy, closed forms and finite differences."""

import itertools
import math
from importlib import import_module

import attrs
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybridcore.errors import TaskError
from hybridcore.tasks import BUILTIN
from hybridcore.tasks.digits_mlp import DigitsMlp
from hybridcore.tasks.mnist_cnn import MnistCnn
from hybridcore.tasks.poisson_pinn import PoissonPinn
from hybridcore.tasks.stdlib_gpt import StdlibGpt
from hybridcore_jax.models import build_model
from hybridcore_jax.models.pinn import laplacian, value
from hybridcore_jax.models.transformer import transformer_logits

TINY = {"depth": 1, "width": 16, "heads": 2, "max_bytes": 500_000, "pretrain_steps": 10}
SMALL = {
    "stdlib-gpt": {"depth": 1, "width": 8, "heads": 2, "context": 6, "batch_size": 3, "max_bytes": 500_000},
    "mnist-cnn": {"filters": 2, "batch_size": 4},
    "poisson-pinn": {"points": 64, "edge_points": 16, "width": 8},
    "convection-pinn": {"points": 64, "edge_points": 16, "width": 8},
    "digits-mlp": {"width": 8},
    "lora-gpt": TINY,
    "finetune-gpt": TINY,
}


def _problem(cls, seed=0, **options):
    return cls(cls.Config(**{**SMALL.get(cls.name, {}), **options})).problem(seed)


def test_mlp_equals_a_numpy_forward():
    problem = _problem(DigitsMlp)
    built = build_model(problem)
    inputs, classes = next(problem.batches())
    hidden = inputs.astype(np.float64)
    for index in range(3):
        weight, bias = (problem.weights[f"layers.{index}.{part}"] for part in ("weight", "bias"))
        hidden = hidden @ weight.T.astype(np.float64) + bias
        hidden = np.maximum(hidden, 0.0) if index < 2 else hidden
    expected = np.log(np.exp(hidden).sum(axis=1)) - hidden[np.arange(len(classes)), classes]
    losses = jax.jit(built.loss_fn)(built.params, (inputs, classes))
    np.testing.assert_allclose(losses, expected, atol=1e-5)


def _numpy_cnn(problem, images, own):
    """Logits in float64 and each block's inputs to its norm; `own` normalises by the batch."""
    weights = {name: array.astype(np.float64) for name, array in problem.weights.items()}
    hidden, seen = images[:, None].astype(np.float64), []
    for index in range(2):
        padded = np.pad(hidden, ((0, 0), (0, 0), (1, 1), (1, 1)))
        patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        convolved = np.einsum("nchwij,fcij->nfhw", patches, weights[f"convolutions.{index}.weight"])
        seen.append(convolved)
        mean = convolved.mean((0, 2, 3), keepdims=True) if own else 0.0
        variance = convolved.var((0, 2, 3), keepdims=True) if own else 1.0
        active = np.maximum((convolved - mean) / np.sqrt(variance + 1e-5), 0.0)
        n, f, h, w = active.shape
        hidden = active.reshape(n, f, h // 2, 2, w // 2, 2).max(axis=(3, 5))
    return hidden.reshape(n, -1) @ weights["head.weight"].T + weights["head.bias"], seen


@pytest.mark.parametrize("own", [True, False])
def test_cnn_equals_a_numpy_forward(own):
    """With the batch's statistics as in training and probes, and with running ones as in evaluation."""
    problem = _problem(MnistCnn)
    built = build_model(problem)
    images, classes = next(problem.batches())
    found, seen = _numpy_cnn(problem, images, own)
    expected = np.log(np.exp(found).sum(axis=1)) - found[np.arange(len(classes)), classes]

    @jax.jit
    def forward(params, batch):
        return built.loss_fn(params, batch, state=built.state, training=own, batch_statistics=own)

    losses, state = forward(built.params, (images, classes))
    np.testing.assert_allclose(losses, expected, atol=1e-5)
    for index, inputs in enumerate(seen):
        mean, var = (0.1 * inputs.mean((0, 2, 3)), 0.9 + 0.1 * inputs.var((0, 2, 3), ddof=1))
        want = (mean, var) if own else (0.0 * mean, 1.0 + 0.0 * var)
        np.testing.assert_allclose(state[f"norms.{index}.mean"], want[0], atol=1e-6)
        np.testing.assert_allclose(state[f"norms.{index}.var"], want[1], atol=1e-6)


def test_dropout_keeps_the_mean_and_acts_in_training_only():
    """With a small head the loss is nearly linear in the features, so that its mean tells theirs."""
    problem = _problem(MnistCnn, dropout=0.5)
    built = build_model(problem)
    batch = next(problem.batches())
    params = {**built.params, "head.weight": 0.02 * built.params["head.weight"]}

    def losses(key, training):
        options = {"state": built.state, "training": training, "batch_statistics": True}
        return built.loss_fn(params, batch, key=key, **options)[0]

    draws = jax.jit(jax.vmap(lambda key: losses(key, True)))(jax.random.split(jax.random.key(0), 400))
    spread = np.asarray(draws.std(axis=0))
    assert spread.min() > 0.0
    error = np.abs(draws.mean(axis=0) - losses(None, False))
    assert (error < 5.0 * spread / np.sqrt(400) + spread**2).all()
    assert (error < 0.5 * spread).all()


def test_transformer_equals_a_numpy_forward():
    problem = _problem(StdlibGpt)
    rng = np.random.default_rng(0)
    random = {name: rng.normal(0.0, 0.5, w.shape).astype(np.float32) for name, w in problem.weights.items()}
    built = build_model(attrs.evolve(problem, weights=random))
    weights = {name: array.astype(np.float64) for name, array in random.items()}
    tokens, targets = next(problem.batches())

    def affine(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def softmax(x):
        powers = np.exp(x - x.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)

    stream = weights["token_embedding.weight"][tokens] + weights["position_embedding.weight"]
    query, key, value_ = np.split(
        affine(norm(stream, "blocks.0.norm1"), "blocks.0.attention.qkv"), 3, axis=-1
    )
    mixed = np.empty_like(stream)
    for head in (slice(0, 4), slice(4, 8)):
        scores = query[..., head] @ key[..., head].swapaxes(1, 2) / math.sqrt(4)
        scores[:, np.triu(np.ones((6, 6), bool), 1)] = -np.inf
        mixed[..., head] = softmax(scores) @ value_[..., head]
    stream = stream + affine(mixed, "blocks.0.attention.out")
    inner = affine(norm(stream, "blocks.0.norm2"), "blocks.0.mlp.up")
    gelu = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
    stream = stream + affine(gelu, "blocks.0.mlp.down")
    chosen = softmax(norm(stream, "norm") @ weights["head.weight"].T)
    picked = np.take_along_axis(chosen, targets[..., None], axis=-1)[..., 0]
    losses = jax.jit(built.loss_fn)(built.params, (tokens, targets))
    np.testing.assert_allclose(losses, -np.log(picked).mean(axis=1), rtol=1e-5)


def test_transformer_sees_no_later_token():
    problem = _problem(StdlibGpt)
    params = build_model(problem).params
    tokens = jnp.asarray(next(problem.batches())[0][:1])
    changed = tokens.at[:, 4].set((tokens[:, 4] + 1) % 256)
    before, after = (transformer_logits(params, t, 1, 2) for t in (tokens, changed))
    assert jnp.array_equal(before[:, :4], after[:, :4])
    assert not jnp.allclose(before[:, 4:], after[:, 4:])


def test_forward_laplacian_equals_nested_autodiff():
    rng = np.random.default_rng(0)
    widths = (2, 8, 8, 1)
    params = {}
    for index, (a, b) in enumerate(itertools.pairwise(widths)):
        params[f"layers.{index}.weight"] = jnp.asarray(rng.standard_normal((b, a)), jnp.float32)
        params[f"layers.{index}.bias"] = jnp.asarray(rng.standard_normal(b), jnp.float32)
    points = jnp.asarray(rng.uniform(size=(20, 2)), jnp.float32)
    found_value, found = laplacian(params, points)
    hessians = jax.vmap(jax.hessian(lambda p: value(params, p[None])[0]))(points)
    np.testing.assert_allclose(found_value, value(params, points), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found, jnp.trace(hessians, axis1=1, axis2=2), rtol=1e-3, atol=1e-3)


def test_pinn_losses_average_to_the_stated_loss():
    """By the network in float64 and central differences for its Laplacian."""
    problem = _problem(PoissonPinn, boundary_weight=7.0)
    built = build_model(problem)
    batch = next(problem.batches())
    interior, source, edge, wanted = (a.astype(np.float64) for a in batch)

    def network(points):
        hidden = points
        for index in range(4):
            weight, bias = (problem.weights[f"layers.{index}.{part}"] for part in ("weight", "bias"))
            hidden = hidden @ weight.T.astype(np.float64) + bias
            hidden = np.tanh(hidden) if index < 3 else hidden
        return hidden[:, 0]

    h, total = 1e-4, 0.0
    for axis in (0, 1):
        step = h * np.eye(2)[axis]
        total = total + network(interior + step) - 2 * network(interior) + network(interior - step)
    stated = np.mean((total / h**2 + source) ** 2) + 7.0 * np.mean((network(edge) - wanted) ** 2)
    losses = built.loss_fn(built.params, batch)
    assert losses.shape == (64 + 16,)
    assert float(losses.mean()) == pytest.approx(stated, rel=1e-5)


def _load(path):
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


@pytest.mark.parametrize("cls", [_load(path) for path in BUILTIN], ids=lambda c: c.name)
def test_weights_are_the_problems_own_and_metrics_are_means(cls, untrained_base):
    problem = _problem(cls, seed=3)
    built = build_model(problem)
    assert built.params.keys() == problem.weights.keys()
    for name, array in built.params.items():
        assert np.array_equal(array, problem.weights[name])
    held_out = [tuple(a[:n] for a in problem.validation[0]) for n in (8, 3)]
    metrics = built.evaluate(built.params, built.state, held_out)
    assert tuple(metrics) == problem.metrics
    options = {"state": built.state, "training": False, "batch_statistics": False} if built.state else {}
    parts = [built.loss_fn(built.params, batch, **options) for batch in held_out]
    losses = jnp.concatenate([p[0] if built.state else p for p in parts])
    assert metrics["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)


def test_weights_that_do_not_fit_are_all_named():
    problem = _problem(DigitsMlp)
    weights = dict(problem.weights)
    weights["layers.9.weight"] = weights.pop("layers.0.weight")
    weights["layers.1.bias"] = weights["layers.1.bias"][:5]
    with pytest.raises(TaskError) as caught:
        build_model(attrs.evolve(problem, weights=weights))
    for name in ("layers.9.weight", "layers.0.weight", "layers.1.bias"):
        assert name in str(caught.value.got)
    with pytest.raises(TaskError, match="does not know the model"):
        build_model(attrs.evolve(problem, model="perceiver"))

"""Models of the built-in tasks against NumPy, closed forms and nested gradients."""

import math
from importlib import import_module

import attrs
import numpy as np
import pytest
import tensorflow as tf

from hybridcore.tasks import BUILTIN
from hybridcore.tasks.convection_pinn import ConvectionPinn
from hybridcore.tasks.digits_mlp import DigitsMlp
from hybridcore.tasks.mnist_cnn import MnistCnn
from hybridcore.tasks.poisson_pinn import PoissonPinn
from hybridcore.tasks.stdlib_gpt import StdlibGpt
from hybridcore_tensorflow.models import build_model
from hybridcore_tensorflow.models.norm import BatchNorm
from hybridcore_tensorflow.models.pinn import TanhNetwork
from hybridcore_tensorflow.variables import trainable, weights_of

TINY = {"depth": 1, "width": 16, "heads": 2, "max_bytes": 500_000}
SMALL = {
    "lora-gpt": TINY,
    "finetune-gpt": TINY,
    "convection-pinn": {"points": 128, "edge_points": 32},
    "stdlib-gpt": {"depth": 1, "width": 16, "max_bytes": 500_000},
    "mnist-mlp": {"width": 64},
    "mnist-cnn": {"filters": 2},
    "poisson-pinn": {"points": 128, "edge_points": 32},
}


def _load(path):
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


LANGUAGE = ("stdlib-gpt", "lora-gpt", "finetune-gpt")
DIGITS = ("digits-mlp", "mnist-mlp", "mnist-cnn", "logistic")
CLASSES = [cls for cls in map(_load, BUILTIN) if "tensorflow" in cls.frameworks]
tasks = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.name)


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
    np.testing.assert_allclose(built.loss_fn(built.model, (inputs, classes)), expected, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_cnn_equals_a_numpy_forward(training):
    """In training with the batch's biased variance; the moving variance takes in the unbiased one."""
    problem = _problem(MnistCnn, batch_size=2)
    built = build_model(problem)
    images, _ = next(problem.batches())
    weights = {name: array.astype(np.float64) for name, array in problem.weights.items()}
    hidden = images[:, None].astype(np.float64)
    for index in range(2):
        padded = np.pad(hidden, ((0, 0), (0, 0), (1, 1), (1, 1)))
        patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        convolved = np.einsum("nchwij,fcij->nfhw", patches, weights[f"convolutions.{index}.weight"])
        mean, variance = np.zeros(1), np.ones(1)
        if training:
            axes = (0, 2, 3)
            mean, variance = convolved.mean(axes), convolved.var(axes)
            unbiased = 0.9 + 0.1 * convolved.var(axes, ddof=1)
        scaled = (convolved - mean[:, None, None]) / np.sqrt(variance + 1e-5)[:, None, None]
        n, f, h, w = scaled.shape
        hidden = np.maximum(scaled, 0.0).reshape(n, f, h // 2, 2, w // 2, 2).max(axis=(3, 5))
    expected = hidden.reshape(2, -1) @ weights["head.weight"].T + weights["head.bias"]
    np.testing.assert_allclose(built.model(tf.constant(images), training), expected, atol=1e-4)
    statistics = built.model.norms[1].statistics
    if training:
        np.testing.assert_allclose(statistics.moving_mean.numpy(), 0.1 * mean, rtol=1e-4)
        np.testing.assert_allclose(statistics.moving_variance.numpy(), unbiased, rtol=1e-5)


def test_batch_norm_keeps_its_digits_over_many_activations():
    """Against float64; one long float32 sum would miss by a hundred times as much."""
    rng = np.random.default_rng(0)
    inputs = (5.0 + 0.05 * rng.standard_normal((64, 28, 28, 2))).astype(np.float32)
    exact = inputs.astype(np.float64)
    exact = (exact - exact.mean((0, 1, 2))) / np.sqrt(exact.var((0, 1, 2)) + 1e-5)
    assert np.abs(BatchNorm(2)(tf.constant(inputs), True).numpy() - exact).max() < 2e-5


def test_transformer_equals_a_numpy_forward():
    problem = _problem(StdlibGpt, depth=1, width=8, heads=2, context=6, batch_size=3)
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
    query, key, value = np.split(affine(norm(stream, "blocks.0.norm1"), "blocks.0.attention.qkv"), 3, axis=-1)
    mixed = np.empty_like(stream)
    for head in (slice(0, 4), slice(4, 8)):
        scores = query[..., head] @ key[..., head].swapaxes(1, 2) / math.sqrt(4)
        scores[:, np.triu(np.ones((6, 6), bool), 1)] = -np.inf
        mixed[..., head] = softmax(scores) @ value[..., head]
    stream = stream + affine(mixed, "blocks.0.attention.out")
    inner = affine(norm(stream, "blocks.0.norm2"), "blocks.0.mlp.up")
    gelu = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
    stream = stream + affine(gelu, "blocks.0.mlp.down")
    chosen = softmax(norm(stream, "norm") @ weights["head.weight"].T)
    picked = np.take_along_axis(chosen, targets[..., None], axis=-1)[..., 0]
    losses = built.loss_fn(built.model, (tokens, targets)).numpy()
    np.testing.assert_allclose(losses, -np.log(picked).mean(axis=1), rtol=1e-4)


def test_laplacian_equals_nested_gradients():
    network = TanhNetwork((2, 6, 5, 1))
    rng = np.random.default_rng(0)
    for variable in trainable(network).values():
        variable.assign(rng.standard_normal(variable.shape))
    points = tf.constant(rng.random((7, 2)), tf.float32)
    columns = [points[:, :1], points[:, 1:]]
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(columns)
        with tf.GradientTape() as inner:
            inner.watch(columns)
            value = network(tf.concat(columns, 1))
        slopes = inner.gradient(value, columns)
    second = sum(outer.gradient(s, c)[:, 0] for s, c in zip(slopes, columns, strict=True))
    got_value, got = network.laplacian(points)
    np.testing.assert_allclose(got_value, value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got, second, rtol=1e-4, atol=1e-4)


def test_convection_losses_average_to_the_stated_loss():
    """Derivatives by a tape, initial value and periodicity as they are written down."""
    problem = _problem(ConvectionPinn, beta=5.0, boundary_weight=7.0)
    built = build_model(problem)
    batch = next(problem.batches())
    interior, start, value, left, right = map(tf.convert_to_tensor, batch)
    with tf.GradientTape() as tape:
        tape.watch(interior)
        total = built.model(interior)
    slopes = tape.gradient(total, interior)
    np.testing.assert_allclose(
        built.model.derivative(interior, (7.0, 1.0))[1], 7.0 * slopes[:, 0] + slopes[:, 1], atol=1e-5
    )
    residual = slopes[:, 1] + 5.0 * slopes[:, 0]
    mean = lambda x: float(tf.reduce_mean(tf.square(x)))  # noqa: E731
    start_error, jump = built.model(start) - value, built.model(left) - built.model(right)
    stated = mean(residual) + 7.0 * (mean(start_error) + mean(jump))
    assert np.mean(built.loss_fn(built.model, batch)) == pytest.approx(stated, rel=1e-5)


def test_the_travelling_wave_itself_has_no_loss():
    class Wave(TanhNetwork):
        def __call__(self, points):
            return tf.sin(points[:, 0] - 10.0 * points[:, 1])

        def derivative(self, points, direction):
            slope = tf.cos(points[:, 0] - 10.0 * points[:, 1])
            return self(points), direction[0] * slope - 10.0 * direction[1] * slope

    problem = _problem(ConvectionPinn)
    metrics = attrs.evolve(build_model(problem), model=Wave((2, 1))).evaluate(problem.validation)
    assert metrics["loss"] < 1e-9
    assert metrics["relative_l2"] < 1e-5


@tasks
def test_weights_fit_and_metrics_are_means_over_examples(cls, untrained_base):
    problem = _problem(cls)
    built = build_model(problem)
    variables = weights_of(built.model)
    assert set(variables) == set(problem.weights)
    for name, value in problem.weights.items():
        np.testing.assert_array_equal(variables[name], value)
    metrics = built.evaluate(iter(problem.validation))
    losses = np.concatenate([built.loss_fn(built.model, batch) for batch in problem.validation])
    assert tuple(metrics) == problem.metrics
    assert metrics["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    if cls is PoissonPinn:
        # A solution near zero leaves the source term: mean square of 2 pi^2 sin sin is pi^4.
        assert 0.5 * math.pi**4 < metrics["loss"] < 2 * math.pi**4
    elif cls.name in LANGUAGE + DIGITS:
        assert metrics["loss"] == pytest.approx(math.log(256 if cls.name in LANGUAGE else 10), rel=0.03)


def test_variables_are_listed_in_the_order_of_definition():
    """As PyTorch lists them; `tf.Module` itself would sort them by name."""
    names = list(trainable(build_model(_problem(MnistCnn)).model))
    roots = list(dict.fromkeys(name.partition(".")[0] for name in names))
    assert roots == ["convolutions", "norms", "head"]
    assert names[:2] == ["convolutions.0.weight", "convolutions.1.weight"]


def test_dropout_acts_in_training_only_and_evaluation_changes_nothing():
    problem = _problem(MnistCnn, dropout=0.5)
    built = build_model(problem)
    batch = next(problem.batches())
    assert not np.array_equal(*(built.loss_fn(built.model, batch, True) for _ in range(2)))
    state = [v.numpy() for norm in built.model.norms for v in norm.statistics.variables]
    np.testing.assert_array_equal(*(built.loss_fn(built.model, batch, False) for _ in range(2)))
    built.evaluate(problem.validation)
    after = [v.numpy() for norm in built.model.norms for v in norm.statistics.variables]
    np.testing.assert_array_equal(np.concatenate(after), np.concatenate(state))

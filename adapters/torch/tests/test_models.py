"""Models of the built-in tasks against NumPy, closed forms and autograd."""

import math
from importlib import import_module

import attrs
import numpy as np
import pytest
import torch

from hybridcore.errors import TaskError
from hybridcore.tasks import BUILTIN
from hybridcore.tasks.convection_pinn import ConvectionPinn
from hybridcore.tasks.digits_mlp import DigitsMlp
from hybridcore.tasks.mnist_cnn import MnistCnn
from hybridcore.tasks.poisson_pinn import PoissonPinn
from hybridcore.tasks.precision import in_float64
from hybridcore.tasks.stdlib_gpt import StdlibGpt
from hybridcore_torch.models import build_model
from hybridcore_torch.models.pinn import TanhNetwork

TINY = {"depth": 1, "width": 16, "heads": 2, "max_bytes": 500_000, "pretrain_steps": 10}
SMALL = {
    "stdlib-gpt": {"depth": 2, "width": 32, "max_bytes": 500_000},
    "mnist-mlp": {"width": 64},
    "mnist-cnn": {"filters": 4},
    "poisson-pinn": {"points": 128, "edge_points": 32},
    "convection-pinn": {"points": 128, "edge_points": 32},
    "lora-gpt": TINY,
    "finetune-gpt": TINY,
}


def _load(path):
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


CLASSES = [_load(path) for path in BUILTIN]
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
    losses = built.loss_fn(built.model, (inputs, classes))
    assert losses.detach().numpy() == pytest.approx(expected, abs=1e-5)


def test_cnn_equals_a_numpy_forward_in_evaluation_mode():
    problem = _problem(MnistCnn, filters=2, batch_size=2)
    built = build_model(problem)
    built.model.eval()
    images, _ = next(problem.batches())
    weights = {name: array.astype(np.float64) for name, array in problem.weights.items()}
    hidden = images[:, None].astype(np.float64)
    for index in range(2):
        padded = np.pad(hidden, ((0, 0), (0, 0), (1, 1), (1, 1)))
        patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        convolved = np.einsum("nchwij,fcij->nfhw", patches, weights[f"convolutions.{index}.weight"])
        active = np.maximum(convolved / math.sqrt(1 + 1e-5), 0.0)
        n, f, h, w = active.shape
        hidden = active.reshape(n, f, h // 2, 2, w // 2, 2).max(axis=(3, 5))
    expected = hidden.reshape(2, -1) @ weights["head.weight"].T + weights["head.bias"]
    logits = built.model(torch.from_numpy(images)).detach().numpy()
    assert logits == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("smooth", [False, True])
def test_f89_every_weight_of_the_cnn_has_a_gradient(smooth):
    """Far above float64's rounding, which is all that a bias before batch norm would have: 1e-17."""
    problem = in_float64(_problem(MnistCnn, smooth=smooth))
    built = build_model(problem)
    built.loss_fn(built.model, next(problem.batches())).mean().backward()
    for name, param in built.model.named_parameters():
        assert param.grad.abs().max() > 1e-5, name


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
    losses = built.loss_fn(built.model, (tokens, targets)).detach().numpy()
    assert losses == pytest.approx(-np.log(picked).mean(axis=1), rel=1e-4)


def test_transformer_sees_no_later_token():
    problem = _problem(StdlibGpt)
    model = build_model(problem).model
    tokens = torch.from_numpy(next(problem.batches())[0][:2])
    changed = tokens.clone()
    changed[:, 40] = (changed[:, 40] + 1) % 256
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :40], after[:, :40])
    assert not torch.allclose(before[:, 40:], after[:, 40:])


def test_one_tanh_unit_has_its_closed_form_laplacian():
    network = TanhNetwork((2, 1, 1)).double()
    with torch.no_grad():
        for parameter, values in zip(
            network.parameters(), ([[1.5, -0.5]], [0.2], [[3.0]], [7.0]), strict=True
        ):
            parameter.copy_(torch.tensor(values))
    points = torch.rand(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    value, laplacian = network.laplacian(points)
    t = np.tanh(points.numpy() @ [1.5, -0.5] + 0.2)
    assert value.detach().numpy() == pytest.approx(3 * t + 7)
    assert laplacian.detach().numpy() == pytest.approx(3 * (1.5**2 + 0.5**2) * -2 * t * (1 - t**2))


def test_forward_laplacian_equals_nested_autograd():
    network = TanhNetwork((2, 16, 16, 1)).double()
    points = torch.rand(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    points.requires_grad_()
    value = network(points)
    (gradient,) = torch.autograd.grad(value.sum(), points, create_graph=True)
    second = [
        torch.autograd.grad(gradient[:, axis].sum(), points, retain_graph=True)[0][:, axis] for axis in (0, 1)
    ]
    forward_value, forward_laplacian = network.laplacian(points.detach())
    assert torch.allclose(forward_value, value)
    assert torch.allclose(forward_laplacian, second[0] + second[1])


def test_forward_derivative_equals_autograd():
    network = TanhNetwork((2, 16, 16, 1)).double()
    points = torch.rand(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    points.requires_grad_()
    value = network(points)
    (gradient,) = torch.autograd.grad(value.sum(), points)
    forward_value, slope = network.derivative(points.detach(), (7.0, 1.0))
    assert torch.allclose(forward_value, value)
    assert torch.allclose(slope, 7.0 * gradient[:, 0] + gradient[:, 1])


def test_convection_losses_average_to_the_stated_loss():
    """Residual by autograd, initial value and periodicity as they are written down."""
    problem = _problem(ConvectionPinn, beta=5.0, boundary_weight=7.0)
    built = build_model(problem)
    batch = next(problem.batches())
    interior, start, value, left, right = map(torch.from_numpy, batch)
    interior = interior.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(built.model(interior).sum(), interior)
    residual = gradient[:, 1] + 5.0 * gradient[:, 0]
    stated = residual.square().mean() + 7.0 * (
        (built.model(start) - value).square().mean()
        + (built.model(left) - built.model(right)).square().mean()
    )
    assert built.loss_fn(built.model, batch).mean().item() == pytest.approx(stated.item(), rel=1e-5)


def test_the_travelling_wave_itself_has_no_loss():
    class Wave(TanhNetwork):
        def forward(self, points):
            return torch.sin(points[:, 0] - 10.0 * points[:, 1])

        def derivative(self, points, direction):
            slope = torch.cos(points[:, 0] - 10.0 * points[:, 1])
            return self.forward(points), direction[0] * slope - 10.0 * direction[1] * slope

    problem = _problem(ConvectionPinn)
    metrics = build_model(problem).evaluate(Wave((2, 1)), problem.validation)
    assert metrics["loss"] < 1e-9
    assert metrics["relative_l2"] < 1e-5


@pytest.mark.parametrize("waves", [1, 2])
def test_exact_solution_has_no_residual(waves):
    """The task's source term and edge values fit the solution, its Laplacian taken by autograd."""
    problem = _problem(PoissonPinn, waves=waves)
    interior, source, edge, value, exact = map(torch.from_numpy, problem.validation[0])
    points = interior.clone().requires_grad_()
    sines = torch.sin(waves * math.pi * points)
    solution = sines[:, 0] * sines[:, 1]
    (gradient,) = torch.autograd.grad(solution.sum(), points, create_graph=True)
    second = [
        torch.autograd.grad(gradient[:, axis].sum(), points, retain_graph=True)[0][:, axis] for axis in (0, 1)
    ]
    scale = float(source.abs().max())
    assert float((second[0] + second[1] + source).abs().max()) < 1e-6 * scale
    assert float((torch.sin(waves * math.pi * edge).prod(dim=1) - value).abs().max()) < 1e-6
    assert torch.allclose(solution.detach(), exact, atol=1e-6)


def test_exact_network_has_no_loss():
    """With the solution itself in place of the network, loss and error vanish to float32 accuracy."""

    class Exact(TanhNetwork):
        def forward(self, points):
            return torch.sin(math.pi * points).prod(dim=1)

        def laplacian(self, points):
            value = self.forward(points)
            return value, -2.0 * math.pi**2 * value

    problem = _problem(PoissonPinn)
    built = build_model(problem)
    metrics = built.evaluate(Exact((2, 1)), problem.validation)
    assert metrics["loss"] < 1e-9
    assert metrics["relative_l2"] < 1e-6


def test_pinn_losses_average_to_the_stated_loss():
    problem = _problem(PoissonPinn, boundary_weight=7.0)
    built = build_model(problem)
    batch = next(problem.batches())
    interior, source, edge, value = map(torch.from_numpy, batch)
    _, laplacian = built.model.laplacian(interior)
    stated = (laplacian + source).square().mean() + 7.0 * (built.model(edge) - value).square().mean()
    losses = built.loss_fn(built.model, batch)
    assert losses.shape == (128 + 32,)
    assert losses.mean().item() == pytest.approx(stated.item(), rel=1e-5)


@tasks
def test_weights_are_the_problems_own(cls):
    problem = _problem(cls, seed=3)
    model = build_model(problem).model
    parameters = dict(model.named_parameters())
    assert parameters.keys() == problem.weights.keys()
    for name, parameter in parameters.items():
        assert np.array_equal(parameter.detach().numpy(), problem.weights[name])
        assert not np.shares_memory(parameter.detach().numpy(), problem.weights[name])


@tasks
def test_building_leaves_the_global_rng_alone(cls):
    problem = _problem(cls)
    before = torch.get_rng_state()
    build_model(problem)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_that_do_not_fit_are_all_named():
    problem = _problem(DigitsMlp)
    weights = dict(problem.weights)
    weights["layers.9.weight"] = weights.pop("layers.0.weight")
    weights["layers.1.bias"] = weights["layers.1.bias"][:5]
    with pytest.raises(TaskError) as caught:
        build_model(attrs.evolve(problem, weights=weights))
    for name in ("layers.9.weight", "layers.0.weight", "layers.1.bias"):
        assert name in str(caught.value.got)


def test_unknown_model_is_an_error():
    with pytest.raises(TaskError, match="does not know the model"):
        build_model(attrs.evolve(_problem(DigitsMlp), model="perceiver"))


@tasks
def test_initial_loss_is_that_of_a_uniform_guess(cls):
    problem = _problem(cls)
    built = build_model(problem)
    loss = built.evaluate(built.model, problem.validation)["loss"]
    if cls is PoissonPinn:
        # A solution near zero leaves the source term: mean square of 2 pi^2 sin sin is pi^4.
        assert 0.5 * math.pi**4 < loss < 2 * math.pi**4
    elif cls is ConvectionPinn:
        # Somewhere near that of a flat solution: the initial value alone leaves 1/2.
        assert 0.4 < loss < 40
    elif "gpt" in cls.name and cls is not StdlibGpt:
        assert loss < math.log(256) - 0.1, "it starts from a trained base"
    else:
        assert loss == pytest.approx(math.log(256 if cls is StdlibGpt else 10), rel=0.03)


@tasks
def test_metrics_are_means_over_examples(cls):
    problem = _problem(cls)
    built = build_model(problem)
    built.model.eval()
    metrics = built.evaluate(built.model, iter(problem.validation))
    losses = torch.cat([built.loss_fn(built.model, batch) for batch in problem.validation])
    assert tuple(metrics) == problem.metrics
    assert metrics["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)


def test_evaluation_leaves_modes_and_buffers_alone():
    problem = _problem(MnistCnn)
    built = build_model(problem)
    built.model.train()
    built.model.norms[0].eval()
    before = {name: value.clone() for name, value in built.model.state_dict().items()}
    built.evaluate(built.model, problem.validation)
    assert built.model.training
    assert not built.model.norms[0].training
    assert built.model.norms[1].training
    for name, value in built.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_dropout_acts_in_training_only():
    problem = _problem(MnistCnn, dropout=0.5)
    built = build_model(problem)
    batch = next(problem.batches())
    assert not torch.equal(built.loss_fn(built.model, batch), built.loss_fn(built.model, batch))
    built.model.eval()
    assert torch.equal(built.loss_fn(built.model, batch), built.loss_fn(built.model, batch))


@tasks
def test_a_few_steps_lower_the_validation_loss(cls):
    problem = _problem(cls)
    built = build_model(problem)
    rate = {PoissonPinn: 1e-4, ConvectionPinn: 1e-3}.get(cls, 0.1)
    optimizer = torch.optim.SGD([p for p in built.model.parameters() if p.requires_grad], lr=rate)
    before = built.evaluate(built.model, problem.validation)["loss"]
    stream = problem.batches()
    for _ in range(15):
        optimizer.zero_grad()
        built.loss_fn(built.model, next(stream)).mean().backward()
        optimizer.step()
    assert built.evaluate(built.model, problem.validation)["loss"] < before

"""Models of the recipes in PyTorch, with the initial weights of the library that each recipe comes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.recipes.catalogue import Recipe
from hybridcore.tasks.lora_gpt import LoraGpt
from hybridcore.tasks.pretrained import FineTuningOptions, base_weights
from hybridcore_torch.models import build_model
from hybridcore_torch.models.built import BuiltModel, as_tensors, classification, evaluation_mode
from hybridcore_torch.models.mlp import Mlp
from hybridcore_torch.models.pinn import TanhNetwork
from hybridcore_torch.models.transformer import Transformer, language_model

__all__ = ["MODELS", "build", "derivatives"]

VISCOSITY = 0.01 / math.pi
"""Of DeepXDE's Burgers equation."""


def build(recipe: Recipe, seed: int) -> BuiltModel:
    """The recipe's model on the CPU; the seed decides its weights, PyTorch's own RNG is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[recipe.model](recipe, seed)


def _glorot(model: nn.Module, biases: bool = False) -> nn.Module:
    """Keras' initial weights, Glorot uniform and zero biases; with `biases` those of scikit-learn."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if biases:
                fan_out, fan_in = module.weight.shape[:2]
                bound = math.sqrt(6.0 / (fan_in + fan_out))
                nn.init.uniform_(module.bias, -bound, bound)
            else:
                nn.init.zeros_(module.bias)
    return model


def _mlp(recipe: Recipe, seed: int) -> BuiltModel:
    return classification(nn.Sequential(nn.Flatten(), Mlp(recipe.options["widths"])))


def _keras_mlp(recipe: Recipe, seed: int) -> BuiltModel:
    layers = (nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))
    return classification(_glorot(nn.Sequential(*layers)))


def _sklearn_mlp(recipe: Recipe, seed: int) -> BuiltModel:
    layers = (nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    return classification(_glorot(nn.Sequential(*layers), biases=True))


def _lenet(recipe: Recipe, seed: int) -> BuiltModel:
    convolutions = (nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU())
    dense = (nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10))
    image = nn.Unflatten(1, (1, 28))
    return classification(nn.Sequential(image, *convolutions, nn.MaxPool2d(2), nn.Flatten(), *dense))


def _mnist_net(recipe: Recipe, seed: int) -> BuiltModel:
    convolutions = (nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2))
    dense = (nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10))
    return classification(nn.Sequential(nn.Unflatten(1, (1, 28)), *convolutions, nn.Dropout(0.25), *dense))


def _keras_cnn(recipe: Recipe, seed: int) -> BuiltModel:
    first = (nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2))
    second = (nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2))
    head = (nn.Flatten(), nn.Dropout(0.5), nn.Linear(1600, 10))
    return classification(_glorot(nn.Sequential(nn.Unflatten(1, (1, 28)), *first, *second, *head)))


def _nanogpt(recipe: Recipe, seed: int) -> BuiltModel:
    """nanoGPT's model: no biases, the head tied to the token embedding, deviation 0.02."""
    depth = 4
    model = Transformer(vocabulary=65, context=64, width=128, depth=depth, heads=4)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            residual = name.endswith(("attention.out.weight", "mlp.down.weight"))
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * depth) if residual else 0.02)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.LayerNorm):
            module.bias = None
    model.head.weight = model.token_embedding.weight
    return language_model(model)


def _finetune(recipe: Recipe, seed: int) -> BuiltModel:
    options = FineTuningOptions()
    model = Transformer(**options.shape)
    weights = {name: torch.from_numpy(array.copy()) for name, array in base_weights(options).items()}
    model.load_state_dict(weights)
    return language_model(model)


def _lora(recipe: Recipe, seed: int) -> BuiltModel:
    options = LoraGpt.Config(rank=recipe.options["rank"], alpha=recipe.options["alpha"])
    return build_model(LoraGpt(options).problem(seed))


def _squares(
    model: nn.Module, residuals: Callable[[nn.Module, Any], Tensor], *, expose: bool = True
) -> BuiltModel:
    """A least-squares problem: losses are squared residuals."""

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        return residuals(model, batch).square()

    return BuiltModel(model, loss_fn, _mean_of(loss_fn), residuals if expose else None)


def _mean_of(loss_fn: Callable[[nn.Module, Any], Tensor]) -> Callable[..., dict[str, float]]:
    def evaluate(model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
        with evaluation_mode(model):
            losses = torch.cat([loss_fn(model, batch) for batch in batches])
        return {"loss": float(losses.mean())}

    return evaluate


class _Cubic(nn.Module):
    """``a + b x + c x^2 + d x^3``."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.stack([x, x**2, x**3], dim=1)).squeeze(1)


def _polynomial(recipe: Recipe, seed: int) -> BuiltModel:
    def residuals(model: nn.Module, batch: Any) -> Tensor:
        x, y = as_tensors(model, batch)
        return model(x) - y

    return _squares(_Cubic(), residuals)


def _regression(recipe: Recipe, seed: int) -> BuiltModel:
    model = _glorot(
        nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    )

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        x, y = as_tensors(model, batch)
        return (model(x).squeeze(1) - y).abs()

    return BuiltModel(model, loss_fn, _mean_of(loss_fn))


def derivatives(model: TanhNetwork, points: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values u, u_x, u_xx and u_t, each (n,), at points (n, 2) of x and t.

    One forward pass carries all four through every layer, as `TanhNetwork.laplacian` does for their sum.
    """
    linear = nn.functional.linear
    hidden, weight = model.layers[0](points), model.layers[0].weight
    # Two rows, x and t; a linear map without its bias acts on derivatives alike.
    slopes = weight.t().unsqueeze(1).expand(2, len(points), -1)
    bend: Tensor | None = None
    for layer in model.layers[1:]:
        value = torch.tanh(hidden)
        inner = 1.0 - value * value
        curved = (-2.0 * value) * slopes[0].square()
        bend = linear(inner * (curved if bend is None else bend + curved), layer.weight)
        slopes = linear(inner * slopes, layer.weight)
        hidden = layer(value)
    assert bend is not None
    along, rate = slopes.squeeze(2)
    return hidden.squeeze(1), along, bend.squeeze(1), rate


def _burgers(recipe: Recipe, seed: int) -> BuiltModel:
    """``u_t + u u_x = nu u_xx``, ``u(x, 0) = -sin(pi x)``, ``u = 0`` at both walls: a sum of three means."""
    model = TanhNetwork((2, 20, 20, 20, 1))
    for layer in model.layers:
        nn.init.xavier_normal_(layer.weight)
        nn.init.zeros_(layer.bias)

    def residuals(model: nn.Module, batch: Any) -> Tensor:
        points, wall, start = as_tensors(model, batch)
        value, slope, bend, rate = derivatives(model, points)
        parts = (
            rate + value * slope - VISCOSITY * bend,
            model(wall),
            model(start) + torch.sin(math.pi * start[:, 0]),
        )
        total = sum(len(part) for part in parts)
        return torch.cat([part * math.sqrt(total / len(part)) for part in parts])

    return _squares(model, residuals)


MODELS: dict[str, Callable[[Recipe, int], BuiltModel]] = {
    "mlp": _mlp,
    "keras-mlp": _keras_mlp,
    "sklearn-mlp": _sklearn_mlp,
    "lenet": _lenet,
    "mnist-net": _mnist_net,
    "keras-cnn": _keras_cnn,
    "nanogpt": _nanogpt,
    "finetune": _finetune,
    "lora": _lora,
    "polynomial": _polynomial,
    "regression": _regression,
    "burgers": _burgers,
}
"""Name to builder."""

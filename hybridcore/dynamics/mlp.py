"""Dynamics model `mlp`: an ensemble of perceptrons that take the horizon as an input."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from types import ModuleType
from typing import Any, ClassVar

import attrs
import numpy as np

from hybridcore.config import between, choice
from hybridcore.dynamics.adam import Adam, to_numpy
from hybridcore.dynamics.base import CALL, DynamicsOptions, Floats, Forecast, OnlineModel, Singles
from hybridcore.dynamics.layers import (
    ACTIVATIONS,
    LOG_VARIANCE,
    Array,
    Arrays,
    dense,
    dense_backward,
    gaussian_nll,
    initial,
)
from hybridcore.protocols import API_VERSION

__all__ = ["Mlp", "MlpOptions", "mlp_forward", "mlp_loss", "mlp_weights"]


def _widths(instance: Any, attribute: Any, value: Any) -> None:
    for width in value:
        between(1)(instance, attribute, width)


@attrs.frozen(kw_only=True)
class MlpOptions(DynamicsOptions):
    """Table ``[dynamics.mlp]``.

    Attributes:
        hidden: Widths of the hidden layers; an empty list is a linear model.
        activation: Their non-linearity.
        dropout: Probability that a hidden unit is left out in training.
        l2: Penalty ``l2 / 2 * |w|^2`` on weights, biases apart.
        members: Networks in the ensemble; they differ in initial weights, order of data and output layer.
        batch: Examples per update and member.
        learning_rate: Step size of Adam.
    """

    hidden: tuple[int, ...] = attrs.field(default=(32, 32), validator=_widths)
    activation: str = attrs.field(default="gelu", validator=choice(*ACTIVATIONS))
    dropout: float = attrs.field(default=0.05, validator=between(0.0, 1.0, high_open=True))
    l2: float = attrs.field(default=1e-4, validator=between(0.0))
    members: int = attrs.field(default=3, validator=between(2))
    batch: int = attrs.field(default=64, validator=between(1))
    learning_rate: float = attrs.field(default=3e-3, validator=between(0.0, low_open=True))


class Mlp(OnlineModel):
    """Each member maps [features, action, log2 horizon] to mean and log variance of the normalised loss.

    Trained with the Gaussian negative log-likelihood (Nix & Weigend 1994) on observations drawn from the
    replay, for each member on its own. The variance between the members' means is the epistemic part, the
    mean of their variances the aleatoric one (deep ensembles, Lakshminarayanan et al. 2017).

    Example:
        >>> Mlp(MlpOptions(hidden=(8,))).horizons
        (1, 2, 4, 8, 16)
    """

    name: ClassVar[str] = "mlp"
    api_version: ClassVar[int] = API_VERSION
    Config: ClassVar[type] = MlpOptions
    options: MlpOptions

    def __init__(self, config: MlpOptions | None = None) -> None:
        super().__init__(config or MlpOptions())

    def _build(self, features: int, actions: int, rng: np.random.Generator) -> None:
        o = self.options
        self._streams = rng.spawn(o.members)
        self._adam = Adam(o.learning_rate)
        widths = (features + actions + 1, *o.hidden, 2)
        self._params = {n: self.xp.asarray(a) for n, a in mlp_weights(widths, o.members, rng).items()}
        self._layers = len(widths) - 1
        self._macs = sum(a * b for a, b in pairwise(widths))

    def _learn(self, end: int) -> bool:
        first, batch = self._replay.first, self.options.batch
        if end - first < 2:
            return False
        rows = []
        for stream in self._streams:
            starts = stream.integers(first, end, batch)
            # The horizons reach no further than what is known.
            limit = np.log2(np.minimum(end - starts, self.options.longest))
            ahead = np.exp2(stream.random(batch) * limit).round().astype(np.int64)[:, None]
            target, known = self._replay.targets(starts, ahead)
            x, a = self._replay.context(starts, 1)
            rows.append((self._inputs(x[:, 0], a[:, 0], ahead), target, known))
        inputs, target, known = (
            self.xp.asarray(np.stack(part).astype(np.float32)) for part in zip(*rows, strict=True)
        )
        masks = self._masks(batch)
        o = self.options
        _, gradients = mlp_loss(self._params, inputs, target, known, o.activation, o.l2, masks, self.xp)
        self._params = self._adam(self._params, gradients, self.xp)
        return True

    def _masks(self, batch: int) -> list[Array]:
        """Inverted dropout (Srivastava et al. 2014): kept units are scaled up."""
        keep = 1.0 - self.options.dropout
        if keep == 1.0:
            return []
        return [
            self.xp.asarray(
                np.stack([(s.random((batch, width)) < keep) / keep for s in self._streams]).astype(np.float32)
            )
            for width in self.options.hidden
        ]

    def _forecast(self, features: Singles, actions: Singles, horizon: int) -> Forecast:
        count, members = len(features), self.options.members
        ahead = np.arange(1, horizon + 1)
        x = np.repeat(features[:, -1], horizon, axis=0)
        a = np.repeat(actions[:, -1], horizon, axis=0)
        inputs = self._inputs(x, a, np.tile(ahead, count)[:, None]).astype(np.float32)
        out = self.xp.asarray(np.broadcast_to(inputs, (members, *inputs.shape)).copy())
        out, _ = _forward(self._params, out, self.options.activation, [], self.xp)
        values = to_numpy(out).astype(np.float64).reshape(members, count, horizon, 2)
        noise = np.exp(LOG_VARIANCE * np.tanh(values[..., 1] / LOG_VARIANCE)).mean(axis=0)
        beyond = np.maximum(ahead / self.options.longest, 1.0)
        mean = values[..., 0]
        return Forecast(mean.mean(axis=0), beyond * mean.var(axis=0, ddof=1), beyond * noise)

    def _inputs(self, features: Any, actions: Any, ahead: Any) -> Floats:
        reach = np.log2(np.minimum(ahead, self.options.longest)) / np.log2(self.options.longest)
        return np.concatenate([features, actions, reach], axis=-1, dtype=np.float64)

    @property
    def flops_per_update(self) -> float:
        """Products of one batch, and Adam; about 60 calls per layer and 25 per member."""
        o = self.options
        calls = 60 * self._layers + 25 * o.members
        return float(o.members * self._macs * (6.0 * o.batch + 12.0) + calls * CALL)

    def _model_bytes(self) -> int:
        return 3 * 4 * sum(int(np.prod(a.shape)) for a in self._params.values())

    def _model_state(self) -> dict[str, Any]:
        return {
            "params": {n: to_numpy(a) for n, a in self._params.items()},
            "adam": self._adam.state_dict(),
            "streams": [s.bit_generator.state for s in self._streams],
        }

    def _load_model_state(self, state: Mapping[str, Any]) -> None:
        self._params = {n: self.xp.asarray(np.array(a)) for n, a in state["params"].items()}
        self._adam.load_state_dict(state["adam"], self.xp)
        for stream, saved in zip(self._streams, state["streams"], strict=True):
            stream.bit_generator.state = saved


def mlp_weights(widths: tuple[int, ...], members: int, rng: np.random.Generator) -> dict[str, Any]:
    """Weights ``w0, b0, w1, ...`` of layers of these widths, other ones for each member."""
    params: dict[str, Any] = {}
    for k, (n_in, n_out) in enumerate(pairwise(widths)):
        params[f"w{k}"] = initial(members, n_in, n_out, rng, 2.0**0.5 if k < len(widths) - 2 else 0.5)
        params[f"b{k}"] = np.zeros((members, 1, n_out), np.float32)
    return params


def mlp_loss(
    params: Arrays,
    inputs: Array,
    target: Array,
    weight: Array,
    activation: str,
    l2: float,
    masks: list[Array],
    xp: ModuleType,
) -> tuple[Array, Arrays]:
    """Sum over members of the mean negative log-likelihood and the l2 penalty, and its gradient.

    Args:
        params: As `mlp_weights` makes them.
        inputs: Shape (members, batch, n).
        target: Shape (members, batch, 1).
        weight: 1 where a target counts, 0 where not; shape of `target`.
        activation: A key of `ACTIVATIONS`.
        l2: Penalty.
        masks: One dropout mask per hidden layer, or none.
        xp: Array namespace.
    """
    out, kept = _forward(params, inputs, activation, masks, xp)
    share = weight / xp.maximum(xp.sum(weight, axis=1, keepdims=True), xp.ones_like(weight[:, :1, :]))
    losses, d_mean, d_raw, _ = gaussian_nll(out[..., :1], out[..., 1:], target, share, xp)
    total = xp.sum(losses)
    gradients: Arrays = {}
    back = xp.concat([d_mean, d_raw], axis=-1)
    for k in range(len(kept) - 1, -1, -1):
        x, slope = kept[k]
        w = params[f"w{k}"]
        back, dw, gradients[f"b{k}"] = dense_backward(back, x, w, xp)
        gradients[f"w{k}"] = dw + l2 * w
        total = total + 0.5 * l2 * xp.sum(w * w)
        if slope is not None:
            back = back * slope
    return total, gradients


def mlp_forward(params: Arrays, x: Array, activation: str, xp: ModuleType) -> Array:
    """Outputs without dropout, shape (members, batch, n_out)."""
    return _forward(params, x, activation, [], xp)[0]


def _forward(
    params: Arrays, x: Array, activation: str, masks: list[Array], xp: ModuleType
) -> tuple[Array, list[tuple[Array, Array | None]]]:
    """Output, and for each layer its input with the derivative of that input to what it was made from."""
    layers, slope, kept = len(params) // 2, None, []
    for k in range(layers):
        kept.append((x, slope))
        x = dense(x, params[f"w{k}"], params[f"b{k}"], xp)
        if k < layers - 1:
            x, slope = ACTIVATIONS[activation](x, xp)
            if masks:
                x, slope = x * masks[k], slope * masks[k]
    return x, kept

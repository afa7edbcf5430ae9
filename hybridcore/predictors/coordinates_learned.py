"""Networks as models of a trajectory's coordinates: the cores of the dynamics models `mlp` and `rssm`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import array_api_compat.numpy as xp
import numpy as np
from numpy.typing import NDArray

from hybridcore.dynamics.adam import Adam
from hybridcore.dynamics.categorical import gumbel
from hybridcore.dynamics.mlp import mlp_forward, mlp_loss, mlp_weights
from hybridcore.dynamics.state_space import Objective, Sizes, StateSpace

__all__ = ["MlpCoordinates", "RssmCoordinates"]

Matrix = NDArray[np.float64]
MEMBERS = 2
"""Networks whose mean is taken."""


class _Learned(ABC):
    """What both share: displacements in units of the longest one, a base forecast, parameters kept.

    Each coordinate's displacements ``y_1 .. y_n`` are one sequence; all coordinates, with either sign, share
    one network, so that what it learns does not depend on the basis, which is made anew for each prediction.
    Training goes on from fit to fit.

    Args:
        order: Displacements that the model looks back on.
        ridge: Penalty on the network's weights: towards a straight continuation.
    """

    updates: int
    rate: float

    def __init__(self, order: int, ridge: float) -> None:
        self._order, self._ridge = order, ridge
        self._rng = np.random.default_rng(0)
        self._adam = Adam(self.rate)
        self._scale = 1.0
        self._steps: Matrix = np.zeros((1, 1))
        self._params: dict[str, Any] = self._fresh()

    @abstractmethod
    def _fresh(self) -> dict[str, Any]:
        """New parameters."""

    @abstractmethod
    def _train(self, paths: Matrix) -> None:
        """Learn from sequences of shape (sequences, n)."""

    @abstractmethod
    def _follow(self, paths: Matrix, count: int) -> Matrix:
        """The next `count` displacements of each sequence, shape (sequences, count)."""

    def fit(self, steps: Matrix) -> float:
        """Learn from all displacements; the quality is measured before the newest is learned from."""
        self._steps = steps
        self._scale = float(np.sqrt(np.max(np.sum(steps**2, axis=1)))) or 1.0
        paths = steps.T / self._scale
        paths = np.concatenate([paths, -paths])  # a direction's sign means nothing
        if len(steps) < 3 or not steps.any():
            return 0.0
        self._train(paths[:, :-1])
        newest = paths[:, -1]
        miss = self._follow(paths[:, :-1], 1)[:, 0] - newest
        self._train(paths)
        size = float(newest @ newest)
        return max(0.0, 1.0 - float(miss @ miss) / size) if size > 0.0 else 0.0

    def extrapolate(self, windows: float) -> Matrix:
        """Follow the network; a share of a window takes that share of its displacement."""
        back: Matrix = windows * self._steps[-1]
        if windows <= 0.0 or len(self._steps) < 3 or not self._steps.any():
            return back
        count = int(np.ceil(windows))
        ahead = self._scale * self._follow(self._steps.T / self._scale, count)
        # No displacement exceeds the longest one seen.
        ahead = ahead * np.minimum(1.0, self._scale / np.maximum(np.linalg.norm(ahead, axis=0), 1e-300))
        shares = np.minimum(1.0, windows - np.arange(count))
        moved: Matrix = ahead @ shares
        return moved

    def state_dict(self) -> dict[str, Any]:
        """Parameters, optimizer and generator; the displacements come anew with each fit."""
        return {
            "params": {n: np.array(a) for n, a in self._params.items()},
            "adam": self._adam.state_dict(),
            "rng": self._rng.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._params = {n: np.array(a) for n, a in state["params"].items()}
        self._adam.load_state_dict(state["adam"], xp)
        self._rng.bit_generator.state = state["rng"]


class MlpCoordinates(_Learned):
    """``y_{i+1} = y_i + f(y_i, ..., y_{i+1-p})`` with a perceptron f, trained by Adam on each fit.

    Example:
        >>> model = MlpCoordinates(1, 1e-6)
        >>> quality = model.fit(0.5 ** np.arange(6.0)[:, None])
        >>> bool(abs(model.extrapolate(1.0)[0] - 0.5**6) < 0.01)
        True
    """

    updates = 150
    rate = 0.01

    def _fresh(self) -> dict[str, Any]:
        return mlp_weights((self._order, 16, 2), MEMBERS, self._rng)

    def _train(self, paths: Matrix) -> None:
        order = min(self._order, paths.shape[1] - 1)
        rows = [self._inputs(paths[:, :end]) for end in range(order, paths.shape[1])]
        inputs = np.concatenate(rows)
        target = np.concatenate([paths[:, e] - paths[:, e - 1] for e in range(order, paths.shape[1])])
        x = np.broadcast_to(inputs, (MEMBERS, *inputs.shape)).astype(np.float32)
        y = np.broadcast_to(target[:, None], (MEMBERS, len(target), 1)).astype(np.float32)
        ones = np.ones_like(y)
        for k in range(self.updates):
            _, gradients = mlp_loss(self._params, x, y, ones, "tanh", self._ridge * 1e-2, [], xp)
            self._params = self._adam(self._params, gradients, xp, 1.0 - k / self.updates)

    def _follow(self, paths: Matrix, count: int) -> Matrix:
        for _ in range(count):
            inputs = np.broadcast_to(self._inputs(paths), (MEMBERS, len(paths), self._order))
            out = mlp_forward(self._params, inputs.astype(np.float32), "tanh", xp)
            paths = np.concatenate([paths, paths[:, -1:] + out[..., :1].mean(axis=0)], axis=1)
        return paths[:, -count:]

    def _inputs(self, paths: Matrix) -> Matrix:
        """The newest `order` displacements of each sequence, newest first; zeros before the first."""
        newest = paths[:, ::-1][:, : self._order]
        return np.pad(newest, ((0, 0), (0, self._order - newest.shape[1])))


class RssmCoordinates(_Learned):
    """A recurrent state-space model reads the displacements and goes on without them (see `StateSpace`).

    Its steps are changes of the displacement from the newest one seen; the forecast is the mean over draws.

    Example:
        >>> model = RssmCoordinates(2, 1e-6)
        >>> quality = model.fit(0.8 ** np.arange(6.0)[:, None])
        >>> bool(abs(model.extrapolate(1.0)[0] - 0.8**6) < 0.1)
        True
    """

    updates = 120
    rate = 0.01
    _draws = 16
    _sizes = Sizes(
        features=1, actions=1, deterministic=12, stochastic=2, classes=4, hidden=12, members=MEMBERS
    )
    _objective = Objective(free_nats=1.0, dynamics=0.5, representation=0.1, reconstruction=0.3, bptt=16)

    def _fresh(self) -> dict[str, Any]:
        params = self._sizes.weights(self._rng)
        params["head"] *= 0.0  # untrained, it goes straight on
        return params

    def _train(self, paths: Matrix) -> None:
        core, (rows, length) = StateSpace(self._sizes, xp), paths.shape
        context = max(0, min(self._order, length - 2) - 1) + 1
        ticks = length - 1
        shape = (ticks, MEMBERS, rows, 1)
        x = np.broadcast_to(paths.T[: context + 1, None, :, None], (context + 1, *shape[1:]))
        # Closed ticks foretell the next displacement from the newest; open ones, from the last one seen.
        last = paths.T[np.minimum(np.arange(ticks), context)]
        change = paths.T[1:] - last
        targets = np.sign(change) * np.log1p(np.abs(change))
        y = np.broadcast_to(targets[:, None, :, None], shape)
        weights = np.full(shape, 1.0 / (ticks * rows), np.float32)
        actions = np.zeros(shape, np.float32)
        for k in range(self.updates):
            noise = gumbel(self._rng, (ticks + context + 1, MEMBERS, rows, self._sizes.latent))
            data = (x.astype(np.float32), actions, y.astype(np.float32), weights, noise)
            _, gradients = core.loss(self._params, *data, context, self._objective)
            for name in self._sizes.shapes():
                gradients[name] = gradients[name] + self._ridge * 1e-2 * self._params[name]
            self._params = self._adam(self._params, gradients, xp, 1.0 - k / self.updates)

    def _follow(self, paths: Matrix, count: int) -> Matrix:
        core, draws = StateSpace(self._sizes, xp), np.random.default_rng(0)
        wide = np.repeat(paths, self._draws, axis=0)
        shape = (MEMBERS, len(wide), 1)

        def noise() -> Any:
            return gumbel(draws, (MEMBERS, len(wide), self._sizes.latent))

        def seen(k: int) -> Any:
            return np.broadcast_to(wide[:, k, None], shape).astype(np.float32)

        action = np.zeros(shape, np.float32)
        h, z, _ = core.start(self._params, seen(0), noise())
        for k in range(1, paths.shape[1]):
            h, _, _, _, _ = core.advance(self._params, h, z, action, noise(), seen(k - 1))
            z, _ = core.observe(self._params, h, seen(k), noise())
        moved, ahead = np.zeros(shape), []
        for _ in range(count):
            h, z, step, _, _ = core.advance(self._params, h, z, action, noise(), seen(-1))
            moved = moved + step
            ahead.append(moved.mean(axis=0).reshape(len(paths), self._draws).mean(axis=1) + paths[:, -1])
        return np.stack(ahead, axis=1)

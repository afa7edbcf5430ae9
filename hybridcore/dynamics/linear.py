"""Dynamics model `linear`: ridge regression per horizon, kept up to date recursively."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs
import numpy as np

from hybridcore.config import between
from hybridcore.dynamics.adam import to_numpy
from hybridcore.dynamics.base import CALL, DynamicsOptions, Floats, Forecast, OnlineModel, Singles
from hybridcore.protocols import API_VERSION

__all__ = ["Linear", "LinearOptions"]

CHUNK = 64
"""Observations that one update takes in."""


@attrs.frozen(kw_only=True)
class LinearOptions(DynamicsOptions):
    """Table ``[dynamics.linear]``.

    Attributes:
        l2: Ridge penalty on all weights but the constant, in observations' worth of squares.
        forgetting: Weight that an observation keeps with each newer one.
    """

    l2: float = attrs.field(default=1.0, validator=between(0.0, low_open=True))
    forgetting: float = attrs.field(default=0.998, validator=between(0.0, 1.0, low_open=True))


class Linear(OnlineModel):
    """Bayesian linear regression of the normalised loss ahead, one per horizon (powers of two).

    With regressors phi = [features, action, 1] and forgetting f, every observation does
    ``A <- f A + phi phi^T``, ``b <- f b + phi y``; then ``w = (A + l2 I)^-1 b``. The noise variance s^2 is a
    running mean of squared errors made before learning from them; the variance of the mean is
    ``s^2 phi^T (A + l2 I)^-1 phi`` (Bishop 2006, eq. 3.58), the epistemic part. Between its horizons the
    forecast is interpolated in log horizon; beyond the longest one it stays, and doubts grow in proportion.

    Example:
        >>> model = Linear(LinearOptions(l2=0.1))
        >>> model.horizons
        (1, 2, 4, 8, 16)
    """

    name: ClassVar[str] = "linear"
    api_version: ClassVar[int] = API_VERSION
    Config: ClassVar[type] = LinearOptions
    options: LinearOptions

    def __init__(self, config: LinearOptions | None = None) -> None:
        super().__init__(config or LinearOptions())

    def _build(self, features: int, actions: int, rng: np.random.Generator) -> None:
        size, count = features + actions + 1, len(self.horizons)
        self._squares = self.xp.zeros((count, size, size), dtype=self.xp.float64)
        self._products = self.xp.zeros((count, size, 1), dtype=self.xp.float64)
        penalty = self.options.l2 * np.eye(size)
        penalty[-1, -1] = 1e-6 * self.options.l2
        self._penalty = self.xp.asarray(penalty)
        self._noise = np.ones(count)
        self._known = np.zeros(count)
        self._next = np.zeros(count, np.int64)
        self._solve()

    def _solve(self) -> None:
        self._inverse = self.xp.linalg.inv(self._squares + self._penalty)
        self._weights = self.xp.matmul(self._inverse, self._products)

    def _learn(self, end: int) -> bool:
        xp, learned = self.xp, False
        squares, products = [], []
        for k, horizon in enumerate(self.horizons):
            start = max(int(self._next[k]), self._replay.first)
            stop = min(end - horizon + 1, start + CHUNK)
            a, b = self._squares[k, ...], self._products[k, ...]
            if stop > start:
                starts = np.arange(start, stop)
                y, known = self._replay.targets(starts, np.full((len(starts), 1), horizon))
                x, act = self._replay.context(starts, 1)
                phi = xp.asarray(self._regressors(x, act)[:, 0])
                target = xp.asarray(y)
                weight = self.options.forgetting ** np.arange(stop - start - 1, -1, -1.0)[:, None] * known
                self._hear_errors(k, to_numpy(target - xp.matmul(phi, self._weights[k, ...])), known)
                weighted = xp.matrix_transpose(phi * xp.asarray(weight))
                keep = self.options.forgetting ** (stop - start)
                a, b = keep * a + xp.matmul(weighted, phi), keep * b + xp.matmul(weighted, target)
                self._next[k], learned = stop, True
            squares.append(a)
            products.append(b)
        if learned:
            self._squares, self._products = xp.stack(squares), xp.stack(products)
            self._solve()
        return learned

    def _hear_errors(self, k: int, errors: Floats, known: Any) -> None:
        for error, is_known in zip(errors[:, 0], known[:, 0], strict=True):
            if is_known:
                self._known[k] += 1.0
                rate = max(1.0 - self.options.forgetting, 1.0 / self._known[k])
                self._noise[k] += rate * (float(error) ** 2 - self._noise[k])

    def _forecast(self, features: Singles, actions: Singles, horizon: int) -> Forecast:
        phi = self.xp.asarray(self._regressors(features, actions)[:, -1])
        mean = to_numpy(self.xp.matmul(phi, self._weights))[..., 0].T
        doubt = to_numpy(self.xp.sum(self.xp.matmul(phi, self._inverse) * phi, axis=-1)).T
        noise = np.maximum(self._noise, 1e-12)
        ahead = np.arange(1.0, horizon + 1.0)
        grid, logs = np.log2(self.horizons), np.log2(ahead)
        beyond = np.maximum(ahead / self.horizons[-1], 1.0)

        def between_horizons(values: Floats) -> Floats:
            return np.stack([np.interp(logs, grid, row) for row in values])

        aleatoric = np.broadcast_to(np.interp(logs, grid, noise), (len(mean), horizon))
        return Forecast(between_horizons(mean), beyond * between_horizons(doubt * noise), beyond * aleatoric)

    @staticmethod
    def _regressors(features: Any, actions: Any) -> Floats:
        ones = np.ones((*features.shape[:-1], 1))
        return np.concatenate([features, actions, ones], axis=-1, dtype=np.float64)

    @property
    def flops_per_update(self) -> float:
        """Products of the regressors of one chunk, and one inverse, for each horizon; about 40 calls each."""
        count, size, _ = self._squares.shape
        return float(count * (2.0 * CHUNK * size**2 + 2.0 * size**3 + 40 * CALL))

    def _model_bytes(self) -> int:
        count, size, _ = self._squares.shape
        return 8 * int(count * (2 * size**2 + 2 * size + 3) + size**2)

    def _model_state(self) -> dict[str, Any]:
        return {
            "squares": to_numpy(self._squares),
            "products": to_numpy(self._products),
            "noise": self._noise.copy(),
            "known": self._known.copy(),
            "next": self._next.copy(),
        }

    def _load_model_state(self, state: Mapping[str, Any]) -> None:
        self._squares = self.xp.asarray(np.array(state["squares"]))
        self._products = self.xp.asarray(np.array(state["products"]))
        penalty = self.options.l2 * np.eye(self._squares.shape[-1])
        penalty[-1, -1] = 1e-6 * self.options.l2
        self._penalty = self.xp.asarray(penalty)
        self._noise, self._known = np.array(state["noise"]), np.array(state["known"])
        self._next = np.array(state["next"], np.int64)
        self._solve()

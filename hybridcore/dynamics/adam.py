"""Adam on a dictionary of arrays."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from hybridcore.dynamics.layers import Arrays

__all__ = ["Adam", "to_numpy"]


def to_numpy(array: Any) -> Any:
    """NumPy copy of an array of any namespace, on any device that DLPack or `__array__` reaches."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
    elif hasattr(array, "get") and not isinstance(array, np.ndarray):
        array = array.get()
    return np.array(np.from_dlpack(array) if hasattr(array, "__dlpack__") else array)


class Adam:
    """Adam (Kingma & Ba 2015) with the gradient's norm limited per ensemble member.

    Args:
        rate: Step size.
        limit: Largest Euclidean norm of one member's gradient (Pascanu et al. 2013).

    Example:
        >>> import array_api_compat.numpy as xp
        >>> step = Adam(0.1)
        >>> params = {"w": xp.ones((1, 1, 1))}
        >>> round(float(step(params, {"w": 0.5 * xp.ones((1, 1, 1))}, xp)["w"][0, 0, 0]), 6)
        0.9
    """

    def __init__(self, rate: float, limit: float = 10.0) -> None:
        self._rate, self._limit = rate, limit
        self._first: Arrays = {}
        self._second: Arrays = {}
        self._steps = 0

    def __call__(self, params: Arrays, gradients: Arrays, xp: ModuleType, share: float = 1.0) -> Arrays:
        """The parameters after one step of this share of the rate; leaves its arguments as they are."""
        self._steps += 1
        b1, b2 = 0.9, 0.999
        correction = (1.0 - b2**self._steps) ** 0.5
        rate = share * self._rate * correction / (1.0 - b1**self._steps)
        norms = None
        for g in gradients.values():
            square = xp.sum(g * g, axis=(1, 2), keepdims=True)
            norms = square if norms is None else norms + square
        assert norms is not None
        # min(1, limit / norm) without dividing by zero
        shrink = self._limit / xp.maximum(xp.sqrt(norms), self._limit * xp.ones_like(norms))
        after = {}
        for name, value in params.items():
            g = gradients[name] * shrink
            m = (1.0 - b1) * g if name not in self._first else b1 * self._first[name] + (1.0 - b1) * g
            v = (1.0 - b2) * g * g
            if name in self._second:
                v = b2 * self._second[name] + v
            self._first[name], self._second[name] = m, v
            after[name] = value - rate * m / (xp.sqrt(v) + 1e-8 * correction)
        return after

    def state_dict(self) -> dict[str, Any]:
        """State as plain data and NumPy arrays."""
        return {
            "steps": self._steps,
            "first": {n: to_numpy(a) for n, a in self._first.items()},
            "second": {n: to_numpy(a) for n, a in self._second.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], xp: ModuleType) -> None:
        """Put back what `state_dict` gave."""
        self._steps = int(state["steps"])
        self._first = {n: xp.asarray(np.array(a)) for n, a in state["first"].items()}
        self._second = {n: xp.asarray(np.array(a)) for n, a in state["second"].items()}

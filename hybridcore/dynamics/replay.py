"""A ring of observations that models learn from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridcore.dynamics.level import symlog

__all__ = ["Replay"]

Floats = NDArray[np.float32]


class Replay:
    """The newest `capacity` observations, numbered from 0 as they came.

    Observation i holds the features x_i, the action a_i, the level and scale of the loss before it, and the
    loss one observation later. What lies `horizon` ahead of i is compared with loss number
    ``i + horizon - 1`` in the ring, that is the loss at time i + horizon (F15).

    Args:
        capacity: Observations kept.
        features: Length of the feature vector.
        actions: Length of the action vector.

    Example:
        >>> ring = Replay(4, 1, 1)
        >>> for t in range(6):
        ...     ring.add(np.zeros(1), np.zeros(1), level=10.0, scale=1.0, loss=10.0 + t + 1)
        >>> ring.first, ring.end
        (2, 6)
        >>> target, known = ring.targets(np.array([3]), np.array([[1, 2, 9]]))
        >>> np.expm1(target).round(4).tolist(), known.tolist()
        ([[4.0, 5.0, 0.0]], [[True, True, False]])
    """

    def __init__(self, capacity: int, features: int, actions: int) -> None:
        self.capacity = capacity
        self._features = np.zeros((capacity, features), np.float32)
        self._actions = np.zeros((capacity, actions), np.float32)
        self._numbers = np.zeros((capacity, 3), np.float64)
        self._path = np.zeros(capacity, np.int64)
        self._paths = 0
        self.end = 0

    @staticmethod
    def bytes_each(features: int, actions: int) -> int:
        """Bytes of one observation."""
        return 4 * (features + actions) + 3 * 8 + 8

    @property
    def first(self) -> int:
        """Number of the oldest observation kept."""
        return max(0, self.end - self.capacity)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self._features.nbytes + self._actions.nbytes + self._numbers.nbytes + self._path.nbytes

    def add(
        self, features: NDArray[Any], action: NDArray[Any], *, level: float, scale: float, loss: float
    ) -> None:
        """Remember one observation, forgetting the oldest where the ring is full."""
        place = self.end % self.capacity
        self._features[place] = features
        self._actions[place] = action
        self._numbers[place] = (level, scale, loss)
        self._path[place] = self._paths
        self.end += 1

    def interrupt(self) -> None:
        """Start a new path: nothing that follows is a consequence of what came before."""
        self._paths += 1

    def context(self, starts: NDArray[np.int64], length: int) -> tuple[Floats, Floats]:
        """Features and actions of the `length` observations that end with each start, oldest first.

        Places before the ring's oldest, or on another path, hold zeros.

        Returns:
            Arrays of shape (n, length, features) and (n, length, actions).
        """
        numbers = starts[:, None] + np.arange(1 - length, 1)
        kept = self._connected(starts[:, None], numbers)
        places = np.where(kept, numbers, starts[:, None]) % self.capacity
        mask = kept[..., None]
        return self._features[places] * mask, self._actions[places] * mask

    def ahead(self, starts: NDArray[np.int64], length: int) -> tuple[Floats, Floats]:
        """Features and actions of `length` observations from each start on; zeros where there are none."""
        numbers = starts[:, None] + np.arange(length)
        kept = self._connected(starts[:, None], numbers)
        places = np.where(kept, numbers, starts[:, None]) % self.capacity
        mask = kept[..., None]
        return self._features[places] * mask, self._actions[places] * mask

    def targets(
        self, starts: NDArray[np.int64], horizons: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """``symlog((loss_{i+j} - level_i) / scale_i)``; starts i of shape (n,), horizons j of shape (n, k).

        Returns:
            Targets, 0 where they are not known, and where they are known.
        """
        numbers = starts[:, None] + horizons - 1
        known = self._connected(starts[:, None], numbers)
        losses = self._numbers[np.where(known, numbers, starts[:, None]) % self.capacity, 2]
        level, scale = self.reference(starts)
        return symlog(np.where(known, (losses - level[:, None]) / scale[:, None], 0.0)), known

    def losses(self, numbers: NDArray[np.int64]) -> NDArray[np.float64]:
        """The loss that follows each observation."""
        found: NDArray[np.float64] = self._numbers[numbers % self.capacity, 2]
        return found

    def reference(self, starts: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Level and scale of the loss before each start."""
        rows = self._numbers[starts % self.capacity]
        return rows[:, 0], rows[:, 1]

    def connected(self, start: int, number: int) -> bool:
        """Whether both observations are kept and on one path."""
        return bool(self._connected(np.asarray(start), np.asarray(number)))

    def _connected(self, starts: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        inside = (numbers >= self.first) & (numbers < self.end)
        same = self._path[numbers % self.capacity] == self._path[starts % self.capacity]
        both: NDArray[np.bool_] = inside & same
        return both

    def state_dict(self) -> dict[str, Any]:
        """State as arrays and plain data."""
        return {
            "features": self._features.copy(),
            "actions": self._actions.copy(),
            "numbers": self._numbers.copy(),
            "path": self._path.copy(),
            "paths": self._paths,
            "end": self.end,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._features = np.array(state["features"], np.float32)
        self._actions = np.array(state["actions"], np.float32)
        self._numbers = np.array(state["numbers"], np.float64)
        self._path = np.array(state["path"], np.int64)
        self._paths, self.end = int(state["paths"]), int(state["end"])
        self.capacity = len(self._path)

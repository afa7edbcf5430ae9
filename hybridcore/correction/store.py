"""The residual store: a bounded memory of predictions and what became of them (F24, F25)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridcore.correction import storefile
from hybridcore.protocols import Residual

__all__ = ["ResidualStore"]

_VARIANCE_FLOOR = 1e-4
_SCALARS = 256
"""Bytes of an entry's scalars, about."""


class ResidualStore:
    """Residuals in the order in which they came; the oldest go when it is full.

    Similar situations are found by the Mahalanobis distance of their features: features are whitened with
    the covariance S of what is stored, ``d(x, y)^2 = (x - y)^T C^-1 (x - y)`` with
    ``C = n/(n + k) S + k/(n + k) diag(S)`` for n entries of k features. The shrinkage (Ledoit and Wolf,
    "A well-conditioned estimator for large-dimensional covariance matrices", 2004, with a fixed intensity)
    keeps C invertible while there are few entries.

    Args:
        capacity: Most entries kept.
        memory_bytes: Most bytes of all entries; the oldest go, all but one if need be (F51).

    Example:
        >>> from hybridcore.protocols import Situation
        >>> store = ResidualStore(capacity=2)
        >>> for step in range(3):
        ...     place = Situation(step, np.full(28, float(step)), "drift", 20.0, 1.0, -0.1)
        ...     store.add(Residual(place, realised_change=-0.05))
        >>> [r.situation.step for r in store], store.similar(np.full(28, 1.9), 1)[0][0].situation.step
        ([1, 2], 2)
    """

    def __init__(self, capacity: int = 1000, memory_bytes: float = math.inf) -> None:
        self._entries: deque[Residual] = deque(maxlen=capacity)
        self._memory_bytes = memory_bytes
        self._bytes = 0
        self._factor: NDArray[np.float64] | None = None
        self._white: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Residual]:
        return iter(self._entries)

    @property
    def capacity(self) -> int:
        """Most entries kept."""
        return self._entries.maxlen or 0

    def add(self, residual: Residual) -> None:
        """Append one; where the store is full, the oldest goes."""
        if len(self._entries) == self.capacity:
            self._bytes -= _nbytes(self._entries.popleft())
        self._entries.append(residual)
        self._bytes += _nbytes(residual)
        while self._bytes > self._memory_bytes and len(self._entries) > 1:
            self._bytes -= _nbytes(self._entries.popleft())
        self._white = None

    @property
    def nbytes(self) -> int:
        """Bytes of all entries: compressed weights, features twice (as they are and whitened), scalars."""
        return self._bytes

    def clear(self) -> None:
        """Forget all entries."""
        self._entries.clear()
        self._bytes = 0
        self._white = None

    def similar(
        self, features: NDArray[np.float64], n: int, predictor: str | None = None
    ) -> list[tuple[Residual, float]]:
        """The n entries whose features are nearest, nearest first; of equals, the newer first.

        Args:
            features: Shape (28,).
            n: Most entries wanted.
            predictor: Only entries of this predictor; all where None.

        Returns:
            Pairs of entry and whitened distance.
        """
        found = [i for i, r in enumerate(self._entries) if predictor in (None, r.situation.predictor)]
        if not found or n < 1:
            return []
        white = self._whitened()
        assert self._factor is not None
        rows = np.asarray(found)
        squares = ((white[rows] - self._factor @ features) ** 2).sum(axis=1)
        order = np.lexsort((-rows, squares))[:n]
        return [(self._entries[int(rows[i])], float(np.sqrt(squares[i]))) for i in order]

    def _whitened(self) -> NDArray[np.float64]:
        """Features in coordinates in which distances are Euclidean, shape (n, 28); cached."""
        if self._white is None:
            rows = np.stack([r.situation.features for r in self._entries])
            n, k = rows.shape
            covariance = np.cov(rows, rowvar=False, bias=True).reshape(k, k)
            variances = np.maximum(np.diag(covariance), _VARIANCE_FLOOR)
            mixed = n / (n + k) * covariance
            mixed[np.diag_indices(k)] = variances
            self._factor = np.linalg.inv(np.linalg.cholesky(mixed))
            self._white = rows @ self._factor.T
        return self._white

    def state_dict(self) -> dict[str, Any]:
        """State as plain data (``"header"``) and NumPy arrays by name (``"arrays"``)."""
        header, arrays = storefile.pack(list(self._entries))
        return {"header": header, "arrays": arrays}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave; of more entries than the capacity, the newest.

        Raises:
            StoreError: It was written for other features.
        """
        self.clear()
        for residual in storefile.unpack(state["header"], state["arrays"], "state"):
            self.add(residual)

    def save(self, folder: str | Path) -> None:
        """Write all entries into a folder; a reader sees the old store or the whole new one.

        Raises:
            StoreError: The folder cannot be written.
        """
        storefile.write(Path(folder), list(self._entries))

    def load(self, folder: str | Path) -> None:
        """Replace the entries by those of a folder; of more than the capacity, the newest.

        Raises:
            StoreError: There is none, it is damaged, or it was written for other features.
        """
        entries = storefile.read(Path(folder))
        self.clear()
        for residual in entries:
            self.add(residual)


def _nbytes(residual: Residual) -> int:
    weights = residual.weights.nbytes if residual.weights is not None else 0
    return weights + 2 * int(residual.situation.features.nbytes) + _SCALARS

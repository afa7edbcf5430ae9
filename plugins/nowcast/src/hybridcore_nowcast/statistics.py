"""What a tensor as a whole says about its recent path: scales, straightness, speed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

import attrs
import numpy as np
from numpy.typing import NDArray

from hybridcore.layout import Array
from hybridcore_nowcast.arrays import chunks, stack

__all__ = ["TensorStatistics", "context_size"]

_TINY = 1e-30


def context_size(snapshots: int) -> int:
    """Length of `TensorStatistics.context` for so many snapshots.

    Example:
        >>> context_size(5)
        10
    """
    return 2 * (snapshots - 2) + 4


@attrs.frozen
class TensorStatistics:
    """Statistics of one tensor's snapshots ``m_1 .. m_K`` with displacements ``d_i = m_{i+1} - m_i``.

    Attributes:
        size: Weights of the tensor.
        mean: Mean of the newest snapshot.
        std: Its standard deviation.
        speed: Root mean square of all displacements' elements, per snapshot spacing.
        gram: Inner products of the displacements, shape (K - 1, K - 1).
        known: Share of the K snapshots that were there and not made up.

    Example:
        >>> import array_api_compat.numpy as xp
        >>> path = [xp.asarray([0.0, 0.0]), xp.asarray([3.0, 4.0]), xp.asarray([6.0, 8.0])]
        >>> found = TensorStatistics.of(path, xp, chunk=1)
        >>> round(found.speed, 3), found.mean, found.gram.tolist()
        (3.536, 7.0, [[25.0, 25.0], [25.0, 25.0]])
    """

    size: int
    mean: float
    std: float
    speed: float
    gram: NDArray[np.float64]
    known: float = 1.0

    @classmethod
    def of(cls, snapshots: Sequence[Array], xp: ModuleType, chunk: int, count: int = 0) -> TensorStatistics:
        """Gather them in two passes, `chunk` weights at a time.

        Args:
            snapshots: 1-D arrays of equal length, oldest first.
            xp: Their array namespace.
            chunk: Most weights worked on at once.
            count: Snapshots that the network looks at, K; missing ones are made up, see `stack`.
        """
        size, pairs = int(snapshots[0].shape[0]), max(count, len(snapshots)) - 1
        mean = sum(float(xp.sum(snapshots[-1][part])) for part in chunks(size, chunk)) / size
        variance, gram = 0.0, np.zeros((pairs, pairs))
        for part in chunks(size, chunk):
            rows = stack(snapshots, part, xp, count)
            centred = rows[-1, :] - mean
            variance += float(xp.matmul(centred, centred)) / size
            steps = rows[1:, :] - rows[:-1, :]
            products = xp.matmul(steps, xp.matrix_transpose(steps))
            gram += [[float(products[i, j]) for j in range(pairs)] for i in range(pairs)]
        speed = math.sqrt(float(np.trace(gram)) / (pairs * size))
        return cls(size, mean, math.sqrt(variance), speed, gram, len(snapshots) / (pairs + 1))

    def context(self) -> NDArray[np.float64]:
        """What conditions the network, free of the weights' scale; shape ``(context_size(K),)``.

        Cosines of successive displacements and of the first with the last, logarithms of the ratios of their
        lengths, of the speed over the weights' spread, and of the size; and the share of snapshots that are
        known, since made-up ones look straight.
        """
        lengths = np.sqrt(np.maximum(np.diag(self.gram), _TINY))
        cosines = self.gram / np.outer(lengths, lengths)
        ratios = np.clip(np.diff(np.log(lengths)), -2.0, 2.0)
        relative = math.log((self.speed + _TINY) / (self.std + 1e-6))
        return np.concatenate(
            [
                np.diag(cosines, 1),
                [cosines[0, -1]],
                ratios,
                [min(max(relative / 5.0, -2.0), 2.0), math.log(self.size) / 10.0, self.known],
            ]
        )

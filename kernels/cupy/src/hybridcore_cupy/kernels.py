"""The kernel set `cupy`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any, ClassVar

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from hybridcore.kernels import ReferenceKernels
from hybridcore.kernels.encoding import BLOCK, stream_key
from hybridcore.layout import Array, Buckets
from hybridcore.protocols import API_VERSION, EncodedBuckets, Ensemble, Runs
from hybridcore_cupy.arrays import Arrays, open_arrays
from hybridcore_cupy.device import load_cupy
from hybridcore_cupy.lowrank import MOST_SIDE, compress
from hybridcore_cupy.passes import Pass, fitting
from hybridcore_cupy.rollout import rollout
from hybridcore_cupy.structs import MOST_ARRAYS, MOST_RUNS

__all__ = ["CupyKernels"]


class CupyKernels(ReferenceKernels):
    """Fused CUDA kernels for float32 buckets of PyTorch, JAX and CuPy.

    Sums add at most four numbers in float32 and all else in float64, in an order that depends on sizes
    alone: the same arrays give the same bits. What the kernels do not cover (other dtypes, buckets on
    several devices) the reference does.

    Example:
        >>> import array_api_compat.numpy as xp
        >>> CupyKernels().supports(xp, "cpu", "float32")
        False
    """

    name: ClassVar[str] = "cupy"
    api_version: ClassVar[int] = API_VERSION

    def supports(self, xp: ModuleType, device: str, dtype: str) -> bool:
        """CUDA devices of PyTorch, JAX and CuPy.

        Raises:
            ImportError: The arrays would be served, but CuPy is not installed or does not fit the driver.
        """
        known = (
            array_api_compat.is_torch_namespace(xp)
            or array_api_compat.is_jax_namespace(xp)
            or array_api_compat.is_cupy_namespace(xp)
        )
        if dtype != "float32" or not known or not any(w in device.lower() for w in ("cuda", "gpu")):
            return False
        load_cupy()
        return True

    def products(self, a: Buckets, b: Buckets, xp: ModuleType) -> tuple[float, float, float]:
        """``|a|^2``, ``|b|^2`` and ``a . b`` in one pass."""
        arrays = fitting(xp, a, b)
        if arrays is None:
            return super().products(a, b, xp)
        with Pass(arrays) as job:
            for x, y in zip(a, b, strict=True):
                job.add_up("stream", "products", [x, y], count=int(x.shape[0]), quantities=3)
            return _three(job.sums())

    def distance(self, a: Buckets, b: Buckets, xp: ModuleType) -> float:
        """``|a - b|`` without writing the difference."""
        arrays = fitting(xp, a, b)
        if arrays is None:
            return super().distance(a, b, xp)
        with Pass(arrays) as job:
            for x, y in zip(a, b, strict=True):
                job.add_up("stream", "distance2", [x, y], count=int(x.shape[0]), quantities=1)
            return math.sqrt(sum(square for (square,) in job.sums()))

    def gram(self, vectors: Sequence[Buckets], xp: ModuleType) -> NDArray[np.float64]:
        """Inner products of all pairs, each vector read once; more than eight go in pairs of tiles."""
        arrays = fitting(xp, *vectors)
        if arrays is None:
            return super().gram(vectors, xp)
        count, tile = len(vectors), MOST_ARRAYS // 2
        parts = [list(range(i, min(i + tile, count))) for i in range(0, count, tile)]
        groups = [list(range(count))] if count <= MOST_ARRAYS else _pairs(parts)
        result = np.zeros((count, count))
        for members in groups:
            k = len(members)
            size = k * (k + 1) // 2
            sets = [vectors[m] for m in members]
            with Pass(arrays) as job:
                for columns in zip(*sets, strict=True):
                    job.add_up(
                        "snapshots",
                        "gram",
                        columns,
                        count=int(columns[0].shape[0]),
                        quantities=size,
                        items=8 if k == 1 else 4,
                        snapshots=k,
                    )
                sums = job.sums()
            for q, (i, j) in enumerate(_triangle(members)):
                result[i, j] = result[j, i] = sum(found[q] for found in sums)
        return result

    def combine(self, vectors: Sequence[Buckets], weights: Sequence[float], xp: ModuleType) -> Buckets:
        """Sum of ``weights[i] * vectors[i]``, each vector read once."""
        arrays = fitting(xp, *vectors)
        if arrays is None:
            return super().combine(vectors, weights, xp)
        total: Buckets | None = None
        rest = list(zip(vectors, (float(w) for w in weights), strict=True))
        while rest:
            room = MOST_ARRAYS - (total is not None)
            now, rest = rest[:room], rest[room:]
            if total is not None:
                now = [(total, 1.0), *now]
            total = _combine(arrays, [v for v, _ in now], [w for _, w in now])
        assert total is not None
        return total

    def window_mean(
        self, total: Buckets, count: int, previous: Buckets | None, xp: ModuleType
    ) -> tuple[Buckets, Buckets | None]:
        """Mean of a window, and its displacement in the same pass."""
        arrays = fitting(xp, total, previous)
        if arrays is None:
            return super().window_mean(total, count, previous, xp)
        with Pass(arrays) as job:
            means, steps = [], []
            for index, bucket in enumerate(total):
                size = int(bucket.shape[0])
                mean = job.arrays.empty(size)
                if previous is None:
                    job.write("stream", "window_mean", [bucket], [mean], count=size, scale=1.0 / count)
                else:
                    step = job.arrays.empty(size)
                    inputs = [bucket, previous[index]]
                    job.write("stream", "window_step", inputs, [mean, step], count=size, scale=1.0 / count)
                    steps.append(job.arrays.give(step))
                means.append(job.arrays.give(mean))
            return tuple(means), None if previous is None else tuple(steps)

    def displace(
        self, newer: Buckets, older: Buckets, last: Buckets | None, xp: ModuleType
    ) -> tuple[Buckets, tuple[float, float, float] | None]:
        """A displacement, with its inner products in the same pass."""
        arrays = fitting(xp, newer, older, last)
        if arrays is None:
            return super().displace(newer, older, last, xp)
        with Pass(arrays) as job:
            made = []
            for index, (x, y) in enumerate(zip(newer, older, strict=True)):
                size = int(x.shape[0])
                out = job.arrays.empty(size)
                if last is None:
                    job.write("stream", "difference", [x, y], [out], count=size)
                else:
                    inputs = [x, y, last[index]]
                    job.add_up("stream", "turn", inputs, count=size, quantities=3, outputs=[out])
                made.append(job.arrays.give(out))
            return tuple(made), None if last is None else _three(job.sums())

    def run_norms(self, sets: Sequence[Buckets], runs: Runs, xp: ModuleType) -> list[list[float]]:
        """Euclidean norm of each run of each set, all in one launch where an argument block holds them."""
        arrays = fitting(xp, *sets)
        if arrays is None:
            return super().run_norms(sets, runs, xp)
        places = [(k, bucket, part) for k in range(len(sets)) for _, bucket, part in runs]
        with Pass(arrays) as job:
            while places:
                now, inputs, parts = places[:MOST_RUNS], [], []
                known: dict[tuple[int, int], int] = {}
                for k, bucket, part in now:
                    if (k, bucket) not in known:
                        if len(known) == MOST_ARRAYS:
                            break
                        known[k, bucket] = len(known)
                        inputs.append(sets[k][bucket])
                    parts.append((known[k, bucket], part))
                job.square_runs(inputs, parts)
                places = places[len(parts) :]
            norms = [math.sqrt(square) for (square,) in job.sums()]
        return [norms[k * len(runs) : (k + 1) * len(runs)] for k in range(len(sets))]

    def encode(self, buckets: Buckets, dtype: str, seed: int, xp: ModuleType) -> EncodedBuckets:
        """Buckets in 2 bytes or about 1 byte per number, bit for bit like the reference on NumPy's arrays."""
        torch = array_api_compat.is_torch_namespace(xp)
        arrays = fitting(xp, buckets)
        if arrays is None or dtype not in ("bfloat16", "int8") or (dtype == "bfloat16" and not torch):
            return super().encode(buckets, dtype, seed, xp)
        codes, scales = [], []
        with Pass(arrays) as job:
            for index, bucket in enumerate(buckets):
                size = int(bucket.shape[0])
                code = job.arrays.empty(size, dtype)
                outputs = [code]
                if dtype == "int8":
                    outputs.append(job.arrays.empty(-(-size // BLOCK)))
                key = stream_key(seed, index)
                items = 8 if dtype == "int8" else 4
                job.write("encode", f"encode_{dtype}", [bucket], outputs, count=size, items=items, key=key)
                codes.append(job.arrays.give(code))
                scales += [job.arrays.give(s) for s in outputs[1:]]
        return EncodedBuckets(dtype, tuple(codes), tuple(scales))

    def decode(self, encoded: EncodedBuckets, xp: ModuleType) -> Buckets:
        """Float32 buckets again."""
        torch = array_api_compat.is_torch_namespace(xp)
        if not encoded.codes or (encoded.dtype == "bfloat16" and not torch):
            return super().decode(encoded, xp)
        made = []
        with Pass(open_arrays(encoded.codes[0], xp)) as job:
            for index, code in enumerate(encoded.codes):
                size, items = int(code.shape[0]), 8 if encoded.dtype == "int8" else 16
                out = job.arrays.empty(size)
                inputs = [code, *encoded.scales[index : index + 1]]
                job.write("encode", f"decode_{encoded.dtype}", inputs, [out], count=size, items=items)
                made.append(job.arrays.give(out))
        return tuple(made)

    def compress(
        self, matrix: Array, rank: int, test: Array, iterations: int, xp: ModuleType
    ) -> tuple[Array, Array]:
        """Randomised low-rank factors by cuBLAS, without the host; see `hybridcore_cupy.lowrank`."""
        served = open_arrays(matrix, xp).serves(matrix)
        if not served or not 0 < int(test.shape[1]) <= MOST_SIDE or not matrix.shape[0]:
            return super().compress(matrix, rank, test, iterations, xp)
        return compress(matrix, rank, test, iterations, xp)

    def rollout(
        self,
        models: Ensemble,
        features: NDArray[Any],
        actions: NDArray[Any],
        ahead: NDArray[Any],
        noise: NDArray[Any],
        xp: ModuleType,
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Paths of an ensemble on the host in one launch, on a stream of their own; waits for them."""
        found = rollout(models, features, actions, ahead, noise)
        return super().rollout(models, features, actions, ahead, noise, xp) if found is None else found


def _combine(arrays: Arrays, vectors: Sequence[Buckets], weights: list[float]) -> Buckets:
    with Pass(arrays) as job:
        made = []
        for columns in zip(*vectors, strict=True):
            count, out = int(columns[0].shape[0]), job.arrays.empty(int(columns[0].shape[0]))
            job.write(
                "snapshots",
                "combine",
                columns,
                [out],
                count=count,
                snapshots=len(vectors),
                weight=weights,
            )
            made.append(job.arrays.give(out))
        return tuple(made)


def _three(sums: list[list[float]]) -> tuple[float, float, float]:
    """Sums of each bucket, added up."""
    first, second, shared = (sum(column) for column in zip(*sums, strict=True))
    return first, second, shared


def _triangle(members: list[int]) -> list[tuple[int, int]]:
    """Pairs of a lower triangle, row by row."""
    return [(i, j) for place, i in enumerate(members) for j in members[: place + 1]]


def _pairs(parts: list[list[int]]) -> list[list[int]]:
    return [a + b for i, a in enumerate(parts) for b in parts[:i]]

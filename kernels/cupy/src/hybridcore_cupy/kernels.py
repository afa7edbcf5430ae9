"""The kernel set `cupy`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from hybridcore.kernels import ReferenceKernels
from hybridcore.kernels.encoding import BLOCK, stream_key
from hybridcore.layout import Array, Buckets, ParamGroup
from hybridcore.protocols import API_VERSION, EncodedBuckets, Ensemble, Runs
from hybridcore_cupy.arrays import Arrays, open_arrays
from hybridcore_cupy.device import load_cupy
from hybridcore_cupy.lowrank import compress
from hybridcore_cupy.passes import Pass, fitting
from hybridcore_cupy.rollout import rollout
from hybridcore_cupy.structs import MOST_ARRAYS, MOST_RUNS

__all__ = ["CupyKernels"]

GROUPS = list(ParamGroup)


class CupyKernels(ReferenceKernels):
    """Fused CUDA kernels for float32 buckets of PyTorch, JAX and CuPy.

    Sums add at most four numbers in float32 and all else in float64, in an order that depends on sizes
    alone: the same arrays give the same bits. What the kernels do not cover (more runs than an argument
    block holds, buckets on several devices) the reference does.

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
        with Pass(arrays, sums=3 * len(a)) as job:
            for index, (x, y) in enumerate(zip(a, b, strict=True)):
                job.run("stream", "products", [x, y], count=x.shape[0], quantities=3, first=3 * index)
            return _three(job.numbers())

    def distance(self, a: Buckets, b: Buckets, xp: ModuleType) -> float:
        """``|a - b|`` without writing the difference."""
        arrays = fitting(xp, a, b)
        if arrays is None:
            return super().distance(a, b, xp)
        with Pass(arrays, sums=len(a)) as job:
            for index, (x, y) in enumerate(zip(a, b, strict=True)):
                job.run("stream", "distance2", [x, y], count=x.shape[0], quantities=1, first=index)
            return math.sqrt(sum(job.numbers()))

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
            with Pass(arrays, sums=size * len(sets[0])) as job:
                for index, columns in enumerate(zip(*sets, strict=True)):
                    job.run(
                        "snapshots",
                        "gram",
                        columns,
                        count=columns[0].shape[0],
                        quantities=size,
                        first=size * index,
                        snapshots=k,
                    )
                sums = job.numbers()
            for q, (i, j) in enumerate(_triangle(members)):
                result[i, j] = result[j, i] = sum(sums[q::size])
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
                    job.run("stream", "window_mean", [bucket], [mean], count=size, scale=1.0 / count)
                else:
                    step = job.arrays.empty(size)
                    inputs = [bucket, previous[index]]
                    job.run("stream", "window_step", inputs, [mean, step], count=size, scale=1.0 / count)
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
        with Pass(arrays, sums=0 if last is None else 3 * len(newer)) as job:
            made = []
            for index, (x, y) in enumerate(zip(newer, older, strict=True)):
                size = int(x.shape[0])
                out = job.arrays.empty(size)
                if last is None:
                    job.run("stream", "difference", [x, y], [out], count=size)
                else:
                    inputs = [x, y, last[index]]
                    job.run("stream", "turn", inputs, [out], count=size, quantities=3, first=3 * index)
                made.append(job.arrays.give(out))
            return tuple(made), None if last is None else _three(job.numbers())

    def run_norms(self, buckets: Buckets, runs: Runs, xp: ModuleType) -> list[float]:
        """Euclidean norm of each run, one launch per bucket."""
        arrays = fitting(xp, buckets)
        if arrays is None or not 0 < len(runs) <= MOST_RUNS:
            return super().run_norms(buckets, runs, xp)
        with Pass(arrays, sums=len(runs)) as job:
            order: list[int] = []
            for index, bucket, fields in _tables(buckets, runs):
                job.run("stream", "run_squares", [bucket], quantities=1, first=len(order), **fields)
                order += index
            sums = dict(zip(order, job.numbers(), strict=True))
        return [math.sqrt(sums[i]) for i in range(len(runs))]

    def apply_jump(
        self,
        weights: Buckets,
        deltas: Buckets,
        runs: Runs,
        scales: Mapping[ParamGroup, float],
        cap: float,
        xp: ModuleType,
    ) -> tuple[Buckets, dict[ParamGroup, float]]:
        """Weights after a change; norms, caps and the change itself without waiting in between."""
        covered = sum(part.stop - part.start for _, _, part in runs)
        whole = covered == sum(int(b.shape[0]) for b in weights)
        arrays = fitting(xp, weights, deltas)
        if arrays is None or not 0 < len(runs) <= MOST_RUNS or not whole:
            return super().apply_jump(weights, deltas, runs, scales, cap, xp)
        with Pass(arrays, sums=2 * len(runs)) as job:
            order: list[int] = []
            for index, bucket, fields in _tables(weights, runs):
                pair = [bucket, deltas[runs[index[0]][1]]]
                job.run("stream", "jump_squares", pair, quantities=2, first=2 * len(order), **fields)
                order += index
            factors = job.arrays.empty(len(GROUPS))
            job.run(
                "stream",
                "jump_factors",
                [],
                count=1,
                totals=job.totals,
                factors=job.arrays.pointer(factors),
                weight=[float(scales.get(group, 1.0)) for group in GROUPS],
                scale=min(cap, 3e38),
                group=[GROUPS.index(runs[i][0]) for i in order],
                runs=len(order),
            )
            made = {}
            for index, bucket, fields in _tables(weights, runs):
                place = runs[index[0]][1]
                made[place] = job.arrays.empty(int(bucket.shape[0]))
                pair = [bucket, deltas[place]]
                fields["group"] = [GROUPS.index(runs[i][0]) for i in index]
                job.run(
                    "stream",
                    "jump_apply",
                    pair,
                    [made[place]],
                    factors=job.arrays.pointer(factors),
                    **fields,
                )
            new = tuple(job.arrays.give(made[i]) if i in made else w + 0.0 for i, w in enumerate(weights))
            used = job.arrays.numbers(factors)
        return new, {group: used[GROUPS.index(group)] for group in dict.fromkeys(g for g, _, _ in runs)}

    def encode(self, buckets: Buckets, dtype: str, seed: int, xp: ModuleType) -> EncodedBuckets:
        """Buckets in 2 bytes or about 1 byte per number, bit for bit like the reference."""
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
                job.run("encode", f"encode_{dtype}", [bucket], outputs, count=size, key=key)
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
                out = job.arrays.empty(int(code.shape[0]))
                inputs = [code, *encoded.scales[index : index + 1]]
                job.run("encode", f"decode_{encoded.dtype}", inputs, [out], count=int(code.shape[0]))
                made.append(job.arrays.give(out))
        return tuple(made)

    def compress(self, matrix: Array, rank: int, seed: int, xp: ModuleType) -> tuple[Array, Array]:
        """Randomised low-rank factors by cuBLAS, without the host; see `hybridcore_cupy.lowrank`."""
        return compress(matrix, rank, seed, xp)

    def rollout(
        self, ensemble: Ensemble, hidden: Array, actions: Array, output: Array, xp: ModuleType
    ) -> tuple[Array, Array]:
        """The whole horizon in one launch, where the states fit into shared memory."""
        found = rollout(ensemble, hidden, actions, output, xp)
        return super().rollout(ensemble, hidden, actions, output, xp) if found is None else found


def _combine(arrays: Arrays, vectors: Sequence[Buckets], weights: list[float]) -> Buckets:
    with Pass(arrays) as job:
        made = []
        for columns in zip(*vectors, strict=True):
            count, out = int(columns[0].shape[0]), job.arrays.empty(int(columns[0].shape[0]))
            job.run(
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


def _three(numbers: list[float]) -> tuple[float, float, float]:
    return sum(numbers[0::3]), sum(numbers[1::3]), sum(numbers[2::3])


def _triangle(members: list[int]) -> list[tuple[int, int]]:
    """Pairs of a lower triangle, row by row."""
    return [(i, j) for place, i in enumerate(members) for j in members[: place + 1]]


def _pairs(parts: list[list[int]]) -> list[list[int]]:
    return [a + b for i, a in enumerate(parts) for b in parts[:i]]


def _tables(buckets: Buckets, runs: Runs) -> list[tuple[list[int], Array, dict[str, Any]]]:
    """Per bucket with runs: which runs, the bucket, and the fields that describe them."""
    tables = []
    for place, bucket in enumerate(buckets):
        index = [i for i, run in enumerate(runs) if run[1] == place]
        if index:
            parts = [runs[i][2] for i in index]
            fields: dict[str, Any] = {
                "start": [p.start for p in parts],
                "stop": [p.stop for p in parts],
                "runs": len(parts),
                "count": max(p.stop - p.start for p in parts),
            }
            tables.append((index, bucket, fields))
    return tables

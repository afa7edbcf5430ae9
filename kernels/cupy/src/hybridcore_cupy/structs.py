"""Argument blocks of the kernels, byte for byte what the CUDA sources declare."""

from __future__ import annotations

import numpy as np

__all__ = ["ARGS", "MOST_ARRAYS", "MOST_GROUPS", "MOST_RUNS", "ROLLOUT"]

MOST_ARRAYS = 8
MOST_RUNS = 16
MOST_GROUPS = 4

ARGS = np.dtype(
    [
        ("inputs", np.uint64, (MOST_ARRAYS,)),
        ("outputs", np.uint64, (2,)),
        ("sums", np.uint64),
        ("factors", np.uint64),
        ("count", np.int64),
        ("start", np.int64, (MOST_RUNS,)),
        ("stop", np.int64, (MOST_RUNS,)),
        ("weight", np.float32, (MOST_ARRAYS,)),
        ("scale", np.float32),
        ("key", np.uint32),
        ("blocks", np.int32),
        ("runs", np.int32),
        ("group", np.int32, (MOST_RUNS,)),
    ],
    align=True,
)
"""``struct Args`` of common.cuh."""

ROLLOUT = np.dtype(
    [(name, np.uint64) for name in ("inputs", "recurrent", "input_bias", "recurrent_bias", "readout")]
    + [(name, np.uint64) for name in ("readout_bias", "hidden", "actions", "output", "outputs", "last")]
    + [(name, np.int32) for name in ("members", "rows", "steps", "width", "seen", "made")],
    align=True,
)
"""``struct Rollout`` of rollout.cu."""

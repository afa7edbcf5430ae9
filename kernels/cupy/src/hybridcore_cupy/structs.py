"""Argument blocks of the kernels, byte for byte what the CUDA sources declare."""

from __future__ import annotations

import ctypes

__all__ = ["MOST_ARRAYS", "MOST_GROUPS", "MOST_RUNS", "Args", "Rollout"]

MOST_ARRAYS = 8
MOST_RUNS = 16
MOST_GROUPS = 4


class Args(ctypes.Structure):
    """``struct Args`` of common.cuh."""

    _fields_ = (
        ("inputs", ctypes.c_uint64 * MOST_ARRAYS),
        ("outputs", ctypes.c_uint64 * 2),
        ("partials", ctypes.c_uint64),
        ("totals", ctypes.c_uint64),
        ("counters", ctypes.c_uint64),
        ("factors", ctypes.c_uint64),
        ("count", ctypes.c_int64),
        ("start", ctypes.c_int64 * MOST_RUNS),
        ("stop", ctypes.c_int64 * MOST_RUNS),
        ("weight", ctypes.c_float * MOST_ARRAYS),
        ("scale", ctypes.c_float),
        ("key", ctypes.c_uint32),
        ("runs", ctypes.c_int32),
        ("group", ctypes.c_int32 * MOST_RUNS),
    )


class Rollout(ctypes.Structure):
    """``struct Rollout`` of rollout.cu."""

    _fields_ = (
        *((n, ctypes.c_uint64) for n in ("inputs", "recurrent", "input_bias", "recurrent_bias", "readout")),
        *((n, ctypes.c_uint64) for n in ("readout_bias", "hidden", "actions", "output", "outputs", "last")),
        *((n, ctypes.c_int32) for n in ("members", "rows", "steps", "width", "seen", "made")),
    )

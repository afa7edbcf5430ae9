"""Argument blocks of the kernels, byte for byte what the CUDA sources declare."""

from __future__ import annotations

import ctypes

__all__ = ["MOST_ARRAYS", "MOST_RUNS", "Args"]

MOST_ARRAYS = 8
MOST_RUNS = 16


class Args(ctypes.Structure):
    """``struct Args`` of common.cuh."""

    _fields_ = (
        ("inputs", ctypes.c_uint64 * MOST_ARRAYS),
        ("outputs", ctypes.c_uint64 * 2),
        ("partials", ctypes.c_uint64),
        ("count", ctypes.c_int64),
        ("start", ctypes.c_int64 * MOST_RUNS),
        ("stop", ctypes.c_int64 * MOST_RUNS),
        ("weight", ctypes.c_float * MOST_ARRAYS),
        ("scale", ctypes.c_float),
        ("key", ctypes.c_uint32),
        ("runs", ctypes.c_int32),
        ("source", ctypes.c_int32 * MOST_RUNS),
        ("first", ctypes.c_int32 * (MOST_RUNS + 1)),
    )

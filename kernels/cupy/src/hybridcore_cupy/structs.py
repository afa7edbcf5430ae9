"""Argument blocks of the kernels, byte for byte what the CUDA sources declare."""

from __future__ import annotations

import ctypes

__all__ = ["LAYERS", "MOST_ARRAYS", "MOST_RUNS", "Args", "Rollout"]

MOST_ARRAYS = 8
MOST_RUNS = 16
LAYERS = 9


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


class Rollout(ctypes.Structure):
    """``struct Rollout`` of rollout.cu."""

    _fields_ = (
        ("layer", ctypes.c_uint64 * LAYERS),
        ("bias", ctypes.c_uint64 * LAYERS),
        ("features", ctypes.c_uint64),
        ("actions", ctypes.c_uint64),
        ("ahead", ctypes.c_uint64),
        ("noise", ctypes.c_uint64),
        ("steps", ctypes.c_uint64),
        ("raws", ctypes.c_uint64),
        ("samples", ctypes.c_int32),
        ("context", ctypes.c_int32),
        ("horizon", ctypes.c_int32),
        ("seen", ctypes.c_int32),
        ("acted", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("hidden", ctypes.c_int32),
        ("latent", ctypes.c_int32),
        ("classes", ctypes.c_int32),
    )

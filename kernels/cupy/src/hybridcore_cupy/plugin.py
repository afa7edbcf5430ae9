"""What the entry point ``cupy`` of the group ``hybridcore`` loads to."""

from __future__ import annotations

from typing import Any

from hybridcore import hookimpl
from hybridcore_cupy.kernels import CupyKernels

__all__ = ["hybridcore_kernels"]


@hookimpl
def hybridcore_kernels() -> list[type[Any]]:
    """The kernel set `cupy`."""
    return [CupyKernels]

"""CUDA kernels of hybridcore, compiled at run time by CuPy."""

from hybridcore_cupy.kernels import CupyKernels

__all__ = ["CupyKernels"]
__version__ = "0.1.0"

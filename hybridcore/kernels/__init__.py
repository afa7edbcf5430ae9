"""Fused operations on buckets: the Array API reference, and the choice of a faster kernel set."""

from hybridcore.kernels.chosen import ChosenKernels, KernelChoice
from hybridcore.kernels.reference import REFERENCE, ReferenceKernels
from hybridcore.kernels.selection import choose

__all__ = ["REFERENCE", "ChosenKernels", "KernelChoice", "ReferenceKernels", "choose"]

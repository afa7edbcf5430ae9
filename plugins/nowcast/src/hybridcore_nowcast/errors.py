"""What goes wrong with the weights of a network."""

from __future__ import annotations

from hybridcore.errors import HybridCoreError

__all__ = ["CheckpointError"]


class CheckpointError(HybridCoreError):
    """A network's checkpoint is missing, unreadable, or of a form that `nowcast` cannot apply."""

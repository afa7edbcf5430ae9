"""One moment of a training run, kept on the device."""

from __future__ import annotations

from typing import Any

import attrs
import jax

from hybridcore.errors import SnapshotError
from hybridcore.layout import ParamLayout

__all__ = ["JaxSnapshot"]


@attrs.frozen(slots=True, eq=False)
class JaxSnapshot:
    """Copies of everything a training step can change; never changed.

    Attributes:
        layout: Layout of the model it belongs to.
        state: The whole train state: parameters, optimizer, model state and random key. Its arrays are
            copies where steps donate their state, and the very arrays in use where they do not, since
            nothing else can change an array of JAX.
        updates: Optimizer updates so far, the position in a learning-rate schedule.
        factor: What the engine has multiplied the learning rate by.
    """

    layout: ParamLayout
    state: Any
    updates: int
    factor: float

    def check(self, layout: ParamLayout, state: Any) -> None:
        """Raise unless this snapshot fits a model of this layout and a train state of this structure.

        Raises:
            SnapshotError: It does not.
        """
        if self.layout != layout:
            raise SnapshotError(
                "a snapshot belongs to a model of another layout",
                where="restore",
                got=f"{len(self.layout.params)} parameters, {self.layout.total} weights",
                expected=f"{len(layout.params)} parameters, {layout.total} weights",
                fix="restore it into the model it was taken from",
            )
        own: Any = jax.tree.structure(self.state)
        wanted: Any = jax.tree.structure(state)
        if own != wanted:
            raise SnapshotError(
                "a snapshot belongs to another optimizer or model state",
                where="restore",
                got=str(own)[:200],
                expected=str(wanted)[:200],
                fix="restore it with the optimizer it was taken with",
            )

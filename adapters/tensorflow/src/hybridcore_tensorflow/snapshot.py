"""Copies of everything a training step can change, and their return bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import tensorflow as tf

from hybridcore.errors import SnapshotError
from hybridcore.layout import ParamLayout

__all__ = ["SnapshotKeeper", "TensorFlowSnapshot", "VariableSet"]


@attrs.frozen(slots=True, eq=False)
class TensorFlowSnapshot:
    """One moment of a training run.

    Attributes:
        layout: Layout of the model it belongs to.
        names: Names of the variables, the same in every process that builds this model and optimizer.
        variables: The variables it was taken of: trained ones, the optimizer's, statistics, generators.
        values: A copy of each; none shares memory with a variable.
        pending: Whether the momentum rule was waiting for the next gradient.
    """

    layout: ParamLayout
    names: tuple[str, ...]
    variables: tuple[tf.Variable, ...]
    values: tuple[Any, ...]
    pending: bool

    @property
    def nbytes(self) -> int:
        """Bytes of all copies."""
        return sum(_nbytes(value) for value in self.values)


class VariableSet:
    """Copies and restores a fixed list of plain variables, one graph call each way.

    Reading a variable gives a tensor over the variable's own memory, which TensorFlow copies only when an
    operation of its own writes; a write through DLPack would reach it. Hence the explicit copies.

    Args:
        variables: Plain variables, one per replica.
    """

    def __init__(self, variables: Sequence[tf.Variable]) -> None:
        self.variables = tuple(variables)
        specs = [tf.TensorSpec(v.shape, v.dtype) for v in self.variables]
        self._copy = tf.function(self._copied, input_signature=[], autograph=False)
        self._assign = tf.function(self._assigned, input_signature=[specs], autograph=False)

    def _copied(self) -> list[Any]:
        return [tf.raw_ops.DeepCopy(x=v.read_value()) for v in self.variables]

    def _assigned(self, values: Sequence[Any]) -> None:
        for variable, value in zip(self.variables, values, strict=True):
            variable.assign(tf.raw_ops.DeepCopy(x=value))

    def copy(self) -> tuple[Any, ...]:
        """Copies of all values."""
        return tuple(self._copy()) if self.variables else ()

    def assign(self, values: Sequence[Any]) -> None:
        """Put copies back."""
        if self.variables:
            self._assign(list(values))

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return sum(_nbytes(v) for v in self.variables)


class SnapshotKeeper:
    """Takes and restores snapshots of one model and optimizer.

    Args:
        layout: The model's layout.
        find: Gives all variables that a step may change by name; asked at each snapshot, since an
            optimizer may be given more, and Keras makes its global generator when it is first used.
    """

    def __init__(self, layout: ParamLayout, find: Callable[[], Mapping[str, tf.Variable]]) -> None:
        self._layout, self._find = layout, find
        self._set = VariableSet(())
        self._names: tuple[str, ...] = ()

    def _current(self) -> VariableSet:
        named = self._find()
        found = tuple(named.values())
        same = len(found) == len(self._set.variables) and all(
            a is b for a, b in zip(found, self._set.variables, strict=True)
        )
        if not same:
            self._set, self._names = VariableSet(found), tuple(named)
        return self._set

    def take(self, pending: bool) -> TensorFlowSnapshot:
        """Copy everything.

        Args:
            pending: Flag to keep with it.
        """
        held = self._current()
        return TensorFlowSnapshot(self._layout, self._names, held.variables, held.copy(), pending)

    def nbytes(self) -> int:
        """Bytes that a snapshot takes now."""
        return self._current().nbytes

    def put_back(self, snapshot: Any) -> None:
        """Restore into the very variables that the model and the optimizer hold.

        Raises:
            SnapshotError: It is no snapshot of this model; nothing was changed.
        """
        if not isinstance(snapshot, TensorFlowSnapshot):
            raise SnapshotError(
                "this is no snapshot of the TensorFlow adapter",
                where="restore",
                got=type(snapshot).__name__,
                expected="what `snapshot()` returned",
            )
        held = self._current()
        known = {id(v) for v in held.variables}
        if snapshot.layout != self._layout or not all(id(v) in known for v in snapshot.variables):
            raise SnapshotError(
                "a snapshot belongs to another model",
                where="restore",
                got=f"{len(snapshot.variables)} variables, {snapshot.layout.total} weights",
                expected=f"the {len(held.variables)} variables of this model and its optimizer",
                fix="restore it into the model it was taken from",
            )
        if snapshot.names == self._names:
            held.assign(snapshot.values)
            return
        for variable, value in zip(snapshot.variables, snapshot.values, strict=True):
            variable.assign(tf.raw_ops.DeepCopy(x=value))


def _nbytes(value: Any) -> int:
    return int(value.shape.num_elements() or 0) * int(value.dtype.size)

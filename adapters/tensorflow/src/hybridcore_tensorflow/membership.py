"""Notices variables that come to a model after the engine was attached."""

from __future__ import annotations

from typing import Any

from hybridcore.errors import ModelError
from hybridcore_tensorflow.variables import trainable

__all__ = ["Membership"]


class Membership:
    """The trainable variables that a model had at the start.

    A layer that is added or unfrozen later is in no bucket and in no optimizer slot: no step would train
    it and no rollback would turn it back. Looked at whenever a graph is made and a snapshot is taken, since
    the walk through a model takes too long for every step.

    Args:
        model: The model, built.

    Example:
        >>> import tensorflow as tf
        >>> model = tf.Module()
        >>> model.weight = tf.Variable([1.0])
        >>> membership = Membership(model)
        >>> model.late = tf.Variable([1.0])
        >>> membership.check()
        Traceback (most recent call last):
        hybridcore.errors.ModelError: the model has trainable variables that it had not at the start
          where: Module
          got: late
          expected: the 1 that were there when the adapter was made
          fix: build and unfreeze all layers first, or attach the engine anew with a new optimizer
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._known = {id(variable): variable for variable in trainable(model).values()}

    def check(self) -> None:
        """Raise where there are others now.

        Raises:
            ModelError: There are.
        """
        late = [name for name, v in trainable(self._model).items() if id(v) not in self._known]
        if late:
            raise ModelError(
                "the model has trainable variables that it had not at the start",
                where=type(self._model).__name__,
                got=", ".join(late[:5]),
                expected=f"the {len(self._known)} that were there when the adapter was made",
                fix="build and unfreeze all layers first, or attach the engine anew with a new optimizer",
            )

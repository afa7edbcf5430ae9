"""One real training step in one graph, and none at all where it would do harm."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from hybridcore.errors import ModelError
from hybridcore.protocols import StepResult
from hybridcore_tensorflow.batches import as_tensors, n_examples, split
from hybridcore_tensorflow.hook import UpdateHook
from hybridcore_tensorflow.losses import LossCaller, batch_errors
from hybridcore_tensorflow.snapshot import SnapshotKeeper, VariableSet
from hybridcore_tensorflow.variables import components, raw

__all__ = ["GraphRunner", "UserRunner"]


class GraphRunner:
    """Forward, backward, guard and update as one `tf.function`.

    Args:
        optimizer: Keras optimizer, hooked.
        trained: Trained variables.
        state: Statistics and generators, saved before each step and put back after one that failed.
        losses: Calls the loss function.
        hook: The optimizer's hook.
        accumulate: Micro-batches per step.

    Attributes:
        traces: Graphs made so far.
    """

    def __init__(
        self,
        optimizer: Any,
        trained: Sequence[Any],
        state: VariableSet,
        losses: LossCaller,
        hook: UpdateHook,
        accumulate: int,
    ) -> None:
        self._optimizer, self._trained, self._state = optimizer, list(trained), state
        self._losses, self._hook, self._accumulate = losses, hook, accumulate
        self._function = tf.function(self._graph, autograph=False, reduce_retracing=accumulate == 1)
        self.traces = 0

    def run(self, batch: Any) -> StepResult:
        """One step on a batch."""
        tensors = as_tensors(batch)
        passes = min(self._accumulate, n_examples(tensors) or 1)

        def attempt() -> Any:
            with batch_errors(batch):
                return self._function(tensors, self._hook.unit_ratio is not None)

        return self._guarded(attempt, passes, n_examples(tensors))

    def run_closure(self, closure: Callable[[], Any]) -> StepResult:
        """One step on the mean loss that `closure` computes, eagerly."""

        def attempt() -> Any:
            before = self._hook.updates.numpy()
            with tf.GradientTape() as tape:
                loss = closure()
                scaled = self._optimizer.scale_loss(loss)
            gradients = tape.gradient(scaled, [raw(v) for v in self._trained])
            self._optimizer.apply(gradients, self._trained)
            return self._report(tf.cast(loss, tf.float64), before)

        return self._guarded(attempt, 1, 0)

    def _guarded(self, attempt: Callable[[], Any], passes: int, length: int) -> StepResult:
        """Run one attempt; examples are counted by their losses, or else by the batch's length."""
        former = self._state.copy()
        try:
            report = attempt()
        except BaseException:
            self._state.assign(former)
            raise
        loss, norm, updated, count = report.numpy().tolist()
        if not updated:
            self._state.assign(former)
        scaled = hasattr(self._optimizer, "inner_optimizer")
        overflow = scaled and not updated and math.isfinite(loss)
        return StepResult(loss, norm, not updated, int(count) or length, passes, overflow)

    def _graph(self, batch: Any, clipping: bool) -> Any:
        # `clipping` makes a graph of its own; the hook looks at the ratio while it is made.
        self.traces += 1
        before, count = self._hook.updates.read_value(), 0
        if self._accumulate == 1:
            loss, gradients, count = self._backward(batch, 1.0)
        else:
            loss, gradients = 0.0, None
            for part, share in split(batch, self._accumulate, "accumulate"):
                partial, more, _ = self._backward(part, share)
                loss += partial
                gradients = more if gradients is None else list(map(_sum, gradients, more))
            self._optimizer.scale_loss(loss)  # the guard looks at the whole batch's loss
        self._optimizer.apply(gradients, self._trained)
        return self._report(loss, before, count)

    def _backward(self, batch: Any, share: float) -> tuple[Any, Any, Any]:
        with tf.GradientTape() as tape:
            mean, count = self._losses.mean(batch)
            scaled = self._optimizer.scale_loss(mean * share)
        gradients = tape.gradient(scaled, [raw(v) for v in self._trained])
        return tf.cast(mean * share, tf.float64), gradients, count

    def _report(self, loss: Any, before: Any, count: Any = 0) -> Any:
        parts = (loss, self._hook.report[1], self._hook.updates - before, count)
        return tf.stack([tf.cast(part, tf.float64) for part in parts])


def _sum(a: Any, b: Any) -> Any:
    if a is None or b is None:
        return b if a is None else a
    return tf.convert_to_tensor(a) + tf.convert_to_tensor(b)


class UserRunner:
    """Lets the user's own train step do the work, and undoes it where it did harm.

    A step that was traced before the adapter was made knows nothing of the hook; so everything is copied
    before each step, and the weights are looked at afterwards. That costs two passes over them.

    Args:
        step: ``step(batch)`` updates the weights and returns the mean loss before it, a number, a scalar
            tensor, or a mapping that holds it as ``"loss"``.
        keeper: Takes snapshots.
        trained: Trained variables.
        hook: The optimizer's hook.
        optimizer: Its iteration counter tells whether an update happened.
    """

    def __init__(
        self,
        step: Callable[[Any], Any],
        keeper: SnapshotKeeper,
        trained: Sequence[Any],
        hook: UpdateHook,
        optimizer: Any,
    ) -> None:
        self._step, self._keeper, self._hook, self._optimizer = step, keeper, hook, optimizer
        self._trained = trained
        self._finite = tf.function(self._all_finite, input_signature=[], autograph=False)
        self.traces = 0

    def _all_finite(self) -> Any:
        return tf.reduce_all([tf.reduce_all(tf.math.is_finite(raw(v))) for v in self._trained])

    def run(self, batch: Any) -> StepResult:
        """One step on a batch.

        Raises:
            BatchError: The step cannot take the batch; nothing was changed.
            ModelError: It returned no loss; nothing was changed.
        """
        pending = self._hook.pending
        former = self._keeper.take(pending)
        updates, iterations = int(self._hook.updates.numpy()), int(self._optimizer.iterations.numpy())
        try:
            with batch_errors(batch):
                result = self._step(batch)
            loss = _read_loss(result)
        except BaseException:
            self._undo(former, pending)
            raise
        hooked = int(self._hook.updates.numpy()) != updates
        norm = float(self._hook.report.numpy()[1]) if hooked else math.nan
        moved = int(self._optimizer.iterations.numpy()) != iterations
        if not moved or not math.isfinite(loss) or not bool(self._finite()):
            scale = self._lowered_scale() if not moved else ()
            self._undo(former, pending)
            for variable, value in scale:
                variable.assign(value)
            return StepResult(
                loss, norm, True, n_examples(batch), overflow=bool(scale) and math.isfinite(loss)
            )
        if not hooked and self._hook.scheduled:
            self._take_part(former, float(self._hook.rate_factor.numpy()))
        return StepResult(loss, norm, False, n_examples(batch))

    def _lowered_scale(self) -> list[tuple[Any, Any]]:
        """The loss scale that an overflow has lowered; without that every later step would overflow too."""
        if not hasattr(self._optimizer, "inner_optimizer"):
            return []
        return [(v, v.numpy()) for v in (self._optimizer.dynamic_scale, self._optimizer.step_counter)]

    def _take_part(self, former: Any, factor: float) -> None:
        """Keep a part of the way (F40): the graph was made too early to know the hook's factor."""
        if factor == 1.0:
            return
        before = dict(zip(map(id, former.variables), former.values, strict=True))
        for variable in self._trained:
            for part in components(variable):
                start = before[id(part)]
                part.assign(start + tf.cast(factor, part.dtype) * (part - start))

    def _undo(self, former: Any, pending: bool) -> None:
        self._keeper.put_back(former)
        self._hook.pending = pending


def _read_loss(result: Any) -> float:
    value = result.get("loss") if isinstance(result, Mapping) else result
    try:
        array = None if value is None else tf.convert_to_tensor(value)
        if array is not None and array.shape.rank == 0 and array.dtype.is_floating:
            return float(array.numpy())
    except (TypeError, ValueError):
        pass
    raise ModelError(
        "the train step returned no loss",
        where="train_step(batch)",
        got=f"{type(result).__name__}"
        if value is None
        else f"{type(value).__name__} {getattr(value, 'shape', '')}",
        expected='the mean loss as a scalar, or a mapping with the scalar "loss"',
        fix="return the loss that was computed before the update",
    )

"""The bridge between the engine and a TensorFlow or Keras model with its Keras optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from hybridcore.errors import BatchError, ModelError, ProbeError
from hybridcore.layout import Buckets, ParamGroup
from hybridcore.protocols import API_VERSION, StepResult
from hybridcore_tensorflow.adaptive_clipping import unit_axis
from hybridcore_tensorflow.arrays import bridge_for
from hybridcore_tensorflow.batches import as_tensors
from hybridcore_tensorflow.buckets import BucketStore
from hybridcore_tensorflow.checkpoints import export, make_globals, put_together, take_apart
from hybridcore_tensorflow.device_memory import peak_bytes, reset_peak
from hybridcore_tensorflow.distributed import DistributedRunner
from hybridcore_tensorflow.hook import UpdateHook
from hybridcore_tensorflow.jump_rules import first_moment_memory, has_velocity, inner, moment_statistics
from hybridcore_tensorflow.losses import LossCaller, batch_errors
from hybridcore_tensorflow.membership import Membership
from hybridcore_tensorflow.modes import batch_statistics, tracked_norms, undisturbed
from hybridcore_tensorflow.options import check_options
from hybridcore_tensorflow.residuals import Lineariser
from hybridcore_tensorflow.snapshot import SnapshotKeeper, TensorFlowSnapshot, VariableSet
from hybridcore_tensorflow.statistics import refresh
from hybridcore_tensorflow.steps import GraphRunner, UserRunner
from hybridcore_tensorflow.variables import (
    collect,
    components,
    devices_of,
    global_generators,
    layers_of,
    raw,
    strategy_of,
)

__all__ = ["TensorFlowAdapter"]


class TensorFlowAdapter:
    """Lets the engine train a Keras model or a `tf.Module` with a Keras optimizer.

    Args:
        model: A built Keras model, or a `tf.Module`, also one that holds Keras layers.
        optimizer: A Keras optimizer; a learning-rate schedule inside it follows its iteration count, which
            snapshots hold. Built here where it is not yet.
        loss_fn: ``loss_fn(model, batch)`` or ``loss_fn(model, batch, training)`` returns per-example
            losses, shape (n,); training uses their mean. It is traced without AutoGraph: where it branches
            on values of tensors, decorate it with `tf.function`.
        train_step: ``train_step(batch)`` of your own, usually a `tf.function`, that updates the weights
            through `optimizer` and returns the mean loss; without it the adapter makes one from `loss_fn`.
        accumulate: Cut each batch into this many micro-batches along axis 0 and add their gradients,
            weighted by size; equal to the whole batch up to rounding, BatchNormalization apart (F61).
        max_grad_norm: Clip the gradient to this Euclidean norm.
        residual_fn: ``residual_fn(model, batch)``, or with an argument ``training``, returns residuals (n,)
            whose squares are the losses of `loss_fn`; predictor ``gauss-newton`` needs them.

    Attributes:
        capabilities: ``"checkpoints"``, ``"closure"``, ``"learning-rate"`` and ``"peak-memory"``;
            ``"batch-statistics"`` where BatchNormalization layers learn moving statistics; ``"residuals"``
            where `residual_fn` is given; without `train_step` ``"adaptive-clipping"`` and, without a
            distribution strategy too, ``"accumulation"``.

    Raises:
        ModelError: The model is not built, there is nothing to train, or the arguments exclude each other.

    Example:
        >>> import keras, tensorflow as tf
        >>> from hybridcore_tensorflow import TensorFlowAdapter
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> loss_fn = lambda model, batch: tf.reduce_mean((model(batch[0]) - batch[1]) ** 2, 1)
        >>> adapter = TensorFlowAdapter(model, keras.optimizers.SGD(0.1), loss_fn)
        >>> adapter.layout.bucket_sizes, adapter.device
        ((3,), 'cpu')
        >>> adapter.train_step((tf.ones((4, 2)), tf.zeros((4, 1)))).n_examples
        4
    """

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        loss_fn: Callable[..., Any],
        *,
        train_step: Callable[[Any], Any] | None = None,
        accumulate: int = 1,
        max_grad_norm: float | None = None,
        residual_fn: Callable[..., Any] | None = None,
    ) -> None:
        check_options(train_step, accumulate, max_grad_norm)
        self.model, self.optimizer = model, optimizer
        self.name = "tensorflow"
        self.api_version = API_VERSION
        found = self._found = collect(model, optimizer)
        self.layout = found.layout
        self.device = found.layout.params[0].device
        self._devices = devices_of(found.trained[0])
        bridge = bridge_for(self.device)
        self.xp = bridge.xp
        self._store = BucketStore(self.layout, found.trained, bridge)
        axes = {id(raw(v)): unit_axis(n) for n, v in zip(self.layout.names, found.trained, strict=True)}
        self._hook = UpdateHook(optimizer, found.trained[0], max_grad_norm, axes)
        self._keeper = SnapshotKeeper(self.layout, self._all_variables)
        self._membership = Membership(model)
        self._losses = LossCaller(model, loss_fn, layers_of(model), self._membership.check)
        self._norms = tracked_norms(found.norms)
        self._strategy = strategy_of(found.trained)
        state = VariableSet(found.state)
        self._graph = GraphRunner(optimizer, found.trained, state, self._losses, self._hook, accumulate)
        self._runner: GraphRunner | UserRunner | DistributedRunner = self._graph
        if train_step is not None:
            self._runner = UserRunner(train_step, self._keeper, found.trained, self._hook, optimizer)
        elif self._strategy is not None:
            if accumulate > 1:
                raise ModelError(
                    "micro-batches are not cut under a distribution strategy",
                    where="accumulate",
                    got=accumulate,
                    expected="1",
                    fix="use the optimizer's own gradient_accumulation_steps",
                )
            self._runner = DistributedRunner(
                self._strategy, optimizer, found.trained, state, self._losses, self._hook, max_grad_norm
            )
        self.capabilities = frozenset(
            {"checkpoints", "closure", "learning-rate", "peak-memory"}
            | ({"adaptive-clipping"} if train_step is None else set())
            | ({"accumulation"} if self._runner is self._graph else set())
            | ({"batch-statistics"} if self._norms else set())
            | ({"residuals"} if residual_fn is not None else set())
        )
        if train_step is None:
            self.clip_adaptively = self._hook.clip_adaptively
        self._probe = tf.function(self._probe_graph, autograph=False, reduce_retracing=True)
        self._linearise = None
        if residual_fn is not None:
            residuals = LossCaller(model, residual_fn, layers_of(model), self._membership.check)
            self._linearise = Lineariser(found, residuals, self._norms, self._store)
        self._measure = tf.function(self._measure_graph, autograph=False, reduce_retracing=True)
        self._other_traces = self._skipped = self._real_steps = 0
        self._rate: tuple[int, float] = (-1, 0.0)

    @property
    def traces(self) -> int:
        """Graphs made so far; stays put once every shape of batch was seen."""
        runners = {id(r): r.traces for r in (self._graph, self._runner)}
        return self._other_traces + sum(runners.values()) + getattr(self._linearise, "traces", 0)

    @property
    def hook(self) -> UpdateHook:
        """What listens inside the optimizer."""
        return self._hook

    # Weights

    def read_params(self, out: Buckets | None = None) -> Buckets:
        """Copy of the weights as buckets; see `hybridcore.protocols.Adapter`."""
        return self._store.read(out)

    def add_params(self, into: Buckets, weight: float = 1.0, decay: float = 1.0) -> Buckets:
        """``decay * into + weight * params``, in place where `into` fits.

        Raises:
            DeltaError: `into` does not fit the layout.
        """
        return self._store.add(into, weight, decay)

    def write_params(self, buckets: Buckets) -> None:
        """Set the weights, cast to the model's dtypes.

        Raises:
            DeltaError: The buckets do not fit the layout; the weights are unchanged.
        """
        self._store.write(buckets)

    def apply_delta(
        self, deltas: Buckets, scale: float = 1.0, groups: Mapping[ParamGroup, float] | None = None
    ) -> None:
        """Add ``scale * groups[g] * delta`` to every parameter of group g, in all replicas.

        Raises:
            DeltaError: The deltas do not fit the layout; the weights are unchanged (F22).
        """
        self._store.apply(deltas, scale, groups)

    @contextmanager
    def weights(self, buckets: Buckets) -> Iterator[None]:
        """Context in which the model has these weights; afterwards the former ones are back exactly.

        Raises:
            DeltaError: The buckets do not fit the layout.
        """
        former = self._store.save()
        self._store.write(buckets)
        try:
            yield
        finally:
            self._store.load(former)

    # Steps and probes

    def train_step(self, batch: Any) -> StepResult:
        """One forward, backward and update; a non-finite loss or gradient changes nothing (F41).

        With a `LossScaleOptimizer` an overflow lowers the scale, as it must.

        Raises:
            BatchError: The model cannot take the batch; nothing was changed.
            ModelError: A train step of your own returned no loss, or the model has new variables; nothing
                was changed.
        """
        try:
            return self._count(self._runner.run(batch))
        except BatchError:
            self._membership.check()  # TensorFlow complains of new variables as if the batch were wrong
            raise

    def closure_step(self, closure: Callable[[], Any]) -> StepResult:
        """Like `train_step`, eagerly on the mean loss that `closure` computes; its exceptions pass through.

        Raises:
            ModelError: The model is distributed.
        """
        if self._strategy is not None:
            raise ModelError(
                "a closure cannot be run on several replicas",
                where="step(closure)",
                got=type(self._strategy).__name__,
                fix="pass the batch and a loss_fn instead",
            )
        return self._count(self._graph.run_closure(closure))

    def _count(self, result: StepResult) -> StepResult:
        self._skipped += result.skipped
        self._real_steps += not result.skipped
        return result

    def probe_loss(self, batch: Any) -> NDArray[np.float64]:
        """Per-example losses, shape (n,), in evaluation mode and with the same random numbers each time.

        BatchNormalization layers that learn use the batch's own statistics; see
        `hybridcore_tensorflow.modes.batch_statistics` for the reason.

        Raises:
            BatchError: The model cannot take the batch.
            ProbeError: The loss function returns a single number.
        """
        with batch_errors(batch), self._scope():
            losses: NDArray[np.float64] = self._probe(as_tensors(batch)).numpy()
        if losses.size == 0:
            raise ProbeError("a probe batch has no examples", where="probe", fix="pass non-empty batches")
        return losses

    def _probe_graph(self, batch: Any) -> Any:
        self._other_traces += 1
        with undisturbed(self._found.state, self._found.seeds), batch_statistics(self._norms):
            return self._losses.per_example(batch)

    def linearise_residuals(
        self, batch: Any, directions: Sequence[Buckets]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Residuals r (n,) and their derivatives along each direction (n, k); needs ``"residuals"``.

        Forward-mode differentiation, in evaluation mode; nothing changes.

        Args:
            batch: A batch.
            directions: k changes of the weights.

        Raises:
            BatchError: The residual function cannot take the batch.
            DeltaError: A direction does not fit the layout.
            ModelError: The adapter was made without `residual_fn`.
        """
        if self._linearise is None:
            raise ModelError(
                "the adapter does not know the residuals of the loss",
                where="residual_fn",
                expected="residual_fn(model, batch) with residuals of shape (n,)",
                fix="pass residual_fn, or ask for the capability 'residuals' first",
            )
        with self._scope():
            return self._linearise(batch, directions)

    def refresh_statistics(self, batches: Iterable[Any]) -> None:
        """Re-estimate BatchNormalization statistics as their mean over `batches` (F86).

        Frozen layers are left alone.

        Raises:
            BatchError: The model cannot take a batch; the statistics are unchanged.
        """
        if self._norms:
            refresh(self._norms, self._batch_statistics, batches)

    def _batch_statistics(self, batch: Any) -> Any:
        with batch_errors(batch), self._scope():
            return self._measure(as_tensors(batch))

    def _measure_graph(self, batch: Any) -> Any:
        self._other_traces += 1
        with undisturbed(self._found.state, self._found.seeds):
            with batch_statistics(self._norms, momentum=0.0):
                self._losses(batch, training=True)
            targets = [v for n in self._norms for v in (n.moving_mean, n.moving_variance)]
            return [tf.identity(components(v)[0].read_value()) for v in targets]

    def _scope(self) -> AbstractContextManager[Any]:
        return self._strategy.scope() if self._strategy is not None else nullcontext()

    # State

    def _all_variables(self) -> dict[str, tf.Variable]:
        """Everything a step may change, one plain variable per replica, each once, by name.

        They go by their number: Keras counts up the names of its layers within a process.
        """
        found = self._found
        groups = {"trained": found.trained, "optimizer": self.optimizer.variables, "state": found.state}
        named = {f"{kind}.{i}": v for kind, group in groups.items() for i, v in enumerate(group)}
        named |= global_generators()
        named["rate_factor"] = self._hook.rate_factor
        unique: dict[int, tuple[str, tf.Variable]] = {}
        for name, variable in named.items():
            for replica, part in enumerate(components(variable)):
                unique.setdefault(id(part), (f"{name}/{replica}" if replica else name, part))
        return dict(unique.values())

    def snapshot(self) -> TensorFlowSnapshot:
        """Copy of weights, optimizer with its iteration count, statistics and random generators.

        Raises:
            ModelError: The model has trainable variables that it had not at the start.
        """
        self._membership.check()
        return self._keeper.take(self._hook.pending)

    def restore(self, snapshot: Any) -> None:
        """Put a snapshot back bit for bit, into the variables that are in use.

        Raises:
            SnapshotError: It was taken from another model; nothing was changed.
        """
        self._keeper.put_back(snapshot)
        self._hook.pending = snapshot.pending
        self._rate = (-1, 0.0)

    def snapshot_nbytes(self) -> int:
        """Bytes that one snapshot takes now."""
        return self._keeper.nbytes()

    def snapshot_state(self, snapshot: Any) -> tuple[dict[str, NDArray[Any]], Any]:
        """NumPy arrays and plain data of a snapshot, for checkpoints (F53)."""
        return take_apart(snapshot)

    def snapshot_from_state(self, arrays: Mapping[str, NDArray[Any]], data: Any) -> TensorFlowSnapshot:
        """The snapshot again, for the variables of this model and optimizer.

        Raises:
            SnapshotError: It does not fit them.
        """
        make_globals(data, self._all_variables())
        return put_together(arrays, data, self.layout, self._all_variables())

    def export_weights(self, path: str) -> None:
        """Write the model's weights as safetensors; `load_exported` gives them to a model."""
        export(self.model, path)

    def after_jump(self, deltas: Buckets) -> None:
        """Adjust the optimizer to weights that moved without it (F59).

        Moments of Adam and its kin and the step count stay. The velocity of SGD and RMSprop is scaled by
        ``max(0, cosine)`` with the gradient of the next real step.
        """
        self._hook.pending = has_velocity(self.optimizer)

    def reset_peak(self) -> None:
        """Let TensorFlow's GPU allocators count anew what they have in use at most (F90)."""
        reset_peak(self._devices)

    def peak_bytes(self) -> int | None:
        """Most bytes in use at once since `reset_peak`, the fullest GPU counting; None on the CPU."""
        return peak_bytes(self._devices)

    @property
    def learning_rate(self) -> float:
        """Learning rate at the next update; a schedule is evaluated once per iteration."""
        rate = self.optimizer.learning_rate if not self._hook.scheduled else None
        if rate is not None:
            return float(tf.convert_to_tensor(rate))
        step = self.iterations
        if self._rate[0] != step:
            self._rate = (step, float(tf.convert_to_tensor(self.optimizer.learning_rate)))
        return self._rate[1]

    def scale_learning_rate(self, factor: float) -> None:
        """Multiply the learning rate, and all later rates of a schedule inside the optimizer (F40).

        A Keras callback that sets the rate anew, such as `LearningRateScheduler`, undoes it.
        """
        self._hook.scale_rate(factor)
        self._rate = (-1, 0.0)

    @property
    def momentum_memory(self) -> float:
        """``1 / (1 - beta1)``; 1.0 without momentum."""
        return first_moment_memory(self.optimizer)

    def moments(self) -> dict[str, float]:
        """Mean and standard deviation of the optimizer's moments; zeros where it has none."""
        return moment_statistics(self.optimizer)

    def mean_scalar(self, value: float) -> float:
        """The value itself: replicas of one process share their decisions."""
        return value

    def synchronize(self) -> None:
        """Wait until the devices have finished."""
        if self.device != "cpu":
            tf.test.experimental.sync_devices()

    def state_dict(self) -> dict[str, Any]:
        """Counters and the waiting momentum rule, as plain data."""
        return {"real_steps": self._real_steps, "skipped": self._skipped, "pending": self._hook.pending}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._real_steps, self._skipped = int(state["real_steps"]), int(state["skipped"])
        self._hook.pending = bool(state["pending"])

    @property
    def real_steps(self) -> int:
        """Updates that truly happened through `train_step` and `closure_step`."""
        return self._real_steps

    @property
    def scales_loss(self) -> bool:
        """Whether a `LossScaleOptimizer` looks for its scale: a skip behind a finite loss is no trouble."""
        return inner(self.optimizer) is not self.optimizer

    @property
    def iterations(self) -> int:
        """The optimizer's own count of updates; a rollback turns it back."""
        return int(components(self.optimizer.iterations)[0].numpy())

    def detach(self) -> None:
        """Take the hook off the optimizer."""
        self._hook.detach()

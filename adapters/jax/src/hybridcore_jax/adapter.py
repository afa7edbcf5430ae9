"""The bridge between the engine and a JAX model with its optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from hybridcore.errors import ModelError, ProbeError, SnapshotError
from hybridcore.layout import Buckets, ParamGroup, ParamLayout
from hybridcore.protocols import API_VERSION, StepResult
from hybridcore_jax.buckets import BucketStore
from hybridcore_jax.checkpoints import export, put_together, take_apart
from hybridcore_jax.host_memory import HostMemory, away, home
from hybridcore_jax.interfaces import Parts, parts_of
from hybridcore_jax.interfaces.base import PureModel
from hybridcore_jax.jump_rules import JumpState, after_jump, moment_statistics, rescale_velocity, scale_rate
from hybridcore_jax.losses import LossCaller, LossFunction
from hybridcore_jax.own_step import OwnStepRunner, part_of_the_way
from hybridcore_jax.parameters import as_arrays, plan_params
from hybridcore_jax.placement import beside, to_host
from hybridcore_jax.rates import LearningRate, momentum_memory
from hybridcore_jax.residuals import Lineariser
from hybridcore_jax.snapshot import JaxSnapshot
from hybridcore_jax.statistics import Statistics
from hybridcore_jax.steps import StepRunner
from hybridcore_jax.train_state import TrainState, access_to
from hybridcore_jax.trees import copy_tree, device_name, find_nodes, is_a, tree_nbytes

__all__ = ["JaxAdapter"]


class JaxAdapter(HostMemory):
    """Lets the engine train a JAX model.

    The adapter owns the train state, since JAX's arrays are immutable: `params`, `opt_state` and `model`
    give what is current. What the caller passed in is copied once and stays valid.

    Args:
        model: A pytree of parameters, a flax nnx or equinox module, or a `LinenModel`; with `train_step`,
            the whole state of that step.
        optimizer: Any optax optimizer. Optional with `train_step`, where only its momentum is asked.
        loss_fn: ``loss_fn(params, batch)`` returns per-example losses, shape (n,); training uses their
            mean. It may take ``state``, ``key``, ``training`` and ``batch_statistics`` too; see
            `hybridcore_jax.losses.LossCaller`. For modules of a library the first argument is the module.
        state: The model's own state, for example BatchNorm statistics.
        key: Random key of training steps, for example for dropout.
        learning_rate: The optimizer's rate, a number or a schedule of the update count; may be left out
            where `optax.inject_hyperparams` keeps it in the state.
        train_step: Your own ``train_step(state, batch) -> (new state, mean loss)``, compiled by you. Instead
            of the loss it may give a mapping with ``"loss"`` and, where it knows them, ``"grad_norm"`` and
            ``"overflow"`` (a loss scale overflowed, and the step has left the weights alone).
        trainable: ``trainable(name)`` tells which parameters are trained; None trains all.
        accumulate: Cut each batch into this many micro-batches along axis 0 and add their gradients,
            weighted by size (F61).
        max_grad_norm: Clip the gradient to this Euclidean norm.
        donate: Let each step reuse the memory of the state before it; None does so on accelerators.
        residual_fn: ``residual_fn(params, batch)`` returns residuals (n,) whose squares are the per-example
            losses, with the same keywords as `loss_fn`, for predictors that linearise them.

    Attributes:
        capabilities: ``"batch-statistics"`` where the model keeps running statistics, ``"residuals"`` where
            `residual_fn` is given, and without a `train_step` of your own ``"adaptive-clipping"``, next to
            ``"accumulation"``, ``"checkpoints"``, ``"host-memory"``, ``"learning-rate"`` and ``"memory"``.

    Raises:
        ModelError: There is nothing to train, or the arguments exclude each other.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from hybridcore_jax import JaxAdapter
        >>> loss_fn = lambda params, batch: (batch[0] @ params["w"] - batch[1]) ** 2
        >>> params = {"w": jnp.zeros(2)}
        >>> adapter = JaxAdapter(params, optax.sgd(0.1), loss_fn, learning_rate=0.1)
        >>> adapter.train_step((jnp.ones((4, 2)), jnp.ones(4))).loss
        1.0
        >>> adapter.params["w"].tolist()
        [0.20000000298023224, 0.20000000298023224]
    """

    def __init__(
        self,
        model: Any,
        optimizer: optax.GradientTransformation | None,
        loss_fn: LossFunction,
        *,
        state: Any = None,
        key: Any = None,
        learning_rate: float | Callable[[Any], Any] | None = None,
        train_step: Callable[[Any, Any], Any] | None = None,
        trainable: Callable[[str], bool] | None = None,
        accumulate: int = 1,
        max_grad_norm: float | None = None,
        donate: bool | None = None,
        residual_fn: LossFunction | None = None,
    ) -> None:
        self.name = "jax"
        self.api_version = API_VERSION
        self.xp: ModuleType = jnp
        self.parts = self._parts(model, state, train_step, optimizer)
        params = as_arrays(self.parts.params)
        self._plan = plan_params(params, trainable, self.parts.groups)
        self.layout: ParamLayout = self._plan.layout
        leaves = jax.tree.leaves(params)
        self.device = device_name(min(leaves[0].sharding.device_set, key=lambda d: d.id))
        self._store = BucketStore(self._plan)
        given = {
            "has_state": train_step is not None or self.parts.state is not None,
            "has_key": key is not None,
        }
        self._losses = LossCaller(self.parts.bind(loss_fn), **given)
        self._lineariser = (
            Lineariser(LossCaller(self.parts.bind(residual_fn), **given), self._store)
            if residual_fn is not None
            else None
        )
        self._runner: StepRunner | OwnStepRunner
        if train_step is not None:
            self._state = model
            self._access = access_to(model)
            self._runner = OwnStepRunner(train_step, self._access, self._plan)
        else:
            assert optimizer is not None
            rule = rescale_velocity(optimizer)
            donate = self.device.partition(":")[0] != "cpu" if donate is None else donate
            whole = TrainState(params, rule.init(params), self.parts.state, key)
            self._state = copy_tree(beside(whole, params))
            self._access = access_to(self._state)
            self._runner = StepRunner(
                self._losses,
                rule,
                self._plan,
                [leaf.sharding for leaf in leaves],
                accumulate=accumulate,
                max_grad_norm=max_grad_norm,
                donate=donate,
            )
        self.parts.params = None  # a copy of the weights that only the caller may still need
        self._probe_key = jax.random.key(0) if key is not None else None
        self._statistics = Statistics(self._losses, self._probe_key)
        self._probe = jax.jit(self._losses.per_example, static_argnames=("training", "batch_statistics"))
        self._rate = LearningRate(learning_rate, self.opt_state)
        self.momentum_memory = momentum_memory(optimizer, params, self.opt_state)
        kept = train_step is None and self._losses.stateful
        self.capabilities = frozenset(
            {"accumulation", "checkpoints", "host-memory", "learning-rate", "memory", "peak-memory"}
            | ({"batch-statistics"} if kept else set())
            | ({"residuals"} if residual_fn is not None else set())
        )
        if isinstance(self._runner, StepRunner):
            self.capabilities |= {"adaptive-clipping"}
            self.clip_adaptively = self._runner.clip_adaptively
        self._updates = self._skipped = 0
        self._factor = 1.0
        self._shared = False
        self._held: Any = None

    @staticmethod
    def _parts(model: Any, state: Any, train_step: Any, optimizer: Any) -> Parts:
        if train_step is not None:
            return PureModel(access_to(model).get(model, "params"))
        if optimizer is None:
            raise ModelError(
                "there is nothing that trains the model",
                where="optimizer",
                got="neither an optimizer nor a train step",
                expected="an optax optimizer, or train_step=",
                fix="pass for example optax.adam(1e-3)",
            )
        parts = parts_of(model)
        if state is not None:
            parts.state = state
        return parts

    # State in use

    @property
    def params(self) -> Any:
        """The parameters now. Where steps donate, later steps and jumps delete these arrays: copy them."""
        return self._access.get(self._state, "params")

    @property
    def opt_state(self) -> Any:
        """The optimizer's state now."""
        self._bring_back()
        return self._access.get(self._state, "opt_state")

    @property
    def train_state(self) -> Any:
        """The whole state now: a `TrainState`, or what the user's own train step carries."""
        self._bring_back()
        return self._state

    @property
    def model(self) -> Any:
        """The user's own kind of model with the current weights and state."""
        return self.parts.model(self.params, self._model_state)

    @property
    def _model_state(self) -> Any:
        return self._state.model_state if isinstance(self._state, TrainState) else self._state

    def _leaves(self) -> list[Any]:
        return jax.tree.leaves(self.params)

    def _set_leaves(self, leaves: list[Any]) -> None:
        params = jax.tree.unflatten(self._plan.structure, leaves)
        self._state = self._access.put(self._state, "params", params)

    # Weights

    def read_params(self, out: Buckets | None = None) -> Buckets:
        """Copy of the weights as fresh buckets; `out` is not used, arrays are immutable."""
        return self._store.read(self._leaves())

    def add_params(self, into: Buckets, weight: float = 1.0, decay: float = 1.0) -> Buckets:
        """``decay * into + weight * params`` in the memory of `into`; use the return value.

        Raises:
            DeltaError: `into` does not fit the layout.
        """
        return self._store.add(into, self._leaves(), weight, decay)

    def write_params(self, buckets: Buckets) -> None:
        """Set the weights, cast to the model's dtypes.

        Raises:
            DeltaError: The buckets do not fit the layout; the weights are unchanged.
        """
        self._set_leaves(self._store.write(self._leaves(), buckets))

    def apply_delta(
        self, deltas: Buckets, scale: float = 1.0, groups: Mapping[ParamGroup, float] | None = None
    ) -> None:
        """Add ``scale * groups[g] * delta`` to every parameter of group g; nothing is traced again.

        Raises:
            DeltaError: The deltas do not fit the layout; the weights are unchanged (F22).
        """
        # With a step or loop of the user's own somebody else may hold the arrays.
        donate = isinstance(self._runner, StepRunner) and self._runner.donates and not self._shared
        self._set_leaves(self._store.apply(self._leaves(), deltas, scale, groups, donate))

    @contextmanager
    def weights(self, buckets: Buckets) -> Iterator[None]:
        """Context in which the model has these weights; afterwards the former ones are back exactly.

        Raises:
            DeltaError: The buckets do not fit the layout.
        """
        former = self._leaves()
        self.write_params(buckets)
        try:
            yield
        finally:
            self._set_leaves(former)

    # Steps and probes

    def train_step(self, batch: Any) -> StepResult:
        """One forward, backward and update; a non-finite loss or gradient changes nothing (F41).

        Raises:
            BatchError: The model cannot take the batch; nothing was changed.
            ModelError: The user's own train step returned the wrong thing; nothing was changed.
        """
        self._bring_back()
        if isinstance(self._runner, StepRunner):
            self._state, read = self._runner.begin(self._state, batch)
            result = read()
        else:
            try:
                self._state, result = self._runner.run(self._state, batch)
            except Exception:
                self._state = self._runner.recover()
                raise
        self._count(result)
        return result

    def _count(self, result: StepResult) -> None:
        self._skipped += result.skipped
        self._updates += not result.skipped

    def probe_loss(self, batch: Any) -> NDArray[np.float64]:
        """Per-example losses, shape (n,), not in training mode and with the same random key each time.

        BatchNorm normalises by the batch's own statistics: running ones belong to the weights that made
        them, and right after a predicted change a loss measured with them would blame the change for it.

        Raises:
            BatchError: The model cannot take the batch.
            ProbeError: The loss function returns a single number.
        """
        params, state = self.params, self._model_state
        own = "batch_statistics" in self._losses.takes
        if not own and "batch-statistics" in self.capabilities:
            state = self._statistics.of_batch(params, state, batch)
        losses = self._probe(params, state, self._probe_key, batch, training=False, batch_statistics=True)
        result = to_host(losses.astype(jnp.promote_types(losses.dtype, jnp.float32))).astype(np.float64)
        if result.size == 0:
            raise ProbeError("a probe batch has no examples", where="probe", fix="pass non-empty batches")
        return result

    def linearise_residuals(
        self, batch: Any, directions: Sequence[Buckets]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Residuals r (n,) and their derivatives along each direction (n, k); needs ``"residuals"``.

        Forward-mode differentiation, compiled once for the largest k; nothing changes.

        Args:
            batch: The batch.
            directions: k changes of the weights as float32 buckets.

        Raises:
            BatchError: The model cannot take the batch.
            DeltaError: A direction does not fit the layout.
            ModelError: The adapter was made without `residual_fn`.
        """
        if self._lineariser is None:
            raise ModelError(
                "the adapter does not know the residuals of the loss",
                where="residual_fn",
                got="None",
                expected="residual_fn(params, batch) with residuals of shape (n,)",
                fix="pass residual_fn, or ask for the capability 'residuals' first",
            )
        return self._lineariser(self.params, self._model_state, self._probe_key, batch, directions)

    def refresh_statistics(self, batches: Iterable[Any]) -> None:
        """Re-estimate running statistics as their mean over `batches` (F86); nothing else changes.

        With a train step of the user's own nothing is known of its statistics, and nothing changes.

        Raises:
            BatchError: The model cannot take a batch; the statistics are unchanged.
        """
        if "batch-statistics" not in self.capabilities:
            return
        state = self._statistics.mean(self.params, self._model_state, batches)
        if state is not self._model_state:
            self._state = self._state._replace(model_state=self.parts.settled(state))

    # State

    def _apart(self, state: Any, other: Any) -> Any:
        """The state, sharing no array with the other one that a step may delete."""
        if not (self._shared or self._runner.donates):
            return state
        leaves, structure = jax.tree.flatten(state)
        shared = [i for i, leaf in enumerate(jax.tree.leaves(other)) if leaf is leaves[i]]
        for index, copy in zip(shared, copy_tree([leaves[i] for i in shared]), strict=True):
            leaves[index] = copy
        return jax.tree.unflatten(structure, leaves)

    def snapshot(self) -> JaxSnapshot:
        """Parameters, optimizer, model state and random key, on the device or in pinned host memory."""
        self._bring_back()
        state = self._apart(away(self._state) if self._snapshots_away else self._state, self._state)
        return JaxSnapshot(self.layout, state, self._updates, self._factor)

    def restore(self, snapshot: Any) -> None:
        """Put a snapshot back bit for bit; it stays valid.

        Raises:
            SnapshotError: It was taken from a model with another layout; nothing was changed.
        """
        if not isinstance(snapshot, JaxSnapshot):
            raise SnapshotError(
                "this is no snapshot of the JAX adapter",
                where="restore",
                got=type(snapshot).__name__,
                expected="what `snapshot()` returned",
                fix="restore only snapshots of this adapter",
            )
        self._bring_back()
        snapshot.check(self.layout, self._state)
        state = home(snapshot.state, self._state)
        self._state, self._updates = self._apart(state, snapshot.state), snapshot.updates
        self._set_factor(snapshot.factor)

    def snapshot_state(self, snapshot: Any) -> tuple[dict[str, NDArray[Any]], Any]:
        """NumPy arrays and plain data of a snapshot, for checkpoints (F53)."""
        return take_apart(snapshot)

    def snapshot_from_state(self, arrays: Mapping[str, NDArray[Any]], data: Any) -> JaxSnapshot:
        """The snapshot again, with the shardings of this adapter's state.

        Raises:
            SnapshotError: It does not fit the model and optimizer.
        """
        self._bring_back()
        return put_together(arrays, data, self.layout, self._state)

    def export_weights(self, path: str) -> None:
        """Write the parameters by dotted name as safetensors."""
        export(self.params, path)

    def snapshot_nbytes(self) -> int:
        """Bytes that one snapshot takes now; none of an accelerator's where it is kept in host memory."""
        apart = self._snapshots_away and not self.device.startswith("cpu")
        return 0 if apart else tree_nbytes(self._state)

    def after_jump(self, deltas: Buckets) -> None:
        """Adjust the optimizer to weights that moved without it (F59); see `jump_rules.after_jump`."""
        self._state = self._access.put(self._state, "opt_state", after_jump(self.opt_state))

    @property
    def learning_rate(self) -> float:
        """Learning rate of the latest update; before the first one, the rate it will have."""
        held = self._access.get(self._state, "opt_state")  # rates in it are single numbers, which never leave
        return self._factor * self._rate.after(self._updates, held)

    def scale_learning_rate(self, factor: float) -> None:
        """Multiply all further updates, whatever schedule or injected rate they come from (F40).

        An update is proportional to the learning rate in every rule of optax, so that this is the same. The
        factor is part of the optimizer's state, where it was made by `rescale_velocity`, as the adapter does
        for its own steps. Otherwise the step or loop is yours, and of the way it goes only a part is taken.
        """
        self._state = self._access.put(self._state, "opt_state", scale_rate(self.opt_state, factor))
        self._set_factor(self._factor * factor)

    def _set_factor(self, factor: float) -> None:
        self._factor = factor
        if isinstance(self._runner, OwnStepRunner):
            self._runner.factor = 1.0 if self._rule_scales else factor

    @property
    def _rule_scales(self) -> bool:
        """Whether the optimizer's own state holds the factor."""
        return next(find_nodes(self.opt_state, is_a(JumpState)), None) is not None

    def moments(self) -> dict[str, float]:
        """Mean and standard deviation of the optimizer's moments; zeros where it has none."""
        return moment_statistics(self.opt_state)

    def mean_scalar(self, value: float) -> float:
        """Mean over all processes of `jax.distributed`, or the value itself."""
        if jax.process_count() == 1:
            return value
        from jax.experimental import multihost_utils

        bits = np.float64(value).reshape(1).view(np.uint32)  # which no switched-off x64 rounds
        gathered = np.ascontiguousarray(multihost_utils.process_allgather(bits))
        return float(np.mean(gathered.view(np.float64)))

    def synchronize(self) -> None:
        """Wait until the devices have finished."""
        wait: Any = jax.block_until_ready
        wait(self._state)

    def state_dict(self) -> dict[str, Any]:
        """Counters, as plain data."""
        return {"updates": self._updates, "skipped": self._skipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._updates, self._skipped = int(state["updates"]), int(state["skipped"])

    # For hosts that run their own loop

    @property
    def real_steps(self) -> int:
        """Optimizer updates that truly happened since the adapter was made."""
        return self._updates

    def adopt(self, params: Any, opt_state: Any, result: StepResult) -> None:
        """Take over what the host's own step made of the state.

        Raises:
            ModelError: The trees are not like those before.
        """
        self._plan.check(params, "hybrid.advance(params, ...)")
        self._optimizer_away = False
        self._shared = True  # the host may donate these arrays to its next step
        if self._held is not None and not result.skipped:
            params = part_of_the_way(self._held, params, self._factor)
        self._state = self._access.put(
            self._access.put(self._state, "params", params), "opt_state", opt_state
        )
        self._count(result)

    def hold(self) -> None:
        """Before a step of the host's own: keep what is needed to take only a part of it (F40)."""
        scaled = self._factor != 1.0 and not self._rule_scales
        self._held = copy_tree(self.params) if scaled else None

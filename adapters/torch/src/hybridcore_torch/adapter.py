"""The bridge between the engine and a PyTorch model with its optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import array_api_compat.torch
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hybridcore.errors import ModelError, ProbeError
from hybridcore.layout import Buckets, ParamGroup, ParamLayout
from hybridcore.protocols import API_VERSION, StepResult
from hybridcore_torch.buckets import BucketStore
from hybridcore_torch.checkpoints import export, put_together, take_apart
from hybridcore_torch.device_memory import free_bytes, peak_bytes, reset_peak
from hybridcore_torch.host_copies import HostCopier
from hybridcore_torch.jump_rules import drop_curvature_pairs, has_velocity, moment_statistics
from hybridcore_torch.losses import Autocast, LossCaller
from hybridcore_torch.modes import BufferGuard, evaluation_mode, fixed_randomness, tracked_norms
from hybridcore_torch.offload import OptimizerOffload
from hybridcore_torch.parameters import collect, unwrap
from hybridcore_torch.ranks import TorchRanks, find_ranks
from hybridcore_torch.rates import scale_rates
from hybridcore_torch.residuals import linearise
from hybridcore_torch.sharding import is_sharded, local, require_plain_shards, reshard
from hybridcore_torch.snapshot import SnapshotKeeper, TorchSnapshot
from hybridcore_torch.statistics import refresh
from hybridcore_torch.steps import StepRunner
from hybridcore_torch.tensors import clone_all

__all__ = ["TorchAdapter"]


class TorchAdapter:
    """Lets the engine train a PyTorch model; attaches by optimizer hooks and wraps nothing.

    Training and evaluation modes of modules are the host's business: a step leaves them as they are.
    The learning-rate scheduler is stepped by the host too; it is known here so that a rollback takes it
    along.

    Args:
        model: Any module, also compiled or data-parallel.
        optimizer: Any `torch.optim.Optimizer` over its parameters, also one that needs a closure.
        loss_fn: ``loss_fn(model, batch)`` returns per-example losses, shape (n,); training uses their
            mean. A function that returns the mean itself can train but not probe.
        scheduler: Learning-rate scheduler whose state belongs to snapshots.
        scaler: `torch.amp.GradScaler`; a step that it skips is reported as skipped.
        autocast: Dtype for `torch.autocast`, or a function that makes a context for each forward.
        accumulate: Cut each batch into this many micro-batches along axis 0 and add their gradients,
            weighted by size; equal to the whole batch up to rounding, BatchNorm apart (F61).
        max_grad_norm: Clip the gradient to this Euclidean norm.
        grad_norm: Measure the gradient norm. False saves a pass over the gradients, but then only the
            loss tells a bad batch, and a non-finite gradient behind a finite loss goes through.
        norm_every: On the CPU, small models (up to 100,000 weights) measure the norm every this many steps
            and repeat it in between, since there it costs a tenth of a step; that all gradients are finite
            is checked at every step all the same.

        residual_fn: ``residual_fn(model, batch)`` returns residuals (n,) whose squares are the per-example
            losses; lets predictors linearise them. Not for sharded parameters.
        ranks: Whether all processes of `torch.distributed` train this one model. None finds it out: they do
            where the model is in `DistributedDataParallel` or its parameters are sharded by `fully_shard`.

    Attributes:
        capabilities: ``"batch-statistics"`` where BatchNorm layers learn running statistics and
            ``"residuals"`` where `residual_fn` is given, next to ``"accumulation"``,
            ``"adaptive-clipping"``, ``"checkpoints"``, ``"closure"``, ``"host-memory"``, ``"learning-rate"``,
            ``"memory"`` and ``"mixed-precision"``. ``"ranks"`` where several processes train the model;
            sharded parameters take ``"adaptive-clipping"`` and ``"residuals"`` away.
        world_size: Processes that train the model.
        copies: How many of them hold the same weights.

    Raises:
        ModelError: There is nothing to train, or the arguments exclude each other.

    Example:
        >>> import torch
        >>> from hybridcore_torch import TorchAdapter
        >>> model = torch.nn.Linear(2, 1)
        >>> loss_fn = lambda model, batch: (model(batch[0]) - batch[1]).square().mean(1)
        >>> adapter = TorchAdapter(model, torch.optim.SGD(model.parameters(), lr=0.1), loss_fn)
        >>> adapter.layout.names
        ('weight', 'bias')
        >>> adapter.train_step((torch.ones(4, 2), torch.zeros(4, 1))).n_examples
        4
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_fn: Callable[[Any, Any], torch.Tensor],
        *,
        scheduler: Any = None,
        scaler: Any = None,
        autocast: Autocast = None,
        accumulate: int = 1,
        max_grad_norm: float | None = None,
        grad_norm: bool = True,
        norm_every: int = 8,
        residual_fn: Callable[[Any, Any], torch.Tensor] | None = None,
        ranks: bool | None = None,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.scheduler, self.scaler = scheduler, scaler
        self.name = "torch"
        self.api_version = API_VERSION
        self.xp: ModuleType = array_api_compat.torch
        capabilities = {
            "accumulation",
            "adaptive-clipping",
            "checkpoints",
            "closure",
            "host-memory",
            "learning-rate",
            "memory",
            "mixed-precision",
            "peak-memory",
        }
        self.layout: ParamLayout
        self.layout, params = collect(model, optimizer)
        self.device = str(params[0].device)
        self.world_size = find_ranks(model, params, ranks)
        self.copies = self.world_size
        self._ranks: TorchRanks | None = None
        if self.world_size > 1:
            self.copies = require_plain_shards(zip(self.layout.names, params, strict=True), self.world_size)
            self._ranks = TorchRanks(self.world_size, self.copies, params[0].device)
            capabilities.add("ranks")
        self._sharded = any(map(is_sharded, params))
        if self._sharded:
            capabilities.discard("adaptive-clipping")
            residual_fn = None
        self._base = unwrap(model)
        self._store = BucketStore(self.layout, params)
        self.capabilities = frozenset(
            capabilities
            | ({"batch-statistics"} if tracked_norms(self._base) else set())
            | ({"residuals"} if residual_fn is not None else set())
        )
        self._residual_fn = residual_fn
        self._guard = BufferGuard(self._base)
        self._cuda = sorted({local(p).device for p in params if p.is_cuda}, key=str)
        self._keeper = SnapshotKeeper(self.layout, self._guard, optimizer, scheduler, scaler, self._cuda)
        # Its hook must come before those of the runner, which reads the state.
        self._offload = OptimizerOffload(optimizer)
        self.to_host = HostCopier()
        self._losses = LossCaller(model, loss_fn, autocast, local(params[0]).device)
        self._runner = StepRunner(
            model,
            optimizer,
            self._losses,
            self._guard,
            self._keeper,
            scaler=scaler,
            accumulate=accumulate,
            max_grad_norm=max_grad_norm,
            grad_norm=grad_norm,
            norm_every=norm_every,
            ranks=self._ranks,
        )
        self._probe_rng = torch.Generator().manual_seed(0).get_state()
        self._skipped = 0

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
        self._free()
        self._store.write(buckets)

    def apply_delta(
        self, deltas: Buckets, scale: float = 1.0, groups: Mapping[ParamGroup, float] | None = None
    ) -> None:
        """Add ``scale * groups[g] * delta`` to every parameter of group g, in place and without a graph.

        Raises:
            DeltaError: The deltas do not fit the layout; the weights are unchanged (F22).
        """
        self._free()
        self._store.apply(deltas, scale, groups)

    @contextmanager
    def weights(self, buckets: Buckets) -> Iterator[None]:
        """Context in which the model has these weights; afterwards the former ones are back exactly.

        Raises:
            DeltaError: The buckets do not fit the layout.
        """
        former = clone_all(self._store.params)
        self.write_params(buckets)
        try:
            yield
        finally:
            self._free()
            with torch.no_grad():
                torch._foreach_copy_(self._store.params, former)

    def _free(self) -> None:
        """Before sharded parameters change: free gathered ones, which would not follow."""
        if self._sharded:
            reshard(self.model)

    # Steps and probes

    def train_step(self, batch: Any) -> StepResult:
        """One forward, backward and update; a non-finite loss or gradient changes nothing (F41).

        With a gradient scaler a skipped step lowers the scale, as it must.

        Raises:
            BatchError: The model cannot take the batch; nothing was changed.
        """
        return self._count(self._runner.run(batch))

    def closure_step(self, closure: Callable[[], torch.Tensor]) -> StepResult:
        """Like `train_step`, on the mean loss that `closure` computes; exceptions of it pass through."""
        return self._count(self._runner.run_closure(closure))

    def _count(self, result: StepResult) -> StepResult:
        self._skipped += result.skipped
        return result

    def probe_loss(self, batch: Any) -> NDArray[np.float64]:
        """Per-example losses, shape (n,), in evaluation mode and with the same random numbers each time.

        BatchNorm layers that are in training use the batch's own statistics; see
        `hybridcore_torch.modes.evaluation_mode` for the reason. With several processes, the losses of all of
        them in rank order: every process must call it.

        Raises:
            BatchError: The model cannot take the batch.
            ProbeError: The loss function returns a single number.
        """
        with torch.no_grad(), fixed_randomness(self._probe_rng, self._cuda), evaluation_mode(self._base):
            losses = self._losses.per_example(batch)
            result: NDArray[np.float64] = losses.to("cpu", torch.float64).numpy()
        self._free()
        if self._ranks is not None:
            result = self._ranks.gather_rows(result)
        if result.size == 0:
            raise ProbeError("a probe batch has no examples", where="probe", fix="pass non-empty batches")
        return result

    def linearise_residuals(
        self, batch: Any, directions: Sequence[Buckets]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Residuals r (n,) and their derivatives along each direction (n, k); needs ``"residuals"``.

        Forward-mode differentiation, in evaluation mode, without a graph; nothing changes.

        Args:
            batch: A batch.
            directions: k changes of the weights.

        Raises:
            ModelError: The adapter was made without `residual_fn`.
        """
        if self._residual_fn is None:
            raise ModelError(
                "the adapter does not know the residuals of the loss",
                where="residual_fn",
                expected="residual_fn(model, batch) with residuals of shape (n,)",
                fix="pass residual_fn, or ask for the capability 'residuals' first",
            )
        with fixed_randomness(self._probe_rng, self._cuda), evaluation_mode(self._base):
            found, products = linearise(self._base, self._residual_fn, batch, self.layout, directions)
        if self._ranks is None:
            return found, products
        whole = self._ranks.gather_rows(np.column_stack((found, products)))
        return whole[:, 0], whole[:, 1:]

    def refresh_statistics(self, batches: Iterable[Any]) -> None:
        """Re-estimate BatchNorm statistics as their mean over `batches` (F86).

        Layers in evaluation mode are frozen and left alone.

        Raises:
            BatchError: The model cannot take a batch; the statistics are unchanged.
        """
        with torch.no_grad(), fixed_randomness(self._probe_rng, self._cuda):
            refresh(self._base, self._guard, self._losses, batches)

    # State

    def snapshot(self) -> TorchSnapshot:
        """Copy of parameters, optimizer, buffers, scaler, scheduler and PyTorch's generators."""
        self._offload.back()
        self._runner.measure_next()
        return self._keeper.take(self._runner.pending)

    def restore(self, snapshot: Any) -> None:
        """Put a snapshot back bit for bit, into the tensors that are in use.

        Raises:
            SnapshotError: It was taken from a model with another layout; nothing was changed.
        """
        self._offload.back()
        self._free()
        self._keeper.put_back(snapshot)
        self._runner.measure_next()
        self._runner.pending = snapshot.pending

    def snapshot_state(self, snapshot: Any) -> tuple[dict[str, NDArray[Any]], Any]:
        """NumPy arrays and plain data of a snapshot, for checkpoints (F53)."""
        return take_apart(snapshot)

    def snapshot_from_state(self, arrays: Mapping[str, NDArray[Any]], data: Any) -> TorchSnapshot:
        """The snapshot again, on the devices it was taken from.

        Raises:
            SnapshotError: A dtype or a device does not exist here.
        """
        return put_together(arrays, data, self.layout)

    def export_weights(self, path: str) -> None:
        """Write the model's ``state_dict()`` as safetensors; read it with `safetensors.torch.load_file`."""
        export(self._base, path)

    def snapshot_nbytes(self) -> int:
        """Bytes that one snapshot takes now; of sharded parameters, on the process where it takes most.

        Snapshots of a CUDA device that are kept in host memory take none of the device's.
        """
        if self._keeper.in_host_memory and self._cuda:
            return 0
        nbytes = self._keeper.nbytes()
        if self._ranks is None or not self._ranks.sharded:
            return nbytes
        return int(self._ranks.gather([float(nbytes)]).max())

    def free_bytes(self) -> int | None:
        """Memory that the model's CUDA devices have left, the fullest counting, or None on the CPU."""
        return free_bytes(self._cuda)

    def reset_peak(self) -> None:
        """Let PyTorch's allocators count anew what they have in use at most (F90)."""
        reset_peak(self._cuda)

    def peak_bytes(self) -> int | None:
        """Most bytes of tensors since `reset_peak`, the fullest CUDA device counting; None on the CPU."""
        return peak_bytes(self._cuda)

    def keep_snapshots(self, place: str) -> None:
        """Keep the snapshots to come on the ``"device"``, or in pinned ``"host"`` memory."""
        self._keeper.in_host_memory = place == "host"

    def offload_optimizer(self) -> None:
        """Free the device of the optimizer's state until something needs it again (F63)."""
        self._offload.go()

    def after_jump(self, deltas: Buckets) -> None:
        """Adjust the optimizer to weights that moved without it (F59).

        Adam's moments and step count stay. The velocity of SGD is scaled by ``max(0, cosine)`` with the
        gradient of the next real step. L-BFGS forgets its pairs.
        """
        self._offload.back()
        drop_curvature_pairs(self.optimizer)
        self._runner.pending = has_velocity(self.optimizer)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the optimizer's first group, now."""
        return float(self.optimizer.param_groups[0]["lr"])

    def scale_learning_rate(self, factor: float) -> None:
        """Multiply the learning rate of every group, and all later rates of the scheduler (F40).

        A scheduler that is not known here (argument `scheduler`) may undo it with its next step.
        """
        scale_rates(self.optimizer, self.scheduler, factor)

    def clip_adaptively(self, ratio: float | None) -> None:
        """Clip gradients unit by unit in `train_step`, relative to the weights; None ends it (F69)."""
        self._runner.unit_ratio = ratio

    @property
    def momentum_memory(self) -> float:
        """``1 / (1 - beta1)`` of the first group; 1.0 without momentum."""
        group = self.optimizer.param_groups[0]
        beta = float(group["betas"][0]) if "betas" in group else float(group.get("momentum", 0.0))
        return 1.0 / max(1.0 - beta, 1e-9)

    def moments(self) -> dict[str, float]:
        """Mean and standard deviation of the optimizer's moments; zeros where it has none."""
        self._offload.back()
        sharded = self._ranks is not None and self._ranks.sharded
        return moment_statistics(self.optimizer, self._ranks.add_up if sharded and self._ranks else None)

    def mean_scalar(self, value: float) -> float:
        """Mean over all processes that train this model, or the value itself."""
        return value if self._ranks is None else float(self._ranks.gather([value]).mean())

    def gather_scalars(self, values: Sequence[float]) -> NDArray[np.float64]:
        """Numbers of all processes, shape (ranks, k); see `hybridcore.protocols.RankedAdapter`.

        Raises:
            RankError: Another process is gone or late.
        """
        if self._ranks is None:
            return np.asarray([values], dtype=np.float64)
        return self._ranks.gather(values)

    def step_seconds(self, seconds: float) -> float:
        """Mean seconds of a step over all processes: with several, those of the step before."""
        return seconds if self._ranks is None else self._ranks.step_seconds(seconds)

    @property
    def exchanges(self) -> int:
        """Collectives of the engine so far, gradients and buffers apart."""
        return 0 if self._ranks is None else self._ranks.exchanges

    def synchronize(self) -> None:
        """Wait until the CUDA devices have finished."""
        for device in self._cuda:
            torch.cuda.synchronize(device)

    def state_dict(self) -> dict[str, Any]:
        """Counters, the waiting momentum rule and the gradient norm that is repeated, as plain data."""
        runner = self._runner
        return {
            "real_steps": runner.real_steps,
            "skipped": self._skipped,
            "pending": runner.pending,
            "norm": [runner.since_norm, None if math.isnan(runner.last_norm) else runner.last_norm],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._runner.real_steps = int(state["real_steps"])
        self._skipped = int(state["skipped"])
        self._runner.pending = bool(state["pending"])
        since, last = state["norm"]
        self._runner.since_norm = int(since)
        self._runner.last_norm = math.nan if last is None else float(last)

    # For hosts that call `optimizer.step()` themselves

    @property
    def real_steps(self) -> int:
        """Optimizer updates that truly happened since the adapter was made."""
        return self._runner.real_steps

    @property
    def last_grad_norm(self) -> float:
        """Gradient norm at the host's own latest `optimizer.step()`; NaN before."""
        norm = self._runner.outside_norm
        return float("nan") if norm is None else float(norm)

    def host_result(self, loss: float) -> StepResult:
        """What a step of the host's own loop gave, agreed among all processes.

        Args:
            loss: Mean loss of this process's batches.
        """
        if self._ranks is None:
            return StepResult(loss, self.last_grad_norm)
        return StepResult(*self._ranks.exchange(loss, self.last_grad_norm))

    def listen_before_step(self, callback: Callable[[], None]) -> None:
        """Call `callback` right before each update that the host itself makes."""
        self._runner.before_step = callback

    @property
    def needs_closure(self) -> bool:
        """Whether the optimizer evaluates the loss itself, like L-BFGS."""
        return self._runner.needs_closure

    def let_host_announce(self) -> None:
        """Hear of the host's updates from `announce_step` alone, not from the optimizer's hook before a step.

        For hosts that compute gradients inside ``optimizer.step(closure)``, where that hook comes too early.
        """
        self._runner.told_by_host = True

    def announce_step(self, *, scaled: bool = False) -> None:
        """The host is about to update, and its gradients are ready.

        Args:
            scaled: A gradient scaler may still skip the step: with non-finite gradients nothing is done.
        """
        if scaled and not self._runner.finite_gradients():
            return
        self._runner.before_outside_step()

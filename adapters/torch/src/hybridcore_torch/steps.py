"""One real training step by PyTorch's own means, and none at all where it would do harm."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from hybridcore.errors import ModelError
from hybridcore.protocols import StepResult
from hybridcore_torch.adaptive_clipping import clip_units
from hybridcore_torch.ahead import Reading, can_refuse, update_unless
from hybridcore_torch.batches import n_examples, split
from hybridcore_torch.jump_rules import scale_velocity
from hybridcore_torch.losses import LossCaller
from hybridcore_torch.modes import BufferGuard
from hybridcore_torch.ranks import TorchRanks, peers_watched
from hybridcore_torch.sharding import local
from hybridcore_torch.snapshot import SnapshotKeeper

__all__ = ["StepRunner"]

SMALL_MODEL = 100_000
"""Weights up to which measuring the gradient norm costs a visible share of a step."""

Evaluate = Callable[[], tuple[torch.Tensor, int]]
"""Zeroes gradients, runs forward and backward; returns the detached mean loss and the example count."""


class StepRunner:
    """Forward, backward, guard and update.

    Args:
        model: The model as the user trains it.
        optimizer: Its optimizer; hooks are attached, nothing is wrapped.
        losses: Calls the loss function.
        guard: Saves and undoes buffers.
        keeper: Takes snapshots (for optimizers that evaluate a closure).
        scaler: Gradient scaler, or None.
        accumulate: Micro-batches per step.
        max_grad_norm: Clip gradients to this norm, or None.
        grad_norm: Measure the gradient norm even when it is not needed for clipping.
        norm_every: On the CPU, models of up to `SMALL_MODEL` weights measure it every this many steps.
        ranks: The other processes that train this model, or None.

    Attributes:
        since_norm: Steps until the norm is measured again.
        last_norm: The norm measured last.

    Raises:
        ModelError: The combination is not possible in PyTorch.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        losses: LossCaller,
        guard: BufferGuard,
        keeper: SnapshotKeeper,
        *,
        scaler: Any,
        accumulate: int,
        max_grad_norm: float | None,
        grad_norm: bool,
        norm_every: int,
        ranks: TorchRanks | None = None,
    ) -> None:
        if accumulate < 1:
            raise ModelError(
                "accumulate is out of range", where="accumulate", got=accumulate, expected="1 or more"
            )
        step = inspect.signature(type(optimizer).step).parameters.get("closure")
        self.needs_closure = step is not None and step.default is inspect.Parameter.empty
        if self.needs_closure and scaler is not None:
            raise ModelError(
                "a gradient scaler does not work with an optimizer that evaluates a closure",
                where="scaler",
                got=type(optimizer).__name__,
                fix="use scaler=None, for example with bfloat16",
            )
        self._model, self._optimizer, self._losses = model, optimizer, losses
        self._guard, self._keeper, self._scaler = guard, keeper, scaler
        self._accumulate, self._limit = accumulate, max_grad_norm
        self._measure = grad_norm or max_grad_norm is not None
        self._params = [p for g in optimizer.param_groups for p in g["params"]]
        self._found, self._one = torch.zeros(1), torch.ones(1)
        self._reading = Reading()
        self._plain: bool | None = None
        self._norm_every, self._ranks = norm_every, ranks
        self.since_norm = 0
        self._total = sum(p.numel() for p in self._params)
        self.last_norm = math.nan
        self._inside = False
        self.pending = False
        self.unit_ratio: float | None = None
        self.real_steps = 0
        self._backwards = 0
        self.before_step: Callable[[], None] | None = None
        self.told_by_host = False
        self.outside_norm: torch.Tensor | None = None
        optimizer.register_step_pre_hook(self._on_before)
        optimizer.register_step_post_hook(self._on_after)

    def run(self, batch: Any) -> StepResult:
        """One step on a batch."""
        return self._step(lambda: self._evaluate(batch))

    def run_closure(self, closure: Callable[[], torch.Tensor]) -> StepResult:
        """One step on the mean loss that `closure` computes."""

        def evaluate() -> tuple[torch.Tensor, int]:
            self._optimizer.zero_grad(set_to_none=True)
            loss = closure()
            self._announce(loss, 0)
            self._backward(loss)
            return loss.detach(), 0

        return self._step(evaluate)

    def _evaluate(self, batch: Any) -> tuple[torch.Tensor, int]:
        self._optimizer.zero_grad(set_to_none=True)
        if self._accumulate == 1:
            losses = self._losses(batch)
            mean = losses.mean()
            count = losses.shape[0] if losses.ndim else n_examples(batch)
            self._announce(mean, count)
            self._backward(mean)
            return mean.detach(), count
        parts = split(batch, self._accumulate)
        total: Any = 0.0
        for index, (part, share) in enumerate(parts):
            last = index == len(parts) - 1
            # Data-parallel wrappers exchange gradients only at the last micro-batch.
            with nullcontext() if last else getattr(self._model, "no_sync", nullcontext)():
                mean = self._losses(part).mean() * share
                total = total + mean.detach()
                if last:
                    self._announce(total, n_examples(batch))
                self._backward(mean)
        return total, n_examples(batch)

    def _announce(self, loss: torch.Tensor, count: int) -> None:
        """Send the loss to the other ranks; it travels while the backward pass runs."""
        if self._ranks is not None:
            self._ranks.announce(loss, count)

    def _backward(self, loss: torch.Tensor) -> None:
        self._backwards += 1
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()

    def _step(self, evaluate: Evaluate) -> StepResult:
        self._guard.save()
        self._backwards = 0
        try:
            if self._ranks is None:
                loss, count = evaluate()
            else:
                with peers_watched("a training step"):
                    loss, count = evaluate()
        except BaseException:
            self._guard.undo()
            self._optimizer.zero_grad(set_to_none=True)
            raise
        self._guard.learn()
        ahead = self._goes_ahead(loss)
        value, norm = self._update_ahead(loss) if ahead else self._finish_gradients(loss)
        if self._ranks is not None:
            count = self._ranks.examples
            if self.needs_closure:
                loss = loss.new_tensor(value)
        if not math.isfinite(value) or (self._measure and not math.isfinite(norm)):
            self.real_steps -= ahead  # the device left it out
            self._skip(overflow=not math.isfinite(norm))
            updated = False
        else:
            updated = ahead or self._update(evaluate, loss)
        overflow = not updated and self._scaler is not None and math.isfinite(value)
        evaluations = self._backwards // self._accumulate if self.needs_closure else 1
        return StepResult(
            value, norm, not updated, count, self._backwards, overflow, evaluations=max(1, evaluations)
        )

    def _goes_ahead(self, loss: torch.Tensor) -> bool:
        """Whether the update can be queued before its numbers are read: no wait while the device is idle."""
        if not self._measure or self._scaler is not None or self.pending or not _works_ahead(loss):
            return False
        if self._ranks is not None and (self._ranks.sharded or not self._ranks.beside_training):
            return False
        return can_refuse(self._optimizer)

    def _update_ahead(self, loss: torch.Tensor) -> tuple[float, float]:
        """Measure, clip and update; loss and norm as numbers, and nothing changed where one is not finite."""
        self._clip_units()
        norm = _norm(self._gradients())
        with nullcontext() if self._ranks is None else peers_watched("the loss of a step"):
            numbers = _pair(loss, norm) if self._ranks is None else self._ranks.collected(norm)
            self._reading.begin(numbers)
            self._inside = True
            try:
                update_unless(self._optimizer, numbers, norm, self._limit)
            finally:
                self._inside = False
            read = self._reading.end()
        value, size = read.tolist() if self._ranks is None else self._ranks.told(read)
        return value, size if self._limit is None or not size > self._limit else self._limit

    def _update(self, evaluate: Evaluate, loss: torch.Tensor) -> bool:
        """Let the optimizer change the weights; False where it, or its scaler, did not."""
        before = self.real_steps
        self._inside = True
        try:
            if self.needs_closure:
                return self._closure_update(evaluate, loss)
            if self._scaler is None:
                self._optimizer.step()
            else:
                self._scaler.step(self._optimizer)
                self._scaler.update()
        finally:
            self._inside = False
        return self.real_steps != before

    def _skip(self, overflow: bool) -> None:
        self.measure_next()
        self._optimizer.zero_grad(set_to_none=True)
        self._guard.undo()
        if self._scaler is not None and overflow:
            # Without this the scale would never come down, and every later batch would overflow too.
            self._scaler.update()
        elif self._scaler is not None:
            # Finite gradients behind a non-finite loss must not count towards a larger scale.
            self._scaler.update(self._scaler.get_scale())

    def _closure_update(self, evaluate: Evaluate, first: torch.Tensor) -> bool:
        """Update by an optimizer that evaluates the loss itself; False if it ended in non-finite numbers."""
        backup = self._keeper.take(self.pending, rng=False)
        ready: list[torch.Tensor] = [first]
        finite = True

        def closure() -> Any:
            nonlocal finite
            if ready:
                return ready.pop()
            loss, _ = evaluate()
            value, norm = self._finish_gradients(loss)
            finite = finite and math.isfinite(value) and not (self._measure and not math.isfinite(norm))
            return loss if self._ranks is None else loss.new_tensor(value)  # line searches must go alike

        self._optimizer.step(closure)
        size = self.whole_norm(float(_norm([local(p.detach()) for p in self._params])))
        finite = finite and math.isfinite(size)
        if not finite:
            self._keeper.put_back(backup)
            self._skip(overflow=False)
        return finite

    def whole_norm(self, norm: float) -> float:
        """Norm over the whole model from that of this process's shard."""
        if self._ranks is None or not self._ranks.sharded:
            return norm
        return math.sqrt(self._ranks.add_up([norm * norm])[0])

    def _finish_gradients(self, loss: torch.Tensor) -> tuple[float, float]:
        """Unscale, measure and clip the gradients; loss and norm as numbers, in one wait for the device.

        Args:
            loss: This process's loss; the number is that of all of them.
        """
        if self._scaler is not None:
            self._scaler.unscale_(self._optimizer)
        self._clip_units()
        if not self._measure:
            return loss.item() if self._ranks is None else self._ranks.collect()[0], math.nan
        gradients = self._gradients()
        if self._limit is None and self._cheap_check(gradients):
            return self._check_cheaply(loss, gradients)
        value, size = self._read_out(loss, _norm(gradients))
        if self._limit is not None and math.isfinite(size) and size > self._limit:
            torch._foreach_mul_(gradients, self._limit / size)
            size = self._limit
        return value, size

    def _check_cheaply(self, loss: torch.Tensor, gradients: list[torch.Tensor]) -> tuple[float, float]:
        """Loss and norm on the CPU; small models measure the norm at some steps and only check at others."""
        measured = self.since_norm == 0 or self._total > SMALL_MODEL
        if measured:
            found = self._dot_norm(gradients)
            self.since_norm = self._norm_every
        else:
            found = 0.0 if self._all_finite(gradients) else math.nan
        self.since_norm -= 1
        value, found = (loss.item(), found) if self._ranks is None else self._ranks.collect(found)
        if measured:
            self.last_norm = found
        return value, self.last_norm if math.isfinite(found) else found

    def _read_out(self, loss: torch.Tensor, norm: torch.Tensor) -> tuple[float, float]:
        if self._ranks is not None:
            return self._ranks.collect(norm)
        if not loss.is_cuda:
            return loss.item(), norm.item()
        value, size = _pair(loss, norm).tolist()
        return value, size

    def measure_next(self) -> None:
        """Measure the gradient norm at the next step, so that a restored run repeats itself exactly."""
        self.since_norm = 0

    def _cheap_check(self, gradients: list[torch.Tensor]) -> bool:
        """Whether all gradients are plain float32 arrays in the host's memory; found at the first step."""
        if self._plain is None and gradients:
            self._plain = all(
                g.dtype is torch.float32 and not g.is_cuda and not g.is_sparse for g in gradients
            )
        return bool(gradients) and bool(self._plain)

    def _dot_norm(self, gradients: list[torch.Tensor]) -> float:
        """Norm by BLAS, the quickest pass over large gradients on the CPU."""
        total = 0.0
        for gradient in gradients:
            flat = gradient.view(-1) if gradient.is_contiguous() else gradient.reshape(-1)
            total += torch.dot(flat, flat).item()
        return math.sqrt(total)

    def _all_finite(self, gradients: list[torch.Tensor]) -> bool:
        self._found.zero_()
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, self._found, self._one)
        return not self._found.item()

    def _on_before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._told_to_skip(optimizer):
            return
        if self._inside:
            self._settle_velocity()
        elif not self.told_by_host:
            self.before_outside_step()

    def before_outside_step(self) -> None:
        """Measure the gradients of an update that the host is about to make, and let the engine look."""
        if self._measure and not self.needs_closure:
            gradients = self._gradients()
            scale = getattr(self._optimizer, "grad_scale", None)
            norm = _norm(gradients)
            self.outside_norm = norm if scale is None else norm / scale.to(norm.device)
        if self.before_step is not None:
            self.before_step()
        self._settle_velocity()

    def finite_gradients(self) -> bool:
        """Whether all gradients are finite now."""
        return math.isfinite(float(_norm(self._gradients())))

    def _gradients(self) -> list[torch.Tensor]:
        """What this process holds of the gradients."""
        return [local(p.grad) for p in self._params if p.grad is not None]

    def _clip_units(self) -> None:
        if self.unit_ratio is not None:
            clip_units([p for p in self._params if p.grad is not None], self.unit_ratio)

    def _settle_velocity(self) -> None:
        if self.pending:
            self.pending = False
            sharded = self._ranks is not None and self._ranks.sharded
            scale_velocity(
                self._optimizer, self._ranks.add_up if sharded and self._ranks is not None else None
            )

    def _told_to_skip(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether a fused optimizer is being told by its scaler to leave the weights alone."""
        if self._inside and self._measure:
            return False  # the gradients were found finite; asking the device again would stall it
        found = getattr(optimizer, "found_inf", None)
        return found is not None and bool(found)

    def _on_after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if not self._told_to_skip(optimizer):
            self.real_steps += 1


def _works_ahead(loss: torch.Tensor) -> bool:
    """Whether the host queues work for a device that does it later."""
    return loss.is_cuda


def _pair(loss: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """Both on the loss's device, shape (2,), in float32 or better."""
    wide = torch.promote_types(torch.promote_types(loss.dtype, norm.dtype), torch.float32)
    return torch.stack((loss.to(wide), norm.to(loss.device, wide)))


@torch.no_grad()
def _norm(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Euclidean norm over all tensors, in float32 or better."""
    if not tensors:
        return torch.zeros(())
    if any(t.is_sparse for t in tensors):
        tensors = [t.coalesce().values() if t.is_sparse else t for t in tensors]
    if any(t.dtype in (torch.float16, torch.bfloat16) for t in tensors):
        norms = list(torch._foreach_norm(tensors, 2, torch.float32))
    else:
        norms = list(torch._foreach_norm(tensors, 2))
    first = norms[0]
    same = all(n.device == first.device and n.dtype == first.dtype for n in norms)
    total: torch.Tensor = torch.linalg.vector_norm(
        torch.stack(norms if same else [n.to(first) for n in norms])
    )
    return total

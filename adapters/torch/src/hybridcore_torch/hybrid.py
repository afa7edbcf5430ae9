"""The five-line way in: attach the engine to a model and optimizer that already train (F58)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hybridcore.config import HybridConfig
from hybridcore.engine import Engine
from hybridcore.errors import ProbeError
from hybridcore.events import Listener
from hybridcore.protocols import StepResult
from hybridcore_torch.adapter import TorchAdapter
from hybridcore_torch.losses import Autocast

__all__ = ["Hybrid", "hybridize"]


def hybridize(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: HybridConfig | str | Path | None = None,
    *,
    loss_fn: Callable[[Any, Any], torch.Tensor],
    probe: Iterable[Any] = (),
    scheduler: Any = None,
    scaler: Any = None,
    autocast: Autocast = None,
    accumulate: int = 1,
    max_grad_norm: float | None = None,
    events: Iterable[Listener] = (),
) -> Hybrid:
    """Attach the engine; the model and the optimizer stay the user's own objects.

    Args:
        model: The model in training.
        optimizer: Its optimizer.
        config: A configuration, the path of a TOML file, or None for the defaults.
        loss_fn: ``loss_fn(model, batch)`` returns per-example losses, shape (n,).
        probe: A few held-out batches of the training distribution; without them the engine remembers the
            first batches it sees.
        scheduler: Learning-rate scheduler, so that a rollback takes it along; go on stepping it yourself,
            after real steps only (`Hybrid.stepped`).
        scaler: Gradient scaler.
        autocast: Dtype or context maker of every forward.
        accumulate: Micro-batches that `Hybrid.step` cuts a batch into.
        max_grad_norm: Gradient clipping of `Hybrid.step`.
        events: Listeners, called as ``listener(event, payload)``, for example a `MetricsWriter`.

    Raises:
        ConfigError: The configuration has mistakes.
        ModelError: There is nothing to train.
    """
    if not isinstance(config, HybridConfig):
        from hybridcore.configfile import load_config

        config = load_config(config) if config is not None else HybridConfig()
    adapter = TorchAdapter(
        model,
        optimizer,
        loss_fn,
        scheduler=scheduler,
        scaler=scaler,
        autocast=autocast,
        accumulate=accumulate,
        max_grad_norm=max_grad_norm,
    )
    engine = Engine.from_config(adapter, config, probes=probe)
    for listener in events:
        engine.events.listen(listener)
    return Hybrid(engine, adapter)


class Hybrid:
    """The engine around one model; three ways to train, which may be mixed.

    - ``hybrid.step(batch)``: the adapter runs forward, backward and update.
    - ``hybrid.step(closure)``: `closure` returns the mean loss of a batch it chose itself.
    - ``if hybrid.needs_backward: ...; optimizer.step()`` and then ``hybrid.advance(loss)``: the loop keeps
      its own precision, accumulation and clipping.

    Args:
        engine: Decides.
        adapter: Trains.
    """

    def __init__(self, engine: Engine, adapter: TorchAdapter) -> None:
        self.engine, self.adapter = engine, adapter
        self.stepped = False
        """Whether the latest call made (or, for `advance`, saw) a real optimizer update."""
        self._seen = adapter.real_steps
        self._losses: list[torch.Tensor | float] = []
        adapter.listen_before_step(engine.before_step)

    @property
    def needs_backward(self) -> bool:
        """Whether the next batch is to be learned from; False for a predicted step."""
        return self.engine.needs_backward

    def step(self, batch: Any) -> float:
        """Consume one batch.

        Args:
            batch: A batch for ``loss_fn``, or a function without arguments that returns the mean loss of
                one. The function is not called for predicted steps.

        Returns:
            The mean training loss before the update; NaN for a predicted step that was not measured.

        Raises:
            BatchError: The model cannot take the batch; nothing changed.
            ProbeError: `batch` is a function, and no probe batches were given.
        """
        if not callable(batch):
            result = self.engine.step(batch)
        elif self.engine.needs_backward:
            self._require_probes()
            self.engine.before_step()
            result = self.adapter.closure_step(batch)
            self.engine.after_step(result)
        else:
            result = self.engine.predicted_step(None)
        self._sync()
        return result.loss

    def advance(self, loss: torch.Tensor | float | None = None) -> None:
        """Report what the loop did with one batch.

        Whether an update happened is known from the optimizer's own hook, so gradient accumulation and
        updates that a scaler skipped need no flag: without an update the engine only remembers the loss.

        Args:
            loss: Mean loss of the batch; not looked at after a batch for which `needs_backward` was False.
        """
        self._require_probes()
        if self.adapter.real_steps == self._seen and not self.engine.needs_backward:
            self.engine.predicted_step(None)
            self._sync()
            return
        if loss is not None:
            self._losses.append(loss.detach() if isinstance(loss, torch.Tensor) else loss)
        if self.adapter.real_steps == self._seen:
            self.stepped = False
            return
        values = [float(x) for x in self._losses]
        self._losses.clear()
        mean = sum(values) / len(values) if values else float("nan")
        self.engine.after_step(StepResult(mean, self.adapter.last_grad_norm))
        self._sync()

    def _require_probes(self) -> None:
        """Raise where nothing could ever be judged: these two ways show the engine no batches."""
        if not len(self.engine.probes):
            raise ProbeError(
                "a loop that keeps its batches to itself needs held-out batches for probes",
                where="hybridize(..., probe=...)",
                got="no probe batches",
                expected="one or more held-out batches that loss_fn takes",
                fix="pass probe=[batch, ...] to hybridize, or train with hybrid.step(batch)",
            )

    def _sync(self) -> None:
        self.stepped = self.adapter.real_steps != self._seen
        self._seen = self.adapter.real_steps

    def resumed(self) -> None:
        """Forget losses and updates from before `engine.load_state_dict`."""
        self._losses.clear()
        self._seen = self.adapter.real_steps

    def finish(self) -> dict[str, Any]:
        """End the run: judge an open trial with what is known, and return the summary."""
        return self.engine.finish()

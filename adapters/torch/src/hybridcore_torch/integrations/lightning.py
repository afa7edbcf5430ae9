"""The engine inside a ``lightning.Trainer`` as a callback, in jump mode (F87)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy

from hybridcore.checkpoint.files import Contents
from hybridcore.config import HybridConfig
from hybridcore.engine import Engine
from hybridcore.errors import ModelError
from hybridcore.events import Listener
from hybridcore_torch.adapter import TorchAdapter
from hybridcore_torch.batches import to_device
from hybridcore_torch.hybrid import Hybrid, hybridize
from hybridcore_torch.integrations.attachment import (
    jump_config,
    numbers,
    pack,
    require_attached,
    require_probes,
    unpack,
)

__all__ = ["HybridCallback"]

_WHERE = "HybridCallback"


class HybridCallback(Callback):
    """Lets the engine jump, judge and roll back between the batches of ``Trainer.fit``.

    Every update is Lightning's own automatic optimization: ``training_step``, precision, accumulation,
    clipping and schedule are not touched. ``hybrid/jumps``, ``hybrid/rollbacks`` and the like are logged
    with the module's own metrics. The engine's state is part of Lightning's checkpoints, and
    ``fit(ckpt_path=...)`` goes on with it.

    Args:
        config: A configuration, the path of a TOML file, or None for the defaults; `phases.predict_mode`
            must be ``"jump"``.
        loss_fn: ``loss_fn(module, batch)`` returns per-example losses, shape (n,), of a probe batch.
        probe: Held-out batches of the training distribution.
        events: Listeners, called as ``listener(event, payload)``.

    Attributes:
        engine: The engine; None before training began.
        adapter: The adapter; None before training began.
        summary: What the engine counted; empty before training ended.

    Raises:
        ConfigError: The configuration has mistakes, or asks for another mode.
        ProbeError: There is no held-out batch.
    """

    def __init__(
        self,
        config: HybridConfig | str | Path | None = None,
        *,
        loss_fn: Callable[[Any, Any], torch.Tensor],
        probe: Iterable[Any],
        events: Iterable[Listener] = (),
    ) -> None:
        self._config = jump_config(config, f"{_WHERE}(config)")
        self._loss_fn, self._probe, self._events = loss_fn, list(probe), list(events)
        require_probes(len(self._probe), f"{_WHERE}(probe=...)")
        self.engine: Engine | None = None
        self.adapter: TorchAdapter | None = None
        self.summary: dict[str, Any] = {}
        self._hybrid: Hybrid | None = None
        self._saved: dict[str, Any] = {}
        self._scaled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach to the optimizer that Lightning made; a second ``fit`` makes a new one and a new engine.

        Raises:
            ModelError: The module is trained in a way that leaves no place for the engine.
            CheckpointError: The engine's state in the checkpoint belongs to another run or is damaged.
        """
        _check(trainer, pl_module)
        precision = trainer.strategy.precision_plugin
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        scaler = getattr(precision, "scaler", None)
        self._scaled, self.summary = scaler is not None, {}
        self._hybrid = hybridize(
            pl_module,
            trainer.optimizers[0],
            self._config,
            loss_fn=self._loss_fn,
            probe=[to_device(batch, pl_module.device) for batch in self._probe],
            scheduler=schedulers[0] if schedulers else None,
            scaler=scaler,
            autocast=precision.forward_context,
            events=self._events,
        )
        self.engine, self.adapter = self._hybrid.engine, self._hybrid.adapter
        self.adapter.let_host_announce()
        if self.adapter.needs_closure:
            raise ModelError(
                "the optimizer takes several looks at a batch and leaves no moment between them",
                where="configure_optimizers",
                got=type(trainer.optimizers[0]).__name__,
                fix="choose an optimizer of one step per batch, or train with hybridize(...).step(batch)",
            )
        if self._saved:
            unpack(self.engine, self.adapter, _contents(self._saved), "the checkpoint's callback state")
            self._hybrid.resumed()
            self._saved = {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Look at weights and gradients before the update, and before clipping."""
        require_attached(self.engine, _WHERE)
        assert self.adapter is not None
        self.adapter.announce_step(scaled=self._scaled)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tell the engine how the batch went; jumps, verdicts and rollbacks happen here."""
        engine = require_attached(self.engine, _WHERE)
        assert self._hybrid is not None
        # Lightning divides a micro-batch's loss by their number; the engine takes the mean of a few.
        loss = outputs["loss"] * trainer.accumulate_grad_batches if outputs else None
        self._hybrid.advance(loss)
        if self._hybrid.stepped:
            self.log_dict(numbers(engine, "hybrid/"), on_step=True, on_epoch=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge an open trial and keep the summary."""
        self.summary = require_attached(self.engine, _WHERE).finish()

    def state_dict(self) -> dict[str, Any]:
        """The engine's state, for Lightning's checkpoints: text, numbers and tensors."""
        if self.engine is None or self.adapter is None:
            return dict(self._saved)
        contents = pack(self.engine, self.adapter)
        text = json.dumps({"belongs_to": contents.belongs_to, "tree": contents.tree}, allow_nan=False)
        arrays = {name: torch.from_numpy(array) for name, array in contents.arrays.items()}
        return {"step": contents.step, "text": text, "arrays": arrays}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep it until training begins."""
        self._saved = dict(state_dict)


def _contents(saved: dict[str, Any]) -> Contents:
    whole, step = json.loads(saved["text"]), int(saved["step"])
    arrays = {name: tensor.cpu().numpy() for name, tensor in saved["arrays"].items()}
    return Contents(step, step, whole["belongs_to"], whole["tree"], arrays)


def _check(trainer: Trainer, module: LightningModule) -> None:
    if not module.automatic_optimization:
        raise ModelError(
            "with manual optimization only the module knows when a step is one",
            where=f"{type(module).__name__}.automatic_optimization",
            got=False,
            expected="True",
            fix="call hybridize inside training_step and hybrid.advance after each batch",
        )
    if not isinstance(trainer.strategy, SingleDeviceStrategy):
        raise ModelError(
            "the callback follows a Trainer on one device",
            where="Trainer(strategy=...)",
            got=type(trainer.strategy).__name__,
            expected="SingleDeviceStrategy: no DDP, no FSDP, no DeepSpeed",
            fix="pass devices=1, or write the loop yourself with hybridize and advance",
        )
    for what, found in (
        ("optimizer", trainer.optimizers),
        ("learning-rate scheduler", trainer.lr_scheduler_configs),
    ):
        if len(found) > 1 or (what == "optimizer" and not found):
            raise ModelError(
                f"a rollback takes one {what} along",
                where=f"{type(module).__name__}.configure_optimizers",
                got=len(found),
                expected=f"one {what}",
                fix=f"return a single {what}; torch.optim.lr_scheduler.SequentialLR joins several",
            )

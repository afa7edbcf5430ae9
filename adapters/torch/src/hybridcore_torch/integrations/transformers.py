"""The engine inside ``transformers.Trainer`` as a callback, in jump mode (F87)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from accelerate.utils import DistributedType
from transformers import Trainer, TrainerCallback

from hybridcore import __version__
from hybridcore.checkpoint.files import read, write
from hybridcore.config import HybridConfig
from hybridcore.engine import Engine
from hybridcore.errors import ModelError
from hybridcore.events import Listener
from hybridcore_torch.adapter import TorchAdapter
from hybridcore_torch.hybrid import Hybrid, hybridize
from hybridcore_torch.integrations.attachment import (
    jump_config,
    numbers,
    pack,
    require_attached,
    require_probes,
    unpack,
)
from hybridcore_torch.integrations.example_losses import TrainerLosses

__all__ = ["HybridCallback"]

logger = logging.getLogger("hybridcore")

_WHERE = "HybridCallback"
_FOLDER = "hybridcore"


class HybridCallback(TrainerCallback):
    """Lets the engine jump, judge and roll back between the steps of a ``Trainer``.

    Every optimizer step is the Trainer's own: its optimizer, schedule, precision, accumulation and clipping
    are not touched. The engine hears of each through the optimizer's hooks and changes weights between two.
    The Trainer's log gains ``hybrid_jumps``, ``hybrid_rollbacks`` and the like next to ``loss``.

    A checkpoint of the Trainer gets a folder ``hybridcore`` with the engine's state, and
    ``train(resume_from_checkpoint=...)`` goes on with it where the checkpoint lies in ``args.output_dir`` or
    is ``args.resume_from_checkpoint``; otherwise the engine begins anew and says so.

    Args:
        trainer: The Trainer; add the callback with ``trainer.add_callback``.
        config: A configuration, the path of a TOML file, or None for the defaults; `phases.predict_mode`
            must be ``"jump"``.
        probe: Held-out examples of the training distribution, a dataset such as ``Trainer(eval_dataset=...)``
            takes; the first ``probe.batches`` batches of ``per_device_eval_batch_size`` are used.
        loss_fn: ``loss_fn(model, batch)`` returns per-example losses, shape (n,), of a probe batch; by
            default `TrainerLosses`, the Trainer's own loss of each example.
        events: Listeners, called as ``listener(event, payload)``.

    Attributes:
        engine: The engine; None before training began.
        adapter: The adapter; None before training began.
        summary: What the engine counted; empty before training ended.

    Raises:
        ConfigError: The configuration has mistakes, or asks for another mode.
    """

    def __init__(
        self,
        trainer: Trainer,
        config: HybridConfig | str | Path | None = None,
        *,
        probe: Any,
        loss_fn: Callable[[Any, Any], torch.Tensor] | None = None,
        events: Iterable[Listener] = (),
    ) -> None:
        self._trainer, self._config = trainer, jump_config(config, f"{_WHERE}(config)")
        self._probe, self._loss_fn, self._events = probe, loss_fn, list(events)
        self.engine: Engine | None = None
        self.adapter: TorchAdapter | None = None
        self.summary: dict[str, Any] = {}
        self._hybrid: Hybrid | None = None
        self._loss: torch.Tensor | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach to the optimizer that the Trainer made; a second ``train`` with it keeps the engine.

        Raises:
            ModelError: The Trainer trains in a way that leaves no place for the engine.
            ProbeError: There is no held-out example.
            CheckpointError: The engine's state in the checkpoint belongs to another run or is damaged.
        """
        _check(self._trainer)
        optimizer = _plain(kwargs["optimizer"], AcceleratedOptimizer, "optimizer")
        model = self._trainer.model
        self.summary, self._loss = {}, None
        if self.adapter is None or self.adapter.optimizer is not optimizer or self.adapter.model is not model:
            self._attach(model, optimizer, kwargs["lr_scheduler"])
            self._resume(args, state)
        self._listen()

    def _attach(self, model: Any, optimizer: Any, scheduler: Any) -> None:
        trainer = self._trainer
        # A loader draws a seed when it begins; training must not notice.
        with torch.random.fork_rng(devices=[]):
            limit = self._config.probe.batches
            loader = trainer.get_eval_dataloader(self._probe)
            batches = [dict(batch) for batch, _ in zip(loader, range(limit), strict=False)]
        require_probes(len(batches), f"{_WHERE}(probe=...)")
        self._hybrid = hybridize(
            model,
            optimizer,
            self._config,
            loss_fn=self._loss_fn or TrainerLosses(trainer),
            probe=[trainer._prepare_inputs(batch) for batch in batches],
            scheduler=scheduler.scheduler if isinstance(scheduler, AcceleratedScheduler) else scheduler,
            scaler=trainer.accelerator.scaler,
            events=self._events,
        )
        self.engine, self.adapter = self._hybrid.engine, self._hybrid.adapter

    def _listen(self) -> None:
        """Hear every micro-batch's loss, and have a word in the log, where subclasses would override too."""
        trainer = self._trainer
        for name, wrap in (("training_step", self._heard), ("log", self._told)):
            original = getattr(trainer, name)
            if getattr(original, "hybrid", None) is not self:
                wrapped = wrap(original)
                wrapped.hybrid = self
                setattr(trainer, name, wrapped)

    def _heard(self, original: Callable[..., Any]) -> Any:
        def training_step(*args: Any, **kwargs: Any) -> Any:
            loss = original(*args, **kwargs)
            self._loss = loss if self._loss is None else self._loss + loss
            return loss

        return training_step

    def _told(self, original: Callable[..., Any]) -> Any:
        def log(logs: dict[str, float], *args: Any, **kwargs: Any) -> Any:
            if self.engine is not None and ("loss" in logs or "train_loss" in logs):
                logs.update(numbers(self.engine, "hybrid_"))
            return original(logs, *args, **kwargs)

        return log

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to add up the losses of a step's micro-batches."""
        self._loss = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the engine how the step went; jumps, verdicts and rollbacks happen here."""
        require_attached(self.engine, _WHERE)
        assert self._hybrid is not None
        # Micro-batches come already divided by their number, or by the tokens of all of them.
        self._hybrid.advance(self._loss)
        if control.should_training_stop:
            self._finish()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Judge an open trial where training stops here, before the last evaluation and checkpoint."""
        if control.should_training_stop:
            self._finish()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the engine's state into the checkpoint that the Trainer has just written."""
        engine = require_attached(self.engine, _WHERE)
        assert self.adapter is not None
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if args.should_save and folder.is_dir():
            write(pack(engine, self.adapter), folder / _FOLDER, __version__)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the summary; the weights may be those of the best checkpoint by now and are left alone."""
        if not self.summary and not args.load_best_model_at_end:
            self._finish()
        self.summary = self.summary or require_attached(self.engine, _WHERE).summary()

    def _finish(self) -> None:
        if not self.summary:
            self.summary = require_attached(self.engine, _WHERE).finish()

    def _resume(self, args: Any, state: Any) -> None:
        if state.global_step == 0:
            return
        assert self.engine is not None and self.adapter is not None and self._hybrid is not None
        name = f"checkpoint-{state.global_step}"
        places = [Path(args.output_dir) / name]
        if isinstance(args.resume_from_checkpoint, str):
            places.insert(0, Path(args.resume_from_checkpoint))
        for place in places:
            if place.name == name and (place / _FOLDER).is_dir():
                unpack(self.engine, self.adapter, read(place / _FOLDER), str(place / _FOLDER))
                self._hybrid.resumed()
                return
        logger.warning(
            "the Trainer goes on from step %d without the engine's state, which begins anew; looked for %s",
            state.global_step,
            ", ".join(str(place / _FOLDER) for place in places),
        )


def _plain(wrapped: Any, wrapper: Any, where: str) -> torch.optim.Optimizer:
    inner: Any = wrapped.optimizer if isinstance(wrapped, wrapper) else wrapped
    if not isinstance(inner, torch.optim.Optimizer):
        raise ModelError(
            "the Trainer's optimizer has none of PyTorch's hooks",
            where=f"Trainer.{where}",
            got=type(inner).__name__,
            expected="one torch.optim.Optimizer",
            fix="choose an optimizer by TrainingArguments(optim=...) that is one",
        )
    return inner


def _check(trainer: Trainer) -> None:
    kind = trainer.accelerator.distributed_type
    if kind is not DistributedType.NO or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise ModelError(
            "the callback follows a Trainer in one process",
            where="Trainer.accelerator.distributed_type",
            got="DEEPSPEED" if trainer.is_deepspeed_enabled else kind.value,
            expected="NO: no DeepSpeed, no FSDP, no several processes",
            fix="train in one process, or write the loop yourself with hybridize and advance",
        )
    if str(trainer.args.optim).rpartition(".")[2].lower() in ("lomo", "adalomo"):
        raise ModelError(
            "the optimizer changes weights inside the backward pass and leaves no moment before a step",
            where="TrainingArguments.optim",
            got=str(trainer.args.optim),
            fix="choose another optimizer, for example adamw_torch",
        )

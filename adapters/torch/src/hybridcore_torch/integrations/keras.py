"""The engine inside ``model.fit`` of Keras 3 on PyTorch, as a callback in jump mode (F87)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import keras

from hybridcore.config import HybridConfig
from hybridcore.engine import Engine
from hybridcore.errors import ModelError
from hybridcore.events import Listener
from hybridcore_torch.adapter import TorchAdapter
from hybridcore_torch.hybrid import Hybrid
from hybridcore_torch.integrations.attachment import jump_config, require_probes
from hybridcore_torch.integrations.keras_losses import compiled_losses
from hybridcore_torch.integrations.keras_optimizer import KerasOptimizer

__all__ = ["HybridCallback"]


class HybridCallback(keras.callbacks.Callback):
    """Lets the engine jump, judge and roll back between the batches of ``model.fit``.

    Keras' own train step goes on training; its optimizer's ``apply`` is heard and weights are changed in
    place between two batches.

    Args:
        config: A configuration, the path of a TOML file, or None for the defaults; `phases.predict_mode`
            must be ``"jump"``.
        probe: Held-out batches of the training distribution, ``(x, y)`` or ``(x, y, sample_weight)``.
        loss_fn: ``loss_fn(y_true, y_pred)`` returns losses of shape (n,) or (n, ...) of a probe batch; by
            default the compiled loss, unreduced.
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
        probe: Iterable[Any],
        loss_fn: Callable[[Any, Any], Any] | None = None,
        events: Iterable[Listener] = (),
    ) -> None:
        super().__init__()
        self._config, self._probes = jump_config(config, "HybridCallback(config)"), list(probe)
        require_probes(len(self._probes), "HybridCallback(probe=...)")
        self._loss_fn, self._events = loss_fn, list(events)
        self.engine: Engine | None = None
        self.adapter: TorchAdapter | None = None
        self.summary: dict[str, Any] = {}
        self._hybrid: Hybrid | None = None
        self._keras_optimizer: Any = None
        self._seen_as: KerasOptimizer | None = None
        self._fitted: Any = None
        self._seen = (0.0, 0.0)

    def on_train_begin(self, logs: Any = None) -> None:
        """Attach to the compiled model; a second ``fit`` goes on with the same engine.

        Raises:
            ModelError: Keras runs on another backend, or the model is trained in a way that leaves no
                moment between two steps.
        """
        model = self.model
        _check(model)
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        if self._hybrid is None or self._keras_optimizer is not model.optimizer or self._fitted is not model:
            self._keras_optimizer, self._fitted = model.optimizer, model
            self._seen_as = KerasOptimizer(model)
            self.adapter = TorchAdapter(model, self._seen_as, compiled_losses(model, self._loss_fn))
            self.engine = Engine.from_config(self.adapter, self._config, probes=self._probes)
            for listener in self._events:
                self.engine.events.listen(listener)
            self._hybrid = Hybrid(self.engine, self.adapter)
        assert self._seen_as is not None
        object.__setattr__(model.optimizer, "apply", self._seen_as.apply)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Remember what the running mean of the loss is made of."""
        self._seen = self._loss_sums()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Tell the engine how the step went; jumps, verdicts and rollbacks happen here."""
        hybrid = self._attached()
        total, count = (now - before for now, before in zip(self._loss_sums(), self._seen, strict=True))
        if not math.isfinite(total):  # the sums would hide every later loss of the epoch
            tracker = self._tracker()
            tracker.total.assign(self._seen[0])
            tracker.count.assign(self._seen[1])
        hybrid.advance(total / count if count else math.nan)

    def on_train_end(self, logs: Any = None) -> None:
        """Judge an open trial and keep the summary."""
        self.summary = self._attached().finish()
        object.__delattr__(self.model.optimizer, "apply")

    def _loss_sums(self) -> tuple[float, float]:
        tracker = self._tracker()
        return float(tracker.total.value), float(tracker.count.value)

    def _tracker(self) -> Any:
        tracker = next((m for m in self.model.metrics if m.name == "loss"), None)
        if not isinstance(tracker, keras.metrics.Mean):
            raise ModelError(
                "the model does not track its loss, so that no batch's loss is known",
                where="model.metrics",
                expected="a keras.metrics.Mean named 'loss'",
                fix="keep Keras' own train_step, or train with hybridize and your own loop",
            )
        return tracker

    def _attached(self) -> Hybrid:
        if self._hybrid is None:
            raise ModelError(
                "the callback is not attached to a model",
                where="HybridCallback",
                fix="pass it to model.fit(callbacks=[...])",
            )
        return self._hybrid


def _check(model: Any) -> None:
    if keras.backend.backend() != "torch":
        raise ModelError(
            "Keras does not run on PyTorch",
            where="keras.backend",
            got=keras.backend.backend(),
            expected="torch",
            fix="set the environment variable KERAS_BACKEND=torch before keras is imported",
        )
    if model.jit_compile:
        raise ModelError(
            "the optimizer cannot be heard inside a compiled step",
            where="model.compile(jit_compile=...)",
            got=True,
            expected="False",
            fix="compile with jit_compile=False",
        )
    if type(model.optimizer) is keras.optimizers.LossScaleOptimizer or not isinstance(
        model.optimizer, keras.optimizers.Optimizer
    ):
        raise ModelError(
            "the model has no optimizer whose every call is a step",
            where="model.compile(optimizer=...)",
            got=type(model.optimizer).__name__,
            expected="a keras.optimizers.Optimizer without loss scaling",
            fix="compile with an optimizer and the policy float32 or mixed_bfloat16",
        )
    if model.optimizer.gradient_accumulation_steps:
        raise ModelError(
            "the optimizer gathers gradients inside itself, so that not every batch is a step",
            where="gradient_accumulation_steps",
            got=model.optimizer.gradient_accumulation_steps,
            expected="None",
            fix="use larger batches",
        )

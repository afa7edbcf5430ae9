"""The engine inside ``model.fit`` of Keras 3 on JAX, as a callback in jump mode (F87)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from hybridcore.config import HybridConfig
from hybridcore.configfile import load_config
from hybridcore.engine import Engine
from hybridcore.errors import ConfigError, ConfigProblem, ModelError, ProbeError
from hybridcore.events import Listener
from hybridcore_jax.hybrid import Hybrid
from hybridcore_jax.keras_model import KerasAdapter, compiled_losses, read_state, write_state
from hybridcore_jax.trees import copy_tree

__all__ = ["HybridCallback"]


class HybridCallback(keras.callbacks.Callback):
    """Lets the engine jump, judge and roll back between the batches of ``model.fit``.

    Keras' own compiled train step goes on training. After every batch its state is put into the model's
    variables, the engine works on these, and Keras reads them anew before the next batch. A velocity stays
    as it is after a jump, since the gradient that would judge it never leaves the compiled step.

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
        if not isinstance(config, HybridConfig):
            config = load_config(config) if config is not None else HybridConfig()
        self._config, self._probes = config, list(probe)
        self._loss_fn, self._events = loss_fn, list(events)
        self.engine: Engine | None = None
        self.adapter: KerasAdapter | None = None
        self.summary: dict[str, Any] = {}
        self._hybrid: Hybrid | None = None
        self._seen = (0.0, 0.0)
        if not self._probes:
            raise ProbeError(
                "fit keeps its batches to itself, so probes need held-out batches",
                where="HybridCallback(probe=...)",
                got="no batches",
                expected="one or more batches (x, y)",
                fix="set a few batches of the training data aside",
            )
        if config.phases.predict_mode != "jump":
            problem = ConfigProblem(
                "phases.predict_mode",
                "fit takes a real step on every batch",
                got=config.phases.predict_mode,
                expected="'jump'",
            )
            raise ConfigError([problem], source="HybridCallback(config)")

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
        adapter = self.adapter
        if adapter is None or adapter.keras_model is not model or adapter.optimizer is not model.optimizer:
            adapter = self.adapter = KerasAdapter(model, compiled_losses(model, self._loss_fn))
            self.engine = Engine.from_config(adapter, self._config, probes=self._probes)
            for listener in self._events:
                self.engine.events.listen(listener)
            self._hybrid = Hybrid(self.engine, adapter)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Remember what the running mean of the loss is made of."""
        self._seen = self._loss_sums()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Tell the engine how the step went; jumps, verdicts and rollbacks happen here."""
        hybrid = self._attached()
        model = self.model
        model.jax_state_sync()
        total, count = (now - before for now, before in zip(self._loss_sums(), self._seen, strict=True))
        if not math.isfinite(total):  # the sums would hide every later loss of the epoch
            tracker = self._tracker()
            tracker.total.assign(self._seen[0])
            tracker.count.assign(self._seen[1])
        params, rest = read_state(model)
        write_state(model, *hybrid.advance(params, rest, total / count if count else math.nan))

    def on_train_end(self, logs: Any = None) -> None:
        """Judge an open trial and keep the summary."""
        hybrid = self._attached()
        self.summary = hybrid.finish()
        # The engine keeps its own copy: the next fit gives the variables' arrays away.
        write_state(self.model, copy_tree(hybrid.adapter.params), copy_tree(hybrid.adapter.opt_state))

    def _loss_sums(self) -> tuple[float, float]:
        tracker = self._tracker()
        return float(np.asarray(tracker.total.value)), float(np.asarray(tracker.count.value))

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
    if keras.backend.backend() != "jax":
        raise ModelError(
            "Keras does not run on JAX",
            where="keras.backend",
            got=keras.backend.backend(),
            expected="jax",
            fix="set the environment variable KERAS_BACKEND=jax before keras is imported",
        )
    if model.steps_per_execution != 1:
        raise ModelError(
            "fit takes several steps at once and leaves no moment between them",
            where="model.compile(steps_per_execution=...)",
            got=model.steps_per_execution,
            expected="1",
            fix="compile with steps_per_execution=1",
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

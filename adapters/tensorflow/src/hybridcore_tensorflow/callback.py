"""The engine inside ``model.fit`` as a Keras callback, in jump mode (F87)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from hybridcore.config import HybridConfig
from hybridcore.engine import Engine
from hybridcore.errors import ConfigError, ConfigProblem, ModelError, ProbeError
from hybridcore.events import Listener
from hybridcore.protocols import StepResult
from hybridcore_tensorflow.adapter import TensorFlowAdapter
from hybridcore_tensorflow.hybrid import read_config
from hybridcore_tensorflow.installed import require_keras_backend

__all__ = ["HybridCallback", "compiled_losses"]


class HybridCallback(keras.callbacks.Callback):
    """Lets the engine jump, judge and roll back between the batches of ``model.fit``.

    Keras' own train step goes on training; the engine listens to the optimizer from inside that step's
    graph and changes weights between two batches, so every batch of `fit` is a real step and the metrics
    that Keras shows are those of real batches. Non-finite batches change no weights (F41).

    Args:
        config: A configuration, the path of a TOML file, or None for the defaults; `phases.predict_mode`
            must be ``"jump"``.
        probe: Held-out batches of the training distribution, ``(x, y)`` or ``(x, y, sample_weight)``.
        loss_fn: ``loss_fn(model, batch, training)`` returns per-example losses, shape (n,), of a probe
            batch; by default the compiled loss, unreduced, plus the layers' own losses.
        events: Listeners, called as ``listener(event, payload)``.

    Attributes:
        engine: The engine; None before training began.
        adapter: The adapter; None before training began.
        summary: What the engine counted; empty before training ended.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).standard_normal((64, 3)).astype("float32")
        >>> y = x.sum(1, keepdims=True)
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> hybrid = HybridCallback(probe=[(x[:16], y[:16])])
        >>> _ = model.fit(x[16:], y[16:], batch_size=8, epochs=5, verbose=0, callbacks=[hybrid])
        >>> hybrid.summary["real_steps"]
        30
    """

    def __init__(
        self,
        config: HybridConfig | str | Path | None = None,
        *,
        probe: Iterable[Any],
        loss_fn: Callable[..., Any] | None = None,
        events: Iterable[Listener] = (),
    ) -> None:
        super().__init__()
        self._config, self._probes = read_config(config), list(probe)
        self._loss_fn, self._events = loss_fn, list(events)
        self.engine: Engine | None = None
        self.adapter: TensorFlowAdapter | None = None
        self.summary: dict[str, Any] = {}
        self._updates = 0
        if not self._probes:
            raise ProbeError(
                "fit keeps its batches to itself, so probes need held-out batches",
                where="HybridCallback(probe=...)",
                got="no batches",
                expected="one or more batches (x, y)",
                fix="set a few batches of the training data aside",
            )
        if self._config.phases.predict_mode != "jump":
            raise ConfigError(
                [
                    ConfigProblem(
                        "phases.predict_mode",
                        "fit takes a real step on every batch",
                        got=self._config.phases.predict_mode,
                        expected="'jump'",
                    )
                ],
                source="HybridCallback(config)",
            )

    def on_train_begin(self, logs: Any = None) -> None:
        """Attach to the compiled model; a second ``fit`` goes on with the same engine.

        Raises:
            ModelError: Keras runs on another backend, or the model is trained in a way that leaves no
                moment between two steps.
        """
        require_keras_backend()
        model = self.model
        adapter = self.adapter
        if adapter is None or adapter.model is not model or adapter.optimizer is not model.optimizer:
            _check(model)
            loss_fn = self._loss_fn or compiled_losses(model)
            adapter = self.adapter = TensorFlowAdapter(model, model.optimizer, loss_fn)
            self.engine = Engine.from_config(adapter, self._config, probes=self._probes)
            for listener in self._events:
                self.engine.events.listen(listener)
        adapter.hook.attach()
        # A train function of an earlier fit knows nothing of the hook.
        model.make_train_function(force=True)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Look at the weights before the step."""
        adapter, engine = self._attached()
        self._updates = int(adapter.hook.updates.numpy())
        engine.before_step()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Tell the engine how the step went; jumps, verdicts and rollbacks happen here."""
        adapter, engine = self._attached()
        loss, norm = (float(value) for value in adapter.hook.report.numpy())
        skipped = int(adapter.hook.updates.numpy()) == self._updates
        overflow = skipped and adapter.scales_loss and math.isfinite(loss)
        engine.after_step(StepResult(loss, norm, skipped, overflow=overflow))

    def on_train_end(self, logs: Any = None) -> None:
        """Judge an open trial, keep the summary and let go of the optimizer."""
        adapter, engine = self._attached()
        self.summary = engine.finish()
        adapter.hook.detach()
        self.model.make_train_function(force=True)

    def _attached(self) -> tuple[TensorFlowAdapter, Engine]:
        if self.adapter is None or self.engine is None:
            raise ModelError(
                "the callback is not attached to a model",
                where="HybridCallback",
                fix="pass it to model.fit(callbacks=[...])",
            )
        return self.adapter, self.engine


def _check(model: Any) -> None:
    if model.steps_per_execution != 1:
        raise ModelError(
            "fit takes several steps at once and leaves no moment between them",
            where="model.compile(steps_per_execution=...)",
            got=model.steps_per_execution,
            expected="1",
            fix="compile with steps_per_execution=1",
        )
    if model.distribute_strategy.num_replicas_in_sync > 1:
        raise ModelError(
            "fit under a distribution strategy cannot be followed from inside",
            where="model.distribute_strategy",
            got=type(model.distribute_strategy).__name__,
            expected="one replica",
            fix="train with hybridize(...).step(batch), which distributes batches itself",
        )
    if not isinstance(model.optimizer, keras.optimizers.Optimizer):
        raise ModelError(
            "the model has no optimizer", where="model.compile", fix="call model.compile(optimizer, loss)"
        )


def compiled_losses(model: Any) -> Callable[..., Any]:
    """Per-example losses of a compiled model with one output, as ``loss_fn(model, batch, training)``.

    Args:
        model: The model; its compiled loss may be a name, a function or a `keras.losses.Loss`.

    Raises:
        ModelError: The loss is of another form, such as one per output.
    """
    loss = model.loss
    found = keras.losses.get(loss) if isinstance(loss, str) else loss
    if isinstance(found, keras.losses.Loss):
        unreduced = _unreduced(found)
    elif callable(found) and not isinstance(found, Mapping):
        unreduced = _alike_ranks(found)
    else:
        raise ModelError(
            "the compiled loss has no per-example form",
            where="model.compile(loss=...)",
            got=type(loss).__name__,
            expected="one loss: a name, a function or a keras.losses.Loss",
            fix="pass HybridCallback(loss_fn=...) with per-example losses of shape (n,)",
        )

    def loss_fn(model: Any, batch: Any, training: bool) -> Any:
        x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
        losses = tf.convert_to_tensor(unreduced(y, model(x, training=training)))
        if losses.shape.rank and losses.shape.rank > 1:
            losses = tf.reduce_mean(tf.reshape(losses, (tf.shape(losses)[0], -1)), 1)
        if weight is not None:
            losses = losses * tf.cast(weight, losses.dtype)
        return losses + tf.add_n(model.losses) if model.losses else losses

    return loss_fn


def _unreduced(loss: Any) -> Callable[[Any, Any], Any]:
    """The loss without its reduction; Keras copies losses by their configuration, which a user's may lack."""

    def call(y_true: Any, y_pred: Any) -> Any:
        former, loss.reduction = loss.reduction, None
        try:
            return loss(y_true, y_pred)
        finally:
            loss.reduction = former

    return call


def _alike_ranks(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Bring targets to the rank of predictions where one of them has a last axis of one, as Keras does."""

    def call(y_true: Any, y_pred: Any) -> Any:
        y_true, y_pred = tf.convert_to_tensor(y_true), tf.convert_to_tensor(y_pred)
        if y_true.shape.rank == y_pred.shape.rank - 1 and y_pred.shape[-1] == 1:
            y_true = tf.expand_dims(y_true, -1)
        elif y_true.shape.rank == y_pred.shape.rank + 1 and y_true.shape[-1] == 1:
            y_true = tf.squeeze(y_true, -1)
        return function(y_true, y_pred)

    return call

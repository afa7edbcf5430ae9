"""The five-line way in: attach the engine to a model and optimizer that already train (F58)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import tensorflow as tf

from hybridcore.config import HybridConfig
from hybridcore.engine import Engine
from hybridcore.errors import AdapterError, ProbeError
from hybridcore.events import Listener
from hybridcore.protocols import StepResult
from hybridcore_tensorflow.adapter import TensorFlowAdapter

__all__ = ["Hybrid", "hybridize", "read_config"]


def read_config(config: HybridConfig | str | Path | None) -> HybridConfig:
    """A configuration from an object, the path of a TOML file, or nothing.

    Raises:
        ConfigError: The configuration has mistakes.
    """
    if isinstance(config, HybridConfig):
        return config
    from hybridcore.configfile import load_config

    return load_config(config) if config is not None else HybridConfig()


def hybridize(
    model: Any,
    optimizer: Any,
    config: HybridConfig | str | Path | None = None,
    *,
    loss_fn: Callable[..., Any],
    probe: Iterable[Any] = (),
    train_step: Callable[[Any], Any] | None = None,
    accumulate: int = 1,
    max_grad_norm: float | None = None,
    residual_fn: Callable[..., Any] | None = None,
    events: Iterable[Listener] = (),
) -> Hybrid:
    """Attach the engine; the model and the optimizer stay the user's own objects.

    Args:
        model: The model in training: a built Keras model or a `tf.Module`.
        optimizer: Its Keras optimizer; a learning-rate schedule inside it is followed by rollbacks.
        config: A configuration, the path of a TOML file, or None for the defaults.
        loss_fn: ``loss_fn(model, batch)`` or ``loss_fn(model, batch, training)`` returns per-example
            losses, shape (n,).
        probe: A few held-out batches of the training distribution; without them the engine remembers the
            first batches it sees.
        train_step: Your own ``train_step(batch)``, which returns the mean loss; `Hybrid.step` calls it.
        accumulate: Micro-batches that `Hybrid.step` cuts a batch into.
        max_grad_norm: Gradient clipping of `Hybrid.step`.
        residual_fn: Residuals whose squares are the losses; see `TensorFlowAdapter`.
        events: Listeners, called as ``listener(event, payload)``, for example a `MetricsWriter`.

    Raises:
        ConfigError: The configuration has mistakes.
        ModelError: The model is not built, or there is nothing to train.
    """
    adapter = TensorFlowAdapter(
        model,
        optimizer,
        loss_fn,
        train_step=train_step,
        accumulate=accumulate,
        max_grad_norm=max_grad_norm,
        residual_fn=residual_fn,
    )
    engine = Engine.from_config(adapter, read_config(config), probes=probe)
    for listener in events:
        engine.events.listen(listener)
    return Hybrid(engine, adapter)


class Hybrid:
    """The engine around one model; three ways to train, which may be mixed.

    - ``hybrid.step(batch)``: the adapter runs forward, backward and update in one graph.
    - ``hybrid.step(closure)``: `closure` returns the mean loss of a batch it chose itself.
    - ``if hybrid.needs_backward: loss = my_step(batch)`` and then ``hybrid.advance(loss)``: the loop keeps
      its own compiled step. Ask `needs_backward` before every batch, in both predict modes: the weights
      before the update are looked at then, since a graph cannot be interrupted.

    Args:
        engine: Decides.
        adapter: Trains.
    """

    def __init__(self, engine: Engine, adapter: TensorFlowAdapter) -> None:
        self.engine, self.adapter = engine, adapter
        self.stepped = False
        """Whether the latest call made (or, for `advance`, saw) a real optimizer update."""
        self._asked: tuple[int, int] | None = None

    @property
    def needs_backward(self) -> bool:
        """Whether the next batch is to be learned from; False for a predicted step."""
        if self.engine.needs_backward and self._asked is None:
            self._asked = self._counts()
            self.engine.before_step()
        return self.engine.needs_backward

    def _counts(self) -> tuple[int, int]:
        return self.adapter.iterations, int(self.adapter.hook.updates.numpy())

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
        engine, real = self.engine, self.adapter.real_steps
        if not engine.needs_backward:
            result = engine.predicted_step(None if callable(batch) else batch)
        elif not callable(batch) and self._asked is None:
            result = engine.step(batch)
        else:
            if callable(batch):
                self._require_probes()
            if self._asked is None:
                engine.before_step()
            run = self.adapter.closure_step if callable(batch) else self.adapter.train_step
            result = run(batch)
            if not engine.probes.complete and not result.skipped:
                engine.probes.remember(batch)
            engine.after_step(result)
        self._asked = None
        self.stepped = self.adapter.real_steps != real
        return result.loss

    def advance(self, loss: Any = None) -> None:
        """Report what the loop did with one batch.

        Whether an update happened is read from the optimizer's iteration count, so a batch that the guard
        skipped needs no flag.

        Args:
            loss: Mean loss of the batch; not looked at after a batch for which `needs_backward` was False.

        Raises:
            AdapterError: `needs_backward` was not asked, or the train step was traced too early.
            ProbeError: No probe batches were given.
        """
        self._require_probes()
        asked, self._asked = self._asked, None
        if asked is None:
            if not self.engine.needs_backward:
                self.engine.predicted_step(None)
                self.stepped = False
                return
            raise AdapterError(
                "the engine was not asked before a step of the loop",
                where="hybrid.advance(loss)",
                fix="ask `if hybrid.needs_backward:` before every batch",
            )
        iterations, updates = self._counts()
        if iterations != asked[0] and updates == asked[1]:
            raise AdapterError(
                "the train step was compiled before the engine was attached",
                where="hybrid.advance(loss)",
                got="an update that the optimizer's hook did not see",
                expected="a tf.function that is first called after hybridize()",
                fix="call hybridize before the train step's first call, or pass it as train_step=",
            )
        value = float(tf.convert_to_tensor(loss)) if loss is not None else float("nan")
        self.stepped = iterations != asked[0]
        norm = float(self.adapter.hook.report.numpy()[1])
        overflow = not self.stepped and self.adapter.scales_loss and math.isfinite(value)
        self.engine.after_step(StepResult(value, norm, not self.stepped, overflow=overflow))

    def _require_probes(self) -> None:
        """Raise where nothing could ever be judged: these ways show the engine no batches."""
        if not len(self.engine.probes):
            raise ProbeError(
                "a loop that keeps its batches to itself needs held-out batches for probes",
                where="hybridize(..., probe=...)",
                got="no probe batches",
                expected="one or more held-out batches that loss_fn takes",
                fix="pass probe=[batch, ...] to hybridize, or train with hybrid.step(batch)",
            )

    def averaged(self) -> AbstractContextManager[None]:
        """Context in which the model has the running average of its weights; see `Engine.averaged`."""
        return self.engine.averaged()

    def chosen(self) -> AbstractContextManager[bool]:
        """Context in which the model has its weights or their average, whichever held-out examples prefer.

        See `Engine.chosen`.

        Raises:
            PredictionError: The configuration keeps no average.
        """
        return self.engine.chosen()

    def finish(self) -> dict[str, Any]:
        """End the run: judge an open trial with what is known, and return the summary."""
        return self.engine.finish()

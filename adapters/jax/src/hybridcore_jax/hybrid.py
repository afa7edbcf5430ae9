"""The way in: attach the engine to a model and optimizer, with the adapter's step, yours, or your loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import optax

from hybridcore.config import HybridConfig
from hybridcore.engine import Engine
from hybridcore.errors import ProbeError
from hybridcore.events import Listener
from hybridcore.protocols import StepResult
from hybridcore_jax.adapter import JaxAdapter
from hybridcore_jax.losses import LossFunction
from hybridcore_jax.own_step import all_finite

__all__ = ["Hybrid", "hybridize"]


def hybridize(
    model: Any,
    optimizer: optax.GradientTransformation | None = None,
    config: HybridConfig | str | Path | None = None,
    *,
    loss_fn: LossFunction,
    probe: Iterable[Any] = (),
    state: Any = None,
    key: Any = None,
    learning_rate: float | Callable[[Any], Any] | None = None,
    train_step: Callable[[Any, Any], Any] | None = None,
    trainable: Callable[[str], bool] | None = None,
    accumulate: int = 1,
    max_grad_norm: float | None = None,
    donate: bool | None = None,
    residual_fn: LossFunction | None = None,
    events: Iterable[Listener] = (),
) -> Hybrid:
    """Attach the engine.

    Args:
        model: A pytree of parameters, a flax nnx or equinox module, or a `LinenModel`; with `train_step`,
            the state that it carries.
        optimizer: An optax optimizer.
        config: A configuration, the path of a TOML file, or None for the defaults.
        loss_fn: Per-example losses, shape (n,); see `JaxAdapter`.
        probe: A few held-out batches of the training distribution; without them the engine remembers the
            first batches it sees.
        state: The model's own state.
        key: Random key of training steps.
        learning_rate: The optimizer's rate or schedule; see `JaxAdapter`.
        train_step: Your own compiled step.
        trainable: Which parameters are trained, by name.
        accumulate: Micro-batches that a batch is cut into.
        max_grad_norm: Gradient clipping.
        donate: Whether steps donate their state.
        residual_fn: Residuals whose squares are the losses; see `JaxAdapter`.
        events: Listeners, called as ``listener(event, payload)``, for example a `MetricsWriter`.

    Raises:
        ConfigError: The configuration has mistakes.
        ModelError: There is nothing to train, or the arguments exclude each other.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> loss_fn = lambda params, batch: (batch[0] @ params["w"] - batch[1]) ** 2
        >>> hybrid = hybridize({"w": jnp.zeros(2)}, optax.sgd(0.1), loss_fn=loss_fn, learning_rate=0.1)
        >>> hybrid.step((jnp.ones((4, 2)), jnp.ones(4)))
        1.0
    """
    if not isinstance(config, HybridConfig):
        from hybridcore.configfile import load_config

        config = load_config(config) if config is not None else HybridConfig()
    adapter = JaxAdapter(
        model,
        optimizer,
        loss_fn,
        state=state,
        key=key,
        learning_rate=learning_rate,
        train_step=train_step,
        trainable=trainable,
        accumulate=accumulate,
        max_grad_norm=max_grad_norm,
        donate=donate,
        residual_fn=residual_fn,
    )
    engine = Engine.from_config(adapter, config, probes=probe)
    for listener in events:
        engine.events.listen(listener)
    return Hybrid(engine, adapter)


class Hybrid:
    """The engine around one model; two ways to train.

    - ``hybrid.step(batch)``: the adapter's compiled step, or the one given as `train_step`, consumes a batch.
    - ``if hybrid.needs_backward: params, opt_state, loss = my_step(params, opt_state, batch)`` and then
      ``params, opt_state = hybrid.advance(params, opt_state, loss)``: the loop keeps its own step, and takes
      back what the engine made of the state. Make its optimizer by `rescale_velocity`, so that momentum is
      adjusted after a predicted change.

    Args:
        engine: Decides.
        adapter: Trains.

    Attributes:
        stepped: Whether the latest call made (or, for `advance`, saw) a real optimizer update.
    """

    def __init__(self, engine: Engine, adapter: JaxAdapter) -> None:
        self.engine, self.adapter = engine, adapter
        self.stepped = False
        self._seen = adapter.real_steps
        self._expected = False

    @property
    def needs_backward(self) -> bool:
        """Whether the next batch is to be learned from; False for a predicted step."""
        return self.engine.needs_backward

    @property
    def params(self) -> Any:
        """The parameters now; see `JaxAdapter.params`."""
        return self.adapter.params

    @property
    def model(self) -> Any:
        """The user's own kind of model with the current weights; an nnx module is updated in place."""
        return self.adapter.model

    def step(self, batch: Any) -> float:
        """Consume one batch.

        Args:
            batch: A batch for the loss function.

        Returns:
            The mean training loss before the update; NaN for a predicted step that was not measured.

        Raises:
            BatchError: The model cannot take the batch; nothing changed.
        """
        loss = self.engine.step(batch).loss
        self._sync()
        return loss

    def advance(
        self, params: Any, opt_state: Any, loss: Any = None, grad_norm: Any = math.nan
    ) -> tuple[Any, Any]:
        """Report what the loop's own step did with one batch, and take back the state to go on with.

        A non-finite loss, or non-finite parameters, give the state before the step back, unless the step
        donated it.

        Args:
            params: Parameters after the step; after a batch for which `needs_backward` was False, those
                that `advance` gave last.
            opt_state: The optimizer's state, likewise.
            loss: Mean loss of the batch; not looked at after a batch for which `needs_backward` was False.
            grad_norm: Gradient norm, where the loop knows it.

        Returns:
            Parameters and optimizer state for the next batch.

        Raises:
            ModelError: The tree of parameters has changed.
            ProbeError: No probe batches were given, and this way shows the engine none.
        """
        self._require_probes()
        if not self.engine.needs_backward:
            self.engine.predicted_step(None)
        else:
            if not self._expected:
                self.engine.before_step()
            value = math.nan if loss is None else float(loss)
            good = (math.isfinite(value) or loss is None) and bool(all_finite(params))
            former = (self.adapter.params, self.adapter.opt_state)
            result = StepResult(value, float(grad_norm), skipped=not good)
            if not good and self._expected and not _deleted(former):
                params, opt_state = former
            self.adapter.adopt(params, opt_state, result)
            self.engine.after_step(result)
        self._sync()
        self._expected = self.engine.needs_backward
        if self._expected:  # now, since the next step may donate what the engine has to look at before it
            self.engine.before_step()
            self.adapter.hold()
        return self.adapter.params, self.adapter.opt_state

    def averaged(self) -> AbstractContextManager[None]:
        """Context in which the model has the running average of its weights; see `Engine.averaged`.

        Raises:
            PredictionError: The configuration keeps no average.
        """
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

    def resumed(self) -> None:
        """Hear that the engine goes on from another state, for example that of a checkpoint."""
        self._seen = self.adapter.real_steps
        self.stepped = self._expected = False

    def _require_probes(self) -> None:
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


def _deleted(tree: Any) -> bool:
    return any(x.is_deleted() for x in jax.tree.leaves(tree) if isinstance(x, jax.Array))

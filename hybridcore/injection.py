"""Faults on purpose: what a run does about NaN losses, explosions and bad data, tried before it matters.

A plan is text such as ``"nan@500,poison@900x5:20"``: a kind, the real step at which it strikes, how many
steps it lasts (``x``), and how strong it is (``:``).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, cast

import attrs
import numpy as np

from hybridcore.errors import ConfigError, ConfigProblem, TaskError
from hybridcore.events import Event, EventBus
from hybridcore.layout import Buckets
from hybridcore.protocols import Adapter, Predictor, RateAdapter, StepResult, TaskRun
from hybridcore.structuring import did_you_mean

__all__ = ["KINDS", "Fault", "FaultyAdapter", "inject", "mislead", "parse_faults"]

logger = logging.getLogger("hybridcore")

KINDS: Mapping[str, tuple[int, float]] = MappingProxyType(
    {
        "nan": (1, 1.0),
        "spike": (1, 1000.0),
        "poison": (5, 10.0),
        "predictor": (1, 1.0),
        "lr": (5, 100.0),
        "plateau": (200, 1e-6),
        "weights": (1, 1.0),
    }
)
"""Kinds of faults with their usual length and strength.

``nan``: loss and gradient are NaN. ``spike``: the update is `strength` times as long, as after an exploding
gradient under SGD. ``poison``: inputs are multiplied by minus the strength, labels belong to other examples.
``predictor``: as many predictions point in a random direction, `strength` weights' norms long. ``lr`` and
``plateau``: the learning rate is multiplied by the strength. ``weights``: the weights themselves become NaN.
"""

_FAULT = re.compile(
    r"(?P<kind>[a-z]+)@(?P<step>\d{1,15})(?:x(?P<length>\d{1,15}))?(?::(?P<strength>[-+.\w]+))?"
)


@attrs.frozen
class Fault:
    """One fault.

    Attributes:
        kind: One of `KINDS`.
        step: Real step that it strikes first, counted from 1.
        length: Real steps, or predictions, that it lasts.
        strength: Meaning depends on the kind.
    """

    kind: str
    step: int
    length: int
    strength: float

    def strikes(self, step: int) -> bool:
        """Whether it acts at a real step."""
        return self.step <= step < self.step + self.length


def parse_faults(text: str) -> tuple[Fault, ...]:
    """Read a plan.

    Raises:
        ConfigError: A part is no fault, or its kind is unknown.

    Example:
        >>> parse_faults("lr@300x4:50")
        (Fault(kind='lr', step=300, length=4, strength=50.0),)
    """
    faults, problems = [], []
    for part in filter(None, map(str.strip, text.split(","))):
        match = _FAULT.fullmatch(part)
        if match is None or int(match["step"]) < 1 or match["length"] == "0":
            problems.append(
                ConfigProblem(part, "no fault", got=part, expected="kind@step[xLENGTH][:STRENGTH]")
            )
            continue
        kind = match["kind"]
        if kind not in KINDS:
            expected, hint = f"one of {', '.join(KINDS)}", did_you_mean(kind, KINDS)
            problems.append(ConfigProblem(part, "unknown kind", got=kind, expected=expected, hint=hint))
            continue
        length, strength = KINDS[kind]
        try:
            strength = float(match["strength"] or strength)
        except ValueError:
            problems.append(ConfigProblem(part, "no strength", got=match["strength"], expected="a number"))
            continue
        faults.append(Fault(kind, int(match["step"]), int(match["length"] or length), strength))
    if problems:
        raise ConfigError(problems, source="--inject", fix="correct the parts above")
    return tuple(faults)


class FaultyAdapter:
    """An adapter at which faults strike; everything else is the inner adapter's own.

    The factor of an ``lr`` or ``plateau`` fault belongs to snapshots: where an earlier state comes back, the
    fault is gone.

    Args:
        inner: The adapter.
        faults: What strikes it.
        events: Hears of each fault when it begins.

    Attributes:
        steps: Real steps tried so far.
    """

    def __init__(self, inner: Adapter, faults: Iterable[Fault], events: EventBus) -> None:
        self._inner, self._events = inner, events
        self._faults = [f for f in faults if f.kind != "predictor"]
        turns = any(f.kind in ("lr", "plateau") for f in self._faults)
        if turns and "learning-rate" not in inner.capabilities:
            raise TaskError(
                "this adapter cannot change its learning rate",
                where="--inject",
                got=inner.name,
                expected="an adapter with the capability 'learning-rate'",
                fix="leave out lr and plateau",
            )
        self._factor = 1.0
        self.steps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def train_step(self, batch: Any) -> StepResult:
        """A real step, with what strikes it."""
        self.steps += 1
        active = {}
        for fault in self._faults:
            if fault.step == self.steps:
                announce(self._events, fault, self.steps)
            if fault.strikes(self.steps):
                active[fault.kind] = fault.strength
            self._turn_rate(fault)
        if "poison" in active:
            batch = corrupted(batch, active["poison"], np.random.default_rng(self.steps))
        if "nan" in active:
            with self._inner.weights(_nans(self._inner)):
                return self._inner.train_step(batch)
        if "weights" in active:
            self._inner.write_params(_nans(self._inner))
        if "spike" in active:
            return self._exploding(batch, active["spike"])
        return self._inner.train_step(batch)

    def _turn_rate(self, fault: Fault) -> None:
        if fault.kind not in ("lr", "plateau"):
            return
        if fault.step == self.steps:
            self._scale(fault.strength)
        elif self.steps == fault.step + fault.length and self._factor != 1.0:
            self._scale(1.0 / self._factor)

    def _scale(self, factor: float) -> None:
        cast(RateAdapter, self._inner).scale_learning_rate(factor)
        self._factor = 1.0 if factor * self._factor == 1.0 else factor * self._factor

    def _exploding(self, batch: Any, strength: float) -> StepResult:
        before = self._inner.read_params()
        result = self._inner.train_step(batch)
        if not result.skipped:
            update = tuple(a - b for a, b in zip(self._inner.read_params(), before, strict=True))
            self._inner.apply_delta(update, strength - 1.0)
        return attrs.evolve(result, grad_norm=result.grad_norm * strength)

    def snapshot(self) -> Any:
        """The inner adapter's, and the factor on the learning rate."""
        return self._inner.snapshot(), self._factor

    def restore(self, snapshot: Any) -> None:
        """Put both back."""
        inner, factor = snapshot
        self._inner.restore(inner)
        self._factor = factor


def inject(task: TaskRun, faults: Iterable[Fault], events: EventBus) -> TaskRun:
    """The same task, with faults that strike its training steps."""
    return attrs.evolve(task, adapter=cast(Adapter, FaultyAdapter(task.adapter, faults, events)))


def mislead(predictors: Iterable[Predictor], faults: Iterable[Fault], adapter: Any, events: EventBus) -> None:
    """Let predictions that follow a ``predictor`` fault point in a random direction, with full confidence.

    Args:
        predictors: Instances; their method `predict` is replaced.
        faults: Others than ``predictor`` are passed over.
        adapter: Knows weights and the real step.
        events: Hears of each misled prediction.
    """
    left = {fault: fault.length for fault in faults if fault.kind == "predictor"}
    if not left:
        return

    def wrap(method: Any) -> Any:
        def predict(history: Any, horizon: float, xp: Any, *more: Any) -> Any:
            prediction = method(history, horizon, xp, *more)
            due = [f for f in left if left[f] and f.step <= adapter.steps]
            if not due:
                return prediction
            left[due[0]] -= 1
            announce(events, due[0], adapter.steps)
            deltas = _noise(adapter, due[0].strength, np.random.default_rng(adapter.steps))
            return attrs.evolve(prediction, deltas=deltas, scale=1.0, confidence=1.0)

        return predict

    for predictor in predictors:
        for name in ("predict", "predict_with"):
            if hasattr(predictor, name):
                setattr(predictor, name, wrap(getattr(predictor, name)))


def announce(events: EventBus, fault: Fault, step: int) -> None:
    """Tell that a fault strikes."""
    logger.warning("step %d: injected fault %s x%d:%g", step, fault.kind, fault.length, fault.strength)
    events.emit(Event.FAULT, step=step, kind=fault.kind, length=fault.length, strength=fault.strength)


def corrupted(batch: Any, strength: float, rng: np.random.Generator) -> Any:
    """The batch with floats multiplied by minus the strength, and whole numbers of other examples.

    Works on tuples, lists, dictionaries and arrays of any framework.

    Example:
        >>> corrupted((np.ones(2), np.array([0, 0])), 10.0, np.random.default_rng(0))
        (array([-10., -10.]), array([0, 0]))
    """
    if isinstance(batch, tuple | list):
        return type(batch)(corrupted(part, strength, rng) for part in batch)
    if isinstance(batch, Mapping):
        return {key: corrupted(part, strength, rng) for key, part in batch.items()}
    kind = str(getattr(batch, "dtype", ""))
    if "float" in kind:
        return batch * -strength
    if "int" in kind and batch.ndim:
        return batch[rng.permutation(batch.shape[0])]
    return batch


def _nans(adapter: Adapter) -> Buckets:
    return tuple(bucket * float("nan") for bucket in adapter.read_params())


def _noise(adapter: Adapter, strength: float, rng: np.random.Generator) -> Buckets:
    """Random change whose norm is `strength` times that of each bucket."""
    xp = adapter.xp
    made = []
    for bucket in adapter.read_params():
        noise = rng.standard_normal(bucket.shape[0])
        size = float(xp.linalg.vector_norm(bucket)) * strength / np.linalg.norm(noise)
        made.append(xp.asarray(size * noise, dtype=bucket.dtype, device=bucket.device))
    return tuple(made)

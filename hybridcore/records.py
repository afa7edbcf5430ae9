"""Reading a run's record, and what follows from it: time to a loss, speed-up, loss gap (F47, F48, F78)."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

import attrs

from hybridcore.errors import MetricsError
from hybridcore.events import Event
from hybridcore.metrics import SCHEMA

__all__ = [
    "AVERAGED",
    "READ_OUT",
    "Evaluation",
    "RunRecord",
    "Speedup",
    "TimeToLoss",
    "curve_of",
    "final_loss",
    "is_drawn",
    "loss_gap",
    "median_speedup",
    "read_run",
    "speedup",
    "speedup_bound",
    "time_to_loss",
]

AVERAGED = "averaged_"
"""Prefix of the metrics that were measured with the averaged weights."""

READ_OUT = "read_out_"
"""Prefix of those that were measured with what the run is read out by; see `hybridcore.readout.ReadOut`."""

_EVALUATION_KEYS = ("step", "cost", "elapsed", "backward_passes", "loss")


@attrs.frozen
class Evaluation:
    """Validation of the weights at one moment.

    Attributes:
        step: Real steps so far.
        cost: Cost so far, in steps.
        elapsed: Training seconds so far, evaluation excluded.
        backward_passes: Backward passes so far.
        loss: Mean validation loss; infinite where it was not finite.
        metrics: Further metrics by name.
    """

    step: int
    cost: float
    elapsed: float
    backward_passes: int
    loss: float
    metrics: Mapping[str, float | None] = attrs.field(factory=dict)


@attrs.frozen
class TimeToLoss:
    """When a validation loss was first reached; every field is infinite where it never was.

    Attributes:
        seconds: Training seconds.
        cost: Cost in steps.
        step: Real steps.
    """

    seconds: float
    cost: float
    step: float

    @property
    def reached(self) -> bool:
        """Whether the loss was reached at all."""
        return math.isfinite(self.cost)


@attrs.frozen
class Speedup:
    """How many times sooner a run reached its baseline's final validation loss; 0 where it never did.

    Attributes:
        wall: Ratio of training seconds.
        cost: Ratio of cost.
        target: The validation loss to reach.
    """

    wall: float
    cost: float
    target: float


@attrs.frozen
class RunRecord:
    """Everything that a metrics file holds, by kind, in file order.

    Attributes:
        path: The file.
        start: Payload of ``run-start``.
        steps: Payloads of ``real-step``.
        evaluations: Validation results.
        jumps: Payloads of ``jump``.
        refused: Payloads of ``jump-refused``.
        verdicts: Payloads of ``verdict``.
        phases: Payloads of ``phase-start``.
        events: Every payload with its ``event``.
        summary: Payload of ``run-end``; None where the run did not end properly.
    """

    path: Path
    start: Mapping[str, Any]
    steps: tuple[Mapping[str, Any], ...]
    evaluations: tuple[Evaluation, ...]
    jumps: tuple[Mapping[str, Any], ...]
    refused: tuple[Mapping[str, Any], ...]
    verdicts: tuple[Mapping[str, Any], ...]
    phases: tuple[Mapping[str, Any], ...]
    events: tuple[Mapping[str, Any], ...]
    summary: Mapping[str, Any] | None

    @property
    def arm(self) -> str:
        """Arm of the comparison."""
        return str(self.start.get("arm", "hybrid"))

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.start.get("seed", 0))

    @property
    def final_loss(self) -> float:
        """Last validation loss; infinite where there is none."""
        return final_loss(self.evaluations)

    def time_to_loss(self, target: float) -> TimeToLoss:
        """When the validation loss first was at most `target`, linear between evaluations."""
        return time_to_loss(self.evaluations, target)

    @property
    def averaged(self) -> RunRecord | None:
        """The same run read out by its averaged weights, as arm ``"<arm>, averaged"``; None without."""
        return self._read_by(AVERAGED, "averaged")

    @property
    def read_out(self) -> RunRecord | None:
        """The same run read out by the weights it chose, as arm ``"<arm>, read out"``; None without."""
        return self._read_by(READ_OUT, "read out")

    def _read_by(self, prefix: str, name: str) -> RunRecord | None:
        curve = curve_of(self.evaluations, prefix)
        if curve and curve[-1].step < self.evaluations[-1].step:
            return None  # only a part of the run was read out so
        start = {**self.start, "arm": f"{self.arm}, {name}"}
        return attrs.evolve(self, start=start, evaluations=curve) if curve else None


def final_loss(evaluations: Sequence[Evaluation]) -> float:
    """Last validation loss; infinite where there is none."""
    return evaluations[-1].loss if evaluations else math.inf


def curve_of(evaluations: Sequence[Evaluation], prefix: str) -> tuple[Evaluation, ...]:
    """The evaluations of other weights than the run's own, what they took included; empty without any.

    Args:
        evaluations: The run's evaluations.
        prefix: `AVERAGED` or `READ_OUT`.

    Example:
        >>> plain = Evaluation(9, 9.0, 1.0, 9, 3.0, {"averaged_loss": 2.0, "averaged_elapsed": 1.5})
        >>> curve_of([plain], AVERAGED)[0].loss, curve_of([plain], AVERAGED)[0].elapsed
        (2.0, 1.5)
    """
    curve = []
    for evaluation in evaluations:
        found = {k.removeprefix(prefix): v for k, v in evaluation.metrics.items() if k.startswith(prefix)}
        if "loss" in found:
            loss, elapsed, cost = found.pop("loss"), found.pop("elapsed", None), found.pop("cost", None)
            curve.append(
                attrs.evolve(
                    evaluation,
                    loss=math.inf if loss is None else loss,
                    elapsed=evaluation.elapsed if elapsed is None else elapsed,
                    cost=evaluation.cost if cost is None else cost,
                    metrics=found,
                )
            )
    return tuple(curve)


def time_to_loss(evaluations: Sequence[Evaluation], target: float) -> TimeToLoss:
    """When the validation loss first was at most `target`, linear between evaluations.

    A loss that the untrained model has already takes no time.

    Args:
        evaluations: The run's evaluations.
        target: The loss to reach.

    Example:
        >>> curve = [Evaluation(0, 0.0, 0.0, 0, 3.0), Evaluation(10, 12.0, 1.0, 10, 1.0)]
        >>> time_to_loss(curve, 2.0)
        TimeToLoss(seconds=0.5, cost=6.0, step=5.0)
    """
    before: Evaluation | None = None
    for now in evaluations:
        if now.loss <= target:
            if now.step == 0:
                return TimeToLoss(0.0, 0.0, 0.0)
            if before is None or not math.isfinite(before.loss):
                return TimeToLoss(now.elapsed, now.cost, float(now.step))
            share = (before.loss - target) / (before.loss - now.loss)
            return TimeToLoss(
                before.elapsed + share * (now.elapsed - before.elapsed),
                before.cost + share * (now.cost - before.cost),
                before.step + share * (now.step - before.step),
            )
        before = now
    return TimeToLoss(math.inf, math.inf, math.inf)


def is_drawn(evaluations: Sequence[Evaluation], time: TimeToLoss) -> bool:
    """Whether a loss was reached between the start and the first evaluation after it.

    The time to it is then no measurement, but a line drawn from the start.

    Example:
        >>> curve = [Evaluation(0, 0.0, 0.0, 0, 3.0), Evaluation(10, 12.0, 1.0, 10, 1.0)]
        >>> is_drawn(curve, time_to_loss(curve, 2.0)), is_drawn(curve, time_to_loss(curve, 1.0))
        (True, False)
    """
    later = [e.step for e in evaluations if e.step > 0]
    return bool(later) and 0.0 < time.step < later[0]


def speedup(
    run: Sequence[Evaluation], baseline: Sequence[Evaluation] | None, target: float | None = None
) -> Speedup | None:
    """Speed-up to the baseline's final validation loss, or to another; None without a baseline (F47).

    A run that reaches a target that its baseline misses is infinitely faster.

    Args:
        run: Evaluations of the run.
        baseline: Evaluations of the paired baseline, same seed and data.
        target: Validation loss to reach, set in advance; the baseline's final one if None.
    """
    if not baseline or not math.isfinite(final_loss(baseline)):
        return None
    target = final_loss(baseline) if target is None else target
    base, here = time_to_loss(baseline, target), time_to_loss(run, target)
    return Speedup(_ratio(base.seconds, here.seconds), _ratio(base.cost, here.cost), target)


def median_speedup(gains: Sequence[float]) -> float:
    """Median of speed-ups, taken of the times they stand for: that of a miss and a hit is a miss.

    Args:
        gains: Speed-ups of the seeds, 0 for a miss; NaN gives NaN, and so does none at all.

    Example:
        >>> median_speedup([2.0, 4.0, 8.0]), round(median_speedup([2.0, 4.0]), 3), median_speedup([0.0, 4.0])
        (4.0, 2.667, 0.0)
    """
    if not gains or any(math.isnan(gain) for gain in gains):
        return math.nan
    time = median([1.0 / gain if gain else math.inf for gain in gains])
    return 1.0 / time if time else math.inf


def _ratio(base: float, here: float) -> float:
    if math.isinf(here):
        return 0.0
    return base / here if here > 0 else (1.0 if base == 0 else math.inf)


def loss_gap(run: Sequence[Evaluation], baseline: Sequence[Evaluation] | None) -> float | None:
    """Final validation loss above the baseline's (negative is better); None without a baseline (F48)."""
    if not baseline or not run:
        return None
    gap = final_loss(run) - final_loss(baseline)
    return gap if math.isfinite(gap) else None


def speedup_bound(predicted_share: float, forward: float = 1.0 / 3.0, backward: float = 2.0 / 3.0) -> float:
    """Largest speed-up for a share p of steps without backward pass, ``1 / (1 - p b / (f + b))`` (F78).

    Args:
        predicted_share: Predicted over predicted plus real steps, p.
        forward: Cost f of a forward pass that a predicted step still takes; 0 where it takes none.
        backward: Cost b of a backward pass.

    Example:
        >>> round(speedup_bound(0.75), 6), round(speedup_bound(0.75, forward=0.0), 6)
        (2.0, 4.0)
    """
    saved = predicted_share * backward / (forward + backward)
    return 1.0 / (1.0 - saved) if saved < 1.0 else math.inf


def read_run(path: str | Path) -> RunRecord:
    """Read a metrics file.

    A last line that was cut off in the middle, as a kill leaves it, is passed over.

    Args:
        path: The JSONL file, or the folder that holds it as ``metrics.jsonl``.

    Raises:
        MetricsError: The file is missing, damaged (names the line), or of another schema.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "metrics.jsonl"
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise MetricsError(
            f"the metrics file cannot be read: {error.strerror or error}",
            where=str(file),
            expected="a file written by `hybridcore run` or `hybridcore compare`",
            fix="give the folder of a run",
        ) from None
    events = _parse(text, file)
    if not events or events[0].get("event") != Event.RUN_START or events[0].get("schema") != SCHEMA:
        found = {key: events[0].get(key) for key in ("event", "schema")} if events else "an empty file"
        _damaged(file, 1, got=found, expected=f"a run-start record of schema {SCHEMA}")
    if type(events[0].get("seed", 0)) is not int:
        _damaged(file, 1, got=events[0]["seed"], expected="a whole number as seed")
    kinds: dict[str, list[dict[str, Any]]] = {}
    evaluations = []
    for number, event in enumerate(events, 1):
        kinds.setdefault(event["event"], []).append(event)
        if event["event"] == Event.EVALUATION:
            evaluations.append(_evaluation(event, file, number))

    def of(kind: Event) -> tuple[Mapping[str, Any], ...]:
        return tuple(kinds.get(kind, ()))

    return RunRecord(
        path=file,
        start=events[0],
        steps=of(Event.REAL_STEP),
        evaluations=tuple(evaluations),
        jumps=of(Event.JUMP),
        refused=of(Event.JUMP_REFUSED),
        verdicts=of(Event.VERDICT),
        phases=of(Event.PHASE_START),
        events=tuple(events),
        summary=of(Event.RUN_END)[-1] if of(Event.RUN_END) else None,
    )


def _parse(text: str, file: Path) -> list[dict[str, Any]]:
    events = []
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        cut_off = number == len(lines)  # a complete line ends in a newline, and nothing follows the last
        if cut_off and not line:
            break
        try:
            event = json.loads(line, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            if cut_off:
                break
            _damaged(file, number, got=line[:80], expected=f"one JSON object per line ({error})")
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            _damaged(file, number, got=line[:80], expected="an object with the key 'event'")
        events.append(event)
    return events


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _evaluation(event: Mapping[str, Any], file: Path, number: int) -> Evaluation:
    missing = [key for key in _EVALUATION_KEYS if key not in event]
    if missing:
        _damaged(file, number, got=f"no {', '.join(missing)}", expected="a complete evaluation record")
    for key, value in event.items():
        measured = key == "loss" or key not in _EVALUATION_KEYS
        if key != "event" and not _is_number(value) and not (value is None and measured):
            _damaged(
                file, number, got=f"{key} = {value!r:.60}", expected="finite numbers, or null for a metric"
            )
    loss = event["loss"]
    return Evaluation(
        step=event["step"],
        cost=event["cost"],
        elapsed=event["elapsed"],
        backward_passes=event["backward_passes"],
        loss=math.inf if loss is None else loss,
        metrics={k: v for k, v in event.items() if k not in (*_EVALUATION_KEYS, "event")},
    )


def _is_number(value: object) -> bool:
    """Whether it is a number that a float can hold; JSON's integers have no end."""
    return isinstance(value, int | float) and type(value) is not bool and abs(value) <= sys.float_info.max


def _damaged(file: Path, line: int, *, got: object, expected: str) -> NoReturn:
    raise MetricsError(
        f"the metrics file is damaged at line {line}",
        where=f"{file}:{line}",
        got=got,
        expected=expected,
        fix="remove the damaged lines, or run again",
    )

"""Whether runs took the same path: phase logs, jumps, verdicts and losses side by side (F89)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from hybridcore.errors import MetricsError
from hybridcore.records import RunRecord

__all__ = ["Parity", "parities", "parity"]

_PHASE_KEYS = ("step", "phase", "length")
_JUMP_KEYS = ("step", "predictor")
_VERDICT_KEYS = ("step", "kept", "predictor", "jumps")


@attrs.frozen
class Parity:
    """One run against the first one.

    Attributes:
        record: The run.
        same_phases: Both went through the same phases, of the same length, at the same real steps.
        same_jumps: Both jumped after the same real steps by the same predictors.
        same_verdicts: Both had the same verdicts after the same real steps.
        loss_deviation: Largest ``|a - b| / |b|`` of the training losses of real steps that both recorded.
        evaluation_deviation: The same of validation losses.
        first_difference: Where the decisions part, in words; None where they do not.
    """

    record: RunRecord
    same_phases: bool
    same_jumps: bool
    same_verdicts: bool
    loss_deviation: float
    evaluation_deviation: float
    first_difference: str | None

    @property
    def same_decisions(self) -> bool:
        """Whether phases, jumps and verdicts are all the same."""
        return self.same_phases and self.same_jumps and self.same_verdicts

    def holds(self, tolerance: float) -> bool:
        """Whether decisions are the same and no loss deviates by more than `tolerance`."""
        return self.same_decisions and max(self.loss_deviation, self.evaluation_deviation) <= tolerance


def parities(records: Sequence[RunRecord]) -> tuple[Parity, ...]:
    """Every run against the first one, the first one included.

    Raises:
        MetricsError: There is no run.
    """
    if not records:
        raise MetricsError(
            "there is no run to compare",
            where="compare-runs",
            expected="two or more folders of `hybridcore run`",
            fix="name the folders",
        )
    return tuple(parity(record, records[0]) for record in records)


def parity(record: RunRecord, first: RunRecord) -> Parity:
    """One run against another.

    Example:
        >>> from pathlib import Path
        >>> steps = tuple({"step": s, "loss": 2.0} for s in (1, 2))
        >>> one = RunRecord(Path(), {}, steps, (), (), (), (), (), (), None)
        >>> other = attrs.evolve(one, steps=(steps[0], {"step": 2, "loss": 2.002}))
        >>> round(parity(other, one).loss_deviation, 6), parity(other, one).same_decisions
        (0.001, True)
    """
    kinds = {
        "phase": (_PHASE_KEYS, record.phases, first.phases),
        "jump": (_JUMP_KEYS, record.jumps, first.jumps),
        "verdict": (_VERDICT_KEYS, record.verdicts, first.verdicts),
    }
    found = {kind: _first_difference(kind, *rest) for kind, rest in kinds.items()}
    places = [place for place in found.values() if place is not None]
    return Parity(
        record,
        found["phase"] is None,
        found["jump"] is None,
        found["verdict"] is None,
        _deviation(_losses(record.steps), _losses(first.steps)),
        _deviation({e.step: e.loss for e in record.evaluations}, {e.step: e.loss for e in first.evaluations}),
        min(places)[1] if places else None,
    )


def _first_difference(
    kind: str, keys: Sequence[str], ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]
) -> tuple[float, str] | None:
    for i in range(max(len(ours), len(theirs))):
        a = tuple(ours[i].get(k) for k in keys) if i < len(ours) else None
        b = tuple(theirs[i].get(k) for k in keys) if i < len(theirs) else None
        if a != b:
            step = min(float(pair[0]) for pair in (a, b) if pair is not None and pair[0] is not None)
            return step, f"{kind} {i + 1}: {_words(keys, a)} against {_words(keys, b)}"
    return None


def _words(keys: Sequence[str], values: Sequence[Any] | None) -> str:
    if values is None:
        return "none"
    return ", ".join(f"{key} {value}" for key, value in zip(keys, values, strict=True))


def _losses(steps: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    return {int(s["step"]): math.inf if s["loss"] is None else float(s["loss"]) for s in steps}


def _deviation(ours: Mapping[int, float], theirs: Mapping[int, float]) -> float:
    """Largest relative deviation at common steps; NaN without any."""
    gaps = [_gap(ours[step], theirs[step]) for step in ours.keys() & theirs.keys()]
    return max(gaps, default=math.nan)


def _gap(a: float, b: float) -> float:
    if a == b:
        return 0.0
    return abs(a - b) / max(abs(b), 1e-300) if math.isfinite(a) and math.isfinite(b) else math.inf

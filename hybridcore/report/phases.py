"""Where the phases of a recorded run began and ended (F90)."""

from __future__ import annotations

from collections.abc import Iterator

from hybridcore.events import Event
from hybridcore.protocols import Phase
from hybridcore.records import RunRecord

__all__ = ["phase_spans"]


def phase_spans(record: RunRecord) -> dict[str, list[tuple[float, float]]]:
    """Real steps at which each phase began and ended, stretches of one phase in a row as one span.

    Phases that begin and end between two real steps, as jumps do, have no span.
    """
    last = record.evaluations[-1].step if record.evaluations else 0
    starts = list(_starts(record))
    if not starts:
        return {}
    if starts[0][0] > 0.0:
        starts.insert(0, (0.0, Phase.WARMUP.value))  # a run begins in it, and no event says so
    spans: dict[str, list[tuple[float, float]]] = {}
    for (begin, phase), (end, _) in zip(starts, [*starts[1:], (float(last), "")], strict=True):
        own = spans.setdefault(phase, [])
        if end <= begin:
            continue
        if own and own[-1][1] == begin:
            own[-1] = (own[-1][0], end)
        else:
            own.append((begin, end))
    return {phase: own for phase, own in spans.items() if own}


def _starts(record: RunRecord) -> Iterator[tuple[float, str]]:
    """Real step and name of each phase that begins.

    Where the jumps of a trial follow every real step, only the first is announced as a Predict phase: a jump
    in another phase stands for one, and for the Correct phase after it.
    """
    phase = ""
    for event in record.events:
        if event["event"] == Event.PHASE_START:
            phase = str(event["phase"])
            yield float(event["step"]), phase
        elif event["event"] == Event.JUMP and phase != Phase.PREDICT.value:
            phase = Phase.CORRECT.value
            yield float(event["step"]), phase

"""The state of a whole engine: model, optimizer and every component, in one tree (F53)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from hybridcore.checkpoint.attributes import put, take
from hybridcore.protocols import Adapter, Snapshot

if TYPE_CHECKING:
    from hybridcore.engine import Engine

__all__ = ["Moment", "engine_state", "load_engine_state", "load_model", "model_state"]

_VIEW, _REST = ("normalised",), ("awake_since", "idle")


@attrs.frozen(eq=False)
class Moment:
    """The model's state now, which only its adapter can take apart.

    Attributes:
        snapshot: The adapter's snapshot.
    """

    snapshot: Snapshot


def model_state(adapter: Adapter) -> dict[str, Any]:
    """Snapshot and counters of an adapter; the run goes on as if nobody had looked."""
    counters = adapter.state_dict()
    snapshot = adapter.snapshot()
    adapter.load_state_dict(counters)  # taking a snapshot may make the next step measure anew
    return {"counters": counters, "now": Moment(snapshot)}


def load_model(adapter: Adapter, state: Mapping[str, Any]) -> None:
    """Put back what `model_state` gave."""
    adapter.restore(state["now"].snapshot)
    adapter.load_state_dict(state["counters"])


def engine_state(engine: Engine) -> dict[str, Any]:
    """Everything that decides how a run goes on. The arrays are the engine's own: copy before the next step.

    The kernel set is no part of it: where ``kernels.name = "auto"`` chooses by a clock on an accelerator,
    a resumed run may choose anew.
    """
    optional: dict[str, Any] = {
        "reach": engine.reach,
        "average": engine.average,
        "read_out": engine.read_out,
        "foresight": engine.foresight,
    }
    states: dict[str, Any] = {
        "model": model_state(engine.adapter),
        "machine": engine.machine.state_dict(),
        "statistics": engine.statistics.state_dict(),
        "budget": engine.budget.state_dict(),
        "counts": attrs.asdict(engine.counts),
        "probes": engine.probes.state_dict(),
        "history": engine.history.state_dict(),
        "controller": _asked(engine, "controller", engine.controller.name, engine.controller),
        "predictors": {n: _asked(engine, "predictor", n, p) for n, p in list(engine.predictors.items())},
        "trials": engine._trials.state_dict(),
        "leaps": engine._leaps.state_dict(),
        "corrections": engine.corrections.state_dict(),
        "recovery": engine.recovery.state_dict(),
        "engine": take(engine.view, _VIEW) | take(engine.rest, _REST),
    }
    for name, part in optional.items():
        whole = getattr(part, "whole_state", None) or getattr(part, "state_dict", None)
        states[name] = whole() if whole is not None else None
    states["dropped"] = engine.containment.dropped
    return states


def _asked(engine: Engine, kind: str, name: str, owner: Any) -> dict[str, Any]:
    """A plugin's state; nothing where it fails, and then its substitute goes on."""
    nothing: dict[str, Any] = {}
    return engine.containment.call(kind, name, "state_dict", owner.state_dict, otherwise=nothing)


def load_engine_state(engine: Engine, state: Mapping[str, Any]) -> None:
    """Make an engine of the same configuration go on where `engine_state` was taken.

    Raises:
        KeyError: A part is missing; the engine is then in no usable state.
    """
    engine.containment.drop_again(state.get("dropped", ()))
    load_model(engine.adapter, state["model"])
    engine.machine.load_state_dict(state["machine"])
    engine.statistics.load_state_dict(state["statistics"])
    engine.budget.load_state_dict(state["budget"])
    put(engine.counts, attrs.fields_dict(type(engine.counts)), state["counts"])
    engine.probes.load_state_dict(state["probes"])
    engine.history.load_state_dict(state["history"], engine.adapter)
    engine.controller.load_state_dict(state["controller"])
    for name, predictor in engine.predictors.items():
        predictor.load_state_dict(state["predictors"][name])
    engine._trials.load_state_dict(state["trials"])
    engine._leaps.load_state_dict(state["leaps"])
    engine.corrections.load_state_dict(state["corrections"])
    engine.recovery.load_state_dict(state["recovery"])
    put(engine.view, _VIEW, state["engine"])
    put(engine.rest, _REST, state["engine"])
    if engine.reach is not None:
        engine.reach.load_whole_state(state["reach"])
    if engine.average is not None:
        engine.average.load_state_dict(state["average"])
    if engine.read_out is not None:
        engine.read_out.load_state_dict(state["read_out"])
    if engine.foresight is not None:
        engine.foresight.load_state_dict(state["foresight"])

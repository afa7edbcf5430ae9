"""Runs of the NumPy adapter that are cut in two by a checkpoint in memory."""

from __future__ import annotations

import itertools
import json

import attrs
import numpy as np
from engine_lab import Recorder, clouds, configure

from hybridcore.checkpoint.codec import Decoder, Encoder
from hybridcore.engine import Engine
from hybridcore.events import EventBus
from hybridcore.plugins import load_registry
from hybridcore.protocols import OptimizerSpec


@attrs.frozen(kw_only=True)
class Setup:
    """One configuration; `expected` are the situations that its cuts must have met."""

    tables: dict = attrs.field(factory=dict)
    optimizer: OptimizerSpec = attrs.field(default=OptimizerSpec("momentum", 0.05))
    batches: int = 120
    every: int = 3
    expected: set = attrs.field(factory=set)
    spoilt: dict = attrs.field(factory=dict)
    probes: bool = True
    force_at: int = -1


REGISTRY = load_registry()


def named(table, name, **options):
    return {table: {"name": name, "options": {name: options}}}


THRESHOLD = named("controller", "threshold", confidence_threshold=0.05)
STEP = {"phases": {"predict_mode": "step", "predict_steps": 5, "forward_every": 2}}
CORRECTED = {"correction": {"name": "gains", "interval": 2}}
SETUPS = {
    "jumps": Setup(
        tables={
            **THRESHOLD,
            **named("predictor", "drift"),
            "average": {"enabled": True},
            "memory": {"history": "host"},
        },
        expected={"warmup", "full", "correct in a trial"},
    ),
    "credit": Setup(optimizer=OptimizerSpec("adam", 0.01), batches=200, every=7, expected={"in a row"}),
    "shares": Setup(
        tables={**THRESHOLD, **named("predictor", "last-update"), **STEP, **CORRECTED},
        expected={"predict in a trial"},
    ),
    "rolled back": Setup(
        tables={
            **THRESHOLD,
            **named("predictor", "random"),
            "groups": {"max_relative_jump": 5.0},
            "probe": {"tentative": False},
        },
        expected={"after a rollback"},
    ),
    "spoilt": Setup(
        tables={**THRESHOLD, "recovery": {"snapshot_every": 10, "prove_after": 5, "full_steps": 9}},
        spoilt={40: 1e4, 41: 1e4, 60: np.nan},
        expected={"after a rollback"},
    ),
    "forced": Setup(tables=THRESHOLD, force_at=30, expected={"forced full"}),
    "foresight": Setup(
        tables={
            **named("controller", "linucb", multipliers=(0.5, 1.0)),
            "dynamics": {"name": "linear", "share": 1.0, "stride": 1},
            "history": {"dtype": "int8"},
        },
        every=5,
        expected={"correct in a trial"},
    ),
    "remembered": Setup(
        tables={
            **named("predictor", "outer-momentum"),
            **THRESHOLD,
            "history": {"dtype": "bfloat16"},
            "memory": {"history": "host"},
        },
        probes=False,
        expected={"warmup"},
    ),
}


def build(setup):
    adapter, batches, probes = clouds(optimizer=setup.optimizer)
    recorder, bus = Recorder(), EventBus()
    bus.listen(recorder)
    config = configure(**json.loads(json.dumps(setup.tables)))
    engine = Engine.from_config(
        adapter, config, probes=probes if setup.probes else (), events=bus, registry=REGISTRY
    )
    if engine.foresight is not None:
        engine.foresight.keeper._parameters = 10**7  # else so small a model's cost pays for no training
    return engine, recorder, stream(batches, setup.spoilt)


def stream(batches, spoilt):
    for index, (x, y) in enumerate(batches):
        yield x * spoilt.get(index, 1.0), y


def feed(engine, setup, batches, first, count):
    for index in range(first, first + count):
        if index == setup.force_at:
            engine.force_full(7)
        engine.step(next(batches))


def situation(engine):
    """Where a run is, in words."""
    trial = engine._trials.trial
    if engine.machine.forced_full_left:
        return "forced full"
    if trial is not None:
        return "in a row" if trial.continuous and trial.jumps > 1 else f"{engine.phase.value} in a trial"
    return "after a rollback" if engine.counts.rollbacks else engine.phase.value


def through_bytes(state, source, target):
    """A state as it comes back from disk."""
    encoder = Encoder(source.snapshot_state, source.xp)
    text = json.dumps(encoder.encode(state), allow_nan=False)
    arrays = {key: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape) for key, a in encoder.arrays.items()}
    return Decoder(arrays, target.snapshot_from_state, target.xp, target.read_params()).decode(
        json.loads(text)
    )


def held(engine):
    """All of an engine's state as text and bytes, without the seconds that an open arm has been played."""
    state = engine.state_dict()
    if state["controller"].get("open"):
        state["controller"]["open"] = state["controller"]["open"][:-1]
    encoder = Encoder(engine.adapter.snapshot_state, engine.adapter.xp)
    text = json.dumps(encoder.encode(state))
    return text, {key: (a.dtype.str, a.shape, a.tobytes()) for key, a in encoder.arrays.items()}


def params_of(engine):
    return {name: value.tobytes() for name, value in engine.adapter.params.items()}


def plain(setup):
    """The run that nobody looks at: trace and weights after each batch."""
    engine, recorder, batches = build(setup)
    weights = []
    for index in range(setup.batches):
        feed(engine, setup, batches, index, 1)
        weights.append((params_of(engine), len(recorder.events)))
    engine.finish()
    return recorder.trace(), weights


def cuts(setup, every, length=40):
    """At each cut of one run: where it is, and what a resumed engine does in the next batches.

    Yields:
        Batches before the cut, batches after it, situation, weights and trace after them.
    """
    engine, _, batches = build(setup)
    for index in range(setup.batches):
        feed(engine, setup, batches, index, 1)
        if index % every:
            continue
        at, count = index + 1, min(length, setup.batches - index - 1)
        other, recorder, later = build(setup)
        other.load_state_dict(through_bytes(engine.state_dict(), engine.adapter, other.adapter))
        assert held(other) == held(engine), f"restored after {at} batches"
        next(itertools.islice(later, at - 1, None))
        feed(other, setup, later, at, count)
        yield at, count, situation(engine), params_of(other), recorder.trace()

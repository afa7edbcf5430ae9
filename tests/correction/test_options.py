"""F57: every field of `[correction]` and of its correctors' tables changes a run."""

from __future__ import annotations

import attrs
import pytest
from engine_lab import Recorder, bits, clouds, configure, drive

from hybridcore.config import ControllerConfig, CorrectionConfig, PredictorConfig
from hybridcore.correction.gains import Gains
from hybridcore.correction.loss_level import LossLevel
from hybridcore.engine import Engine
from hybridcore.events import EventBus
from hybridcore.plugins import load_registry
from hybridcore.protocols import OptimizerSpec

REGISTRY = load_registry()
STEP = {"predict_mode": "step", "predict_steps": 6}

# Field: two values, the corrector, and what else is set.
CASES = {
    "name": ("none", "loss-level", "loss-level", {}),
    "max_factor": (0.1, 0.5, "loss-level", {}),
    "interval": (0, 2, "loss-level", {"phases": STEP}),
    "capacity": (2, 1000, "loss-level", {}),
    "memory_budget_mib": (0.001, 50.0, "loss-level", {}),
    "loss-level.similar": (0, 5, "loss-level", {}),
    "loss-level.forgetting": (0.5, 1.0, "loss-level", {}),
    "loss-level.prior": (0.5, 10.0, "loss-level", {}),
    "gains.forgetting": (0.5, 1.0, "gains", {}),
    "gains.prior": (0.5, 10.0, "gains", {}),
    "gains.max_gain": (0.3, 1.5, "gains", {}),
    "gains.relative": (False, True, "gains", {}),
    "gains.rank": (0, 1, "gains", {}),
}


def outcome(corrector, fields, own, tables):
    adapter, batches, probes = clouds(optimizer=OptimizerSpec("sgd", 0.02))
    table = {"name": corrector, "options": {corrector: own}} | fields
    config = attrs.evolve(
        configure(history={"window": 5}, correction=table, **tables),
        controller=ControllerConfig(
            name="fixed", options={"fixed": {"horizon": 30.0, "full_steps": 12, "correct_steps": 6}}
        ),
        predictor=PredictorConfig(name="drift"),
    )
    recorder, bus = Recorder(), EventBus()
    bus.listen(recorder)
    engine = Engine.from_config(adapter, config, probes=probes, registry=REGISTRY, events=bus)
    drive(engine, 120, batches)
    engine.finish()
    return recorder.trace(), bits(adapter.snapshot())


@pytest.mark.parametrize("field", CASES)
def test_f57_the_field_changes_a_run(field):
    one, other, corrector, tables = CASES[field]
    table, _, key = field.rpartition(".")

    def run(value):
        return outcome(corrector, {} if table else {key: value}, {key: value} if table else {}, tables)

    first = run(one)
    assert first == run(one), "the run does not repeat itself"
    assert first != run(other)


def test_f57_the_store_carries_one_run_over_to_the_next(tmp_path):
    fields = {"store": str(tmp_path / "store")}
    first = outcome("loss-level", fields, {}, {})
    assert first == outcome("loss-level", {}, {}, {})
    assert first != outcome("loss-level", fields, {}, {})


def test_f57_every_field_is_tried():
    kinds = {"": CorrectionConfig, "loss-level.": LossLevel.Config, "gains.": Gains.Config}
    fields = {f"{prefix}{f.name}" for prefix, kind in kinds.items() for f in attrs.fields(kind)}
    assert fields == set(CASES) | {"options", "store"}

"""F57: for every field of the engine's tables, two values give two different runs of the reference model."""

from __future__ import annotations

import logging

import attrs
import numpy as np
import pytest
from engine_lab import Proposes, Scripted, bits, bowl, build, clouds, configure, correct, drive, full, predict

from hybridcore.config import (
    AutotuneConfig,
    AverageConfig,
    BudgetConfig,
    DivergenceConfig,
    GroupsConfig,
    HistoryConfig,
    MetricsConfig,
    PhasesConfig,
    ProbeConfig,
    RecoveryConfig,
    VerdictConfig,
)
from hybridcore.controllers.fixed import Fixed, FixedConfig
from hybridcore.errors import DivergenceError
from hybridcore.layout import ParamGroup, ParamLayout
from hybridcore.predictors.drift import Drift
from hybridcore.predictors.last_update import LastUpdate
from hybridcore.protocols import OptimizerSpec

TABLES = {
    "phases": PhasesConfig,
    "probe": ProbeConfig,
    "verdict": VerdictConfig,
    "budget": BudgetConfig,
    "history": HistoryConfig,
    "groups": GroupsConfig,
    "average": AverageConfig,
    "divergence": DivergenceConfig,
    "recovery": RecoveryConfig,
    "autotune": AutotuneConfig,
    "metrics": MetricsConfig,
}

STEP = {"phases": {"predict_mode": "step", "predict_steps": 4}}
TRUSTING = {"probe": {"tentative": False}}
WILD = {"groups": {"max_relative_jump": 1e9}}
TIGHT = {"share": 0.05, "grace_steps": 10.0, "backoff_steps": 4, "count_seconds": False}

# A rollback starts the mean anew, so nothing may fail here.
AVERAGED = {
    "average": {"enabled": True, "share": 0.5},
    "probe": {"tentative": False},
    "verdict": {"confidence_z": 1e6, "guard_z": 1e6, "guard_factor": 1e6},
}


def answer(action):
    """Recovery that answers NaN losses with one action."""
    return {"recovery": {"policy": {"non-finite": {"critical": (action,)}}}}


RETRY = answer("roll-back-and-retry")
TUNING = {
    "autotune": {"enabled": True, "patience": 1, "restart_steps": 40},
    # Whatever falls by less than all of itself is a plateau.
    "divergence": {"options": {"plateau": {"window": 20, "tolerance": 1.0}}},
}
# Losses with noise are found oscillating, check after check.
GRUMBLING = {
    "divergence": {
        "monitors": ("oscillation",),
        "options": {"oscillation": {"caution": 0.0, "warning": 0.0, "window": 32, "amplitude": 0.0}},
    },
}

# Field: two values, what else is set, and which predictor proposes.
CASES = {
    "phases.warmup_steps": (4, 9, {}, "last"),
    "phases.full_steps": (4, 9, {}, "last"),
    "phases.max_consecutive_predicts": (1, 5, {}, "last"),
    "phases.predict_mode": ("jump", "step", {}, "last"),
    "phases.predict_steps": (2, 5, STEP, "last"),
    "phases.forward_every": (0, 1, STEP, "last"),
    "probe.batches": (1, 2, {}, "last"),
    "probe.tentative": (True, False, {}, "last"),
    "probe.tolerance": (0.0, 10.0, {**WILD, "probe": {"confidence_z": 0.0}}, "noise"),
    "probe.confidence_z": (0.0, 1e3, {**WILD, "probe": {"tolerance": 0.0}}, "noise"),
    "verdict.confidence_z": (0.0, 1e3, TRUSTING, "noise"),
    "verdict.guard_z": (1.0, 1e6, {**TRUSTING, **WILD, "verdict": {"guard_factor": 1.0}}, "noise"),
    "verdict.guard_factor": (1.0, 1e6, {**TRUSTING, **WILD, "verdict": {"guard_z": 1.0}}, "noise"),
    "verdict.least_progress": (0.0, 1.0, {**TRUSTING, "verdict": {"confidence_z": 0.5}}, "noise"),
    "budget.share": (0.01, 0.5, {"budget": TIGHT}, "noise"),
    "budget.credit_share": (0.0, 1.0, {"budget": {**TIGHT, "share": 0.0}}, "slow"),
    "budget.grace_steps": (0.0, 30.0, {"budget": TIGHT}, "noise"),
    "budget.backoff_steps": (0, 30, TRUSTING, "noise"),
    "budget.backoff_factor": (1.0, 4.0, {**TRUSTING, "budget": {"backoff_steps": 5}}, "noise"),
    "budget.max_backoff_steps": (5, 100, {**TRUSTING, "budget": {"backoff_steps": 20}}, "noise"),
    "history.window": (3, 5, {}, "drift"),
    "history.windows": (2, 4, {}, "wide-drift"),
    "history.dtype": ("float32", "int8", {}, "drift"),
    "history.memory_budget_mib": (0.0016, 1.0, {"history": {"windows": 9}}, "wide-drift"),
    "groups.matrix_scale": (1.0, 0.5, {}, "last"),
    "groups.bias_scale": (1.0, 0.5, {}, "last"),
    "groups.embedding_scale": (1.0, 0.5, {}, "embedding"),
    "groups.norm_scale": (1.0, 0.5, {}, "norm"),
    "groups.max_relative_jump": (0.001, 0.5, {}, "last"),
    "average.enabled": (False, True, {}, "last"),
    "average.share": (0.1, 0.5, AVERAGED, "last"),
    "average.max_memory": (10.0, 20.0, AVERAGED, "last"),
    "average.every": (1, 3, AVERAGED, "last"),
    "divergence.monitors": ((), ("non-finite",), {}, "ill"),
    "divergence.check_every": (3, 20, {}, "ill"),
    "divergence.escalate_after": (2, 50, GRUMBLING, "ill"),
    "divergence.options": ({}, {"plateau": {"window": 20, "tolerance": 1.0}}, {}, "ill"),
    "recovery.policy": ({}, {"non-finite": {"critical": ("force-full-phase",)}}, {}, "ill"),
    "recovery.forget_after": (5, 400, RETRY, "ill"),
    "recovery.snapshot_every": (10, 45, RETRY, "ill"),
    "recovery.prove_after": (1, 30, {"recovery": {**RETRY["recovery"], "snapshot_every": 10}}, "ill"),
    "recovery.max_rollbacks": (0, 5, RETRY, "ill"),
    "recovery.learning_rate_factor": (0.5, 0.9, RETRY, "ill"),
    "recovery.predict_ratio": (0.5, 0.9, answer("reduce-predict-ratio"), "ill"),
    "recovery.full_steps": (5, 15, answer("force-full-phase"), "ill"),
    "recovery.raise_threshold": (0.5, 0.99, answer("raise-confidence-threshold"), "ill"),
    "recovery.relax_steps": (5, 500, answer("reduce-predict-ratio"), "ill"),
    "autotune.enabled": (False, True, TUNING, "ill"),
    "autotune.restart": (False, True, TUNING, "ill"),
    "autotune.patience": (1, 4, TUNING, "ill"),
    "autotune.restart_factor": (2.0, 4.0, TUNING, "ill"),
    "autotune.restart_floor": (1.0, 0.5, TUNING, "ill"),
    "autotune.restart_steps": (20, 60, TUNING, "ill"),
    "autotune.min_health": (0.0, 1.0, TUNING, "ill"),
    "autotune.clipping": ("never", "always", TUNING, "ill"),
    "autotune.clip_ratio": (1e-3, 1e-2, TUNING, "ill"),
    "autotune.clip_health": (0.0, 1.0, TUNING, "ill"),
    "metrics.step_every": (1, 7, {}, "last"),
    "metrics.trace": (True, False, {}, "last"),
}

ELSEWHERE = {"average.decide_growth", "budget.count_seconds", "groups.max_relative_repeat"}
"""`test_readout`; a clock is needed, see below; and repetitions, see the tests of controller `credit`."""


def noise():
    random = np.random.default_rng(0)
    return Proposes(
        lambda h, z: tuple(0.4 * random.standard_normal(b.shape).astype(np.float32) for b in h.current())
    )


def outcome(kind, tables, caplog):
    """Everything that a run leaves behind: events, weights, windows kept, lines logged, the mean."""
    if kind == "slow":
        # Credit is sure where the curve has no noise.
        adapter, batches, probes = bowl(condition=2.0), iter(lambda: None, 0), [None]
    else:
        adapter, batches, probes = clouds(optimizer=OptimizerSpec("sgd", 0.02))
    if kind in {"embedding", "norm"}:
        rows = [(n, v.shape, "float64", "cpu", ParamGroup(kind)) for n, v in adapter.params.items()]
        adapter.layout = ParamLayout.plan(rows)
    predictor = {
        "noise": noise,
        "drift": Drift,
        "wide-drift": lambda: Drift(Drift.Config(pairs=8)),
    }.get(kind, LastUpdate)()
    full_steps = {"wide-drift": 40, "ill": 30}.get(kind, 5)
    controller = Fixed(FixedConfig(horizon=6.0, full_steps=full_steps, correct_steps=4))
    engine, recorder = build(adapter, configure(**tables), controller, predictor, probes)
    caplog.clear()
    with caplog.at_level(logging.INFO, "hybridcore"):
        try:
            drive(engine, 240, ailing(batches) if kind == "ill" else batches)
        except DivergenceError as error:
            logging.getLogger("hybridcore").warning("%s", error)
    mean = bits(engine.average.mean) if engine.average is not None else None
    return recorder.trace(), bits(adapter.snapshot()), [r.getMessage() for r in caplog.records], mean


def ailing(batches):
    """Batches of which some give NaN, and some a loss that is far too high."""
    for count, (x, y) in enumerate(batches):
        if count in (60, 61, 90, 160):
            x = x * np.nan
        yield (10.0 * x if 120 <= count < 126 else x), y


def with_field(tables, field, value):
    table, key = field.split(".")
    merged = {name: dict(fields) for name, fields in tables.items()}
    merged.setdefault("budget", {}).setdefault("count_seconds", False)
    merged.setdefault(table, {})[key] = value
    return merged


@pytest.mark.parametrize("field", CASES)
def test_f57_the_field_changes_a_run(field, caplog):
    one, other, tables, kind = CASES[field]
    first = outcome(kind, with_field(tables, field, one), caplog)
    assert first == outcome(kind, with_field(tables, field, one), caplog), "the run does not repeat itself"
    assert first != outcome(kind, with_field(tables, field, other), caplog)


def test_f57_every_field_is_tried():
    fields = {f"{table}.{f.name}" for table, kind in TABLES.items() for f in attrs.fields(kind)}
    assert fields == set(CASES) | ELSEWHERE


def test_f57_counting_seconds_forbids_what_takes_long(monkeypatch):
    """On a clock on which probes are dear and steps are cheap."""
    import time

    now = [0.0]

    def run(count_seconds):
        adapter = bowl()
        inner = adapter.probe_loss
        adapter.probe_loss = lambda batch: now.__setitem__(0, now[0] + 1e3) or inner(batch)
        train = adapter.train_step
        adapter.train_step = lambda batch: now.__setitem__(0, now[0] + 1.0) or train(batch)
        budget = {"share": 1.0, "grace_steps": 20.0, "backoff_steps": 0, "count_seconds": count_seconds}
        script = Scripted(full(4), *[predict(settle=4), correct(4)] * 6)
        engine, recorder = build(adapter, configure(budget=budget), script, probes=[None])
        drive(engine, 60)
        return len(recorder.named("jump"))

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    jumps = run(True), run(False)
    assert jumps[0] == 1 < jumps[1]

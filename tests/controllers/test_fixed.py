from __future__ import annotations

import pytest
from engine_lab import bowl, build, configure, drive

from hybridcore.controllers.fixed import Fixed, FixedConfig


@pytest.mark.parametrize(("horizon", "full", "correct"), [(3.0, 5, 4), (7.5, 8, 2), (1.0, 6, 6)])
def test_the_cycle_has_the_lengths_and_the_horizon_asked_for(horizon, full, correct):
    adapter = bowl(condition=2.0)
    config = configure(phases={"warmup_steps": 2, "full_steps": 2}, probe={"tentative": False})
    config = configure(
        phases={"warmup_steps": 2, "full_steps": 2, "max_consecutive_predicts": 1},
        verdict={"confidence_z": 0.0, "guard_z": 1e6},
        budget={"backoff_steps": 0},
        groups={"max_relative_jump": 100.0},
    )
    controller = Fixed(FixedConfig(horizon=horizon, full_steps=full, correct_steps=correct))
    engine, recorder = build(adapter, config, controller, probes=[None])
    drive(engine, 80)
    jumps = recorder.named("jump")
    assert len(jumps) > 3
    assert {j["horizon"] for j in jumps} == {horizon}
    lengths = {(p["phase"], p["length"]) for p in recorder.named("phase-start")}
    assert ("correct", correct) in lengths
    settled = [v["step"] - j["step"] for j, v in zip(jumps, recorder.named("verdict"), strict=False)]
    assert set(settled) == {correct}


def test_it_waits_for_full_steps_where_the_rules_forbid_a_predict_phase():
    config = configure(budget={"backoff_steps": 1000, "share": 0.0, "grace_steps": 0.0})
    engine, recorder = build(bowl(), config, Fixed(FixedConfig(full_steps=7)), probes=[None])
    drive(engine, 40)
    starts = [(p["length"], p["reason"]) for p in recorder.named("phase-start")][1:]
    assert set(starts) == {(7, "the overhead budget is spent")}

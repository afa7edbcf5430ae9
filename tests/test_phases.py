from __future__ import annotations

import itertools

import pytest

from hybridcore.config import PhasesConfig
from hybridcore.errors import PhaseTransitionError, RecoveryAction
from hybridcore.phases import PhaseMachine
from hybridcore.protocols import Phase

W, F, P, C = Phase.WARMUP, Phase.FULL, Phase.PREDICT, Phase.CORRECT
ALLOWED = {(W, F), (F, P), (F, F), (F, C), (P, C), (P, F), (C, F), (C, P)}


def machine(**fields):
    return PhaseMachine(PhasesConfig(**{"warmup_steps": 3, "full_steps": 2, **fields}))


def tick(phases, steps):
    for _ in range(steps):
        phases.tick()


def at(phase):
    """A machine in `phase`, past warm-up and the mandatory Full block."""
    phases = machine()
    if phase is W:
        return phases
    phases.enter(F, 2)
    tick(phases, 2)
    if phase is not F:
        phases.enter(phase, 1)
    return phases


@pytest.mark.parametrize(("left", "entered"), list(itertools.product(Phase, Phase)))
def test_f2_every_pair_of_phases(left, entered):
    phases = at(left)
    assert phases.phase is left
    before = phases.state_dict()
    if (left, entered) in ALLOWED:
        phases.enter(entered, 7)
        assert (phases.phase, phases.length, phases.done) == (entered, 7, 0)
        return
    with pytest.raises(PhaseTransitionError) as caught:
        phases.enter(entered, 7)
    assert left.value in str(caught.value) and entered.value in str(caught.value)
    assert caught.value.action is RecoveryAction.FORCE_FULL
    assert phases.state_dict() == before


def test_f2_a_forbidden_wish_is_an_error_not_a_silent_change():
    with pytest.raises(PhaseTransitionError, match=r"'predict'.*'predict'"):
        at(P).permitted(P)
    with pytest.raises(PhaseTransitionError, match=r"'warmup'.*'full'"):
        at(F).permitted(W)


def test_f4_the_mandatory_full_block_is_counted_in_steps_taken():
    phases = machine(warmup_steps=3, full_steps=5)
    tick(phases, 3)
    assert phases.permitted(P)[0] is F
    phases.enter(F, 2)
    assert phases.length == 5
    tick(phases, 4)
    assert phases.mandatory_full_left == 1
    assert phases.permitted(P) == (F, "the mandatory Full block comes before the first Predict")
    tick(phases, 1)
    assert phases.permitted(P) == (P, None)


@pytest.mark.parametrize("cap", [1, 2, 5])
def test_f6_the_request_after_the_cap_yields_full(cap):
    phases = machine(max_consecutive_predicts=cap)
    tick(phases, 3)
    phases.enter(F, 2)
    tick(phases, 2)
    granted = []
    for _ in range(cap + 1):
        phase, _ = phases.permitted(P)
        granted.append(phase)
        phases.enter(phase, 1)
        if phase is P:
            phases.enter(C, 1)
    assert granted == [P] * cap + [F]
    assert phases.consecutive_predicts == 0
    assert phases.permitted(P) == (P, None)


def test_f6_the_default_cap_is_five():
    assert PhasesConfig().max_consecutive_predicts == 5


@pytest.mark.parametrize("start", [W, F, P, C])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_f8_force_full_is_exactly_n_steps_from_any_phase(start, steps):
    phases = at(start)
    owed = phases.mandatory_full_left
    phases.force_full(steps)
    seen = 0
    while phases.forced_full_left:
        assert phases.phase is F
        assert phases.permitted(P)[0] is F
        phases.tick()
        seen += 1
    assert seen == steps
    assert phases.at_boundary
    assert (phases.permitted(P)[0] is P) == (owed <= steps)


def test_f8_force_full_of_nothing_is_an_error():
    phases = at(C)
    before = phases.state_dict()
    with pytest.raises(PhaseTransitionError, match="at least one step"):
        phases.force_full(0)
    assert phases.state_dict() == before


def test_state_survives_a_round_trip():
    phases = at(P)
    phases.force_full(4)
    phases.tick()
    again = machine()
    again.load_state_dict(phases.state_dict())
    assert again.state_dict() == phases.state_dict()
    tick(again, 3)
    assert again.at_boundary and again.forced_full_left == 0

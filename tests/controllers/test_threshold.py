from __future__ import annotations

import math
from fractions import Fraction

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridcore.controllers.threshold import Threshold, ThresholdConfig, horizon_for
from hybridcore.protocols import Phase
from hybridcore.state import EngineState, Statistics

confidences = st.floats(0.0, 1.0)
counts = st.integers(0, 20)
lengths = st.integers(1, 300)


def state(**fields):
    given = {
        "step": 100,
        "phase": Phase.FULL,
        "consecutive_predicts": 0,
        "may_predict": True,
        "why_not": None,
        "confidence": 0.9,
        "straightness": 0.9,
        "trial_steps_left": 0,
        "learning_rate": 0.1,
        "peak_learning_rate": 0.1,
        "momentum_memory": 1.0,
        "normalised": False,
        "forecast": None,
        "statistics": Statistics(),
        "predictor_ready": {"drift": True},
        "default_predictor": "drift",
        "window": 10,
        "reach": float("nan"),
        "next_sample": 0,
    }
    return EngineState(**{**given, **fields})


@given(confidences, confidences, counts, lengths, lengths)
def test_f7_the_horizon_is_monotone_in_confidence(a, b, consecutive, low, high):
    less, more = sorted((a, b))
    assert horizon_for(less, consecutive, low=low, high=high) <= horizon_for(
        more, consecutive, low=low, high=high
    )


@given(confidences, counts, lengths, lengths)
def test_f7_the_horizon_stays_between_its_ends_also_below_ten(confidence, consecutive, low, high):
    horizon = horizon_for(confidence, consecutive, low=low, high=high)
    assert min(low, high) <= horizon <= high


@given(confidences, counts, lengths, lengths)
def test_f7_the_horizon_never_grows_with_predict_phases_in_a_row(confidence, consecutive, low, high):
    assert horizon_for(confidence, consecutive + 1, low=low, high=high) <= horizon_for(
        confidence, consecutive, low=low, high=high
    )


@given(st.integers(0, 8), st.integers(0, 20), st.integers(1, 300))
def test_f7_the_horizon_against_the_formula_in_exact_fractions(eighths, consecutive, high):
    """Confidences of k/8 are exact in binary; the factor is computed in tenths."""
    c = Fraction(eighths, 8)
    first = math.floor(high * c * c)
    tenths = 10 - min(consecutive, 5)
    exact = math.floor(Fraction(first * tenths, 10))
    assert horizon_for(eighths / 8, consecutive, low=1, high=high) == max(1, min(exact, high))


@pytest.mark.parametrize(
    ("confidence", "consecutive", "expected"),
    [(1.0, 0, 80), (1.0, 1, 72), (1.0, 5, 40), (1.0, 9, 40), (0.5, 0, 20), (0.85, 0, 57), (0.1, 0, 10)],
)
def test_f7_values_worked_out_by_hand(confidence, consecutive, expected):
    assert horizon_for(confidence, consecutive, low=10, high=80) == expected


@pytest.mark.parametrize(("confidence", "opens"), [(0.7, True), (0.6999, False), (1.0, True), (0.0, False)])
def test_f5_the_gate_at_the_boundary_and_in_the_phase(confidence, opens):
    controller = Threshold()
    action = controller.choose(state(confidence=confidence))
    assert action.phase is (Phase.PREDICT if opens else Phase.FULL)
    assert controller.proceed(state(confidence=confidence)) is opens


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"may_predict": False, "why_not": "paused until step 7"}, "paused until step 7"),
        ({"predictor_ready": {"drift": False}}, "predictor 'drift' is not ready"),
        ({"confidence": 0.25}, "confidence 0.250 below 0.7"),
    ],
)
def test_a_closed_gate_says_why(fields, reason):
    action = Threshold(ThresholdConfig(full_steps=13)).choose(state(**fields))
    assert (action.phase, action.length, action.reason) == (Phase.FULL, 13, reason)


def test_predict_is_always_followed_by_correct():
    action = Threshold(ThresholdConfig(correct_steps=3)).choose(state(phase=Phase.PREDICT, may_predict=False))
    assert (action.phase, action.length) == (Phase.CORRECT, 3)


def test_f57_every_option_changes_an_action():
    base = Threshold().choose(state(confidence=0.9))
    assert base.horizon == math.floor(80 * 0.81) and base.settle == 10
    other = {"confidence_threshold": 0.95, "max_horizon": 40, "correct_steps": 4}
    for name, value in other.items():
        assert Threshold(ThresholdConfig(**{name: value})).choose(state(confidence=0.9)) != base
    low = {"confidence_threshold": 0.0}
    assert Threshold(ThresholdConfig(**low)).choose(state(confidence=0.1)).horizon == 10
    assert Threshold(ThresholdConfig(**low, min_horizon=3)).choose(state(confidence=0.1)).horizon == 3
    shut = state(confidence=0.1)
    assert (
        Threshold(ThresholdConfig(full_steps=3)).choose(shut).length == 3 != Threshold().choose(shut).length
    )
    assert {f.name for f in attrs.fields(ThresholdConfig)} == {*other, "min_horizon", "full_steps"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("confidence_threshold", 1.1),
        ("max_horizon", 0),
        ("min_horizon", 0),
        ("full_steps", 0),
        ("correct_steps", 0),
    ],
)
def test_f55_values_out_of_range_are_errors(name, value):
    with pytest.raises(ValueError, match="out of range"):
        ThresholdConfig(**{name: value})

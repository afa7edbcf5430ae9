from __future__ import annotations

import pickle

import pytest

from hybridcore import errors
from hybridcore.errors import ConfigError, ConfigProblem, HybridCoreError, RecoveryAction

KINDS = [getattr(errors, n) for n in errors.__all__ if n.endswith("Error") and n != "ConfigError"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_f44_every_error_is_one_of_ours_and_carries_an_action(kind):
    error = kind("it broke", where="here", got=3, expected="4", fix="add one")
    assert isinstance(error, HybridCoreError)
    assert isinstance(error.action, RecoveryAction)
    assert str(error).splitlines() == [
        "it broke",
        "  where: here",
        "  got: 3",
        "  expected: 4",
        "  fix: add one",
    ]
    assert kind("it broke", action=RecoveryAction.CONTINUE).action is RecoveryAction.CONTINUE
    assert kind.action is not RecoveryAction.CONTINUE


@pytest.mark.parametrize(
    ("kind", "action"),
    [
        (errors.BatchError, RecoveryAction.SKIP_BATCH),
        (errors.DeltaError, RecoveryAction.RESET_PREDICTOR),
        (errors.PredictionError, RecoveryAction.RESET_PREDICTOR),
        (errors.PhaseTransitionError, RecoveryAction.FORCE_FULL),
        (errors.DivergenceError, RecoveryAction.ABORT),
    ],
)
def test_f44_the_action_fits_the_error(kind, action):
    assert kind("it broke").action is action


def test_f44_there_are_eight_actions():
    assert len(RecoveryAction) == 8


def test_f55_all_mistakes_of_a_configuration_are_told_at_once():
    problems = [
        ConfigProblem("phases.warmup_steps", "out of range", got=-1, expected="a number in [0, inf)"),
        ConfigProblem("phases.warmpu", "unknown key", hint="did you mean 'warmup_steps'?"),
    ]
    text = str(ConfigError(problems, source="run.toml"))
    assert text.startswith("2 problems")
    assert "1. phases.warmup_steps: out of range (got -1, expected a number in [0, inf))" in text
    assert "2. phases.warmpu: unknown key; did you mean 'warmup_steps'?" in text
    assert "run.toml" in text


@pytest.mark.parametrize(
    "error",
    [
        HybridCoreError("it broke", where="here", got=3, expected="4", fix="do", action=RecoveryAction.ABORT),
        errors.BatchError("it broke", got=(1, 2)),
        ConfigError(
            [ConfigProblem("phases.full_steps", "too small", got=0, expected=">= 1")], source="a.toml"
        ),
    ],
    ids=lambda error: type(error).__name__,
)
def test_f44_an_error_of_a_worker_process_arrives_whole(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.action is error.action
    assert again.args == error.args

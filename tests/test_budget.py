from __future__ import annotations

import pytest

from hybridcore.budget import Budget
from hybridcore.config import BudgetConfig


def budget(**fields):
    given = {"share": 0.1, "credit_share": 0.5, "grace_steps": 0.0, "count_seconds": True}
    return Budget(BudgetConfig(**{**given, **fields}))


def test_f83_the_share_is_exact_in_steps():
    b = budget()
    b.run(100.0, 0.0)
    assert b.allows(10.0, 0.0)
    assert not b.allows(10.001, 0.0)
    b.spend(4.0, 0.0)
    assert b.allows(6.0, 0.0)
    assert not b.allows(6.001, 0.0)


def test_f83_the_share_is_exact_in_seconds():
    b = budget()
    b.run(1000.0, 20.0)
    assert b.allows(1.0, 2.0)
    assert not b.allows(1.0, 2.001)


def test_f83_seconds_can_be_left_out():
    b = budget(count_seconds=False)
    b.run(1000.0, 20.0)
    assert b.allows(1.0, 1e9)
    assert not b.allows(100.1, 0.0)


def test_f83_half_of_the_verified_credit_may_be_spent_on_top_in_both_units():
    b = budget()
    b.run(100.0, 10.0)
    b.earn(20.0, 4.0)
    assert b.allows(20.0, 3.0)
    assert not b.allows(20.1, 3.0)
    assert not b.allows(20.0, 3.01)
    b.earn(-100.0, -100.0)
    assert b.allows(20.0, 3.0)


def test_f83_grace_counts_in_steps_and_in_their_seconds():
    b = budget(share=0.0, grace_steps=5.0)
    b.run(10.0, 20.0)
    assert b.allows(5.0, 10.0)
    assert not b.allows(5.01, 1.0)
    assert not b.allows(1.0, 10.01)


def test_f83_steps_of_a_failed_trial_are_no_longer_useful():
    b = budget()
    b.run(100.0, 50.0)
    b.lose(10.0, 5.0)
    assert (b.total_steps, b.spent_steps) == (90.0, 10.0)
    assert b.overhead_share == pytest.approx(5.0 / 50.0)


def test_f83_the_pause_doubles_up_to_its_cap():
    b = budget(backoff_steps=20, backoff_factor=2.0, max_backoff_steps=100)
    assert [b.failed(1000) - 1000 for _ in range(5)] == [20, 40, 80, 100, 100]
    b.succeeded()
    assert b.resume_at == 0
    assert b.failed(7) == 27


def test_f83_a_thousand_failures_in_a_row_are_no_overflow():
    b = budget(backoff_steps=1, max_backoff_steps=3)
    for step in range(3000):
        assert b.failed(step) <= step + 3
    assert budget(backoff_steps=0, backoff_factor=1e300, max_backoff_steps=5).pause(9) == 0


def test_an_empty_run_has_no_overhead_and_a_round_trip_keeps_everything():
    b = budget()
    assert b.overhead_share == 0.0
    b.run(10.0, 1.0)
    b.spend(1.0, 3.0)
    b.earn(2.0, 1.0)
    b.failed(10)
    assert b.overhead_share == pytest.approx(0.75)
    again = budget()
    again.load_state_dict(b.state_dict())
    assert vars(again) == {**vars(b), "_config": again._config}
    assert again.failed(10) == b.failed(10) == 50

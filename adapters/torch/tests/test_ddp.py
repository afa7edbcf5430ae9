"""DistributedDataParallel: all ranks decide alike, whatever happens on one of them (F40-F43, F67, F71)."""

from __future__ import annotations

import math
from typing import Any

import pytest

pytest.importorskip("torch.distributed", reason="this PyTorch was built without torch.distributed")

import numpy as np
import torch
from checkpoint_scenario import require_sound
from ddp_scenarios import STEPS
from rank_lab import Decisions, Lab, launch, squared_error

from hybridcore_torch import TorchAdapter

if not torch.distributed.is_available():
    pytest.skip("this PyTorch was built without torch.distributed", allow_module_level=True)

Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return launch("ddp_scenarios", "everything", 2, tmp_path_factory.mktemp("ddp"))


@pytest.mark.parametrize("scenario", ["verdicts", "bad batches", "clock", "bandit", "own loop"])
def test_every_decision_and_the_weights_after_every_jump_are_the_same(found: Found, scenario: str) -> None:
    first, second = (each[scenario] for each in found)
    assert first == second
    assert first["jumps"] == len(first["weights"]) > 3
    assert first["verdicts"]


def test_two_processes_judge_and_end_as_one_process_on_the_global_batch(found: Found) -> None:
    lab = Lab(dtype=torch.float64)
    model = lab.model()
    decisions = Decisions(model)
    hybrid = lab.hybrid(model, decisions)
    losses = [hybrid.step(lab.batch(index)) for index in range(STEPS)]
    summary, many = hybrid.finish(), found[0]["verdicts"]
    assert many["phases"] == decisions.phases
    np.testing.assert_allclose(many["losses"], losses, rtol=1e-6)
    np.testing.assert_allclose(many["gains"], decisions.gains, rtol=1e-4, atol=1e-8)
    assert many["verdicts"] == decisions.verdicts
    assert many["jumps"] == decisions.jumps
    assert many["credit"] == pytest.approx(summary["credit_steps"], rel=1e-4, abs=1e-6)
    for got, wanted in zip(many["numbers"], model.parameters(), strict=True):
        # Weights pass through float32 buckets in every jump, where the last digit may round either way.
        np.testing.assert_allclose(got, wanted.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_jumps_and_probes_move_no_gradients_and_steps_only_one_small_exchange(found: Found) -> None:
    here = found[0]["verdicts"]
    assert here["gradients"] == here["backward"] == STEPS
    assert here["exchanges"] < 1.8 * STEPS
    for each in found:
        taken = each["rows"]["exchanges"]
        assert taken["steps"] == [1] * 12
        assert taken["probes"] == [2, 1, 1, 1]  # the first one learns how many examples there are


def test_nan_on_one_rank_is_skipped_by_all(found: Found) -> None:
    for each in found:
        assert each["bad batches"]["skipped"] == 4
        assert each["bad batches"]["kept"] == [True] * 4
        assert each["bad batches"]["finite"]
        assert each["clock"]["hidden"] == {"skipped": True, "same": True}


def test_clocks_are_shared(found: Found) -> None:
    first, second = (each["clock"]["seconds"] for each in found)
    assert first == second > 0.0


def test_the_smallest_memory_budget_decides(found: Found) -> None:
    for each in found:
        assert each["memory"]["budget"] == int(0.012 * 2**20)
        assert 2 <= each["memory"]["windows"] < 40
        assert each["memory"]["none"][0] == "MemoryBudgetError"


def test_probe_losses_are_those_of_all_ranks_in_order(found: Found) -> None:
    sizes = [each["rows"]["sizes"] for each in found]
    assert sizes[0][1] - sizes[0][0] != sizes[1][1] - sizes[1][0]
    for each in found:
        np.testing.assert_allclose(each["rows"]["got"], each["rows"]["wanted"], rtol=1e-5)


def test_line_searches_go_alike_and_as_on_one_process(found: Found) -> None:
    lab = Lab(dtype=torch.float64)
    model = lab.model()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1.0, max_iter=6, line_search_fn="strong_wolfe")
    adapter = TorchAdapter(model, optimizer, squared_error)
    losses = [adapter.train_step(lab.batch(index, 48)).loss for index in range(4)]
    assert found[0]["line search"] == found[1]["line search"]
    np.testing.assert_allclose(found[0]["line search"]["losses"], losses, rtol=1e-7)


def test_models_trained_alone_in_a_process_group_agree_on_nothing(found: Found) -> None:
    assert [each["alone"] for each in found] == [{"alone": True, "together": 0.5}] * 2


def test_processes_that_were_set_up_unlike_are_told(found: Found) -> None:
    for each in found:
        assert each["unlike"]["configuration"][::2] == ["RankError", "configuration"]
        assert each["unlike"]["probes"][::2] == ["RankError", "probe batches"]


def test_weights_that_drift_apart_are_noticed_by_all(found: Found) -> None:
    for each in found:
        assert each["drifted"][:2] == ["RankError", "the weights of the processes have drifted apart"]


def test_a_dead_rank_is_a_typed_error_on_the_others_and_no_hang(found: Found) -> None:
    kind, what, _ = found[0]["death"]
    assert kind == "RankError"
    assert "gone or late" in what
    assert math.isfinite(found[0]["seconds"])
    assert "death" not in found[1]


def test_a_run_that_resumes_is_the_run_that_was_never_stopped(found: Found) -> None:
    require_sound([each["checkpoint"] for each in found])


@pytest.mark.slow
def test_four_processes_decide_alike_and_as_one(found: Found, tmp_path: Any) -> None:
    four = launch("ddp_scenarios", "many", 4, tmp_path)
    assert all(each == four[0] for each in four)
    assert four[0]["verdicts"] == found[0]["verdicts"]["verdicts"]
    assert four[0]["jumps"] == found[0]["verdicts"]["jumps"]

"""FSDP2: sharded parameters stay sharded, and the shards together do what one process does (F71, F53)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

if not torch.distributed.is_available():
    pytest.skip("this PyTorch was built without torch.distributed", allow_module_level=True)
pytest.importorskip("torch.distributed.fsdp", reason="this PyTorch has no FSDP")
if not hasattr(torch.distributed.fsdp, "fully_shard"):
    pytest.skip("this PyTorch has no fully_shard", allow_module_level=True)

import numpy as np
from checkpoint_scenario import require_sound
from fsdp_scenarios import STEPS, Root
from rank_lab import Decisions, Lab, launch, squared_error

from hybridcore_torch import TorchAdapter

Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return launch("fsdp_scenarios", "everything", 2, tmp_path_factory.mktemp("fsdp"))


def test_buckets_hold_the_shard_of_this_process_alone(found: Found) -> None:
    whole = sum(p.numel() for p in Root(Lab()).parameters())
    layouts = [each["layout"] for each in found]
    assert sum(each["local"] for each in layouts) == whole
    assert layouts[0]["shapes"] != layouts[1]["shapes"]
    assert layouts[0]["runs"] == layouts[1]["runs"]
    assert layouts[0]["snapshot"] == layouts[1]["snapshot"]
    for each in layouts:
        assert each["copies"] == 1
        assert "ranks" in each["capabilities"]
        assert "adaptive-clipping" not in each["capabilities"]


def test_two_shards_judge_and_end_as_one_process_on_the_global_batch(found: Found) -> None:
    lab = Lab(dtype=torch.float64)
    model = Root(lab)
    decisions = Decisions(model)
    hybrid = lab.hybrid(model, decisions)
    for index in range(STEPS):
        hybrid.step(lab.batch(index))
    summary, many = hybrid.finish(), found[0]["verdicts"]
    assert many == found[1]["verdicts"]
    assert many["still sharded"]
    assert many["verdicts"] == decisions.verdicts
    assert many["jumps"] == decisions.jumps > 3
    assert many["credit"] == pytest.approx(summary["credit_steps"], rel=1e-3, abs=1e-6)
    for got, wanted in zip(many["numbers"], model.parameters(), strict=True):
        np.testing.assert_allclose(got, wanted.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_nan_on_one_rank_is_skipped_by_all(found: Found) -> None:
    assert found[0]["bad batches"] == found[1]["bad batches"]
    assert found[0]["bad batches"]["skipped"] == 4
    assert found[0]["bad batches"]["kept"] == [True] * 4
    assert found[0]["bad batches"]["finite"]


def test_probes_see_every_change_of_the_shards(found: Found) -> None:
    for each in found:
        losses, wanted = each["writes"]["losses"], each["writes"]["wanted"]
        np.testing.assert_allclose(losses["start"], wanted["start"], rtol=1e-6)
        np.testing.assert_allclose(losses["moved"], wanted["moved"], rtol=1e-6)
        np.testing.assert_allclose(losses["inside"], wanted["start"], rtol=1e-6)
        assert losses["outside"] == losses["moved"]


def test_snapshots_come_back_bit_for_bit_and_into_a_fresh_optimizer(found: Found) -> None:
    assert [each["rollback"] for each in found] == [{"back": True, "same": True, "end": True}] * 2


def test_norms_moments_and_the_momentum_rule_go_over_all_shards(found: Found) -> None:
    lab = Lab(dtype=torch.float64)
    model = Root(lab)
    adapter = TorchAdapter(
        model, torch.optim.Adam(model.parameters(), lr=0.01), squared_error, max_grad_norm=0.2
    )
    norms = [adapter.train_step(lab.batch(index)).grad_norm for index in range(4)]
    heavy = Root(lab)
    optimizer = torch.optim.SGD(heavy.parameters(), lr=0.05, momentum=0.9)
    momentum = TorchAdapter(heavy, optimizer, squared_error)
    for index in range(4):
        momentum.train_step(lab.batch(index))
    momentum.after_jump(momentum.read_params())
    last = momentum.train_step(lab.batch(4))
    assert found[0]["numbers"] == found[1]["numbers"]
    here = found[0]["numbers"]
    assert here["exchanges"] == {"steps": [1] * 12, "probes": [2, 1, 1, 1]}
    assert here["norms"] == pytest.approx(norms)
    assert here["norm"] == pytest.approx(last.grad_norm)
    assert here["moments"] == pytest.approx(adapter.moments(), rel=1e-6, abs=1e-12)
    for name, one in (("clipped", model), ("scaled", heavy)):
        for got, wanted in zip(here[name], one.parameters(), strict=True):
            np.testing.assert_allclose(got, wanted.detach().numpy(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["subspace-newton", "random"])
def test_predictors_that_measure_weights_decide_alike(found: Found, name: str) -> None:
    first, second = (each["predictors"][name] for each in found)
    assert first == second
    assert first["jumps"] > 0


def test_a_sharded_run_that_resumes_is_the_run_that_was_never_stopped(found: Found) -> None:
    require_sound([each["checkpoint"] for each in found])

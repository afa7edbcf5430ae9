"""A rank of a sharded run is killed: the other ends with an error, a new start ends alike (F53, F71)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

if not torch.distributed.is_available():
    pytest.skip("this PyTorch was built without torch.distributed", allow_module_level=True)
pytest.importorskip("torch.distributed.fsdp", reason="this PyTorch has no FSDP")
if not hasattr(torch.distributed.fsdp, "fully_shard"):
    pytest.skip("this PyTorch has no fully_shard", allow_module_level=True)

from checkpoint_scenario import same_end
from rank_lab import launch_all

pytestmark = pytest.mark.slow
Found = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Where a rank did not end, `launch_all` would find no word of it, and bounds the wait."""
    scenarios = ["killed_in_a_step", "killed_while_writing", "revived", "stopped"]
    return launch_all("kill_scenarios", scenarios, 2, tmp_path_factory.mktemp("killed"), 300.0)


@pytest.mark.parametrize(
    "scenario, victim, by",
    [("killed_in_a_step", 1, "SIGKILL"), ("killed_while_writing", 0, "SIGKILL"), ("stopped", 0, "SIGSTOP")],
)
def test_the_other_rank_ends_with_one_typed_error(found: Found, scenario: str, victim: int, by: str) -> None:
    """At once where the rank is dead, after the timeout of the group where it only says nothing."""
    assert found[scenario][victim]["signal"] == by
    kind, what, _ = found[scenario][1 - victim]["error"]
    assert kind == "RankError"
    assert "gone or late" in what


def test_the_run_that_is_started_anew_ends_as_the_one_that_was_left_alone(found: Found) -> None:
    """Twice: a rank had died in a step, then in the midst of a checkpoint."""
    for each in found["revived"]:
        finished = [name for name in each["left"] if name.startswith("batch-")]
        assert finished == ["batch-000000020", "batch-000000040"]
        assert [name[-9:] for name in set(each["left"]) - set(finished)] == ["000000060"]
        assert (each["revived"]["start"], each["calm"]["start"]) == (40, 0)
        assert same_end(each["revived"], each["calm"])
        assert each["calm"]["jumps"] > 0
    ends = [each["revived"]["end"] for each in found["revived"]]
    assert ends[0] != ends[1]  # shards, not copies

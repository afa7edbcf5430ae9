"""Stop, go on, damage, misuse: what checkpoints of many processes must stand, for any kind of model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rank_lab import Decisions, Lab, error_of, weights_digest
from torch import distributed, nn

from hybridcore_torch.rank_checkpoints import RankCheckpoints, load_weights

END, EVERY = 150, 60


def checkpoint(lab: Lab, make: Callable[[Lab], nn.Module], folder: Path) -> dict[str, Any]:
    place = folder / "checkpoints"
    whole = run(lab, make, place)
    files = sorted(path.name for path in (place / "batch-000000120").iterdir())
    again = run(lab, make, place)
    if lab.rank == 0:
        victim = next((place / "batch-000000120").glob("*.safetensors"))
        text = bytearray(victim.read_bytes())
        text[-1] ^= 1
        victim.write_bytes(bytes(text))
    distributed.barrier()
    older = run(lab, make, place, END)
    given = load(lab, make, place / "batch-000000120")
    other = error_of(lambda: resumed(lab, make, place, lr=0.02, history={"window": 7}))
    blocked = folder / "blocked"
    if lab.rank == 0:
        blocked.write_text("a file where a folder should be")
    distributed.barrier()
    hybrid = lab.hybrid(make(lab))
    refused = RankCheckpoints(hybrid, blocked, every=1).save(1)
    return {
        "whole": whole,
        "again": again,
        "older": older,
        "files": files,
        "other": other,
        "refused": refused,
        "given": given,
    }


def load(lab: Lab, make: Callable[[Lab], nn.Module], path: Path) -> bool:
    """Whether another model gets the weights of a checkpoint: those that a run which resumes has."""
    model, other = make(lab), make(lab)
    with torch.no_grad():
        for param in other.parameters():
            param.zero_()
    load_weights(path, other)
    RankCheckpoints(lab.hybrid(model), path.parent).resume()
    return weights_digest(model) == weights_digest(other) != weights_digest(make(lab))


def require_sound(found: list[dict[str, Any]]) -> None:
    """What `checkpoint` must have found."""
    for each in found:
        whole, again, older = each["whole"], each["again"], each["older"]
        assert [whole["start"], again["start"], older["start"]] == [0, 120, 60]
        for other in (again, older):
            assert same_end(other, whole)
        assert whole["jumps"] > 0
        assert each["given"]
        assert len([name for name in each["files"] if name.endswith(".safetensors")]) == len(found)
        assert each["other"][0] == "CheckpointError"
        assert not each["refused"]
    assert found[0]["whole"]["draws"] != found[1]["whole"]["draws"]
    assert found[0]["again"]["extra"] != found[1]["again"]["extra"]


def same_end(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs ended alike, bit for bit: decisions, weights, loss and random numbers."""
    return all(one[key] == other[key] for key in ("log", "end", "loss", "draws"))


def resumed(lab: Lab, make: Callable[[Lab], nn.Module], place: Path, **tables: Any) -> int:
    return RankCheckpoints(lab.hybrid(make(lab), **tables), place).resume()


def run(
    lab: Lab,
    make: Callable[[Lab], nn.Module],
    place: Path,
    end: int = END,
    every: int = EVERY,
    since: int = 120,
    before: Callable[[int], None] = lambda batch: None,
) -> dict[str, Any]:
    """Train from the newest checkpoint to the end; everything after some batch is what runs must share.

    Args:
        lab: The problem.
        make: Gives the model.
        place: The checkpoints.
        end: Batches in all.
        every: Batches between checkpoints.
        since: The batch; no run may start after it.
        before: Called with the number of each batch, before it is used.
    """
    model = make(lab)
    decisions = Decisions(model, timed=False)
    hybrid = lab.hybrid(model, decisions)
    checkpoints = RankCheckpoints(hybrid, place, every=every)
    torch.manual_seed(lab.rank)  # every rank has random numbers of its own
    start = checkpoints.resume()
    draws = []
    for index in range(start, end):
        if index == since:
            decisions.log.clear()
            draws.clear()
        before(index)
        x, y = lab.batch(index)
        draws.append(float(torch.rand(())))
        loss = hybrid.step((x + 0.01 * torch.randn_like(x), y))
        checkpoints.after_batch(index + 1, {"draws": draws[-1]})
    return {
        "start": start,
        "open": hybrid.engine.real_steps,
        "log": decisions.digest(),
        "jumps": len([line for line in decisions.log if line.startswith("jump ")]),
        "end": weights_digest(model),
        "loss": loss,
        "draws": draws[-20:],
        "extra": checkpoints.extra,
    }

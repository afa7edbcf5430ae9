"""What `test_killed_ranks.py` runs on each process: sharded runs of which a rank is killed or stopped."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from checkpoint_scenario import run
from fsdp_scenarios import sharded
from rank_lab import Lab, error_of, keep
from torch.distributed.checkpoint import HuggingFaceStorageWriter

EVERY, MIDST, END = 20, 45, 75
"""Batches between checkpoints, until a rank dies, and in all; the first jump is after batch 30."""


def killed_in_a_step(rank: int, world_size: int, folder: Path) -> NoReturn:
    def before(batch: int) -> None:
        if (batch, rank) == (MIDST, 1):
            end_by(signal.SIGKILL, "killed_in_a_step", rank, folder)

    train("killed_in_a_step", rank, world_size, folder, folder / "killed", before)


def killed_while_writing(rank: int, world_size: int, folder: Path) -> NoReturn:
    """The first rank, which seals checkpoints, dies before its shard is written."""
    write = HuggingFaceStorageWriter.write_data

    def die(writer: Any, *arguments: Any) -> Any:
        if rank == 0:
            end_by(signal.SIGKILL, "killed_while_writing", rank, folder)
        return write(writer, *arguments)

    HuggingFaceStorageWriter.write_data = die
    train("killed_while_writing", rank, world_size, folder, folder / "killed")


def stopped(rank: int, world_size: int, folder: Path) -> NoReturn:
    """A rank neither answers nor dies."""

    def before(batch: int) -> None:
        if (batch, rank) == (5, 0):
            end_by(signal.SIGSTOP, "stopped", rank, folder)

    train("stopped", rank, world_size, folder, folder / "stopped", before)


stopped.patience = 15  # type: ignore[attr-defined]


def revived(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    """All ranks go on from what the killed runs left; another run is left alone."""
    left = sorted(path.name for path in (folder / "killed").iterdir())
    lab = Lab(rank, world_size)
    return {
        "left": left,
        "revived": run(lab, sharded, folder / "killed", END, EVERY, since=40),
        "calm": run(lab, sharded, folder / "calm", END, EVERY, since=40),
    }


def end_by(which: signal.Signals, scenario: str, rank: int, folder: Path) -> None:
    """Leave word, and send this process a signal that it cannot refuse."""
    keep({"pid": os.getpid(), "signal": which.name}, scenario, rank, folder)
    os.kill(os.getpid(), which)


def train(
    scenario: str,
    rank: int,
    world_size: int,
    folder: Path,
    checkpoints: Path,
    before: Callable[[int], None] = lambda batch: None,
) -> NoReturn:
    """Train until the other rank is gone, and tell the error that this one ended with."""
    error = error_of(lambda: run(Lab(rank, world_size), sharded, checkpoints, END, EVERY, before=before))
    keep({"error": error}, scenario, rank, folder)
    gone = json.loads((folder / f"{scenario}-{1 - rank}.json").read_text())
    if gone["signal"] == "SIGSTOP":
        os.kill(gone["pid"], signal.SIGKILL)
    os._exit(0)  # the group is broken: leaving it in order would wait for the dead

"""Runs scenarios on several processes of `torch.distributed` and gives what each of them found."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from hybridcore.config import HybridConfig
from hybridcore.configfile import config_from_dict
from hybridcore_torch import Hybrid, TorchAdapter, hybridize

FOLDER = Path(__file__).resolve().parent


def launch(
    module: str, scenario: str, world_size: int, folder: Path, timeout: float = 150.0
) -> list[dict[str, Any]]:
    """What ``scenario(rank, world_size, folder)`` of a test module returned on each rank, in rank order."""
    return launch_all(module, [scenario], world_size, folder, timeout)[scenario]


def launch_all(
    module: str, scenarios: Sequence[str], world_size: int, folder: Path, timeout: float = 150.0
) -> dict[str, list[dict[str, Any]]]:
    """What each scenario returned on each rank; one after another, each on processes of its own.

    One process imports PyTorch and forks the ranks, which spares each of them the import.

    Args:
        module: The module, beside this file.
        scenarios: Functions of it, called with rank, number of ranks, and folder.
        world_size: Processes.
        folder: For the rendezvous, and for the scenarios.
        timeout: Seconds after which the processes count as hanging.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(FOLDER), "GLOO_SOCKET_IFNAME": "lo"}
    words = [sys.executable, str(FOLDER / "rank_lab.py"), module, str(world_size), str(folder), *scenarios]
    parent = subprocess.Popen(
        words, env={**os.environ, **own}, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _, err = parent.communicate(timeout=timeout)
    finally:
        if parent.poll() is None:
            os.killpg(parent.pid, signal.SIGKILL)  # the group that was started here: parent and ranks
    results = {name: [folder / f"{name}-{rank}.json" for rank in range(world_size)] for name in scenarios}
    assert all(path.is_file() for paths in results.values() for path in paths), err[-4000:]
    return {name: [json.loads(path.read_text()) for path in paths] for name, paths in results.items()}


def keep(found: dict[str, Any], scenario: str, rank: int, folder: Path) -> None:
    """Write what a rank found, so that it outlives the rank."""
    path = folder / f"{scenario}-{rank}.json"
    path.with_suffix(".part").write_text(json.dumps(found))
    path.with_suffix(".part").rename(path)


def weights_digest(model: nn.Module) -> str:
    """Digest of all parameters on this process, bit for bit."""
    digest = hashlib.sha256()
    for param in model.parameters():
        part = getattr(param, "_local_tensor", param).detach()
        digest.update(part.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


class Decisions:
    """Listens to an engine: every decision with its numbers, and the weights after every jump."""

    def __init__(self, model: nn.Module, timed: bool = True) -> None:
        self.model = model
        self._drop = {"elapsed"} if timed else {"elapsed", "seconds", "credit_seconds"}
        self.log: list[str] = []
        self.weights: list[str] = []
        self.verdicts: list[bool] = []
        self.phases: list[list[Any]] = []
        self.gains: list[float] = []
        self.jumps = 0

    def __call__(self, event: Any, payload: Any) -> None:
        said = {key: value for key, value in payload.items() if key not in self._drop}
        self.log.append(f"{event} {said!r}")
        if str(event) == "jump":
            self.jumps += 1
            self.weights.append(weights_digest(self.model))
        elif str(event) == "verdict":
            self.verdicts.append(bool(payload["kept"]))
            self.gains.append(float(payload["gain"]))
        elif str(event) == "phase-start":
            self.phases.append([payload["step"], payload["phase"], payload["length"]])

    def digest(self) -> str:
        """One word for the whole log."""
        return hashlib.sha256("\n".join(self.log).encode()).hexdigest()[:16]

    def summary(self) -> dict[str, Any]:
        """What the ranks are compared by."""
        return {
            "log": self.digest(),
            "weights": self.weights,
            "verdicts": self.verdicts,
            "jumps": self.jumps,
            "end": weights_digest(self.model),
        }


class Lab:
    """A small regression whose global batches do not depend on how many processes share them."""

    def __init__(self, rank: int = 0, world_size: int = 1, dtype: torch.dtype = torch.float32) -> None:
        self.rank, self.world_size, self.dtype = rank, world_size, dtype
        generator = torch.Generator().manual_seed(5)
        self._teacher = torch.randn(6, 3, generator=generator, dtype=torch.float64)

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.LayerNorm(9), nn.Linear(9, 3)).to(self.dtype)

    def batch(self, index: int, size: int = 24, split: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of this rank: every world_size-th of the global batch."""
        generator = torch.Generator().manual_seed(1000 + index)
        x = torch.randn(size, 6, generator=generator, dtype=torch.float64)
        noise = torch.randn(size, 3, generator=generator, dtype=torch.float64)
        y = torch.tanh(x @ self._teacher) + 0.1 * noise
        part = slice(self.rank, None, self.world_size) if split else slice(None)
        return x[part].to(self.dtype), y[part].to(self.dtype)

    def probes(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [self.batch(10**6 + i, 48) for i in range(2)]

    def hybrid(
        self, model: nn.Module, decisions: Decisions | None = None, lr: float = 0.02, **tables: Any
    ) -> Hybrid:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
        return hybridize(
            model,
            optimizer,
            lab_config(**tables),
            loss_fn=squared_error,
            probe=self.probes(),
            events=[decisions] if decisions is not None else [],
        )


def squared_error(model: nn.Module, batch: Any) -> torch.Tensor:
    return (model(batch[0]) - batch[1]).square().mean(1)


def lab_config(**tables: Any) -> HybridConfig:
    """A configuration that jumps early and often."""
    base: dict[str, Any] = {
        "phases": {"warmup_steps": 20, "full_steps": 10},
        "budget": {"share": 0.5, "grace_steps": 60.0, "backoff_steps": 5, "max_backoff_steps": 40},
    }
    for name, table in tables.items():
        base[name] = {**base.get(name, {}), **table}
    return config_from_dict(base)


def exchanges(adapter: TorchAdapter, lab: Lab) -> dict[str, list[int]]:
    """Exchanges of the engine in each of some real steps, and in each of some probes of one batch."""
    probe = lab.batch(10**6, 48)

    def taken(action: Any) -> int:
        before = adapter.exchanges
        action()
        return adapter.exchanges - before

    return {
        "steps": [taken(lambda i=i: adapter.train_step(lab.batch(i))) for i in range(12)],
        "probes": [taken(lambda: adapter.probe_loss(probe)) for _ in range(4)],
    }


def error_of(action: Any) -> list[str]:
    """Type and first line of the error that an action raises."""
    try:
        action()
    except Exception as error:
        return [type(error).__name__, str(error).splitlines()[0], str(getattr(error, "where", ""))]
    return ["none", "", ""]


def run_rank(module: Any, scenario: str, rank: int, world_size: int, folder: Path) -> None:
    """One rank, from rendezvous to result; `scenario.patience` is the group's timeout in seconds."""
    run = getattr(module, scenario)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous-{scenario}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=getattr(run, "patience", 60)),
    )
    keep(run(rank, world_size, folder), scenario, rank, folder)
    distributed.destroy_process_group()


def main(name: str, size: str, place: str, *scenarios: str) -> None:
    """Fork the ranks of each scenario and wait for them."""
    torch.set_num_threads(1)
    module = importlib.import_module(name)
    torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)  # imports what optimizers need, once for all
    for scenario in scenarios:
        ranks = []
        for rank in range(int(size)):
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    run_rank(module, scenario, rank, int(size), Path(place))
                    status = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stderr.flush()
                    os._exit(status)
            ranks.append(pid)
        for pid in ranks:
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main(*sys.argv[1:])

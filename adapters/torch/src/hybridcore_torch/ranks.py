"""What the processes of one data-parallel run tell each other beside their gradients (F71)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed, nn

from hybridcore.errors import BatchError, RankError
from hybridcore_torch.sharding import is_sharded

__all__ = ["TorchRanks", "find_ranks", "peers_watched"]

_SIGNS = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "socket", "process group")
"""Words by which PyTorch's communication errors, which are plain RuntimeErrors, are told from others."""


def find_ranks(model: nn.Module, params: Sequence[torch.Tensor], wanted: bool | None) -> int:
    """Number of processes that train this model together; 1 where it is trained alone.

    Args:
        model: The model as the user trains it.
        params: Its parameters.
        wanted: The user's word; None looks for a data-parallel wrapper and for sharded parameters.
    """
    if wanted is False or not (distributed.is_available() and distributed.is_initialized()):
        return 1
    inner: Any = getattr(model, "_orig_mod", model)
    wrapped = isinstance(inner, nn.parallel.DistributedDataParallel)
    if wanted or wrapped or any(map(is_sharded, params)):
        return distributed.get_world_size()
    return 1


@contextmanager
def peers_watched(where: str) -> Iterator[None]:
    """Turn the communication errors of PyTorch into one typed error.

    Raises:
        RankError: Another process is gone or late.
    """
    try:
        yield
    except (RuntimeError, BatchError) as error:
        if not is_communication(error):
            raise
        raise RankError(
            f"another process of the run is gone or late: {str(error).splitlines()[0][:200]}",
            where=where,
            got=type(error).__name__,
            expected="all processes at the same step",
            fix="look for the first error among the other processes; start again with `torchrun "
            "--max-restarts`, which goes on from the last checkpoint",
        ) from error


def is_communication(error: BaseException) -> bool:
    """Whether an error, or what caused it, came from the exchange with other processes."""
    kinds = tuple(k for n in ("DistError", "DistBackendError") if (k := getattr(distributed, n, None)))
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, kinds):
            return True
        if isinstance(seen, RuntimeError) and any(sign in str(seen).lower() for sign in _SIGNS):
            return True
        seen = seen.__cause__
    return False


class TorchRanks:
    """Gathers a few numbers per real step, beside the backward pass where that is possible.

    Everything goes by gathering: each rank gets the numbers of all ranks in rank order and computes the same
    function of them, so that no order of summation can part the ranks.

    Args:
        world_size: Number of ranks.
        copies: Ranks that hold the same weights; `world_size` where the model is replicated.
        device: Where the parameters lie.

    Attributes:
        exchanges: Collectives so far.
    """

    def __init__(self, world_size: int, copies: int, device: torch.device) -> None:
        self.world_size, self.copies, self.exchanges = world_size, copies, 0
        backend = str(distributed.get_backend())
        self._device = device if "nccl" in backend and "gloo" not in backend else torch.device("cpu")
        self._seconds = self._agreed_seconds = 0.0
        self._told = False
        self._waiting: Callable[[], NDArray[np.float64]] | None = None

    @property
    def sharded(self) -> bool:
        """Whether a rank holds less than the whole model."""
        return self.copies < self.world_size

    def gather(self, values: Sequence[float]) -> NDArray[np.float64]:
        """Numbers of all ranks, shape (ranks, k)."""
        with peers_watched("an exchange of numbers"):
            return self._start(torch.tensor(values, dtype=torch.float64))()

    def _start(self, mine: torch.Tensor) -> Callable[[], NDArray[np.float64]]:
        self.exchanges += 1
        mine = mine.to(self._device)
        rows = [torch.empty_like(mine) for _ in range(self.world_size)]
        work = distributed.all_gather(rows, mine, async_op=True)

        def finish() -> NDArray[np.float64]:
            if work is not None:
                work.wait()
            return torch.stack(rows).cpu().numpy()

        return finish

    def gather_rows(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Arrays (n_r, ...) of all ranks one below the other; n_r may differ, the other sizes may not."""
        counts = self.gather([float(len(rows))])[:, 0].astype(int)
        padded = np.zeros((int(counts.max()), *rows.shape[1:]))
        padded[: len(rows)] = rows
        whole = self.gather(padded.ravel().tolist()).reshape(self.world_size, *padded.shape)
        return np.concatenate([part[:n] for part, n in zip(whole, counts, strict=True)])

    # The numbers of a real step

    def announce(self, loss: torch.Tensor, examples: int) -> None:
        """Send this rank's loss on its way while the backward pass runs.

        Args:
            loss: Mean loss of this rank's batch.
            examples: Examples in it.
        """
        other = torch.tensor([float(examples), self._seconds], dtype=torch.float64, device=self._device)
        mine = torch.cat((loss.detach().reshape(1).to(self._device, torch.float64), other))
        with peers_watched("the loss of a step"):
            self._waiting = self._start(mine)

    def collect(self) -> tuple[float, int]:
        """Mean loss over the ranks and the examples of all batches together, as announced."""
        assert self._waiting is not None
        with peers_watched("the loss of a step"):
            rows = self._waiting()
        self._waiting = None
        self._agreed_seconds = float(rows[:, 2].mean())
        return float(rows[:, 0].mean()), int(rows[:, 1].sum())

    def exchange(self, loss: float, examples: int = 0) -> float:
        """Mean over the ranks of a loss that the host's own loop has found."""
        self.announce(torch.tensor(loss, dtype=torch.float64), examples)
        return self.collect()[0]

    def forget(self) -> None:
        """A step ended with an error before `collect`."""
        self._waiting = None

    def step_seconds(self, seconds: float) -> float:
        """Mean seconds of the step before; this step's are told with the next loss."""
        if not self._told:
            self._told = True
            self._agreed_seconds = float(self.gather([seconds]).mean())
        self._seconds = seconds
        return self._agreed_seconds

    def add_up(self, squares: Sequence[float]) -> list[float]:
        """Sums over the whole model of sums over this rank's shard."""
        return [float(x) for x in self.gather(squares).sum(axis=0) / self.copies]

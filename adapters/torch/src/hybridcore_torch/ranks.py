"""What the processes of one data-parallel run tell each other beside their gradients (F71)."""

from __future__ import annotations

import math
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


_Finish = Callable[[], torch.Tensor]
"""Numbers of all ranks one after the other, on the device; waits for the exchange on the CPU only."""


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
        examples: Examples of all batches of the latest step together.
    """

    def __init__(self, world_size: int, copies: int, device: torch.device) -> None:
        self.world_size, self.copies = world_size, copies
        self.exchanges = self.examples = 0
        backend = str(distributed.get_backend())
        self._device = device if "nccl" in backend and "gloo" not in backend else torch.device("cpu")
        self._seconds = self._agreed_seconds = 0.0
        self._told = False
        self._waiting: _Finish | None = None
        self._held: torch.Tensor | None = None
        self._room = 0

    @property
    def sharded(self) -> bool:
        """Whether a rank holds less than the whole model."""
        return self.copies < self.world_size

    @property
    def beside_training(self) -> bool:
        """Whether exchanges are made on the device that trains, in the order of its own work."""
        return self._device.type != "cpu"

    def gather(self, values: Sequence[float]) -> NDArray[np.float64]:
        """Numbers of all ranks, shape (ranks, k)."""
        with peers_watched("an exchange of numbers"):
            return self._rows(self._start(torch.tensor(values, dtype=torch.float64))().cpu())

    def _start(self, mine: torch.Tensor) -> _Finish:
        self.exchanges += 1
        mine = mine.to(self._device)
        flat = mine.new_empty(self.world_size * mine.numel())
        work = distributed.all_gather_into_tensor(flat, mine, async_op=True)

        def finish() -> torch.Tensor:
            if work is not None:
                work.wait()
            return flat

        return finish

    def _rows(self, flat: torch.Tensor) -> NDArray[np.float64]:
        numbers: NDArray[np.float64] = flat.numpy()
        return numbers.reshape(self.world_size, -1)

    def _number(self, value: torch.Tensor | float) -> torch.Tensor:
        number = torch.as_tensor(value, dtype=torch.float64).detach()
        return number.reshape(1).to(self._device)

    def gather_rows(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Arrays (n_r, ...) of all ranks one below the other; n_r may differ, the other sizes may not.

        One exchange, with as much room as was needed so far; a second one where that was too little.
        """
        mine = np.ravel(rows)
        sent = np.zeros(1 + self._room)
        sent[0] = len(rows)
        sent[1 : 1 + mine.size] = mine[: self._room]
        found = self.gather(sent.tolist())
        counts = found[:, 0].astype(int)
        width = int(np.prod(rows.shape[1:], dtype=int))
        needed = int(counts.max()) * width
        if needed > self._room:
            self._room = needed  # the same on all ranks, since all have the same counts
            whole = self.gather(np.pad(mine, (0, needed - mine.size)).tolist())
        else:
            whole = found[:, 1:]
        parts = [row[: n * width].reshape(n, *rows.shape[1:]) for row, n in zip(whole, counts, strict=True)]
        return np.concatenate(parts)

    # The numbers of a real step

    def announce(self, loss: torch.Tensor, examples: int) -> None:
        """Send this rank's loss on its way while the backward pass runs.

        Where parameters are sharded it waits for `collect`: there the norm has to travel too, and one
        exchange after the backward pass is less than two.

        Args:
            loss: Mean loss of this rank's batch.
            examples: Examples in it.
        """
        # Filled on the device: a copy from the host would wait for the forward pass.
        mine = torch.empty(3, dtype=torch.float64, device=self._device)
        mine[0].copy_(loss.detach())
        mine[1].fill_(float(examples))
        mine[2].fill_(self._seconds)
        if self.sharded:
            self._held = mine
            return
        with peers_watched("the loss of a step"):
            self._waiting = self._start(mine)

    def collect(self, norm: torch.Tensor | float = 0.0) -> tuple[float, float]:
        """Mean of the announced losses, and the norm of the whole model's gradient, in one wait.

        Args:
            norm: Norm of what this rank holds of the gradient: of all of it, where nothing is sharded.
        """
        with peers_watched("the loss of a step"):
            return self.told(self.collected(norm).cpu())

    def collected(self, norm: torch.Tensor | float) -> torch.Tensor:
        """What `collect` reads, still on the device: all finite exactly where losses and norm are."""
        if self._held is not None:
            return self._start(torch.cat((self._held, self._number(norm).square())))()
        assert self._waiting is not None
        return torch.cat((self._waiting(), self._number(norm)))

    def told(self, numbers: torch.Tensor) -> tuple[float, float]:
        """Mean loss and norm from what `collected` gave, in the host's memory."""
        if self._held is not None:
            rows = self._rows(numbers)
            size = math.sqrt(float(rows[:, 3].sum()) / self.copies)
        else:
            rows, size = self._rows(numbers[:-1]), float(numbers[-1])
        self.forget()
        self._agreed_seconds = float(rows[:, 2].mean())
        self.examples = int(rows[:, 1].sum())
        return float(rows[:, 0].mean()), size

    def exchange(self, loss: float, norm: float) -> tuple[float, float]:
        """Mean over the ranks of a loss that the host's own loop has found, and the whole gradient's norm."""
        self.announce(torch.tensor(loss, dtype=torch.float64), 0)
        return self.collect(norm)

    def forget(self) -> None:
        """Nothing is announced: a step ended, or broke off before `collect`."""
        self._waiting = self._held = None

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

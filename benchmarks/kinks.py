"""How one rounding error grows: `mnist-cnn` in PyTorch against itself, from weights one last bit apart.

With ReLU and max pooling a rounding error now and then chooses another pixel, and the gradient jumps; with
SiLU and average pooling it cannot. That bounds what any two frameworks can agree on (F89). The last bits of
all weights go up or down at random; some of these changes meet a kink, others do not.

    OMP_NUM_THREADS=1 python benchmarks/kinks.py [--steps N] [--changes N]
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from numpy.typing import NDArray

from hybridcore.plugins import load_registry
from hybridcore_torch.models import build_model
from hybridcore_torch.optimizers import build_optimizer


def losses(dtype: torch.dtype, change: int | None, smooth: bool, steps: int) -> NDArray[np.float64]:
    """Training losses; the seed ``change`` says which weights grow or shrink by one unit at the start."""
    cls = load_registry().get("task", "mnist-cnn")
    problem = cls(cls.Config(smooth=smooth)).problem(seed=0)
    built = build_model(problem, "cpu")
    built.model.to(dtype)
    if change is not None:
        generator, unit = torch.Generator().manual_seed(change), torch.finfo(dtype).eps
        with torch.no_grad():
            for param in built.model.parameters():
                signs = 2 * torch.randint(0, 2, param.shape, generator=generator) - 1
                param.mul_(1.0 + unit * signs.to(dtype))
    optimizer = build_optimizer(built.model.parameters(), problem.optimizer)
    stream, found = problem.batches(), []
    for _ in range(steps):
        inputs, labels = (torch.as_tensor(array) for array in next(stream))
        optimizer.zero_grad()
        loss = built.loss_fn(built.model, (inputs.to(dtype), labels)).mean()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return np.asarray(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--changes", type=int, default=3, help="random changes of the last bits")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"largest deviation of a training loss in {options.steps} steps, for each change of the last bits")
    for dtype in (torch.float32, torch.float64):
        for smooth in (False, True):
            plain = losses(dtype, None, smooth, options.steps)
            others = (losses(dtype, change, smooth, options.steps) for change in range(options.changes))
            gaps = [float((np.abs(plain - other) / plain).max()) for other in others]
            kind = "SiLU, average pooling" if smooth else "ReLU, max pooling"
            numbers = "  ".join(f"{gap:.1e}" for gap in gaps)
            print(f"{str(dtype).removeprefix('torch.'):<9}{kind:<23}{numbers}", flush=True)


if __name__ == "__main__":
    main()

"""Train the network that hybridcore-nowcast ships, and judge it on held-out trainings.

    OMP_NUM_THREADS=1 python plugins/nowcast/training/train.py [--out FILE] [--samples FILE] [--steps N]

Samples are recorded first where the file does not exist (see record.py). Everything is seeded.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from judge import BASELINES, judge, nowcast, table
from numpy.typing import NDArray
from record import DEFAULT, FURTHEST, SNAPSHOTS, gather
from safetensors.numpy import save_file

from hybridcore_nowcast.checkpoints import load_network
from hybridcore_nowcast.network import FORMAT, shapes

OUT = Path(__file__).parents[1] / "src" / "hybridcore_nowcast" / "weights" / "nowcast.safetensors"

Tensors = dict[str, torch.Tensor]


def initial(hidden: int, width: int) -> Tensors:
    """Network that starts near ``g`` = the newest displacement, that is, near `drift`."""
    made = {
        name: torch.randn(shape) / math.sqrt(shape[-1]) if len(shape) == 2 else torch.zeros(shape)
        for name, shape in shapes(SNAPSHOTS, hidden, width).items()
    }
    made["condition.1.weight"] *= 0.1
    made["condition.1.bias"][:width] = 1.0
    made["condition.1.bias"][-1] = 1.0
    made["weight.2.weight"] *= 0.1
    return {name: value.requires_grad_() for name, value in made.items()}


def forward(w: Tensors, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """`NowcastNetwork` in PyTorch, row by row; returns g, shape (n,)."""
    width = w["weight.1.bias"].shape[0]
    ahead = context[:, -1:].log() / 2.0
    seen = torch.cat([context[:, :-1], ahead, ahead**2], dim=1)
    hidden = torch.tanh(seen @ w["condition.0.weight"].T + w["condition.0.bias"])
    made = hidden @ w["condition.1.weight"].T + w["condition.1.bias"]
    scale, shift, linear = made[:, :width], made[:, width : 2 * width], made[:, 2 * width :]
    h = torch.tanh(scale * (x @ w["weight.0.weight"].T) + shift)
    h = torch.tanh(h @ w["weight.1.weight"].T + w["weight.1.bias"])
    steps = x[:, SNAPSHOTS : 2 * SNAPSHOTS - 1]
    return (linear * steps).sum(1) + (h @ w["weight.2.weight"].T)[:, 0]


def batches(
    samples: dict[str, NDArray[np.float32]], size: int, count: int, rng: np.random.Generator
) -> Iterator[dict[str, torch.Tensor]]:
    """Random batches; half of the samples with the signs of positions, displacements and truth turned."""
    for _ in range(count):
        index = rng.integers(0, len(samples["true"]), size)
        batch = {name: torch.from_numpy(array[index]) for name, array in samples.items()}
        sign = torch.from_numpy(rng.choice(np.float32([-1.0, 1.0]), size))
        batch["true"] = batch["true"] * sign
        batch["x"][:, :-1] *= sign[:, None]
        yield batch


def fit(
    samples: dict[str, NDArray[np.float32]], *, hidden: int, width: int, steps: int, seed: int
) -> dict[str, NDArray[np.float32]]:
    """Minimise the mean squared error of displacements, each tensor in units of its true one."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    w = initial(hidden, width)
    optimizer = torch.optim.Adam(w.values(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    running = 0.0
    for step, batch in enumerate(batches(samples, 4096, steps, np.random.default_rng(seed)), start=1):
        error = batch["speed"] * forward(w, batch["x"], batch["context"]) - batch["true"]
        loss = (batch["emphasis"] * error.square()).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(w.values(), 1.0)
        optimizer.step()
        schedule.step()
        running += (loss.item() - running) / min(step, 200)
        if step % 500 == 0:
            print(f"step {step}: loss {running:.4f}", flush=True)
    return {name: value.detach().numpy() for name, value in w.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--samples", type=Path, default=DEFAULT)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--hidden", type=int, default=32, help="units of the conditioning part")
    parser.add_argument("--width", type=int, default=16, help="units per weight")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.samples.exists():
        with np.load(options.samples) as file:
            samples = dict(file)
    else:
        samples = gather()
        options.samples.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(options.samples, **samples)
    arrays = fit(samples, hidden=options.hidden, width=options.width, steps=options.steps, seed=options.seed)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(arrays, options.out, metadata={"format": FORMAT, "furthest": str(FURTHEST)})
    print(f"{options.out}: {options.out.stat().st_size} bytes")
    network = load_network(str(options.out))
    methods = {"nowcast": nowcast(network), "nowcast of 3": nowcast(network, 3), **BASELINES}
    print(table(judge(methods, steps=500)))


if __name__ == "__main__":
    main()

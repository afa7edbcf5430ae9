"""Record the trainings that the network learns from, as sampled inputs and true displacements.

OMP_NUM_THREADS=1 python plugins/nowcast/training/record.py [--out FILE] [--steps N]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from trajectories import BASE, LEARN, NAMESPACE, record
from trajectories import Path as WeightPath

from hybridcore_nowcast.arrays import stack
from hybridcore_nowcast.network import inputs
from hybridcore_nowcast.statistics import TensorStatistics

DEFAULT = Path("runs/nowcast/samples.npz")

SNAPSHOTS = 5
KNOWN, SHARES = (2, 3, 4, 5), (0.15, 0.3, 0.15, 0.4)
"""How many of the snapshots are known, and how often; the others are made up, as right after a jump."""

WIDTHS = (1, 2, 4)
"""Window lengths, in units of `BASE` steps."""

HORIZONS = (1, 2, 4, 6, 10, 20, 40)
"""Horizons, in the same units."""

NEAREST, FURTHEST = 0.25, 20.0
"""Horizons over window lengths that are kept."""

WHOLE = 10_000_000

Rows = dict[str, list[NDArray[np.float32]]]


def sample(path: WeightPath, rng: np.random.Generator, rows: Rows, moments: int, weights: int) -> None:
    """Add samples of one path: at `moments` times, `weights` of each tensor, one of the horizons each."""
    for width in WIDTHS:
        first, last = SNAPSHOTS * width, len(path.means) - 1
        for end in np.linspace(first, last, moments, endpoint=False).astype(int):
            count = int(rng.choice(KNOWN, p=SHARES))
            snapshots = path.snapshots(end, width, count)
            for spec in path.layout.params:
                part = slice(spec.offset, spec.stop)
                tensor = [s[part] for s in snapshots]
                statistics = TensorStatistics.of(tensor, NAMESPACE, WHOLE, SNAPSHOTS)
                if statistics.speed == 0.0:
                    continue
                chosen = rng.permutation(spec.size)[:weights]
                rows_seen = stack([t[chosen] for t in tensor], slice(0, None), NAMESPACE, SNAPSHOTS)
                x, speed = inputs(rows_seen, statistics, NAMESPACE)
                for horizon in HORIZONS:
                    ahead = horizon / width
                    if not NEAREST <= ahead <= FURTHEST or end + horizon > len(path.means):
                        continue
                    true = path.mean(end + horizon, width)[part] - tensor[-1]
                    size = float(np.sqrt(np.mean(true.astype(np.float64) ** 2)))
                    if size == 0.0:
                        continue
                    context = np.append(statistics.context(), ahead).astype(np.float32)
                    rows["x"].append(x.T)
                    rows["context"].append(np.broadcast_to(context, (len(chosen), context.size)))
                    rows["speed"].append(speed * ahead / size)
                    rows["emphasis"].append(
                        np.full(len(chosen), 1.0 / (1.0 + (statistics.speed * ahead / size) ** 2))
                    )
                    rows["true"].append(true[chosen] / size)


def gather(
    steps: int = 500, moments: int = 6, weights: int = 48, seed: int = 0
) -> dict[str, NDArray[np.float32]]:
    """Record all of `LEARN`.

    Returns:
        ``x`` (n, 2 K); ``context`` (n, C + 1) with the horizon in windows last; ``speed`` (n,), what the
        network's output is multiplied by, and ``true`` (n,), both in units of the tensor's true displacement;
        ``emphasis`` (n,), which keeps tensors that hardly move on, but jitter, from ruling the loss.
    """
    rng = np.random.default_rng(seed)
    rows: Rows = {name: [] for name in ("x", "context", "speed", "true", "emphasis")}
    for training in LEARN:
        sample(record(training, steps), rng, rows, moments, weights)
        print(f"{training.label}, seed {training.seed}: {sum(map(len, rows['true']))} samples", flush=True)
    return {name: np.concatenate(parts).astype(np.float32) for name, parts in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=DEFAULT)
    parser.add_argument("--steps", type=int, default=500, help=f"real steps per training, {BASE} to a mean")
    parser.add_argument("--moments", type=int, default=6, help="times per training and window length")
    parser.add_argument("--weights", type=int, default=48, help="weights per tensor and time")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    samples = gather(options.steps, options.moments, options.weights, options.seed)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(options.out, **samples)
    print(f"{options.out}: {len(samples['true']):,} samples, {options.out.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()

"""How close predictions come to the true displacement of window means, on trainings that were held out."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean

import attrs
import numpy as np
from numpy.typing import NDArray
from trajectories import BASE, JUDGE, NAMESPACE, Path, Training, record

from hybridcore_nowcast.network import Network

WIDTH = 2
"""Window length in units of `BASE` steps: ten steps, as hybridcore's default."""

HORIZONS = (10, 30, 100)
"""Real steps."""

MOMENTS = 6
WHOLE = 10_000_000

Vector = NDArray[np.float64]
Method = Callable[[Path, int, int], Vector]
"""From a path, the index where the known part ends and the horizon in steps, to a displacement."""


@attrs.frozen
class Score:
    """Means over moments of one training.

    Attributes:
        cosine: With the true displacement.
        error: Length of the error over that of the true displacement; 1 is what standing still gets.
    """

    cosine: float
    error: float


def nowcast(network: Network, known: int = 5) -> Method:
    """The network's prediction from the last `known` window means."""

    def predict(path: Path, end: int, horizon: int) -> Vector:
        snapshots = path.snapshots(end, WIDTH, known)
        windows = min(horizon / (WIDTH * BASE), network.furthest)
        moved = np.zeros(path.means.shape[1])
        for spec in path.layout.params:
            part = slice(spec.offset, spec.stop)
            tensor = [s[part] for s in snapshots]
            displacement = network.bind(spec, tensor, windows, NAMESPACE, WHOLE)
            moved[part] = displacement(slice(0, spec.size))
        return moved

    return predict


def last_update(path: Path, end: int, horizon: int) -> Vector:
    """The last update, repeated."""
    return horizon * path.updates[end - 1].astype(np.float64)


def drift(path: Path, end: int, horizon: int) -> Vector:
    """The difference of the last two window means, continued."""
    older, newer = path.snapshots(end, WIDTH, 2)
    return (newer.astype(np.float64) - older) * horizon / (WIDTH * BASE)


def linear_fit(path: Path, end: int, horizon: int) -> Vector:
    """Least squares line through the last five window means, continued."""
    snapshots = np.stack(path.snapshots(end, WIDTH, 5)).astype(np.float64)
    times = np.arange(5) - 2.0
    return (times @ snapshots) / (times @ times) * horizon / (WIDTH * BASE)


BASELINES: dict[str, Method] = {"last-update": last_update, "drift": drift, "linear fit": linear_fit}


def score(path: Path, method: Method, horizon: int) -> Score:
    """One method on one path at one horizon."""
    cosines, errors, ahead = [], [], horizon // BASE
    for end in np.linspace(5 * WIDTH, len(path.means) - ahead, MOMENTS).astype(int):
        true = path.mean(end + ahead, WIDTH).astype(np.float64) - path.mean(end, WIDTH)
        guess, size = method(path, end, horizon), float(np.linalg.norm(true))
        length = float(np.linalg.norm(guess))
        cosines.append(float(guess @ true) / (length * size) if length > 0.0 else 0.0)
        errors.append(float(np.linalg.norm(guess - true)) / size)
    return Score(fmean(cosines), fmean(errors))


def judge(
    methods: dict[str, Method], steps: int, trainings: list[Training] | None = None
) -> dict[tuple[str, int, str], Score]:
    """All methods on the held-out trainings, by training, horizon and method."""
    scores = {}
    for training in JUDGE if trainings is None else trainings:
        path = record(training, steps)
        for horizon in HORIZONS:
            for name, method in methods.items():
                scores[training.label, horizon, name] = score(path, method, horizon)
    return scores


def table(scores: dict[tuple[str, int, str], Score]) -> str:
    """Markdown: trainings and their mean in rows, ``cosine / relative error`` per method and horizon."""
    labels = list(dict.fromkeys(key[0] for key in scores))
    methods = list(dict.fromkeys(key[2] for key in scores))
    columns = [(horizon, method) for horizon in HORIZONS for method in methods]
    lines = [
        "| training | " + " | ".join(f"{method}, {horizon}" for horizon, method in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for label in labels:
        cells = [scores[label, horizon, method] for horizon, method in columns]
        lines.append(f"| {label} | " + " | ".join(f"{c.cosine:.2f} / {c.error:.2f}" for c in cells) + " |")
    means = []
    for horizon, method in columns:
        found = [scores[label, horizon, method] for label in labels]
        error = math.exp(fmean(math.log(max(s.error, 1e-9)) for s in found))
        means.append(f"**{fmean(s.cosine for s in found):.2f} / {error:.2f}**")
    lines.append("| **mean** | " + " | ".join(means) + " |")
    return "\n".join(lines)

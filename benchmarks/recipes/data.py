"""Data of the recipes: batches, probes and validation as NumPy arrays, disjoint, the same for all arms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from benchmarks.recipes.catalogue import Recipe
from hybridcore.errors import TaskError
from hybridcore.tasks.batches import Batch, ShuffledBatches, batches_of, split_indices
from hybridcore.tasks.data import digits, mnist
from hybridcore.tasks.full_batch import FullBatch, interior_points

__all__ = ["DATA", "FILES", "Data", "data_of", "load", "reshuffled"]

FILES = {"fashion-mnist": "fashion_mnist.npz", "shakespeare": "tinyshakespeare.txt"}
"""Files that are looked for in the data folder; without them the recipes that need them cannot be run."""

PROBES, VALIDATION_BATCH = 8, 500


@attrs.frozen
class Data:
    """A data set, split.

    Attributes:
        count: Training examples.
        batches: Makes the endless stream of training batches of a seed.
        probes: Held-out batches for probes.
        validation: Held-out batches for evaluation.
    """

    count: int
    batches: Callable[[int], Iterator[Any]]
    probes: tuple[Batch, ...]
    validation: tuple[Batch, ...]


def data_of(recipe: Recipe, folder: Path | None) -> str:
    """Name of the data that the recipe is run on: MNIST where Fashion-MNIST is not there."""
    missing = recipe.data == "fashion-mnist" and not ((folder or Path()) / FILES[recipe.data]).is_file()
    return "mnist" if missing else recipe.data


def load(recipe: Recipe, folder: Path | None) -> Data:
    """The data of a recipe.

    Args:
        recipe: The recipe.
        folder: Folder of `FILES`.

    Raises:
        TaskError: A file or a package is missing.
    """
    return DATA[data_of(recipe, folder)](recipe, folder)


def reshuffled(data: Data, recipe: Recipe, order: int) -> Iterator[Any]:
    """The training batches of another order, all else equal.

    A full batch stays what it is; its rows are shuffled, so that sums are rounded otherwise.

    Args:
        data: The data of the recipe.
        recipe: The recipe.
        order: Seeds the order.
    """
    stream = data.batches(order)
    if not recipe.full_batch:
        return stream
    rng, whole = np.random.default_rng(order), next(stream)
    rows = {size: rng.permutation(size) for size in sorted({len(part) for part in whole})}
    return iter(FullBatch(tuple(part[rows[len(part)]] for part in whole)))


def _file(kind: str, folder: Path | None) -> Path:
    path = (folder or Path()) / FILES[kind]
    if not path.is_file():
        raise TaskError(
            f"{FILES[kind]} is not there",
            where="--data",
            got=str(folder),
            expected=f"a folder that holds {FILES[kind]}",
            fix="name its folder with --data, or leave the recipe out with --only",
        )
    return path


def _split(
    arrays: Batch,
    recipe: Recipe,
    training: NDArray[np.int64],
    probing: NDArray[np.int64],
    validating: NDArray[np.int64],
) -> Data:
    """Batches of examples with these indices."""

    def gather(index: NDArray[np.int64]) -> Batch:
        return tuple(array[index] for array in arrays)

    size = recipe.batch_size
    return Data(
        training.size,
        lambda seed: ShuffledBatches(lambda i: gather(training[i]), training.size, size, seed)(),
        batches_of(gather, probing, max(size, 64))[:PROBES],
        batches_of(gather, validating, VALIDATION_BATCH),
    )


@lru_cache(maxsize=1)
def _fashion(path: Path) -> Batch:
    with np.load(path, allow_pickle=False) as file:
        return (file["x"] / np.float32(255.0)).astype(np.float32), file["y"].astype(np.int64)


def _fashion_mnist(recipe: Recipe, folder: Path | None) -> Data:
    arrays = _fashion(_file("fashion-mnist", folder).resolve())
    start = len(arrays[0]) - 10_000
    order = np.random.default_rng(0).permutation(start)
    return _split(arrays, recipe, order[1024:], order[:1024], np.arange(start, start + 5000))


def _mnist(recipe: Recipe, folder: Path | None) -> Data:
    images, labels = mnist()
    arrays = ((images / np.float32(255.0)).astype(np.float32), labels)
    return _split(arrays, recipe, *split_indices(len(labels), 512, 1000))


def _digits(recipe: Recipe, folder: Path | None) -> Data:
    images, labels = digits()
    arrays = ((images / np.float32(16.0)).astype(np.float32), labels)
    return _split(arrays, recipe, *split_indices(len(labels), 200, 360))


@lru_cache(maxsize=1)
def _friedman_rows() -> Batch:
    """Friedman's first formula (1991, "Multivariate adaptive regression splines", eq. 61), normalised inputs.

    ``y = 10 sin(pi x1 x2) + 20 (x3 - 1/2)^2 + 10 x4 + 5 x5 + noise`` with ten uniform inputs.
    """
    rng = np.random.default_rng(1991)
    x = rng.random((300_000, 10))
    y = 10 * np.sin(math.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    y += rng.standard_normal(len(y))
    return ((x - 0.5) * math.sqrt(12.0)).astype(np.float32), y.astype(np.float32)


def _friedman(recipe: Recipe, folder: Path | None) -> Data:
    return _split(_friedman_rows(), recipe, *split_indices(300_000, 1024, 10_000))


@lru_cache(maxsize=1)
def _characters(path: Path) -> NDArray[np.int64]:
    text = path.read_text(encoding="utf-8")
    place = {character: index for index, character in enumerate(sorted(set(text)))}
    return np.array([place[character] for character in text], np.int64)


def _shakespeare(recipe: Recipe, folder: Path | None) -> Data:
    """nanoGPT's split, the last tenth for validation; probes are the last 20,000 characters before it."""
    text, context = _characters(_file("shakespeare", folder).resolve()), 64
    cut = int(0.9 * len(text))

    def windows(index: NDArray[np.int64]) -> Batch:
        found = text[index[:, None] + np.arange(context + 1)]
        return np.ascontiguousarray(found[:, :-1]), np.ascontiguousarray(found[:, 1:])

    training = np.arange(cut - 20_000 - context)
    probing = np.arange(cut - 20_000, cut - context - 1, context)
    validating = np.linspace(cut, len(text) - context - 1, 256).astype(np.int64)
    return Data(
        training.size,
        lambda seed: ShuffledBatches(windows, training.size, recipe.batch_size, seed)(),
        batches_of(windows, probing, 32)[:PROBES],
        batches_of(windows, validating, 64),
    )


def _manual(recipe: Recipe, folder: Path | None) -> Data:
    """Python's manual in windows of 64 bytes; the same splits as the task `lora-gpt`."""
    from hybridcore.tasks.corpus import load_manual
    from hybridcore.tasks.stdlib_gpt import TransformerOptions, text_splits

    options = TransformerOptions(batch_size=recipe.batch_size)
    first = text_splits(load_manual(), attrs.evolve(options, batch_size=32), 0)
    count = first.batches.count
    return Data(
        count,
        lambda seed: text_splits(load_manual(), options, seed).batches(),
        first.probes,
        first.validation,
    )


def _sine(recipe: Recipe, folder: Path | None) -> Data:
    """Shuffled points, so that the first of them, which some rivals read, are a fair sample."""
    x = np.linspace(-math.pi, math.pi, 2000)
    between = 0.5 * (x[1:] + x[:-1])
    x = np.random.default_rng(0).permutation(x)

    def batch(points: NDArray[np.float64]) -> Batch:
        return points.astype(np.float32), np.sin(points).astype(np.float32)

    training = batch(x)
    return Data(len(x), lambda seed: iter(FullBatch(training)), (training,), (batch(between),))


def _burgers(recipe: Recipe, folder: Path | None) -> Data:
    """All points, those on both walls and those at the start, each (n, 2) of x in [-1, 1] and t in [0, 1].

    The equation is to hold on the edge too, as in DeepXDE.
    """

    def batch(start: int, interior: int, wall: int, initial: int) -> Batch:
        points = interior_points(start, interior) * np.array([2.0, 1.0]) - np.array([1.0, 0.0])
        times, places = interior_points(start, wall)[:, 0], interior_points(start, initial)[:, 0]
        sides = np.where(np.arange(wall) % 2, 1.0, -1.0)
        walls, start_points = np.stack([sides, times], 1), np.stack([2 * places - 1, 0 * places], 1)
        parts = (np.concatenate([points, walls, start_points]), walls, start_points)
        return tuple(part.astype(np.float32) for part in parts)

    training = batch(0, 2540, 80, 160)
    stream = FullBatch(training)
    return Data(2540, lambda seed: iter(stream), (training,), (batch(10_000, 4000, 200, 400),))


DATA: dict[str, Callable[[Recipe, Path | None], Data]] = {
    "fashion-mnist": _fashion_mnist,
    "mnist": _mnist,
    "digits": _digits,
    "friedman": _friedman,
    "shakespeare": _shakespeare,
    "manual": _manual,
    "sine": _sine,
    "burgers": _burgers,
}
"""Name to data set."""

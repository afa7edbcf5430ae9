"""A language model trained on the standard library, to be fine-tuned: made once, then cached."""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from hybridcore.config import between
from hybridcore.errors import AdapterNotFoundError
from hybridcore.kernels.host import to_host
from hybridcore.protocols import Framework, OptimizerSpec, Problem
from hybridcore.tasks.base import BuiltinTask
from hybridcore.tasks.corpus import Corpus, load_corpus
from hybridcore.tasks.data import cache_folder, write_arrays
from hybridcore.tasks.stdlib_gpt import VOCABULARY, TransformerOptions, text_splits, transformer_weights
from hybridcore.tasks.weights import Weights

__all__ = ["FineTuningOptions", "base_weights", "checksum", "pretrain"]

logger = logging.getLogger("hybridcore")

_CHECKSUM = "checksum"
_RECIPE = 1
"""Change it when the recipe below changes, so that no old cache is taken for a new base."""


@attrs.frozen(kw_only=True)
class FineTuningOptions(TransformerOptions):
    """Keys that every fine-tuning task understands.

    Attributes:
        pretrain_steps: Steps of the base model's own training; 16 sequences each, whatever `batch_size` is.
    """

    pretrain_steps: int = attrs.field(default=2000, validator=between(1))


def base_weights(options: FineTuningOptions, device: str = "cpu", folder: Path | None = None) -> Weights:
    """Weights of the base model, read from its cache file, or trained and then cached.

    The file's name holds a digest of text and recipe, the file a checksum of the weights: another Python's
    library or another size makes another base, and a damaged file is made anew.

    Args:
        options: Sizes and steps.
        device: Where it is trained where there is no cache; devices differ in the last digits.
        folder: Cache folder; `hybridcore.tasks.data.cache_folder` if None.

    Raises:
        TaskError: The library's source is not installed.
        AdapterNotFoundError: The base is not cached, and no adapter that can train it is installed.
    """
    corpus = load_corpus(options.max_bytes, exclude=("pydoc_data",))
    path = (folder or cache_folder()) / f"gpt-{_digest(options, corpus)}.npz"
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        logger.warning("training the base model %s anew: %s", path, error)
    weights = pretrain(options, corpus, device)
    try:
        write_arrays(path, {**weights, _CHECKSUM: np.array(checksum(weights))})
    except OSError as error:
        logger.warning("the base model %s cannot be cached: %s", path, error)
    return weights


def pretrain(options: FineTuningOptions, corpus: Corpus, device: str = "cpu") -> Weights:
    """Train the base model from scratch: AdamW, 2e-3 with warm-up and cosine decay, seed 0.

    The first framework installed trains it, whichever is fine-tuned: the cached arrays are then the base of
    all of them. Bases of two frameworks differ like those of two devices.

    Args:
        options: Sizes and steps.
        corpus: The text.
        device: Device name in the framework's words.

    Raises:
        AdapterNotFoundError: No adapter that can train it is installed.
    """
    own = attrs.evolve(options, batch_size=16)
    splits = text_splits(corpus, own, 0)
    steps = own.pretrain_steps
    problem = Problem(
        name="pretraining",
        model="transformer",
        shape=own.shape,
        weights=transformer_weights(0, VOCABULARY, own.context, own.width, own.depth),
        optimizer=OptimizerSpec("adamw", 2e-3, 0.9, 0.0, "cosine", steps, min(100, steps // 10)),
        batches=splits.batches,
        probes=splits.probes,
        validation=splits.validation,
    )
    logger.info("training a base model for %d steps", steps)
    run = _trainer().build(problem, device)
    for _ in range(steps):
        run.adapter.train_step(next(run.batches))
        if run.schedule_step is not None:
            run.schedule_step()
    logger.info("the base model has validation loss %.4f", run.evaluate()["loss"])
    named = run.adapter.layout.unpack(run.adapter.read_params(), run.adapter.xp)
    xp = run.adapter.xp
    return {name: to_host(array, xp).astype(np.float32) for name, array in named.items()}


def _trainer() -> Framework:
    from hybridcore.plugins import load_framework

    *names, last = BuiltinTask.frameworks
    for name in names:
        try:
            return load_framework(name)
        except AdapterNotFoundError:
            continue
    return load_framework(last)


def checksum(weights: Mapping[str, Any]) -> str:
    """SHA-256 over names, shapes and bytes of all weights.

    Example:
        >>> checksum({"a": np.zeros(1, np.float32)})[:8] == checksum({"b": np.zeros(1, np.float32)})[:8]
        False
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name], np.float32)
        digest.update(f"{name}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _read(path: Path) -> Weights:
    with np.load(path, allow_pickle=False) as file:
        weights = {name: file[name] for name in file.files if name != _CHECKSUM}
        expected = str(file[_CHECKSUM])
    if checksum(weights) != expected:
        raise ValueError("the checksum does not fit the weights")
    return weights


def _digest(options: FineTuningOptions, corpus: Corpus) -> str:
    """Names what the base depends on."""
    text = hashlib.sha256()
    for part in (corpus.training, corpus.probes, corpus.validation):
        text.update(part.tobytes())
    recipe = {**options.shape, "steps": options.pretrain_steps, "recipe": _RECIPE, "text": text.hexdigest()}
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]

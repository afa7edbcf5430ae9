"""Byte-level GPTs of 10 M and 124 M weights in bfloat16, compiled: ``benchmarks.large_gpt:large_gpt``.

From scratch on the source of Python's standard library, or fine-tuned from there to another text, with all
weights or with low-rank corrections of the block matrices. The base is trained once and cached.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from benchmarks.repeatable import repeatable
from hybridcore.kernels.host import to_host
from hybridcore.protocols import OptimizerSpec, Problem, TaskRun
from hybridcore.tasks.batches import ConvertedBatches
from hybridcore.tasks.corpus import Corpus, load_corpus, load_manual
from hybridcore.tasks.data import cache_folder
from hybridcore.tasks.lora_gpt import LoraGpt, lora_weights
from hybridcore.tasks.stdlib_gpt import VOCABULARY, TransformerOptions, text_splits, transformer_weights
from hybridcore.tasks.weights import Weights
from hybridcore_torch import TorchAdapter
from hybridcore_torch.batches import to_device
from hybridcore_torch.models import BuiltModel, build_model
from hybridcore_torch.models.built import load_weights
from hybridcore_torch.optimizers import build_optimizer, build_schedule

__all__ = ["SIZES", "Size", "base_of", "large_gpt"]


@attrs.frozen
class Size:
    """A model and its batches.

    Attributes:
        width: Model width.
        depth: Blocks.
        heads: Attention heads.
        context: Bytes per sequence.
        batch_size: Sequences per batch.
        fine_batch: The same where it is fine-tuned, to a text that is not read too often.
        base_steps: Steps in which the base of fine-tuning is trained.
        base_rate: Their peak learning rate.
    """

    width: int
    depth: int
    heads: int
    context: int
    batch_size: int
    fine_batch: int
    base_steps: int
    base_rate: float

    def options(self, kind: str) -> TransformerOptions:
        """In the words of the built-in tasks."""
        return TransformerOptions(
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            context=self.context,
            batch_size=self.batch_size if kind == "scratch" else self.fine_batch,
        )


SIZES = {
    "tiny": Size(32, 2, 2, 32, 8, 8, 10, 2e-3),
    "10m": Size(384, 6, 6, 256, 64, 16, 600, 1.5e-3),
    "124m": Size(896, 13, 14, 512, 16, 16, 400, 6e-4),
}
"""Name to size; ``tiny`` shows on a CPU that everything works."""

KINDS = ("scratch", "lora", "finetune")


def large_gpt(
    framework: str,
    seed: int,
    device: str,
    *,
    size: str,
    kind: str,
    learning_rate: float,
    optimizer: str = "adamw",
    schedule: str = "constant",
    schedule_steps: int = 1000,
    lr_warmup_steps: int = 0,
    rank: int = 8,
    alpha: float = 16.0,
    text: str = "",
    make: Callable[[list[Any], OptimizerSpec], Any] | None = None,
) -> TaskRun:
    """One run's model, optimizer and data in PyTorch; on CUDA the model is compiled.

    Runs of one process share the compiled model, which gets new weights: no arm pays for compiling.

    Args:
        framework: Must be ``"torch"``.
        seed: Seeds initial weights (or corrections) and the order of examples.
        device: Device name.
        size: Key of `SIZES`.
        kind: ``"scratch"``, ``"lora"`` or ``"finetune"``.
        learning_rate: Peak learning rate.
        optimizer: Its name.
        schedule: ``"constant"``, ``"cosine"`` or ``"linear"``.
        schedule_steps: Steps over which it decays.
        lr_warmup_steps: Steps of linear warm-up.
        rank: Of the corrections.
        alpha: Their scale times the rank.
        text: File that is fine-tuned to; Python's manual where empty, which is short.
        make: Makes another optimizer.
    """
    assert framework == "torch"
    assert kind in KINDS
    options, place = SIZES[size].options(kind), torch.device(device)
    repeatable(place)
    splits = text_splits(_library() if kind == "scratch" else _fine(text), options, seed)
    shape: dict[str, Any] = dict(options.shape)
    weights: Mapping[str, Any] = _initial(size, seed) if kind == "scratch" else base_of(size, device)
    if kind == "lora":
        shape |= {"rank": rank, "alpha": alpha}
        own = LoraGpt.Config(width=options.width, depth=options.depth, heads=options.heads, rank=rank)
        weights = {**weights, **lora_weights(seed, own)}
    spec = OptimizerSpec(optimizer, learning_rate, 0.9, 0.0, schedule, schedule_steps, lr_warmup_steps)
    problem = Problem(
        name=f"{kind}-{size}",
        model="lora-transformer" if kind == "lora" else "transformer",
        shape=shape,
        weights=weights,
        optimizer=spec,
        batches=splits.batches,
        probes=splits.probes,
        validation=splits.validation,
    )
    built, model = _model(problem, place)
    trainable = [p for p in model.parameters() if p.requires_grad]
    used = (make or build_optimizer)(trainable, spec)
    rates = build_schedule(used, spec)
    adapter = TorchAdapter(model, used, built.loss_fn, scheduler=rates, autocast=torch.bfloat16)
    validation = [to_device(batch, place) for batch in splits.validation]

    def evaluate() -> dict[str, float]:
        with torch.autocast(place.type, dtype=torch.bfloat16):
            return built.evaluate(model, validation)

    return TaskRun(
        adapter=adapter,
        batches=ConvertedBatches(splits.batches(), partial(to_device, device=place)),
        probes=tuple(to_device(batch, place) for batch in splits.probes),
        evaluate=evaluate,
        schedule_step=rates.step if rates is not None else None,
    )


_models: dict[tuple[str, str], tuple[BuiltModel, Any]] = {}
"""What this process has built, by problem and device."""


def _model(problem: Problem, place: torch.device) -> tuple[BuiltModel, Any]:
    """The built problem and what is trained: the model, compiled on CUDA."""
    key = (problem.name + json.dumps(problem.shape, sort_keys=True), str(place))
    if key not in _models:
        torch.set_float32_matmul_precision("high")
        built = build_model(problem, place)
        _models[key] = (built, torch.compile(built.model) if place.type == "cuda" else built.model)
    built, model = _models[key]
    model.zero_grad(set_to_none=True)
    load_weights(built.model, problem)
    return built, model


@lru_cache(maxsize=1)
def _library() -> Corpus:
    return load_corpus(SIZES["tiny"].options("scratch").max_bytes, exclude=("pydoc_data",))


@lru_cache(maxsize=1)
def _fine(path: str) -> Corpus:
    """The manual, or a file: nine tenths for training, the rest for probes and validation."""
    if not path:
        return load_manual()
    whole = np.frombuffer(Path(path).read_bytes(), np.uint8)
    training, probes, validation = np.split(whole, [int(0.9 * whole.size), int(0.95 * whole.size)])
    return Corpus(training, probes, validation, {})


@lru_cache(maxsize=1)
def _initial(size: str, seed: int) -> Weights:
    shape = SIZES[size]
    return transformer_weights(seed, VOCABULARY, shape.context, shape.width, shape.depth)


@lru_cache(maxsize=1)
def base_of(size: str, device: str, folder: Path | None = None) -> Weights:
    """Weights of the base model, read from the cache, or trained (seed 0, cosine decay) and cached.

    Args:
        size: Key of `SIZES`.
        device: Where it is trained where there is no cache.
        folder: Cache folder; `hybridcore.tasks.data.cache_folder` if None.
    """
    shape = SIZES[size]
    corpus = _library()
    digest = hashlib.sha256(repr(shape).encode())
    for part in (corpus.training, corpus.probes, corpus.validation):
        digest.update(part.tobytes())
    path = (folder or cache_folder()) / f"large-gpt-{size}-{digest.hexdigest()[:16]}.safetensors"
    if path.is_file():
        return load_file(path)
    steps = shape.base_steps
    run = large_gpt(
        "torch",
        0,
        device,
        size=size,
        kind="scratch",
        learning_rate=shape.base_rate,
        schedule="cosine",
        schedule_steps=steps,
        lr_warmup_steps=max(1, steps // 20),
    )
    for batch in itertools.islice(run.batches, steps):
        run.adapter.train_step(batch)
        run.schedule_step()
    xp = run.adapter.xp
    named = run.adapter.layout.unpack(run.adapter.read_params(), xp)
    weights = {name: np.ascontiguousarray(to_host(array, xp), np.float32) for name, array in named.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    save_file(weights, unfinished)
    unfinished.replace(path)
    return weights

"""`finetune-gpt`: a transformer trained on Python's library goes on with Python's manual."""

from __future__ import annotations

from typing import ClassVar

import attrs

from hybridcore.protocols import Problem
from hybridcore.tasks.base import BuiltinTask
from hybridcore.tasks.corpus import load_manual
from hybridcore.tasks.pretrained import FineTuningOptions, base_weights
from hybridcore.tasks.stdlib_gpt import text_splits

__all__ = ["FinetuneGpt"]


@attrs.frozen(kw_only=True)
class FinetuneGptOptions(FineTuningOptions):
    """Keys of ``[task]`` for `finetune-gpt`."""


class FinetuneGpt(BuiltinTask):
    """Next-byte prediction on the topics of ``help()``, from a base trained on the library's source.

    The base is trained once, which takes a few minutes on one core at the default size, and cached. The
    topics are not part of its text. All weights are trained; a seed decides the order of the examples only.
    Losses compare only on one machine, see `hybridcore.tasks.stdlib_gpt.StdlibGpt`.

    Args:
        config: Its options.

    Example:
        >>> FinetuneGpt(FinetuneGpt.Config(pretrain_steps=10)).config.shape["context"]
        64
    """

    name: ClassVar[str] = "finetune-gpt"
    Config = FinetuneGptOptions

    def __init__(self, config: FinetuneGptOptions) -> None:
        self.config = config

    def problem(self, seed: int) -> Problem:
        """Data, the base's weights and optimizer; see `BuiltinTask.problem`."""
        config = self.config
        splits = text_splits(load_manual(), config, seed)
        return Problem(
            name=self.name,
            model="transformer",
            shape=config.shape,
            weights=base_weights(config),
            optimizer=config.spec(),
            batches=splits.batches,
            probes=splits.probes,
            validation=splits.validation,
        )

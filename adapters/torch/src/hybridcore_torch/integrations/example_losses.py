"""Per-example losses of the models of ``transformers``, whose own losses are means over a batch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import Trainer

from hybridcore_torch.batches import n_examples, split

__all__ = ["TrainerLosses", "token_losses"]

_SAME = 1e-5


class TrainerLosses:
    """``loss_fn(model, batch)`` with the losses of single examples, shape (n,), as the Trainer has them.

    Token models are asked once for a whole batch, all others once per example. Which of the two a model is
    shows the first batch: where the mean of `token_losses` is the Trainer's own loss of that batch, whatever
    makes that loss, the quick way is taken from then on.

    Args:
        trainer: The Trainer; its ``compute_loss`` is what counts.

    Attributes:
        shift: 1 for a model whose outputs foretell the next label, 0 for one that names its own, None for
            all others and as long as nothing is known.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._tried = False
        self.shift: int | None = None

    def __call__(self, model: Any, batch: Any) -> torch.Tensor:
        """Losses of a batch, shape (n,)."""
        if not self._tried:
            self._tried, self.shift = self._find(model, batch)
        if self.shift is not None:
            return token_losses(model, batch, self.shift)
        parts = split(dict(batch), n_examples(batch))
        return torch.stack([self._trainer.compute_loss(model, part).detach() for part, _ in parts])

    def _find(self, model: Any, batch: Any) -> tuple[bool, int | None]:
        """Whether this batch tells, and the shift."""
        labels = batch.get("labels")
        if not isinstance(labels, torch.Tensor) or labels.ndim != 2 or labels.is_floating_point():
            return True, None
        wanted = float(self._trainer.compute_loss(model, dict(batch)))
        fitting = []
        for shift in (1, 0):
            try:
                mean = float(token_losses(model, batch, shift).mean())
            except (KeyError, TypeError, ValueError, RuntimeError, IndexError):
                continue  # no token model
            if math.isclose(mean, wanted, rel_tol=_SAME):
                fitting.append(shift)
        # An untrained model may have the same loss either way.
        return len(fitting) < 2, fitting[0] if len(fitting) == 1 else None


def token_losses(model: Any, batch: Any, shift: int) -> torch.Tensor:
    """Cross entropies summed over the tokens of each example, shape (n,), in units of the batch's mean.

    They are divided by the mean number of labelled tokens, so that their mean is the mean over all tokens
    of the batch, also where examples differ in length.

    Args:
        model: Gives ``logits`` of shape (n, tokens, vocabulary).
        batch: Holds ``labels`` of shape (n, tokens); -100 marks tokens that do not count.
        shift: 1 where each output foretells the next label, 0 where it names its own.
    """
    labels = batch["labels"]
    logits = model(**{name: value for name, value in batch.items() if name != "labels"})["logits"].float()
    if shift:
        logits, labels = logits[:, :-shift], labels[:, shift:]
    losses = cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
    tokens = (labels != -100).sum() / labels.shape[0]
    return losses.sum(1) / tokens.clamp_min(1.0 / labels.shape[0])

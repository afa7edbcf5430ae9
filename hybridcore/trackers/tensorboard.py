"""Tracker `tensorboard`: losses, rates and jumps as curves in TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import attrs

from hybridcore.config import between
from hybridcore.errors import PluginError

__all__ = ["TensorBoard"]

_TAGS: dict[str, dict[str, str]] = {
    "real-step": {
        "loss": "train/loss",
        "grad_norm": "train/grad_norm",
        "learning_rate": "train/learning_rate",
        "backward_passes": "cost/backward_passes",
        "predicted_steps": "cost/predicted_steps",
    },
    "jump": {"horizon": "prediction/horizon", "relative": "prediction/relative"},
    "verdict": {"gain": "prediction/gain", "credit_steps": "prediction/credit_steps"},
}
"""By event, its numbers that are drawn; of evaluations, all are."""

_PLACES = frozenset({"step", "cost", "elapsed", "backward_passes"})
"""Keys of an evaluation that say when it was, not what was found."""


@attrs.frozen(kw_only=True)
class TensorBoardConfig:
    """Table ``[trackers.tensorboard]``.

    Attributes:
        directory: Folder that gets one sub-folder per task, arm and seed.
        step_every: Real steps between two points of the training curves.
    """

    directory: str = "runs/tensorboard"
    step_every: int = attrs.field(default=10, validator=between(1))


class TensorBoard:
    """Writes scalars over real steps with tensorboardX, which needs neither TensorFlow nor PyTorch.

    Raises:
        PluginError: tensorboardX is not installed.

    Example:
        >>> TensorBoard.name
        'tensorboard'
    """

    name: ClassVar[str] = "tensorboard"
    Config: ClassVar[type] = TensorBoardConfig

    def __init__(self, config: TensorBoardConfig | None = None) -> None:
        self._config = config or TensorBoardConfig()
        self._writer: Any = None
        if find_spec("tensorboardX") is None:
            raise PluginError(
                "the tracker 'tensorboard' needs the package tensorboardX",
                where="trackers.tensorboard",
                fix="pip install 'hybridcore[tensorboard]'",
            )

    def on_event(self, event: str, payload: Mapping[str, Any]) -> None:
        """Draw the event's numbers."""
        if event == "run-start":
            self.close()
            task = str(payload["task"]).replace(":", "-")
            folder = Path(self._config.directory) / f"{task}-{payload['arm']}-seed{payload['seed']}"
            self._writer = import_module("tensorboardX").SummaryWriter(str(folder))
        if event == "real-step" and payload["step"] % self._config.step_every:
            return
        if event == "evaluation":
            self._draw(payload, {key: f"validation/{key}" for key in payload if key not in _PLACES})
        else:
            self._draw(payload, _TAGS.get(event, {}))

    def _draw(self, payload: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        for key, tag in tags.items():
            value = payload.get(key)
            if self._writer is not None and isinstance(value, float | int) and math.isfinite(value):
                self._writer.add_scalar(tag, float(value), payload["step"])

    def close(self) -> None:
        """Flush and close; nothing is drawn until the next run starts."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

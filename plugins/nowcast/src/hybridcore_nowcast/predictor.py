"""Predictor `nowcast`: a learned network continues each weight's recent path."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar

import attrs
import numpy as np

from hybridcore.config import between
from hybridcore.errors import PredictionError
from hybridcore.history import History
from hybridcore.layout import Array, Buckets, ParamLayout
from hybridcore.protocols import API_VERSION, Prediction, StepRecord
from hybridcore_nowcast.arrays import chunks, stack
from hybridcore_nowcast.checkpoints import load_network

__all__ = ["Nowcast", "NowcastConfig"]

logger = logging.getLogger("hybridcore")


@attrs.frozen(kw_only=True)
class NowcastConfig:
    """Table ``[predictor.nowcast]``.

    Attributes:
        checkpoint: File of a network, ``.safetensors`` or PyTorch's ``.pt``: one of this project's, or NiNo's
            MLP variant (WNN+). Empty for the network that is shipped.
        least_windows: Window means that are enough to predict. Every jump clears the history, so that fewer
            allow more jumps. What the network misses is filled in as if the path had been straight before.
        decay_steps: Real steps over which jumps shorten; set it to ``run.steps``. 0 never shortens them.
        decay_final: Share of the asked horizon that is left after `decay_steps`.
        decay_power: Power of the decay; larger shortens sooner.
        chunk: Weights worked on at once; bounds the work space to about ``250 * chunk`` bytes for the shipped
            network.
    """

    checkpoint: str = ""
    least_windows: int = attrs.field(default=3, validator=between(2))
    decay_steps: int = attrs.field(default=10_000, validator=between(0))
    decay_final: float = attrs.field(default=0.025, validator=between(0.0, 1.0, low_open=True))
    decay_power: float = attrs.field(default=2.0, validator=between(0.0, low_open=True))
    chunk: int = attrs.field(default=32_768, validator=between(1))


class Nowcast:
    """Continues every weight by a network that was trained on the paths of other trainings.

    For each tensor the network sees the last K window means, scaled by the tensor's spread and by each
    weight's own speed, and how far to look ahead; it gives each weight's displacement (Jang et al., "Learning
    to boost training by periodic nowcasting near future weights", ICML 2023; Knyazev et al., "Accelerating
    training with neuron interaction and nowcasting networks", ICLR 2025, its MLP variant). The displacement
    is that of window means, added to the current weights.

    Late in a run long jumps do harm, so the horizon h that is asked for shrinks with the real steps t, as in
    NiNo: ``h (1 + x (f^(1/p) - 1))^p`` with ``x = min(t / decay_steps, 1)``, final share f and power p. The
    stated horizon is the shortened one, and no longer than what the network was trained for.

    Args:
        config: Its options.

    Raises:
        CheckpointError: The network cannot be read.

    Example:
        >>> Nowcast().windows
        5
    """

    name: ClassVar[str] = "nowcast"
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[frozenset[str]] = frozenset({"window-means"})
    Config: ClassVar[type] = NowcastConfig

    def __init__(self, config: NowcastConfig | None = None) -> None:
        self.config = config or NowcastConfig()
        self.network = load_network(self.config.checkpoint)
        self.windows = self.network.snapshots
        self._step = 0
        self._warned = False

    def reset(self, layout: ParamLayout, rng: np.random.Generator) -> None:
        """Begin the decay anew, for a model of this layout."""
        self._step, self._warned = 0, False

    def observe(self, record: StepRecord) -> None:
        """Note how far the run is."""
        self._step = record.step

    def ready(self, history: History) -> bool:
        """Whether there are enough window means."""
        least = min(self.config.least_windows, self.windows)
        if history.windows < least and not self._warned:
            self._warned = True
            logger.warning(
                "nowcast needs %d window means and the memory budget holds %d: it will not predict; raise "
                "history.memory_budget_mib",
                least,
                history.windows,
            )
        return len(history.window_means) >= least

    def share(self) -> float:
        """Share of the asked horizon that the decay leaves now."""
        c = self.config
        over = min(self._step / c.decay_steps, 1.0) if c.decay_steps else 0.0
        return float((1.0 + over * (c.decay_final ** (1.0 / c.decay_power) - 1.0)) ** c.decay_power)

    def predict(self, history: History, horizon: float, xp: ModuleType) -> Prediction:
        """Continue every weight for `horizon` steps, shortened by the decay.

        Raises:
            PredictionError: The horizon is not positive; the network only looks ahead.
        """
        if not horizon > 0.0:
            raise PredictionError(
                "nowcast looks ahead only",
                where="horizon",
                got=horizon,
                expected="more than 0",
                fix="ask another predictor for steps back",
            )
        ahead = min(horizon * self.share(), self.network.furthest * history.window)
        means = list(history.window_means[-self.windows :])  # read many times: from host memory only once
        moved = self._moved(history, means, ahead / history.window, xp)
        return Prediction(moved, ahead, self._confidence(means, xp))

    def _moved(self, history: History, means: Sequence[Buckets], windows: float, xp: ModuleType) -> Buckets:
        """Displacements of all weights, tensor by tensor and chunk by chunk."""
        parts: list[list[Array]] = [[] for _ in history.layout.bucket_sizes]
        for spec in history.layout.params:
            if spec.size:
                path = [mean[spec.bucket][spec.offset : spec.stop] for mean in means]
                displacement = self.network.bind(spec, path, windows, xp, self.config.chunk)
                parts[spec.bucket] += [displacement(part) for part in chunks(spec.size, self.config.chunk)]
        return tuple(xp.concat(p) if p else means[-1][i] for i, p in enumerate(parts))

    def _confidence(self, means: Sequence[Buckets], xp: ModuleType) -> float:
        """Cosine of the last two displacements, where it is positive."""
        products = np.zeros((2, 2))
        for index, newest in enumerate(means[-1]):
            for part in chunks(int(newest.shape[0]), self.config.chunk):
                rows = stack([mean[index] for mean in means[-3:]], part, xp, 3)
                steps = rows[1:, :] - rows[:-1, :]
                gram = xp.matmul(steps, xp.matrix_transpose(steps))
                products += [[float(gram[i, j]) for j in range(2)] for i in range(2)]
        lengths = math.sqrt(products[0, 0] * products[1, 1])
        if not math.isfinite(lengths) or lengths == 0.0:
            return 0.0
        return float(min(max(products[0, 1] / lengths, 0.0), 1.0))

    def state_dict(self) -> dict[str, Any]:
        """How far the run is."""
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._step = int(state["step"])

"""What the built-in dynamics models share: replay, normalisation, calibration, units of the loss."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar

import array_api_compat.numpy
import attrs
import numpy as np
from numpy.typing import NDArray

from hybridcore.config import between
from hybridcore.dynamics.conformal import Conformal
from hybridcore.dynamics.encoding import ActionEncoder
from hybridcore.dynamics.level import LossLevel, symexp
from hybridcore.dynamics.replay import Replay
from hybridcore.dynamics.seconds import StepTime
from hybridcore.errors import MemoryBudgetError
from hybridcore.protocols import Action, Rollout, StepOutcome
from hybridcore.state import FEATURE_NAMES

__all__ = ["DynamicsOptions", "Forecast", "OnlineModel"]

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
TOLERANCE = 2.0
"""Running deviations that the last loss of a rollout may miss its forecast by; what confidence is about."""
SETTLED = 8
"""Losses until level and scale are worth learning from."""
FARTHEST = 6.0
"""Normalised forecasts end here, some 400 running deviations away: beyond lies extrapolation only."""
INPUTS = len(FEATURE_NAMES) + 2
"""Features, and where the newest loss and its trend lie, see `LossLevel.position`."""
CALL = 2.5e5
"""Floating-point operations that one call on small arrays is counted as: the about 10 microseconds of its
dispatch, at the pace of a large product on one core. Small models spend most of their time on it."""
STARTS = 8
"""Most starts of one calibration; spread evenly over what is new."""


@attrs.frozen(kw_only=True)
class DynamicsOptions:
    """Keys that all built-in models have.

    Attributes:
        longest: Longest horizon that is trained and calibrated, in observations.
        capacity: Most observations remembered; fewer where the memory budget ends.
    """

    longest: int = attrs.field(default=16, validator=between(2))
    capacity: int = attrs.field(default=4096, validator=between(64))


@attrs.frozen(slots=True, eq=False)
class Forecast:
    """Normalised losses ``symlog((loss - level) / scale)`` ahead, arrays of shape (n, horizon).

    Attributes:
        mean: Expected value.
        epistemic: Variance between what several models would say.
        aleatoric: Variance of the noise.
    """

    mean: Floats
    epistemic: Floats
    aleatoric: Floats

    def in_units(self, level: Floats, scale: Floats) -> tuple[Floats, Floats, Floats]:
        """Mean and variances of the loss itself, by the slope of the map at the mean (delta method)."""
        mean = symexp(np.clip(self.mean, -FARTHEST, FARTHEST))
        slope = (scale[:, None] * (1.0 + np.abs(mean))) ** 2
        return level[:, None] + scale[:, None] * mean, slope * self.epistemic, slope * self.aleatoric


class OnlineModel(ABC):
    """A dynamics model without its network.

    Each call of `train` first forecasts from new observations with the parameters as they are, and only then
    learns from them. When a forecast's loss is known, its error is a held-out one and enters `Conformal`.
    """

    name: ClassVar[str]
    context: int = 1
    """Observations that a forecast looks back on."""

    def __init__(self, options: DynamicsOptions) -> None:
        self.options = options
        self.horizons = tuple(sorted({2**k for k in range(options.longest.bit_length())} | {options.longest}))
        self.reset((), np.random.default_rng(0), array_api_compat.numpy, 1 << 26)

    # -- what a model adds -----------------------------------------------------------------------------

    @abstractmethod
    def _build(self, features: int, actions: int, rng: np.random.Generator) -> None:
        """Fresh parameters and optimizer state."""

    @abstractmethod
    def _learn(self, end: int) -> bool:
        """One training update on observations before `end`; False where there is nothing to learn from."""

    @abstractmethod
    def _forecast(self, features: Singles, actions: Singles, horizon: int) -> Forecast:
        """Forecast from contexts of shape (n, context, features) and (n, context, actions)."""

    @abstractmethod
    def _model_bytes(self) -> int:
        """Bytes of parameters and optimizer state."""

    @abstractmethod
    def _model_state(self) -> dict[str, Any]: ...

    @abstractmethod
    def _load_model_state(self, state: Mapping[str, Any]) -> None: ...

    @property
    @abstractmethod
    def flops_per_update(self) -> float:
        """Floating-point operations of one update, about."""

    # -- the protocol ----------------------------------------------------------------------------------

    def reset(
        self, predictors: Sequence[str], rng: np.random.Generator, xp: ModuleType, memory_bytes: int
    ) -> None:
        """Forget everything; see `Dynamics.reset`."""
        self.xp = xp
        self._encoder = ActionEncoder(predictors)
        self._level, self._time = LossLevel(), StepTime()
        self._calibration = Conformal(self.horizons)
        self._open: list[tuple[int, int, float, float]] = []
        self._trained = self._forecasted = 0
        self._confidence = 0.0
        self._seed = int(rng.integers(2**63))
        self._build(INPUTS, self._encoder.size, rng)
        self._replay = Replay(self._capacity(memory_bytes), INPUTS, self._encoder.size)

    def _capacity(self, memory_bytes: int) -> int:
        each = Replay.bytes_each(INPUTS, self._encoder.size)
        fixed = self._model_bytes() + self._calibration.nbytes + self._open_bytes
        capacity = min(self.options.capacity, (memory_bytes - fixed) // each)
        least = 2 * (self.context + self.options.longest)
        if capacity < least:
            raise MemoryBudgetError(
                f"the dynamics model {self.name!r} does not fit into its memory budget",
                where="dynamics.memory_budget_mib",
                got=f"{memory_bytes / 2**20:.3g} MiB",
                expected=f"at least {(fixed + least * each) / 2**20:.3g} MiB",
                fix=f"raise the budget, or make the model smaller in [dynamics.{self.name}]",
            )
        return capacity

    def observe(self, features: Floats, action: Action, outcome: StepOutcome) -> None:
        """Remember one observation; see `Dynamics.observe`."""
        if self._level.count >= SETTLED:
            level, scale = self._level.level, self._level.scale
            self._replay.add(
                self._inputs_now(features),
                self._encoder.encode(action),
                level=level,
                scale=scale,
                loss=outcome.loss,
            )
        self._level.observe(outcome.loss)
        self._time.observe(outcome.seconds)

    def interrupt(self) -> None:
        """Start a new path; forecasts whose losses will never be known are dropped."""
        self._replay.interrupt()
        self._open = []

    def train(self, updates: int) -> int:
        """Calibrate, then learn; see `Dynamics.train`."""
        self._score()
        done = 0
        while done < updates and self._learn(self._replay.end):
            done += 1
        if done:
            self._trained = self._replay.end
        return done

    def rollout(self, features: Floats, action: Action, horizon: int) -> Rollout:
        """Forecast in units of the loss; see `Dynamics.rollout`."""
        if self._level.count < 2:
            nothing = np.full(horizon, np.nan)
            self._confidence = 0.0
            return Rollout(nothing, nothing, nothing, np.full(horizon, self._time.expected), 0.0)
        x, a = self._context(features, self._encoder.encode(action))
        forecast = self._forecast(x, a, horizon)
        scale = self._level.scale
        mean, epistemic, aleatoric = forecast.in_units(np.array([self._level.level]), np.array([scale]))
        stated = float(np.sqrt(epistemic[0, -1] + aleatoric[0, -1]))
        self._confidence = self._calibration.probability(horizon, TOLERANCE * scale / max(stated, 1e-300))
        factors = self._calibration.factors(np.arange(1, horizon + 1)) ** 2
        return Rollout(
            mean[0],
            factors * epistemic[0],
            factors * aleatoric[0],
            np.full(horizon, self._time.expected),
            self._confidence,
        )

    @property
    def confidence(self) -> float:
        """That of the newest rollout."""
        return self._confidence

    @property
    def samples(self) -> int:
        """Observations remembered now."""
        return self._replay.end - self._replay.first

    @property
    def nbytes(self) -> int:
        """Bytes of parameters, optimizer state, replay and calibration."""
        return self._model_bytes() + self._replay.nbytes + self._calibration.nbytes + self._open_bytes

    def state_dict(self) -> dict[str, Any]:
        """State as plain data and NumPy arrays."""
        return {
            "model": self._model_state(),
            "replay": self._replay.state_dict(),
            "level": self._level.state_dict(),
            "time": self._time.state_dict(),
            "calibration": self._calibration.state_dict(),
            "open": [list(entry) for entry in self._open],
            "trained": self._trained,
            "forecasted": self._forecasted,
            "confidence": self._confidence,
            "seed": self._seed,
            "predictors": list(self._encoder.predictors),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._encoder = ActionEncoder(state["predictors"])
        self._replay = Replay(1, INPUTS, self._encoder.size)
        self._replay.load_state_dict(state["replay"])
        self._level.load_state_dict(state["level"])
        self._time.load_state_dict(state["time"])
        self._calibration.load_state_dict(state["calibration"])
        self._open = [(int(i), int(j), float(m), float(s)) for i, j, m, s in state["open"]]
        self._trained, self._forecasted = int(state["trained"]), int(state["forecasted"])
        self._confidence, self._seed = float(state["confidence"]), int(state["seed"])
        self._load_model_state(state["model"])

    # -- inside ----------------------------------------------------------------------------------------

    def _draws(self) -> np.random.Generator:
        """Generator for forecasts: fixed by seed and observations, so that asking twice changes nothing."""
        return np.random.default_rng([self._seed, self._replay.end])

    def _context(self, features: Floats, action: Singles) -> tuple[Singles, Singles]:
        """The newest observations and the one given, as a batch of one."""
        x = np.zeros((1, self.context, INPUTS), np.float32)
        a = np.zeros((1, self.context, len(action)), np.float32)
        if self.context > 1 and self._replay.end:
            newest = np.array([self._replay.end - 1])
            x[:, :-1], a[:, :-1] = self._replay.context(newest, self.context - 1)
        x[0, -1], a[0, -1] = self._inputs_now(features), action
        return x, a

    def _inputs_now(self, features: Floats) -> Singles:
        """The features say how the loss lies in its last 256; the position, how it lies to the level."""
        row = np.empty(INPUTS, np.float32)
        row[:-2] = features
        row[-2], row[-1] = (math.copysign(math.log1p(abs(v)), v) for v in self._level.position)
        return row

    @property
    def _open_bytes(self) -> int:
        return 8 * 4 * STARTS * len(self.horizons) * self.options.longest

    def _score(self) -> None:
        """Forecast from new observations; book the errors of forecasts whose losses are known now."""
        end, longest = self._replay.end, self.options.longest
        begin = max(self._forecasted, self._replay.first)
        if self._trained and end > begin:
            starts = np.unique(np.linspace(begin, end - 1, min(STARTS, end - begin)).astype(np.int64))
            x, a = self._replay.context(starts, self.context)
            forecast = self._forecast(x, a, longest)
            mean, epistemic, aleatoric = forecast.in_units(*self._replay.reference(starts))
            deviation = np.sqrt(epistemic + aleatoric)
            for row, start in enumerate(starts):
                for j in self.horizons:
                    entry = (int(start), j, float(mean[row, j - 1]), float(deviation[row, j - 1]))
                    self._open.append(entry)
        self._forecasted = end
        waiting = []
        for start, j, mean_, deviation_ in self._open:
            number = start + j - 1
            if number >= end:
                waiting.append((start, j, mean_, deviation_))
            elif self._replay.connected(start, number):
                error = abs(float(self._replay.losses(np.array([number]))[0]) - mean_)
                self._calibration.add(j, error / max(deviation_, 1e-300))
        self._open = waiting[-STARTS * len(self.horizons) * longest :]

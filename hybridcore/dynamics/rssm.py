"""Dynamics model `rssm`: an ensemble of recurrent state-space models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs
import numpy as np

from hybridcore.config import between
from hybridcore.dynamics.adam import Adam, to_numpy
from hybridcore.dynamics.base import CALL, INPUTS, DynamicsOptions, Forecast, OnlineModel, Singles
from hybridcore.dynamics.categorical import gumbel
from hybridcore.dynamics.encoding import ActionEncoder
from hybridcore.dynamics.layers import LOG_VARIANCE
from hybridcore.dynamics.level import symlog
from hybridcore.dynamics.state_space import Objective, Sizes, StateSpace
from hybridcore.kernels.reference import REFERENCE
from hybridcore.protocols import API_VERSION, Ensemble, KernelSet, RolloutSizes

__all__ = ["Rssm", "RssmOptions"]


@attrs.frozen(kw_only=True)
class RssmOptions(DynamicsOptions):
    """Table ``[dynamics.rssm]``.

    Attributes:
        deterministic: Width of the GRU's state.
        stochastic: Categorical variables.
        classes: Classes of each.
        hidden: Width of the layers between.
        members: Models in the ensemble; they differ in initial weights, order of data and heads.
        context: Observations read with features before a forecast branches off.
        bptt: Ticks that a gradient goes back through the recurrent state.
        batch: Sequences per update and member.
        samples: Paths drawn per member in a forecast.
        learning_rate: Step size of Adam.
        l2: Penalty ``l2 / 2 * |w|^2`` on weights, biases apart.
        free_nats: Divergence of prior and posterior that costs nothing, in nats.
        pull_prior: Weight of the divergence for the prior.
        pull_posterior: Weight of the divergence for the posterior.
        reconstruction: Weight of the squared error of decoded features.
    """

    deterministic: int = attrs.field(default=32, validator=between(1))
    stochastic: int = attrs.field(default=4, validator=between(1))
    classes: int = attrs.field(default=8, validator=between(2))
    hidden: int = attrs.field(default=32, validator=between(1))
    members: int = attrs.field(default=3, validator=between(2))
    context: int = attrs.field(default=4, validator=between(1))
    bptt: int = attrs.field(default=16, validator=between(1))
    batch: int = attrs.field(default=16, validator=between(1))
    samples: int = attrs.field(default=8, validator=between(2))
    learning_rate: float = attrs.field(default=4e-3, validator=between(0.0, low_open=True))
    l2: float = attrs.field(default=1e-5, validator=between(0.0))
    free_nats: float = attrs.field(default=1.0, validator=between(0.0))
    pull_prior: float = attrs.field(default=0.5, validator=between(0.0))
    pull_posterior: float = attrs.field(default=0.1, validator=between(0.0))
    reconstruction: float = attrs.field(default=0.1, validator=between(0.0))


class Rssm(OnlineModel):
    """GRU state and categorical latents, trained as in DreamerV3 (Hafner et al. 2023), see `StateSpace`.

    A sequence has `context` closed ticks, which see features, and `longest` open ones, which do not. The
    loss ahead is the sum of the open ticks' steps, with a Gaussian likelihood in symlog. A forecast draws
    `samples` paths per member; the variance between members' means is the epistemic part, the predicted noise
    plus the variance between paths of one member the aleatoric one.

    Attributes:
        kernels: Who draws the paths; weights and results lie on the host either way.

    Example:
        >>> Rssm(RssmOptions(deterministic=8, hidden=8)).context
        5
    """

    name: ClassVar[str] = "rssm"
    api_version: ClassVar[int] = API_VERSION
    Config: ClassVar[type] = RssmOptions
    options: RssmOptions

    def __init__(self, config: RssmOptions | None = None) -> None:
        config = config or RssmOptions()
        self.context = config.context + 1
        self.kernels: KernelSet = REFERENCE
        super().__init__(config)

    def _build(self, features: int, actions: int, rng: np.random.Generator) -> None:
        o = self.options
        self._sizes = Sizes(
            features=features,
            actions=actions,
            deterministic=o.deterministic,
            stochastic=o.stochastic,
            classes=o.classes,
            hidden=o.hidden,
            members=o.members,
        )
        self._objective = Objective(
            free_nats=o.free_nats,
            dynamics=o.pull_prior,
            representation=o.pull_posterior,
            reconstruction=o.reconstruction,
            bptt=o.bptt,
        )
        self._streams = rng.spawn(o.members)
        self._noise = rng.spawn(1)[0]
        self._adam = Adam(o.learning_rate)
        self._core = StateSpace(self._sizes, self.xp)
        self._params = {n: self.xp.asarray(a) for n, a in self._sizes.weights(rng).items()}
        self._ensemble = Ensemble(self._params, o.classes)

    def _learn(self, end: int) -> bool:
        o, context = self.options, self.options.context
        first = self._replay.first + context
        # A branch point needs its context before it and half of the horizon after it.
        last = end - min(o.longest // 2, max(1, (end - first) // 2))
        if last <= first:
            return False
        parts = [self._sequences(stream.integers(first, last, o.batch)) for stream in self._streams]
        x, actions, targets, weights = (
            self.xp.asarray(np.stack(part, axis=1).astype(np.float32)) for part in zip(*parts, strict=True)
        )
        ticks = context + o.longest
        shape = (ticks + context + 1, o.members, o.batch, self._sizes.latent)
        noise = self.xp.asarray(gumbel(self._noise, shape))
        _, gradients = self._core.loss(
            self._params, x, actions, targets, weights, noise, context, self._objective
        )
        if o.l2:
            for name in self._sizes.shapes():
                gradients[name] = gradients[name] + o.l2 * self._params[name]
        self._params = self._adam(self._params, gradients, self.xp)
        return True

    def _sequences(self, branches: Any) -> tuple[Any, Any, Any, Any]:
        """Features, actions, targets and weights, time first, of sequences by branch points."""
        context, longest = self.options.context, self.options.longest
        x, before = self._replay.context(branches, context + 1)
        _, after = self._replay.ahead(branches, longest)
        targets, known = [], []
        for back in range(context, 0, -1):
            target, is_known = self._replay.targets(branches - back, np.ones((len(branches), 1), np.int64))
            linked = [self._replay.connected(int(b) - back, int(b)) for b in branches]
            targets.append(target[:, 0])
            known.append(is_known[:, 0] * linked)
        ahead = np.broadcast_to(np.arange(1, longest + 1), (len(branches), longest))
        target, is_known = self._replay.targets(branches, ahead)
        all_targets = np.concatenate([np.stack(targets), target.T])
        weights = np.concatenate([np.stack(known), is_known.T]).astype(np.float64)
        weights /= max(1.0, float(weights.sum()))
        actions = np.concatenate([before[:, :-1], after], axis=1)
        return (
            symlog(x.transpose(1, 0, 2).astype(np.float64)),
            actions.transpose(1, 0, 2),
            all_targets[..., None],
            weights[..., None],
        )

    def _forecast(self, features: Singles, actions: Singles, horizon: int) -> Forecast:
        o, count = self.options, len(features)
        draws = 1 + 2 * o.context + horizon
        noise = gumbel(self._draws(), (draws, o.members, count * o.samples, self._sizes.latent))
        seen = symlog(features.astype(np.float64)).astype(np.float32)
        if self._ensemble.weights is not self._params:
            self._ensemble = Ensemble(self._params, o.classes)
        found = self.kernels.rollout(self._ensemble, seen, actions, self._encoder.real_step, noise, self.xp)
        steps, raws = (part.astype(np.float64) for part in found)
        shape = (o.members, count, o.samples, horizon)
        path = symlog(np.cumsum(steps, axis=-1)).reshape(shape)
        variance = np.exp(LOG_VARIANCE * np.tanh(raws / LOG_VARIANCE)).reshape(shape)
        means = path.mean(axis=2)
        aleatoric = (variance.mean(axis=2) + path.var(axis=2, ddof=1)).mean(axis=0)
        # Means of a few samples differ by chance too; that part is no disagreement.
        chance = (path.var(axis=2, ddof=1) / o.samples).mean(axis=0)
        epistemic = np.maximum(means.var(axis=0, ddof=1) - chance, 0.0)
        return Forecast(means.mean(axis=0), epistemic, aleatoric)

    def rollout_sizes(self, predictors: int) -> RolloutSizes:
        """Sizes of a forecast from one start over the longest horizon that is trained."""
        o = self.options
        return RolloutSizes(
            features=INPUTS,
            actions=ActionEncoder([""] * predictors).size,
            deterministic=o.deterministic,
            stochastic=o.stochastic,
            classes=o.classes,
            hidden=o.hidden,
            members=o.members,
            samples=o.samples,
            context=o.context,
            horizon=o.longest,
        )

    @property
    def flops_per_update(self) -> float:
        """Forward and backward products of all ticks of one batch, and Adam; about 170 calls per tick."""
        o = self.options
        macs = sum(a * b for a, b in self._sizes.shapes().values())
        ticks = o.context + o.longest
        calls = 170 * ticks + 15 * len(self._params)
        return float(o.members * macs * (6.0 * o.batch * ticks + 12.0) + calls * CALL)

    def _model_bytes(self) -> int:
        return 3 * 4 * sum(int(np.prod(a.shape)) for a in self._params.values())

    def _model_state(self) -> dict[str, Any]:
        return {
            "params": {n: to_numpy(a) for n, a in self._params.items()},
            "adam": self._adam.state_dict(),
            "streams": [s.bit_generator.state for s in (*self._streams, self._noise)],
        }

    def _load_model_state(self, state: Mapping[str, Any]) -> None:
        self._params = {n: self.xp.asarray(np.array(a)) for n, a in state["params"].items()}
        self._adam.load_state_dict(state["adam"], self.xp)
        for stream, saved in zip((*self._streams, self._noise), state["streams"], strict=True):
            stream.bit_generator.state = saved

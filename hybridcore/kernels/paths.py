"""Roll-outs made for a trial, and which of their draws rounding may turn."""

from __future__ import annotations

import functools
from typing import Any

import array_api_compat.numpy as compat_numpy
import attrs
import numpy as np
from numpy.typing import NDArray

from hybridcore.dynamics.categorical import gumbel
from hybridcore.dynamics.state_space import Sizes
from hybridcore.kernels.reference import REFERENCE
from hybridcore.protocols import Ensemble, KernelSet, RolloutSizes

__all__ = ["RolloutCase"]

TIE = 1e-5
"""Two classes whose scores ``log p + noise`` are this close may change places by rounding of float32."""

Paths = tuple[NDArray[Any], NDArray[Any]]


@attrs.frozen(eq=False)
class RolloutCase:
    """Arguments of `hybridcore.protocols.KernelSet.rollout` in the host's memory.

    A categorical draw is the largest of its classes' scores. Where two of them nearly tie, rounding decides,
    and from there on the path is another one: neither is wrong.

    Attributes:
        models: Weights, biases that are not zero among them.
        features: Shape (1, context + 1, features).
        actions: Shape (1, context + 1, actions).
        ahead: Shape (actions,).
        noise: Shape (1 + 2 context + horizon, members, samples, latent).

    Example:
        >>> case = RolloutCase.decided(RolloutSizes(horizon=3))
        >>> [part.shape for part in case.on(REFERENCE)], bool(case.undecided().any())
        ([(3, 8, 3), (3, 8, 3)], False)
    """

    models: Ensemble
    features: NDArray[Any]
    actions: NDArray[Any]
    ahead: NDArray[Any]
    noise: NDArray[Any]

    @classmethod
    def make(cls, sizes: RolloutSizes, seed: int = 0, starts: int = 1) -> RolloutCase:
        """Float32 numbers of about the size that they have in a run."""
        rng = np.random.default_rng(seed)
        widths = Sizes(
            features=sizes.features,
            actions=sizes.actions,
            deterministic=sizes.deterministic,
            stochastic=sizes.stochastic,
            classes=sizes.classes,
            hidden=sizes.hidden,
            members=sizes.members,
        )

        def draw(*shape: int) -> NDArray[Any]:
            return rng.standard_normal(shape).astype(np.float32)

        weights = {
            name: 0.3 * draw(*array.shape) if array.shape[1] == 1 else array
            for name, array in widths.weights(rng).items()
        }
        ticks = 1 + 2 * sizes.context + sizes.horizon
        return cls(
            Ensemble(weights, sizes.classes),
            draw(starts, sizes.context + 1, sizes.features),
            draw(starts, sizes.context + 1, sizes.actions),
            draw(sizes.actions),
            gumbel(rng, (ticks, sizes.members, starts * sizes.samples, widths.latent)),
        )

    @classmethod
    @functools.lru_cache(maxsize=4)
    def decided(cls, sizes: RolloutSizes) -> RolloutCase:
        """The first of many whose draws no rounding turns, so that paths can be compared."""
        cases = (cls.make(sizes, seed) for seed in range(100))
        return next((case for case in cases if not case.undecided().any()), cls.make(sizes))

    def on(self, kernels: KernelSet) -> Paths:
        """Steps and raw log variances as a kernel set finds them."""
        return kernels.rollout(self.models, self.features, self.actions, self.ahead, self.noise, compat_numpy)

    def wide(self) -> RolloutCase:
        """The same numbers in float64."""
        weights = {name: array.astype(np.float64) for name, array in self.models.weights.items()}
        parts = (self.features, self.actions, self.ahead, self.noise)
        return RolloutCase(
            Ensemble(weights, self.models.classes), *(part.astype(np.float64) for part in parts)
        )

    def undecided(self) -> NDArray[np.bool_]:
        """Paths that change where scores do by `TIE` per class, shape (members, starts * samples)."""
        wide = self.wide()
        classes = self.models.classes
        tilt = TIE * np.tile(np.arange(classes), self.noise.shape[-1] // classes)
        exact = wide.on(REFERENCE)[0]
        turned = [attrs.evolve(wide, noise=wide.noise + sign * tilt).on(REFERENCE)[0] for sign in (1.0, -1.0)]
        found: NDArray[np.bool_] = np.any([np.any(t != exact, axis=-1) for t in turned], axis=0)
        return found

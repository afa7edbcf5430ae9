"""Roll-out of an ensemble of recurrent state-space models, by batched products."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridcore.dynamics.adam import to_numpy
from hybridcore.dynamics.state_space import Sizes, StateSpace
from hybridcore.layout import Array
from hybridcore.protocols import Ensemble

__all__ = ["rollout", "sizes_of"]


def sizes_of(models: Ensemble) -> Sizes:
    """Widths of the models, read off their weights."""
    members, features, hidden = (int(n) for n in models.weights["embed"].shape)
    latent = int(models.weights["prior_out"].shape[2])
    return Sizes(
        features=features,
        actions=int(models.weights["enter"].shape[1]) - latent,
        deterministic=int(models.weights["gru_h"].shape[1]),
        stochastic=latent // models.classes,
        classes=models.classes,
        hidden=hidden,
        members=members,
    )


def rollout(
    models: Ensemble,
    features: NDArray[Any],
    actions: NDArray[Any],
    ahead: NDArray[Any],
    noise: NDArray[Any],
    xp: ModuleType,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Steps and raw log variances of every path; see `hybridcore.protocols.KernelSet.rollout`."""
    sizes, p = sizes_of(models), dict(models.weights)
    core, draws = StateSpace(sizes, xp), iter(noise)
    count, context = features.shape[0], features.shape[1] - 1
    samples = noise.shape[2] // count

    def many(rows: NDArray[Any]) -> Array:
        """Every row once per sample, for each member."""
        wide = np.repeat(rows, samples, axis=0)
        return xp.asarray(np.broadcast_to(wide, (sizes.members, *wide.shape)).copy())

    def draw() -> Array:
        return xp.asarray(next(draws))

    h, z, _ = core.start(p, many(features[:, 0]), draw())
    for t in range(context):
        h, _, _, _, _ = core.advance(p, h, z, many(actions[:, t]), draw(), many(features[:, t]))
        z, _ = core.observe(p, h, many(features[:, t + 1]), draw())
    later = many(np.broadcast_to(ahead, actions[:, -1].shape))
    action, newest = many(actions[:, -1]), many(features[:, -1])
    steps, raws = [], []
    for _ in range(noise.shape[0] - 1 - 2 * context):
        h, z, step, raw, _ = core.advance(p, h, z, action, draw(), newest)
        steps.append(to_numpy(step))
        raws.append(to_numpy(raw))
        action = later
    return np.concatenate(steps, axis=-1), np.concatenate(raws, axis=-1)

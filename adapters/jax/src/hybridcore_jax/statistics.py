"""Running statistics of any model that keeps them as exponential means, and what a batch adds to them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hybridcore_jax.losses import LossCaller

__all__ = ["Statistics"]


class Statistics:
    """Finds the running statistics in a model's state and estimates them anew.

    A training forward turns a running statistic s into ``m s + (1 - m) b``, where b is the batch's own. That
    is affine in s, and BatchNorm's output in training does not depend on s; so two forwards, from s = 0 and
    s = 1, give m, after which one forward from s = 0 gives b. Leaves for which m is not in (0, 1), integers
    and keys are no statistics and stay as they are.

    Args:
        losses: Calls the loss function.
        key: Random key of every forward, or None.
    """

    def __init__(self, losses: LossCaller, key: Any) -> None:
        self._losses, self._key = losses, key
        self._momenta: list[float | None] | None = None
        self._of_batch = jax.jit(self._estimate)

    def momenta(self, params: Any, state: Any, batch: Any) -> list[float | None]:
        """Momentum m of every leaf of the state, None where it is no statistic; found by the first batch."""
        if self._momenta is None:
            self._momenta = self._find(params, state, batch) if self._losses.stateful else []
        return self._momenta

    def _find(self, params: Any, state: Any, batch: Any) -> list[float | None]:
        @jax.jit
        def after(value: Any, params: Any, state: Any, batch: Any) -> Any:
            return jax.tree.leaves(self._advanced(params, _filled(state, value), batch))

        low, high = (after(value, params, state, batch) for value in (0.0, 1.0))
        found: list[float | None] = []
        for leaf, a, b in zip(jax.tree.leaves(state), low, high, strict=True):
            if not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.size == 0:
                found.append(None)
                continue
            m = np.asarray(b, np.float64) - np.asarray(a, np.float64)
            value = round(float(np.median(m)), 5)  # the difference has lost digits; momenta are round
            steady = bool(np.isfinite(m).all()) and np.ptp(m) < 1e-3 and 0.0 < value < 1.0
            found.append(value if steady else None)
        return found

    def _advanced(self, params: Any, state: Any, batch: Any) -> Any:
        return self._losses(params, state, self._key, batch, training=True)[1]

    def of_batch(self, params: Any, state: Any, batch: Any) -> Any:
        """The state with the batch's own statistics in the place of the running ones.

        Raises:
            BatchError: The model cannot take the batch.
        """
        self.momenta(params, state, batch)
        return self._of_batch(params, state, batch)

    def _estimate(self, params: Any, state: Any, batch: Any) -> Any:
        momenta = self._momenta or []
        leaves, structure = jax.tree.flatten(state)
        zero = [jnp.zeros_like(s) if m is not None else s for s, m in zip(leaves, momenta, strict=True)]
        new = jax.tree.leaves(self._advanced(params, jax.tree.unflatten(structure, zero), batch))
        own = [n / (1.0 - m) if m is not None else s for s, n, m in zip(leaves, new, momenta, strict=True)]
        return jax.tree.unflatten(structure, own)

    def mean(self, params: Any, state: Any, batches: Any) -> Any:
        """The state with the plain mean of the batches' statistics; the same state without any batch.

        Raises:
            BatchError: The model cannot take a batch.
        """
        sums: list[Any] = []
        count = 0
        for batch in batches:
            own = self._only_statistics(self.of_batch(params, state, batch))
            sums = [a + b for a, b in zip(sums, own, strict=True)] if sums else own
            count += 1
        if not sums or not all(bool(jnp.isfinite(total).all()) for total in sums):
            return state
        leaves, structure = jax.tree.flatten(state)
        means = iter([total / count for total in sums])
        momenta = self._momenta or []
        new = [next(means) if m is not None else leaf for leaf, m in zip(leaves, momenta, strict=True)]
        return jax.tree.unflatten(structure, new)

    def _only_statistics(self, state: Any) -> list[Any]:
        momenta = self._momenta or []
        return [x for x, m in zip(jax.tree.leaves(state), momenta, strict=True) if m is not None]


def _filled(state: Any, value: Any) -> Any:
    return jax.tree.map(
        lambda x: jnp.full_like(x, value) if jnp.issubdtype(x.dtype, jnp.floating) else x, state
    )

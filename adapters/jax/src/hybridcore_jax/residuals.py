"""Residuals of a batch and their derivatives along changes of the weights, in forward mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from hybridcore.layout import Buckets
from hybridcore_jax.buckets import BucketStore
from hybridcore_jax.losses import LossCaller
from hybridcore_jax.placement import to_host

__all__ = ["Lineariser"]


class Lineariser:
    """Compiled residuals r (n,) and products ``J v`` with any number of changes v.

    Fewer changes than the most so far are filled up with zeros, so that a number seen before, or a smaller
    one, compiles nothing.

    Args:
        residuals: Calls the residual function.
        store: How changes lie in buckets; frozen parameters do not change.

    Attributes:
        traced: How often the computation was traced.
    """

    def __init__(self, residuals: LossCaller, store: BucketStore) -> None:
        self._residuals, self._store = residuals, store
        self._most = 1
        self._compiled = jax.jit(self._along)
        self.traced = 0

    def __call__(
        self, params: Any, state: Any, key: Any, batch: Any, directions: Sequence[Buckets]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Residuals (n,) at the weights and products (n, k).

        Args:
            params: The weights.
            state: The model's own state.
            key: Random key.
            batch: The batch.
            directions: k changes as float32 buckets.

        Raises:
            BatchError: The residual function cannot take the batch.
            DeltaError: A change does not fit the layout.
        """
        leaves, structure = jax.tree.flatten(params)
        zeros = [jnp.zeros_like(leaf, device=leaf.sharding) for leaf in leaves]
        tangents = [self._store.write(zeros, buckets) for buckets in directions]
        self._most = max(self._most, len(tangents))
        tangents += [zeros] * (self._most - len(tangents))
        trees = [jax.tree.unflatten(structure, t) for t in tangents]
        values, products = self._compiled(params, state, key, batch, trees)
        wide = jnp.promote_types(values.dtype, jnp.float32)
        return (
            to_host(values.astype(wide)).astype(np.float64),
            to_host(products.astype(wide)).astype(np.float64).T[:, : len(directions)].copy(),
        )

    def _along(self, params: Any, state: Any, key: Any, batch: Any, trees: list[Any]) -> Any:
        self.traced += 1

        def residuals(weights: Any) -> jax.Array:
            return self._residuals.per_example(weights, state, key, batch)

        def along(tangent: Any) -> Any:
            return jax.jvp(residuals, (params,), (tangent,))

        # The residuals do not depend on the direction, so that they are computed once for all.
        return jax.vmap(along, out_axes=(None, 0))(jax.tree.map(lambda *t: jnp.stack(t), *trees))

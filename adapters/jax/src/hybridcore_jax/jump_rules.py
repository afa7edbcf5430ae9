"""What the engine does to the optimizer's own state, as pure functions in optax style (F40, F59)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hybridcore_jax.trees import find_nodes, has_field, is_a, map_nodes

__all__ = ["JumpState", "after_jump", "has_velocity", "moment_statistics", "rescale_velocity", "scale_rate"]

_is_velocity = is_a(optax.TraceState)


class JumpState(NamedTuple):
    """State of `rescale_velocity`.

    Attributes:
        pending: Boolean scalar: the weights jumped since the last update.
        inner: State of the wrapped optimizer.
        factor: Scalar that multiplies every update, and so the learning rate; see `scale_rate`.
    """

    pending: jax.Array
    inner: Any
    factor: jax.Array


def rescale_velocity(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """An optimizer that scales its heavy-ball velocity once after each jump, and lets its rate be scaled.

    The velocity m was gathered where the weights were before the jump. The first update after it uses
    ``max(0, cos(m, g)) * m`` with the fresh gradient g, over all parameters: as far as the velocity still
    agrees with the gradient at the new place it is worth keeping; one that points uphill is dropped.
    `after_jump` sets the flag. Without `optax.trace` there is no velocity to scale.

    Args:
        optimizer: Any optax optimizer.

    Example:
        >>> import optax
        >>> optimizer = rescale_velocity(optax.sgd(0.1, momentum=0.9))
        >>> state = optimizer.init({"w": jnp.ones(2)})
        >>> updates, state = optimizer.update({"w": jnp.ones(2)}, state)
        >>> bool(after_jump(state).pending)
        True
    """
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> JumpState:
        return JumpState(jnp.zeros((), bool), inner.init(params), jnp.ones((), jnp.float32))

    def update(updates: Any, state: JumpState, params: Any = None, **extra: Any) -> tuple[Any, JumpState]:
        before = state.inner
        if has_velocity(before):
            before = jax.lax.cond(state.pending, lambda s: _scaled(s, updates), lambda s: s, before)
        updates, after = inner.update(updates, before, params, **extra)
        updates = jax.tree.map(lambda u: u * state.factor.astype(u.dtype), updates)
        return updates, JumpState(jnp.zeros((), bool), after, state.factor)

    return optax.GradientTransformationExtraArgs(init, update)


def scale_rate(state: Any, factor: float) -> Any:
    """Optimizer state whose further updates are `factor` times what they would have been, schedules included.

    Only an optimizer made by `rescale_velocity` knows of it; the state of any other comes back as it is.

    Args:
        state: State of an optax optimizer.
        factor: Above 0; multiplies the factor so far.

    Example:
        >>> optimizer = rescale_velocity(optax.sgd(0.5))
        >>> state = scale_rate(optimizer.init({"w": jnp.ones(1)}), 0.5)
        >>> optimizer.update({"w": jnp.ones(1)}, state)[0]["w"].tolist()
        [-0.25]
    """

    def scaled(node: JumpState) -> JumpState:
        return node._replace(factor=(node.factor * factor).astype(node.factor.dtype))

    return map_nodes(scaled, state, is_a(JumpState))


def has_velocity(state: Any) -> bool:
    """Whether an optimizer state holds a heavy-ball velocity."""
    return next(find_nodes(state, _is_velocity), None) is not None


def after_jump(state: Any) -> Any:
    """Optimizer state for weights that moved without it.

    Adam's moments and counts stay. A velocity waits for the next gradient where the optimizer was made by
    `rescale_velocity`, and is zero otherwise, since nothing tells how much of it is still right. L-BFGS
    forgets its pairs, which describe the curvature along a path that was left.

    Args:
        state: State of any optax optimizer.
    """
    if isinstance(state, JumpState):
        pending = jnp.full_like(state.pending, has_velocity(state.inner))
        return state._replace(pending=pending, inner=_without_pairs(state.inner))
    if next(find_nodes(state, is_a(JumpState)), None) is not None:
        return map_nodes(after_jump, state, is_a(JumpState))
    return map_nodes(_zeros, _without_pairs(state), _is_velocity)


def _without_pairs(state: Any) -> Any:
    return map_nodes(_zeros, state, is_a(optax.ScaleByLBFGSState))


def _zeros(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)


def _scaled(state: Any, gradients: Any) -> Any:
    """The state with every velocity times ``max(0, cosine)``, one cosine over all parameters."""
    dot = squares_m = squares_g = jnp.zeros((), jnp.float32)
    for node in find_nodes(state, _is_velocity):
        for m, g in _pairs(node.trace, gradients):
            wide = jnp.promote_types(m.dtype, jnp.float32)
            m, g = m.astype(wide), g.astype(wide)
            dot = dot + jnp.vdot(m, g)
            squares_m = squares_m + jnp.vdot(m, m)
            squares_g = squares_g + jnp.vdot(g, g)
    size = jnp.sqrt(squares_m) * jnp.sqrt(squares_g)
    cosine = jnp.clip(dot / jnp.maximum(size, np.finfo(np.float32).tiny), 0.0, 1.0)

    def scale(node: optax.TraceState) -> optax.TraceState:
        return optax.TraceState(jax.tree.map(lambda m: m * cosine.astype(m.dtype), node.trace))

    return map_nodes(scale, state, _is_velocity)


def _pairs(trace: Any, gradients: Any) -> list[tuple[Any, Any]]:
    """Velocity and gradient of each parameter; masked ones are left out."""

    def masked(x: Any) -> bool:
        return isinstance(x, optax.MaskedNode)

    leaves = jax.tree.leaves(trace, is_leaf=masked)
    return [
        (m, g)
        for m, g in zip(leaves, jax.tree.leaves(gradients), strict=True)
        if not isinstance(m, optax.MaskedNode)
    ]


def moment_statistics(state: Any) -> dict[str, float]:
    """Mean and standard deviation of first and second moments, in float64; zeros where there are none."""
    result = {}
    for letter, fields in (("m", ("mu", "trace")), ("v", ("nu", "sum_of_squares"))):
        arrays = [
            np.asarray(leaf, np.float64).ravel()
            for node in find_nodes(state, has_field(*fields))
            for field in fields
            for leaf in jax.tree.leaves(getattr(node, field, ()))
        ]
        flat = np.concatenate(arrays) if arrays else np.zeros(1)
        result[f"{letter}_mean"], result[f"{letter}_std"] = float(flat.mean()), float(flat.std())
    return result

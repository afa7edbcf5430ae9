"""The training step that the adapter builds and compiles: forward, backward, guard and update in one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hybridcore.errors import ModelError
from hybridcore.protocols import StepResult
from hybridcore_jax.adaptive_clipping import clip_units
from hybridcore_jax.batches import micro_batches, n_examples
from hybridcore_jax.losses import LossCaller
from hybridcore_jax.parameters import Plan
from hybridcore_jax.placement import to_host
from hybridcore_jax.train_state import TrainState
from hybridcore_jax.trees import find_nodes, has_field, is_a

__all__ = ["StepRunner"]

_searched = has_field("info")


class StepRunner:
    """Compiles ``(state, batch) -> (state, report)`` once per form of batch.

    A non-finite loss or gradient gives the old state back by a selection inside the compiled step, so
    nothing waits for the host and nothing is computed twice (F41).

    Args:
        losses: Calls the loss function.
        optimizer: The optimizer.
        plan: Which leaves are trained.
        shardings: Sharding of every leaf of the parameters, kept by each step.
        accumulate: Micro-batches per step.
        max_grad_norm: Clip gradients to this Euclidean norm, or None.
        donate: Let each step reuse the memory of the state before it.

    Raises:
        ModelError: `accumulate` is out of range.
    """

    def __init__(
        self,
        losses: LossCaller,
        optimizer: optax.GradientTransformationExtraArgs,
        plan: Plan,
        shardings: list[Any],
        *,
        accumulate: int,
        max_grad_norm: float | None,
        donate: bool,
    ) -> None:
        if accumulate < 1:
            raise ModelError(
                "accumulate is out of range",
                where="accumulate",
                got=accumulate,
                expected="1 or more",
                fix="set accumulate=1",
            )
        self._losses, self._optimizer, self._plan = losses, optimizer, plan
        self._shardings = shardings
        self._accumulate, self._limit = accumulate, max_grad_norm
        self.donates = donate
        self._compiled = jax.jit(self._step, donate_argnums=(0,) if donate else ())
        self._unit_ratio: float | None = None

    def begin(self, state: TrainState, batch: Any) -> tuple[TrainState, Callable[[], StepResult]]:
        """Begin one step; where it is skipped the returned state holds what the given one held.

        The result is had by a call, which waits for the device. Let go of the given state before: freeing its
        arrays takes Python a while, and the device need not wait for that.

        Raises:
            BatchError: The model cannot take the batch; the given state is still valid.
        """
        state, report = self._compiled(state, batch, self._unit_ratio)

        def result() -> StepResult:
            loss, norm, good, count, passes = to_host(report).tolist()
            return StepResult(loss, norm, not good, int(count), int(passes))

        return state, result

    def clip_adaptively(self, ratio: float | None) -> None:
        """Clip gradients unit by unit, relative to the weights; None ends it (F69).

        Compiled once more at the first change from None to a ratio, and never again.
        """
        self._unit_ratio = ratio

    def _step(self, state: TrainState, batch: Any, unit_ratio: Any) -> tuple[TrainState, jax.Array]:
        key, used = state.key, None
        if key is not None:
            key, used = jax.random.split(key)
        loss, gradients, model_state, count, passes = self._gradients(state, used, batch)
        if unit_ratio is not None:
            gradients = clip_units(gradients, state.params, self._plan, unit_ratio)
        norm = optax.tree.norm(jax.tree.map(lambda g: g.astype(_wide(g.dtype)), gradients))
        good = jnp.isfinite(loss) & jnp.isfinite(norm)
        if self._limit is not None:
            scale = jnp.where(norm > self._limit, self._limit / norm, 1.0)
            gradients = jax.tree.map(lambda g: (g * scale).astype(g.dtype), gradients)
            norm = jnp.minimum(norm, self._limit)

        def value(params: Any) -> jax.Array:
            return self._mean(params, state.model_state, used, batch)[0]

        updates, opt_state = self._optimizer.update(
            gradients, state.opt_state, state.params, value=loss, grad=gradients, value_fn=value
        )
        params = self._pinned(optax.apply_updates(state.params, updates), state.params)
        for node in find_nodes(opt_state, _searched):  # a line search evaluates gradients too
            passes = passes + node.info.num_linesearch_steps
        if next(find_nodes(opt_state, is_a(optax.ScaleByLBFGSState)), None) is not None:
            good &= jnp.isfinite(optax.tree.norm(params))
        new = TrainState(params, opt_state, model_state, key)
        kept = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state)
        report = jnp.stack([jnp.asarray(x, _wide(loss.dtype)) for x in (loss, norm, good, count, passes)])
        return kept, report

    def _pinned(self, new: Any, old: Any) -> Any:
        """Frozen leaves as they were, and every leaf where it was."""
        leaves = []
        constrain: Any = jax.lax.with_sharding_constraint
        for before, after, trained, sharding in zip(
            jax.tree.leaves(old), jax.tree.leaves(new), self._plan.trained, self._shardings, strict=True
        ):
            leaf = after if trained else before
            leaves.append(leaf if self._plan.single else constrain(leaf, sharding))
        return jax.tree.unflatten(self._plan.structure, leaves)

    def _mean(self, params: Any, model_state: Any, key: Any, batch: Any) -> tuple[jax.Array, tuple[Any, int]]:
        losses, model_state = self._losses(params, model_state, key, batch, training=True)
        count = losses.shape[0] if losses.ndim else n_examples(batch)
        return losses.astype(_wide(losses.dtype)).mean(), (model_state, count)

    def _gradients(self, state: TrainState, key: Any, batch: Any) -> tuple[jax.Array, Any, Any, int, Any]:
        """Mean loss, its gradient, the model's new state, examples, and backward passes."""
        evaluate = jax.value_and_grad(self._mean, has_aux=True)
        if self._accumulate == 1:
            (loss, (model_state, count)), gradients = evaluate(state.params, state.model_state, key, batch)
            return loss, self._only_trained(gradients), model_state, count, 1
        equal, rest, share = micro_batches(batch, self._accumulate)
        parts = jax.tree.leaves(equal)[0].shape[0]

        def add(carry: Any, item: Any) -> tuple[Any, None]:
            index, part = item
            loss, gradients, model_state = carry
            part_key = None if key is None else jax.random.fold_in(key, index)
            (value, (model_state, _)), found = evaluate(state.params, model_state, part_key, part)
            gradients = jax.tree.map(lambda g, f: g + share * f.astype(g.dtype), gradients, found)
            return (loss + share * value, gradients, model_state), None

        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, _wide(p.dtype)), state.params)
        start = jnp.zeros((), jnp.result_type(*jax.tree.leaves(zeros)))
        carry, _ = jax.lax.scan(add, (start, zeros, state.model_state), (jnp.arange(parts), equal))
        if rest is not None:
            share = 1.0 - parts * share
            carry, _ = add(carry, (parts, rest))
        loss, gradients, model_state = carry
        gradients = jax.tree.map(lambda g, p: g.astype(p.dtype), gradients, state.params)
        passes = parts + (rest is not None)
        return loss, self._only_trained(gradients), model_state, n_examples(batch), passes

    def _only_trained(self, gradients: Any) -> Any:
        """Gradients with zeros for frozen leaves, which the compiler then never computes."""
        leaves = [
            g if trained else jnp.zeros_like(g)
            for g, trained in zip(jax.tree.leaves(gradients), self._plan.trained, strict=True)
        ]
        return jax.tree.unflatten(self._plan.structure, leaves)


def _wide(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)

"""A train step that the user wrote, compiled and perhaps donates to; guarded from outside."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hybridcore.errors import BatchError, HybridCoreError, ModelError
from hybridcore.protocols import StepResult
from hybridcore_jax.batches import n_examples
from hybridcore_jax.parameters import Plan
from hybridcore_jax.train_state import Access
from hybridcore_jax.trees import copy_tree

__all__ = ["OwnStepRunner", "all_finite", "part_of_the_way"]


@jax.jit
def all_finite(params: Any) -> jax.Array:
    """Whether every number in a pytree is finite, as a boolean scalar."""
    return jnp.all(jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(params)]))


@jax.jit
def part_of_the_way(before: Any, after: Any, factor: float) -> Any:
    """``before + factor * (after - before)`` for every leaf, in float32 or wider, cast back."""

    def moved(a: Any, b: Any) -> Any:
        wide = jnp.promote_types(a.dtype, jnp.float32)
        start, stop = a.astype(wide), b.astype(wide)
        return (start + jnp.asarray(factor, wide) * (stop - start)).astype(a.dtype)

    return jax.tree.map(moved, before, after)


class OwnStepRunner:
    """Runs ``train_step(state, batch) -> (new state, loss)``.

    A step that gives a non-finite loss, or non-finite parameters, is undone (F41). Where the step donates
    its state, which the first call shows, that needs a copy of the state before every step.

    Args:
        train_step: The user's function.
        access: Ways into its state.
        plan: What its parameters are like, before and after each step.

    Attributes:
        donates: Whether the step deletes the state that it is given.
        factor: Share of each step's change of the parameters that is kept. The learning rate is inside the
            user's function, where nothing but this reaches it (F40).
    """

    def __init__(self, train_step: Callable[[Any, Any], Any], access: Access, plan: Plan) -> None:
        self._train_step, self._access, self._plan = train_step, access, plan
        self.donates = True
        self.factor = 1.0
        self._known = False
        self._spare: Any = None

    def run(self, state: Any, batch: Any) -> tuple[Any, StepResult]:
        """One step; where it is skipped the returned state holds what the given one held.

        Raises:
            BatchError: The step failed on this batch; `recover` gives the state before it.
            ModelError: The step returned something else than a state like the given one and a loss.
        """
        spare = copy_tree(state) if self.donates else state
        self._spare = spare
        try:
            result = self._train_step(state, batch)
            new, loss, norm, overflow = self._taken_apart(result, state)
        except HybridCoreError:
            raise
        except Exception as error:
            raise BatchError(
                f"the train step failed on this batch: {error}",
                where="train_step(state, batch)",
                got=type(batch).__name__,
                fix="look at the cause above; the weights are unchanged",
            ) from error
        if not self._known:
            self._known = True
            self.donates = any(x.is_deleted() for x in jax.tree.leaves(state) if isinstance(x, jax.Array))
        self._spare = None
        if overflow and math.isfinite(loss):  # the step has kept the weights, and lowered its scale
            return new, StepResult(loss, norm, True, n_examples(batch), overflow=True)
        after = self._access.get(new, "params")
        good = math.isfinite(loss) and bool(all_finite(after))
        if good and self.factor != 1.0:
            before = self._access.get(spare, "params")
            new = self._access.put(new, "params", part_of_the_way(before, after, self.factor))
        return new if good else spare, StepResult(loss, norm, not good, n_examples(batch))

    def recover(self) -> Any:
        """What the state held before the latest step, for after it raised."""
        return self._spare

    def _taken_apart(self, result: Any, state: Any) -> tuple[Any, float, float, bool]:
        """New state, loss, gradient norm (NaN where it is not told), and whether a loss scale overflowed."""
        wanted: Any = jax.tree.structure(state)
        if not isinstance(result, tuple) or len(result) != 2 or jax.tree.structure(result) == wanted:
            raise self._wrong(f"{type(result).__name__} without a loss")
        new, told = result
        found: Any = jax.tree.structure(new)
        if found != wanted:
            raise ModelError(
                "the train step changed the structure of its state",
                where="train_step(state, batch)",
                got=str(found)[:200],
                expected=str(wanted)[:200],
                fix="return the same containers that came in",
            )
        self._plan.check(self._access.get(new, "params"), "train_step(state, batch)")
        norm, overflow = math.nan, False
        if isinstance(told, Mapping):
            norm = float(told.get("grad_norm", norm))
            overflow = bool(told.get("overflow", False))
            told = told.get("loss")
        elif isinstance(told, tuple) and told:
            told = told[0]
        if told is None or np.ndim(told) != 0 or not np.issubdtype(np.asarray(told).dtype, np.floating):
            raise self._wrong(f"(state, {type(told).__name__} of shape {np.shape(told)})")
        return new, float(told), norm, overflow

    @staticmethod
    def _wrong(got: str) -> ModelError:
        return ModelError(
            "the train step returned the wrong thing",
            where="train_step(state, batch)",
            got=got,
            expected="(new state, mean loss); the loss a scalar, or first in a tuple, or under 'loss'",
            fix="return new_state, loss",
        )

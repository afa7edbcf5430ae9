"""The bridge between the engine and scikit-learn's `MLPClassifier`."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import array_api_compat.numpy as xp_numpy
import attrs
import numpy as np
from numpy.typing import NDArray
from sklearn.neural_network import MLPClassifier

from hybridcore.errors import BatchError, ModelError, SnapshotError
from hybridcore.layout import Buckets, ParamGroup, ParamLayout
from hybridcore.protocols import API_VERSION, StepResult

__all__ = ["SklearnAdapter", "SklearnSnapshot"]


@attrs.frozen(eq=False)
class SklearnSnapshot:
    """One moment of a training run.

    Attributes:
        layout: Layout of the model it belongs to.
        attributes: A deep copy of everything the estimator holds: weights, optimizer, counters, generator.
    """

    layout: ParamLayout
    attributes: Mapping[str, Any]


class SklearnAdapter:
    """Lets the engine train an `MLPClassifier`; a batch is ``(x, y)`` and one step is one `partial_fit`.

    Args:
        model: A classifier that has weights: call ``partial_fit(x, y, classes=...)`` on one batch before.
            Its `batch_size` must hold a whole batch (``"auto"`` holds 200), or a step is several updates.

    Raises:
        ModelError: The classifier has no weights yet, or a solver without steps.

    Example:
        >>> model = MLPClassifier((8,), random_state=0)
        >>> x, y = np.random.default_rng(0).standard_normal((20, 3)), np.arange(20) % 2
        >>> adapter = SklearnAdapter(model.partial_fit(x, y, classes=[0, 1]))
        >>> adapter.layout.names
        ('coefs.0', 'coefs.1', 'intercepts.0', 'intercepts.1')
        >>> adapter.train_step((x, y)).n_examples
        20
    """

    name = "sklearn"
    api_version = API_VERSION
    device = "cpu"
    capabilities: frozenset[str] = frozenset({"learning-rate"})

    def __init__(self, model: MLPClassifier) -> None:
        if not hasattr(model, "coefs_") or not hasattr(model, "_optimizer"):
            raise ModelError(
                "the classifier has no weights and no optimizer yet",
                where="model",
                got=f"MLPClassifier(solver={model.solver!r})",
                expected='solver "adam" or "sgd", after one partial_fit',
                fix="call model.partial_fit(x, y, classes=classes) on one batch",
            )
        self.xp: ModuleType = xp_numpy
        self.model = model
        self.layout = ParamLayout.plan(
            (name, array.shape, array.dtype.name, "cpu", group) for name, array, group in self._named()
        )
        self._steps = 0

    def _named(self) -> Iterator[tuple[str, NDArray[Any], ParamGroup]]:
        for i, array in enumerate(self.model.coefs_):
            yield f"coefs.{i}", array, ParamGroup.MATRIX
        for i, array in enumerate(self.model.intercepts_):
            yield f"intercepts.{i}", array, ParamGroup.BIAS

    def _arrays(self) -> dict[str, NDArray[Any]]:
        """The live arrays by name; asked anew each time, since `restore` brings others."""
        return {name: array for name, array, _ in self._named()}

    # Weights

    def read_params(self, out: Buckets | None = None) -> Buckets:
        """Copy of the weights as buckets."""
        dtype, sizes = self.layout.bucket_dtype, self.layout.bucket_sizes
        target = out if out is not None else tuple(np.empty(n, dtype) for n in sizes)
        arrays = self._arrays()
        for p in self.layout.params:
            target[p.bucket][p.offset : p.stop] = arrays[p.name].reshape(-1)
        return target

    def add_params(self, into: Buckets, weight: float = 1.0, decay: float = 1.0) -> Buckets:
        """``decay * into + weight * params``, in place."""
        arrays = self._arrays()
        for p in self.layout.params:
            part = into[p.bucket][p.offset : p.stop]
            part *= decay
            part += weight * arrays[p.name].reshape(-1)
        return into

    def write_params(self, buckets: Buckets) -> None:
        """Set the weights in place, since the optimizer holds the same arrays."""
        self.layout.check(buckets)
        arrays = self._arrays()
        for p in self.layout.params:
            arrays[p.name][...] = buckets[p.bucket][p.offset : p.stop].reshape(p.shape)

    def apply_delta(
        self, deltas: Buckets, scale: float = 1.0, groups: Mapping[ParamGroup, float] | None = None
    ) -> None:
        """Add ``scale * groups[g] * delta``."""
        self.layout.check(deltas, where="deltas")
        arrays = self._arrays()
        for p in self.layout.params:
            factor = scale * (groups or {}).get(p.group, 1.0)
            part = deltas[p.bucket][p.offset : p.stop].reshape(p.shape)
            arrays[p.name] += (factor * part).astype(arrays[p.name].dtype)

    @contextmanager
    def weights(self, buckets: Buckets) -> Iterator[None]:
        """Other weights inside the block."""
        former = {name: array.copy() for name, array in self._arrays().items()}
        try:
            self.write_params(buckets)
            yield
        finally:
            for name, array in self._arrays().items():
                array[...] = former[name]

    # Steps and probes

    def train_step(self, batch: Any) -> StepResult:
        """One `partial_fit`; what is not finite, or turns the weights so, changes nothing (F41)."""
        x, y = batch
        if not np.isfinite(x).all():  # scikit-learn would raise
            return StepResult(math.nan, skipped=True, n_examples=len(y))
        before = copy.deepcopy(vars(self.model))
        try:
            self.model.partial_fit(x, y)
        except ValueError as error:
            vars(self.model).update(before)
            if "non-finite" in str(error):
                return StepResult(math.nan, skipped=True, n_examples=len(y))
            raise BatchError(
                f"the classifier cannot take this batch: {error}",
                where="train_step",
                got=f"x of shape {np.shape(x)}, y of shape {np.shape(y)}",
                expected=f"{self.model.n_features_in_} features, classes {list(self.model.classes_)}",
                fix="look at the cause above; the weights are unchanged",
            ) from error
        self._steps += 1
        return StepResult(float(self.model.loss_), n_examples=len(y))

    def probe_loss(self, batch: Any) -> NDArray[np.float64]:
        """``-log p(y | x)`` per example, shape (n,)."""
        x, y = batch
        p = self.model.predict_proba(x).astype(np.float64)
        picked = p[np.arange(len(y)), np.searchsorted(self.model.classes_, y)]
        return np.asarray(-np.log(np.maximum(picked, np.finfo(np.float64).tiny)))

    def refresh_statistics(self, batches: Iterable[Any]) -> None:
        """There are none."""

    # State

    def snapshot(self) -> SklearnSnapshot:
        """A deep copy keeps what is shared, such as the arrays that model and optimizer both hold."""
        return SklearnSnapshot(self.layout, copy.deepcopy(vars(self.model)))

    def restore(self, snapshot: Any) -> None:
        """Put a snapshot back bit for bit; it stays valid.

        Raises:
            SnapshotError: It was taken from another model; nothing was changed.
        """
        if not isinstance(snapshot, SklearnSnapshot) or snapshot.layout != self.layout:
            raise SnapshotError(
                "a snapshot belongs to another model",
                where="restore",
                got=type(snapshot).__name__,
                expected=f"a snapshot of {self.layout.total} weights in {len(self.layout.params)} arrays",
                fix="restore it into the model it was taken from",
            )
        vars(self.model).clear()
        vars(self.model).update(copy.deepcopy(dict(snapshot.attributes)))

    def snapshot_nbytes(self) -> int:
        """Bytes of weights and moments."""
        held = [*self._arrays().values(), *self._moments(0), *self._moments(1)]
        return sum(array.nbytes for array in held)

    def _moments(self, order: int) -> list[NDArray[Any]]:
        names = ("velocities", "ms") if order == 0 else ("vs",)
        return [a for name in names for a in getattr(self.model._optimizer, name, ())]

    def after_jump(self, deltas: Buckets) -> None:
        """Everything is kept (F59)."""

    @property
    def learning_rate(self) -> float:
        """SGD's rate now; Adam's without its bias corrections, which scikit-learn counts into it."""
        rule = self.model._optimizer
        return float(rule.learning_rate if self.model.solver == "sgd" else rule.learning_rate_init)

    def scale_learning_rate(self, factor: float) -> None:
        """Multiply the rate, its schedule, and SGD's velocities, which hold the rate (F40)."""
        rule = self.model._optimizer
        rule.learning_rate *= factor
        rule.learning_rate_init *= factor
        for velocity in getattr(rule, "velocities", ()):
            velocity *= factor

    @property
    def momentum_memory(self) -> float:
        """``1 / (1 - beta1)``."""
        beta = self.model.momentum if self.model.solver == "sgd" else self.model.beta_1
        return 1.0 / max(1.0 - float(beta), 1e-9)

    def moments(self) -> dict[str, float]:
        """Mean and standard deviation of velocities and moments."""
        found: dict[str, float] = {}
        for order, letter in enumerate("mv"):
            arrays = self._moments(order)
            flat = np.concatenate([a.ravel() for a in arrays]).astype(np.float64) if arrays else np.zeros(1)
            found[f"{letter}_mean"], found[f"{letter}_std"] = float(flat.mean()), float(flat.std())
        return found

    def mean_scalar(self, value: float) -> float:
        """The value itself: one process."""
        return value

    def synchronize(self) -> None:
        """NumPy has finished when it returns."""

    def state_dict(self) -> dict[str, Any]:
        """Counters, as plain data."""
        return {"steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._steps = int(state["steps"])

"""The NumPy adapter on small analytic models: an executable specification of the adapter protocol."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Protocol

import array_api_compat.numpy as xp_numpy
import attrs
import numpy as np
from numpy.typing import NDArray
from safetensors import numpy as safetensors

from hybridcore.errors import BatchError, ModelError, SnapshotError, TaskError
from hybridcore.layout import Buckets, ParamGroup, ParamLayout
from hybridcore.protocols import API_VERSION, OptimizerSpec, Problem, StepResult, TaskRun

__all__ = [
    "FRAMEWORK",
    "AnalyticModel",
    "ReferenceAdapter",
    "SoftmaxRegression",
    "Quadratic",
    "quadratic",
]

Params = dict[str, NDArray[Any]]


class AnalyticModel(Protocol):
    """A model whose per-example losses and mean gradient are written out by hand."""

    def losses(self, params: Params, batch: Any) -> NDArray[np.float64]:
        """Per-example losses, shape (n,)."""
        ...

    def gradient(self, params: Params, batch: Any) -> Params:
        """Gradient of the mean loss, by parameter name."""
        ...


@attrs.frozen(eq=False)
class Quadratic:
    """``0.5 (w - w*)^T diag(h) (w - w*)``, with optional gradient noise.

    Attributes:
        curvature: h, shape (n,).
        optimum: w*, shape (n,).
        noise: Standard deviation of the noise added to each gradient entry.
        rng: Source of the noise.
    """

    curvature: NDArray[np.float64]
    optimum: NDArray[np.float64]
    noise: float
    rng: np.random.Generator

    def losses(self, params: Params, batch: Any) -> NDArray[np.float64]:
        """The loss, shape (1,)."""
        gap = params["w"] - self.optimum
        return np.asarray([0.5 * float(gap @ (self.curvature * gap))])

    def gradient(self, params: Params, batch: Any) -> Params:
        """``h (w - w*)`` plus noise."""
        gradient = self.curvature * (params["w"] - self.optimum)
        if self.noise:
            gradient = gradient + self.noise * self.rng.standard_normal(gradient.shape)
        return {"w": gradient}


class SoftmaxRegression:
    """Multinomial logistic regression with cross-entropy loss; batches are ``(x, y)``."""

    def losses(self, params: Params, batch: Any) -> NDArray[np.float64]:
        """``-log p(y | x)`` per example."""
        x, y = batch
        logits = np.asarray(x, np.float64) @ params["weight"].T + params["bias"]
        logits = logits - logits.max(axis=1, keepdims=True)
        picked = logits[np.arange(len(y)), y]
        return np.asarray(np.log(np.exp(logits).sum(axis=1)) - picked)

    def gradient(self, params: Params, batch: Any) -> Params:
        """``(softmax - onehot)^T x / n`` and its column sums."""
        x, y = batch
        x = np.asarray(x, np.float64)
        logits = x @ params["weight"].T + params["bias"]
        logits = logits - logits.max(axis=1, keepdims=True)
        p = np.exp(logits)
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(len(y)), y] -= 1.0
        p /= len(y)
        return {"weight": p.T @ x, "bias": p.sum(axis=0)}


class ReferenceAdapter:
    """Adapter of an analytic model with SGD, heavy-ball momentum or Adam, in float64 NumPy throughout.

    Args:
        model: The model.
        params: Initial parameters by name; copied.
        optimizer: What trains it.

    Raises:
        ModelError: There are no parameters, or the optimizer is unknown.
    """

    name = "numpy"
    api_version = API_VERSION
    device = "cpu"
    capabilities: frozenset[str] = frozenset({"learning-rate", "adaptive-clipping", "checkpoints"})

    def __init__(self, model: AnalyticModel, params: Mapping[str, Any], optimizer: OptimizerSpec) -> None:
        self.xp: ModuleType = xp_numpy
        self.model, self.optimizer = model, optimizer
        self.params: Params = {n: np.array(v, dtype=np.float64) for n, v in params.items()}
        if not self.params:
            raise ModelError(
                "the model has no parameters", where="params", fix="pass at least one array of weights"
            )
        if optimizer.name not in {"sgd", "momentum", "adam", "adamw"}:
            raise ModelError(
                f"the NumPy adapter has no optimizer {optimizer.name!r}",
                where="optimizer.name",
                got=optimizer.name,
                expected="'sgd', 'momentum', 'adam' or 'adamw'",
                fix="choose one of these",
            )
        self.layout = ParamLayout.plan((n, v.shape, "float64", "cpu", None) for n, v in self.params.items())
        self._first: Params = {}
        self._second: Params = {}
        self._steps = 0
        self._rescale = False
        self._rate_factor = 1.0
        self._clip_ratio: float | None = None

    def read_params(self, out: Buckets | None = None) -> Buckets:
        """Copy of the weights as float64 buckets."""
        target = out if out is not None else (np.empty(self.layout.total),)
        for p in self.layout.params:
            target[p.bucket][p.offset : p.stop] = self.params[p.name].reshape(-1)
        return target

    def add_params(self, into: Buckets, weight: float = 1.0, decay: float = 1.0) -> Buckets:
        """``decay * into + weight * params``."""
        for p in self.layout.params:
            part = into[p.bucket][p.offset : p.stop]
            part *= decay
            part += weight * self.params[p.name].reshape(-1)
        return into

    def write_params(self, buckets: Buckets) -> None:
        """Set the weights."""
        self.layout.check(buckets)
        for name, value in self.layout.unpack(buckets, self.xp).items():
            self.params[name][...] = value

    def apply_delta(
        self, deltas: Buckets, scale: float = 1.0, groups: Mapping[ParamGroup, float] | None = None
    ) -> None:
        """Add ``scale * groups[g] * delta``."""
        self.layout.check(deltas, where="deltas")
        for p in self.layout.params:
            factor = scale * (groups or {}).get(p.group, 1.0)
            part = deltas[p.bucket][p.offset : p.stop]
            self.params[p.name] += factor * np.asarray(part, np.float64).reshape(p.shape)

    @contextmanager
    def weights(self, buckets: Buckets) -> Iterator[None]:
        """Other weights inside the block."""
        saved = {n: v.copy() for n, v in self.params.items()}
        try:
            self.write_params(buckets)
            yield
        finally:
            for n, v in saved.items():
                self.params[n][...] = v

    def train_step(self, batch: Any) -> StepResult:
        """One update."""
        with np.errstate(all="ignore"):
            losses = self._losses(batch)
            gradient = self.model.gradient(self.params, batch)
            if self._clip_ratio is not None:
                gradient = {n: clip_units(g, self.params[n], self._clip_ratio) for n, g in gradient.items()}
        loss = float(losses.mean())
        grad_norm = math.sqrt(sum(float((g * g).sum()) for g in gradient.values()))
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return StepResult(loss, grad_norm, skipped=True, n_examples=losses.size)
        self._update(gradient)
        return StepResult(loss, grad_norm, n_examples=losses.size)

    def _losses(self, batch: Any) -> NDArray[np.float64]:
        try:
            return self.model.losses(self.params, batch)
        except (ValueError, TypeError, IndexError) as error:
            raise BatchError(
                "the batch has a form that the model cannot take",
                where="train_step",
                got=str(error),
                expected="what the model's losses(params, batch) takes",
                fix="check shapes and dtypes of the batch",
            ) from error

    def _update(self, gradient: Params) -> None:
        o = self.optimizer
        self._steps += 1
        rate = self.learning_rate
        if self._rescale:
            self._rescale_velocity(gradient)
        for name, g in gradient.items():
            w = self.params[name]
            if o.weight_decay and o.name != "adamw":
                g = g + o.weight_decay * w
            if o.name == "sgd":
                w -= rate * g
            elif o.name == "momentum":
                self._first[name] = o.momentum * self._first.get(name, np.zeros_like(w)) + g
                w -= rate * self._first[name]
            else:
                m = self._first[name] = 0.9 * self._first.get(name, np.zeros_like(w)) + 0.1 * g
                v = self._second[name] = 0.999 * self._second.get(name, np.zeros_like(w)) + 0.001 * g * g
                if o.name == "adamw":
                    w -= rate * o.weight_decay * w
                m_hat, v_hat = m / (1 - 0.9**self._steps), v / (1 - 0.999**self._steps)
                w -= rate * m_hat / (np.sqrt(v_hat) + 1e-8)

    def _rescale_velocity(self, gradient: Params) -> None:
        self._rescale = False
        inner = sum(float((self._first[n] * g).sum()) for n, g in gradient.items() if n in self._first)
        m2 = sum(float((m * m).sum()) for m in self._first.values())
        g2 = sum(float((g * g).sum()) for g in gradient.values())
        cosine = inner / math.sqrt(m2 * g2) if m2 * g2 > 0.0 else 0.0
        for m in self._first.values():
            m *= max(0.0, cosine)

    def probe_loss(self, batch: Any) -> NDArray[np.float64]:
        """Per-example losses."""
        with np.errstate(all="ignore"):
            return np.asarray(self._losses(batch), dtype=np.float64)

    def refresh_statistics(self, batches: Iterable[Any]) -> None:
        """Analytic models have no normalisation statistics."""

    def snapshot(self) -> Any:
        """Copies of parameters, moments, step count and noise."""
        rng = getattr(self.model, "rng", None)
        return (
            {n: v.copy() for n, v in self.params.items()},
            {n: v.copy() for n, v in self._first.items()},
            {n: v.copy() for n, v in self._second.items()},
            self._steps,
            self._rescale,
            copy.deepcopy(rng.bit_generator.state) if rng is not None else None,
            self._rate_factor,
        )

    def restore(self, snapshot: Any) -> None:
        """Put a snapshot back."""
        params, first, second, steps, rescale, rng, rate_factor = snapshot
        shapes = {n: v.shape for n, v in params.items()}
        if shapes != {n: v.shape for n, v in self.params.items()}:
            raise SnapshotError(
                "a snapshot does not fit this model",
                where="restore",
                got=shapes,
                expected=str({n: v.shape for n, v in self.params.items()}),
                fix="restore only snapshots taken from the same model",
            )
        self._steps, self._rescale, self._rate_factor = steps, rescale, rate_factor
        for n, v in params.items():
            self.params[n][...] = v
        self._first = {n: v.copy() for n, v in first.items()}
        self._second = {n: v.copy() for n, v in second.items()}
        if rng is not None:
            self.model.rng.bit_generator.state = copy.deepcopy(rng)  # type: ignore[attr-defined]

    def snapshot_state(self, snapshot: Any) -> tuple[dict[str, NDArray[Any]], Any]:
        """Parameters and moments by name; the rest as plain data."""
        kinds = zip(("params", "first", "second"), snapshot[:3], strict=True)
        arrays = {f"{kind}.{name}": array for kind, group in kinds for name, array in group.items()}
        return arrays, snapshot[3:]

    def snapshot_from_state(self, arrays: Mapping[str, NDArray[Any]], data: Any) -> Any:
        """The snapshot again."""
        groups: dict[str, Params] = {"params": {}, "first": {}, "second": {}}
        for key, array in arrays.items():
            kind, _, name = key.partition(".")
            groups[kind][name] = array
        return (*groups.values(), *data)

    def export_weights(self, path: str) -> None:
        """Write the parameters by name, float64."""
        safetensors.save_file(self.params, path)

    def snapshot_nbytes(self) -> int:
        """Bytes of parameters and moments."""
        return sum(v.nbytes for d in (self.params, self._first, self._second) for v in d.values())

    def after_jump(self, deltas: Buckets) -> None:
        """Scale heavy-ball velocity by its cosine with the next gradient; keep Adam's moments."""
        self._rescale = self.optimizer.name == "momentum" and bool(self._first)

    @property
    def learning_rate(self) -> float:
        """The learning rate now."""
        return self._rate_factor * scheduled_rate(self.optimizer, max(self._steps - 1, 0))

    def scale_learning_rate(self, factor: float) -> None:
        """Multiply the learning rate, now and of all later steps."""
        self._rate_factor *= factor

    def clip_adaptively(self, ratio: float | None) -> None:
        """Clip the gradient of each unit to `ratio` times the norm of its weights; None ends it."""
        self._clip_ratio = ratio

    @property
    def momentum_memory(self) -> float:
        """Steps the first moment remembers."""
        beta = {"sgd": 0.0, "momentum": self.optimizer.momentum}.get(self.optimizer.name, 0.9)
        return 1.0 / (1.0 - beta)

    def moments(self) -> dict[str, float]:
        """Mean and deviation of the moments."""
        found: dict[str, float] = {}
        for key, buffers in (("m", self._first), ("v", self._second)):
            flat = np.concatenate([v.reshape(-1) for v in buffers.values()]) if buffers else np.zeros(1)
            found[f"{key}_mean"], found[f"{key}_std"] = float(flat.mean()), float(flat.std())
        return found

    def mean_scalar(self, value: float) -> float:
        """The value itself: one process."""
        return value

    def synchronize(self) -> None:
        """NumPy has finished when it returns."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing that snapshots do not hold."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""


def clip_units(
    gradient: NDArray[Any], weights: NDArray[Any], ratio: float, floor: float = 1e-3
) -> NDArray[Any]:
    """Adaptive gradient clipping (Brock et al. 2021, equation 3).

    ``g_i <- g_i ratio max(|w_i|, floor) / |g_i|`` where ``|g_i| > ratio max(|w_i|, floor)``; unit i is a row
    along the first axis, or the whole of a vector.

    Example:
        >>> clip_units(np.array([[3.0, 4.0], [0.03, 0.04]]), np.array([[1.0, 0.0], [0.0, 1.0]]), 0.1)
        array([[0.06, 0.08],
               [0.03, 0.04]])
    """
    axes = tuple(range(1, gradient.ndim)) if gradient.ndim > 1 else None
    size = np.sqrt((gradient * gradient).sum(axis=axes, keepdims=True))
    limit = ratio * np.maximum(np.sqrt((weights * weights).sum(axis=axes, keepdims=True)), floor)
    return np.asarray(np.where(size > limit, gradient * (limit / np.maximum(size, 1e-300)), gradient))


def scheduled_rate(optimizer: OptimizerSpec, step: int) -> float:
    """Learning rate after `step` real steps: linear warm-up, then constant, cosine or linear decay."""
    o = optimizer
    if step < o.warmup_steps:
        return o.learning_rate * (step + 1) / o.warmup_steps
    share = min(1.0, (step - o.warmup_steps) / max(1, o.total_steps - o.warmup_steps))
    if o.schedule == "cosine":
        return o.learning_rate * 0.5 * (1.0 + math.cos(math.pi * share))
    if o.schedule == "linear":
        return o.learning_rate * (1.0 - share)
    return o.learning_rate


def quadratic(
    seed: int,
    *,
    size: int = 20,
    condition: float = 10.0,
    noise: float = 0.0,
    optimizer: OptimizerSpec | None = None,
) -> ReferenceAdapter:
    """A quadratic with known optimum, curvatures log-spaced over `condition`, and its adapter.

    Args:
        seed: Seeds optimum, start and noise.
        size: Parameters.
        condition: Largest over smallest curvature; the largest is 1.
        noise: Gradient noise.
        optimizer: Plain SGD with rate 0.01 if None.
    """
    rng = np.random.default_rng(seed)
    curvature = np.logspace(-math.log10(condition), 0.0, size)
    model = Quadratic(curvature, rng.standard_normal(size), noise, rng)
    start = {"w": 3.0 * rng.standard_normal(size)}
    return ReferenceAdapter(model, start, optimizer or OptimizerSpec("sgd", 0.01))


class _NumpyFramework:
    """Framework entry ``numpy``."""

    name = "numpy"
    api_version = API_VERSION

    def owns(self, model: object) -> bool:
        """Whether it is an analytic model."""
        return isinstance(model, (Quadratic, SoftmaxRegression))

    def build(self, problem: Problem, device: str) -> TaskRun:
        """Build ``"quadratic"`` and ``"softmax"`` problems.

        Raises:
            TaskError: Any other model, or another device than the CPU.
        """
        if device != "cpu":
            raise TaskError(
                "the NumPy adapter runs on the CPU only",
                where="run.device",
                got=device,
                expected="cpu",
                fix='set run.device = "cpu", or choose another framework',
            )
        if problem.model == "softmax":
            adapter = ReferenceAdapter(SoftmaxRegression(), problem.weights, problem.optimizer)
        elif problem.model == "quadratic":
            model = Quadratic(**problem.shape)
            adapter = ReferenceAdapter(model, problem.weights, problem.optimizer)
        else:
            raise TaskError(
                f"the NumPy adapter has no model {problem.model!r}",
                where="run.framework",
                got=problem.model,
                expected="'softmax' or 'quadratic'",
                fix="choose task 'logistic' or 'quadratic', or an installed framework "
                "(pip install hybridcore-torch)",
            )

        def evaluate() -> dict[str, float]:
            losses = np.concatenate([adapter.probe_loss(b) for b in problem.validation])
            return {"loss": float(losses.mean())}

        return TaskRun(adapter, problem.batches(), problem.probes, evaluate)

    def versions(self) -> dict[str, str]:
        """NumPy's version."""
        return {"numpy": np.__version__}

    def devices(self) -> tuple[str, ...]:
        """The CPU."""
        return ("cpu",)


FRAMEWORK = _NumpyFramework()
"""Entry point ``numpy`` of the group ``hybridcore.adapters``."""

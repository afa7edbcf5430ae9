"""What adapters, predictors, controllers and tasks must offer; the meanings are the contract.

`hybridcore.testing` turns each meaning into a test that third parties can run against their own class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import IntEnum, StrEnum
from statistics import NormalDist
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import attrs
import numpy as np
from numpy.typing import NDArray

from hybridcore.layout import Array, Buckets, ParamGroup, ParamLayout

if TYPE_CHECKING:
    from hybridcore.correction.compression import CompressedBuckets
    from hybridcore.correction.store import ResidualStore
    from hybridcore.history import History
    from hybridcore.state import EngineState

__all__ = [
    "API_VERSION",
    "Action",
    "Adapter",
    "Array",
    "ArrayRef",
    "Buckets",
    "CheckpointAdapter",
    "ClippingAdapter",
    "Controller",
    "Correction",
    "Corrector",
    "Dynamics",
    "EncodedBuckets",
    "Ensemble",
    "Framework",
    "KernelSet",
    "LinearisingPredictor",
    "MeasuringPredictor",
    "Monitor",
    "OptimizerSpec",
    "Outcome",
    "Phase",
    "Prediction",
    "Predictor",
    "Problem",
    "RateAdapter",
    "Residual",
    "ResidualAdapter",
    "Runs",
    "Signal",
    "SignalLevel",
    "Situation",
    "Snapshot",
    "StepOutcome",
    "StepRecord",
    "StepResult",
    "Task",
    "TaskRun",
    "Tracker",
]

API_VERSION = 1
"""Version of these protocols; a plugin carries the one it was written for as ``api_version``."""


class Phase(StrEnum):
    """Phases of a run (F1)."""

    WARMUP = "warmup"
    FULL = "full"
    PREDICT = "predict"
    CORRECT = "correct"


@attrs.frozen(slots=True)
class StepResult:
    """What one real step did.

    Attributes:
        loss: Mean training loss of the batch before the update.
        grad_norm: Euclidean norm of the gradient the optimizer saw; NaN where it is not known.
        skipped: True when no update happened (non-finite loss or gradient, or a GradScaler skipped it).
        n_examples: Examples in the batch; 0 where it is not known.
        backward_passes: Backward passes it took (more than one under accumulation or with closures) (F49).
        overflow: A gradient scaler skipped the step while it looks for its scale; no sign of trouble.
        evaluations: Forward and backward passes over the whole batch, the unit of cost; more than one where
            the optimizer evaluates a closure.
    """

    loss: float
    grad_norm: float = float("nan")
    skipped: bool = False
    n_examples: int = 0
    backward_passes: int = 1
    overflow: bool = False
    evaluations: int = 1


@attrs.frozen(slots=True)
class StepRecord:
    """One real step as predictors and monitors see it.

    Attributes:
        step: Real steps taken so far, this one included.
        phase: Phase in which the step was taken.
        loss: Mean training loss before the update.
        grad_norm: Gradient norm.
        learning_rate: The optimizer's learning rate at this step.
        seconds: Wall-clock seconds of the step.
        expected_loss: Loss that the prediction under trial promised for this step; NaN without one.
        skipped: The adapter took no update, since loss or gradient were not finite.
    """

    step: int
    phase: Phase
    loss: float
    grad_norm: float
    learning_rate: float
    seconds: float
    expected_loss: float = float("nan")
    skipped: bool = False


Snapshot = Any
"""An adapter's own immutable copy of parameters, optimizer state, buffers, scaler, scheduler and RNG."""


@runtime_checkable
class Adapter(Protocol):
    """Bridge to one framework's model and optimizer. `AdapterContract` tests every sentence here.

    Attributes:
        name: Registry name, for example ``"torch"``.
        api_version: `API_VERSION` it was written for.
        xp: Array API namespace of the buckets it hands out.
        device: Name of the device the buckets lie on.
        capabilities: Names of what it can do beyond the minimum, for example ``"closure"``.
        layout: How the trainable parameters lie in buckets. Frozen parameters are absent; tied weights
            appear once.
    """

    name: str
    api_version: int
    xp: ModuleType
    device: str
    capabilities: frozenset[str]
    layout: ParamLayout

    def read_params(self, out: Buckets | None = None) -> Buckets:
        """Copy of the weights as float32 buckets, never a view of the model.

        Args:
            out: Buckets that may be reused for the result; use the return value all the same.
        """
        ...

    def add_params(self, into: Buckets, weight: float = 1.0, decay: float = 1.0) -> Buckets:
        """``decay * into + weight * params`` in one pass; `into` may be reused, use the return value."""
        ...

    def write_params(self, buckets: Buckets) -> None:
        """Set the weights to `buckets`, cast to the model's dtypes; nothing else changes."""
        ...

    def apply_delta(
        self, deltas: Buckets, scale: float = 1.0, groups: Mapping[ParamGroup, float] | None = None
    ) -> None:
        """Add ``scale * groups[g] * delta`` to every parameter of group g (missing groups count 1.0).

        Keeps the optimizer, graphs and wrappers valid and builds no autograd graph (F60).

        Raises:
            DeltaError: Buckets do not fit the layout; the weights are unchanged (F22).
        """
        ...

    def weights(self, buckets: Buckets) -> AbstractContextManager[None]:
        """Context in which the model has these weights; on exit the former ones are back bit for bit."""
        ...

    def train_step(self, batch: Any) -> StepResult:
        """One forward, backward and optimizer update by the framework itself.

        A non-finite loss or gradient changes nothing and gives ``skipped=True`` (F41).

        Raises:
            BatchError: The batch has a form the model cannot take.
        """
        ...

    def probe_loss(self, batch: Any) -> NDArray[np.float64]:
        """Per-example losses, shape (n,), forward only, in evaluation mode.

        Builds no graph and leaves parameters, buffers, RNG and training mode untouched.
        """
        ...

    def refresh_statistics(self, batches: Iterable[Any]) -> None:
        """Re-estimate normalisation statistics by forwards over `batches`; nothing else changes (F86)."""
        ...

    def snapshot(self) -> Snapshot:
        """Copy of everything a step can change: parameters, optimizer, buffers, scaler, scheduler, RNG."""
        ...

    def restore(self, snapshot: Snapshot) -> None:
        """Put a snapshot back bit for bit; it stays valid for further restores.

        Raises:
            SnapshotError: It was taken from a model with another layout.
        """
        ...

    def snapshot_nbytes(self) -> int:
        """Bytes that one snapshot takes now."""
        ...

    def after_jump(self, deltas: Buckets) -> None:
        """Adjust the optimizer's own state after a predicted change (F59); by default state is kept."""
        ...

    @property
    def learning_rate(self) -> float:
        """Learning rate of the optimizer's first group, now."""
        ...

    @property
    def momentum_memory(self) -> float:
        """Steps the optimizer's first moment remembers, ``1 / (1 - beta1)``; 1.0 without momentum."""
        ...

    def moments(self) -> dict[str, float]:
        """Mean and standard deviation of the optimizer's moments: keys m_mean, m_std, v_mean, v_std (F9)."""
        ...

    def mean_scalar(self, value: float) -> float:
        """Mean of a scalar over all ranks, so that all decide alike; the value itself on one process."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has finished, so that clocks tell the truth."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Adapter-level state that snapshots do not hold (counters), as plain data."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        ...


@runtime_checkable
class ResidualAdapter(Protocol):
    """What an adapter with the capability ``"residuals"`` offers: losses that are squares of residuals."""

    def linearise_residuals(
        self, batch: Any, directions: Sequence[Buckets]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Residuals r (n,) whose squares are `Adapter.probe_loss`, and their derivatives (n, k).

        Forward-mode differentiation along k changes of the weights, in evaluation mode; nothing changes.
        """
        ...


@runtime_checkable
class RateAdapter(Adapter, Protocol):
    """An adapter with the capability ``"learning-rate"``: the engine may change the learning rate (F40)."""

    def scale_learning_rate(self, factor: float) -> None:
        """Multiply the learning rate of every parameter group by `factor`, from the next step on.

        A schedule goes on from the scaled rate: all its later rates are `factor` times what they would have
        been. The change belongs to the state that `snapshot` copies and `restore` puts back.

        Args:
            factor: Above 0; ``scale_learning_rate(0.5)`` and then ``scale_learning_rate(2.0)`` changes
                nothing, bit for bit.
        """
        ...


@runtime_checkable
class ClippingAdapter(Adapter, Protocol):
    """An adapter with the capability ``"adaptive-clipping"`` (F69)."""

    def clip_adaptively(self, ratio: float | None) -> None:
        """Clip gradients unit by unit before each update of `train_step`, or no more where `ratio` is None.

        Adaptive gradient clipping (Brock et al. 2021, High-Performance Large-Scale Image Recognition
        Without Normalization, equation 3): the gradient of a unit, a row of a matrix or a whole vector, is
        shortened to ``ratio * max(norm of the unit's weights, 1e-3)`` where it is longer. The setting is
        none of the state that `snapshot` copies.
        """
        ...


@attrs.frozen(slots=True)
class ArrayRef:
    """Place of an array in the plain data of a snapshot.

    Attributes:
        key: Its name among the arrays.
        dtype: The framework's own name of its dtype, where NumPy has no such dtype or none is enough.
        device: The framework's own name of its device.
    """

    key: str
    dtype: str = ""
    device: str = ""


@runtime_checkable
class CheckpointAdapter(Adapter, Protocol):
    """An adapter with the capability ``"checkpoints"``: its snapshots can leave the process (F53)."""

    def snapshot_state(self, snapshot: Snapshot) -> tuple[Mapping[str, NDArray[Any]], Any]:
        """Take a snapshot apart.

        Returns:
            NumPy arrays by name, of a numeric or boolean dtype, bit for bit (other dtypes as the bits of a
            type of the same size); and plain data: numbers, text, None, `ArrayRef`, and lists, tuples and
            dictionaries of them.
        """
        ...

    def snapshot_from_state(self, arrays: Mapping[str, NDArray[Any]], data: Any) -> Snapshot:
        """The snapshot that `snapshot_state` took apart, also in another process.

        Raises:
            SnapshotError: It does not fit this model and optimizer.
        """
        ...

    def export_weights(self, path: str) -> None:
        """Write the weights of now as the framework's own users read them, into one safetensors file."""
        ...


@attrs.frozen(slots=True)
class Prediction:
    """A proposed weight change.

    Attributes:
        deltas: Float32 buckets. The proposed change is ``scale * deltas`` and is worth `horizon` optimizer
            steps; it may point backward (averaging).
        horizon: Optimizer steps it stands for.
        confidence: In [0, 1].
        scale: Multiplier of `deltas`, so that scaling costs no pass over the weights.
        predicted_loss: Training loss expected after the change, or None.
    """

    deltas: Buckets
    horizon: float
    confidence: float
    scale: float = 1.0
    predicted_loss: float | None = None


@runtime_checkable
class Predictor(Protocol):
    """Proposes directions from weight history. `PredictorContract` tests every sentence here.

    The class carries ``name`` (kebab-case registry name), ``api_version``, ``needs`` (what the history
    must keep: any of ``"last-update"``, ``"window-means"``, ``"straightness"``, ``"reach"``) and optionally

    - ``Config``, an attrs class whose fields are the keys of the table ``[predictor.<name>]``;
    - ``windows``, an int of the class or the instance: window means it wants. The history keeps the most of
      what is wanted and ``history.windows``, or fewer where the memory budget ends;
    - ``predict_with``, see `MeasuringPredictor`.
    """

    name: ClassVar[str]
    api_version: ClassVar[int]
    needs: ClassVar[frozenset[str]]

    def reset(self, layout: ParamLayout, rng: np.random.Generator) -> None:
        """Forget everything and prepare for a model of this layout."""
        ...

    def observe(self, record: StepRecord) -> None:
        """Hear of a real step."""
        ...

    def ready(self, history: History) -> bool:
        """Whether `predict` would have enough to go by."""
        ...

    def predict(self, history: History, horizon: float, xp: ModuleType) -> Prediction:
        """Propose the change worth `horizon` more optimizer steps; never writes to history's arrays."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """State as plain data and arrays."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        ...


@runtime_checkable
class MeasuringPredictor(Predictor, Protocol):
    """A predictor that measures losses at weights of its choice before it proposes a change."""

    def predict_with(
        self, history: History, horizon: float, xp: ModuleType, measure: Callable[[Buckets], float]
    ) -> Prediction:
        """Like `predict`, which the engine calls instead where there are no probe examples.

        Args:
            history: The history.
            horizon: Optimizer steps that the change should be worth.
            xp: Array namespace of the buckets.
            measure: Mean probe loss of the current weights plus the buckets given. Each call is booked as
                one probe, and leaves the weights as they are.
        """
        ...


@runtime_checkable
class LinearisingPredictor(Predictor, Protocol):
    """A predictor that uses the residuals of the probe examples, where the adapter has ``"residuals"``."""

    def predict_linearised(
        self,
        history: History,
        horizon: float,
        xp: ModuleType,
        linearise: Callable[[Sequence[Buckets]], tuple[NDArray[np.float64], NDArray[np.float64]]],
        measure: Callable[[Buckets], float],
    ) -> Prediction:
        """Like `predict`, which the engine calls instead where there are no residuals or probe examples.

        Args:
            history: The history.
            horizon: Optimizer steps that the change should be worth.
            xp: Array namespace of the buckets.
            linearise: Residuals (n,) of all probe examples at the current weights, and their derivatives
                (n, k) along k changes; booked as a forward pass and two more for each direction.
            measure: See `MeasuringPredictor`.
        """
        ...


@attrs.frozen(slots=True, eq=False)
class Situation:
    """Where the run is when a change is about to be applied.

    Attributes:
        step: Real steps so far.
        features: `hybridcore.state.Statistics.features`, shape (28,), float64.
        predictor: Registry name of the predictor that proposes the change.
        horizon: Optimizer steps that the change should be worth.
        loss: Average training loss now; the unit of all loss changes.
        predicted_change: Loss after the change minus loss before it, as the predictor, or the slope of the
            loss curve, has it; NaN while unknown.
    """

    step: int
    features: NDArray[np.float64]
    predictor: str
    horizon: float
    loss: float
    predicted_change: float


@attrs.frozen(slots=True, eq=False)
class Residual:
    """What a prediction said and what became of it.

    Attributes:
        situation: Where the run was.
        realised_change: Loss right after the change minus loss before it; NaN where it was not measured.
        groups: Per group of parameters, the inner products ``<r, p>`` and ``<p, p>`` of the realised and the
            predicted displacement per optimizer step: r of the real steps after the change, p of the change
            itself; empty where they were not measured.
        weights: ``r - p`` per step in low rank; None where it is not kept.
    """

    situation: Situation
    realised_change: float
    groups: Mapping[ParamGroup, tuple[float, float]] = attrs.field(factory=dict)
    weights: CompressedBuckets | None = None


@attrs.frozen(slots=True)
class Correction:
    """What a corrector makes of a prediction; the default changes nothing.

    Attributes:
        scale: Multiplier of the whole change.
        gains: Multiplier per group of parameters, on top of `scale`; missing groups count 1.0.
        residual: Change per optimizer step to be added, float32 buckets, or None.
        predicted_change: Corrected loss change of the prediction as it was proposed; NaN while unknown.
    """

    scale: float = 1.0
    gains: Mapping[ParamGroup, float] = attrs.field(factory=dict)
    residual: Buckets | None = None
    predicted_change: float = float("nan")

    @property
    def neutral(self) -> bool:
        """Whether it leaves the change as it is."""
        return self.scale == 1.0 and self.residual is None and all(g == 1.0 for g in self.gains.values())


@runtime_checkable
class Corrector(Protocol):
    """Learns from residuals and corrects later predictions. `CorrectorContract` tests every sentence here.

    ``Config`` keys live in ``[correction.<name>]``. The class carries two facts that save work where they
    are False: ``measures_weights``, whether it reads `Residual.groups`, and ``rank``, of the class or the
    instance, the rank of the weight residual that it wants, 0 for none.
    """

    name: ClassVar[str]
    api_version: ClassVar[int]
    measures_weights: ClassVar[bool]

    def reset(self, layout: ParamLayout, store: ResidualStore) -> None:
        """Forget everything and prepare for a model of this layout; the store holds what was observed."""
        ...

    def observe(self, residual: Residual) -> None:
        """Hear of a prediction's outcome; the store has it too. Non-finite numbers teach nothing."""
        ...

    def correct(
        self, prediction: Prediction, situation: Situation, history: History, xp: ModuleType
    ) -> Correction:
        """Correct a prediction; every number is finite, and without observations nothing is changed."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """State as plain data and arrays."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        ...


@attrs.frozen(slots=True)
class Action:
    """What a controller wants next.

    Attributes:
        phase: Phase to enter. FULL and CORRECT take real steps; PREDICT applies a predicted change.
        length: Batches the phase lasts: real steps (FULL, CORRECT) or predicted steps (PREDICT, mode "step").
        reason: One line for the trace.
        predictor: Registry name; PREDICT only.
        horizon: Optimizer steps the change should be worth; PREDICT only.
        settle: Real steps from the first jump of a trial to its verdict; PREDICT only. Later jumps inside
            an open trial belong to it.
        judge: How the verdict is taken: ``"probe"`` (paired losses of window-averaged weights) or
            ``"guard"`` (only the one-sided loss guard; costs no forward passes).
        continuous: The jump follows every real step of the trial, so that the path has no break: windows
            run across it, and the optimizer's state needs no adjustment.
        averaged: Whether window means are kept during the trial; a controller that judges only some trials
            of a row by probe needs them there and in the trial before.
        observe: Whether the history watches the phase's real steps; None leaves that to the engine.
    """

    phase: Phase
    length: int
    reason: str
    predictor: str | None = None
    horizon: float = 0.0
    settle: int = 0
    judge: str = "probe"
    continuous: bool = False
    averaged: bool = True
    observe: bool | None = None


@attrs.frozen(slots=True)
class Outcome:
    """How a trial, or a refused jump, ended.

    Attributes:
        kept: The jumps stand; False means refused or rolled back.
        predictor: Which predictor proposed them.
        horizon: Horizon asked for, per jump.
        jumps: Jumps applied in the trial.
        real_steps: Real steps of the trial.
        gain: Loss below the reference curve at equal cost (positive is good); NaN without a probe.
        gain_error: Standard error of `gain`; NaN without a probe.
        credit_steps: `gain` in step equivalents of the reference curve's slope; 0 when not kept.
        credit_seconds: The same in seconds.
        straightness: Cosine between the last two window displacements; NaN when not known.
        reason: One line.
        quickening: Fall of the probe loss per real step, less that of the trial just before; NaN where not
            both were judged by probe.
        quickening_error: Its standard error.
        behind_steps: Real steps that a kept trial is behind the reference curve; 0 where it is not.
    """

    kept: bool
    predictor: str
    horizon: float
    jumps: int
    real_steps: int
    gain: float
    gain_error: float
    credit_steps: float
    credit_seconds: float
    straightness: float
    reason: str
    quickening: float = float("nan")
    quickening_error: float = float("nan")
    behind_steps: float = 0.0


@runtime_checkable
class Controller(Protocol):
    """Chooses the next action at each phase boundary. ``Config`` keys live in ``[controller.<name>]``.

    The class carries ``needs`` like a predictor does.
    """

    name: ClassVar[str]
    api_version: ClassVar[int]
    needs: ClassVar[frozenset[str]]

    def choose(self, state: EngineState) -> Action:
        """Next action; the phase machine may turn a PREDICT into FULL when the rules say so."""
        ...

    def proceed(self, state: EngineState) -> bool:
        """Whether a Predict phase in mode ``"step"`` goes on; asked before each predicted step (F5)."""
        ...

    def feedback(self, outcome: Outcome) -> None:
        """Hear how a trial, or a refused jump, ended."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """State as plain data."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        ...


@attrs.frozen(slots=True)
class StepOutcome:
    """What followed an action.

    Attributes:
        loss: Training loss one observation later.
        seconds: Wall-clock seconds per real step until then.
    """

    loss: float
    seconds: float


@attrs.frozen(slots=True, eq=False)
class Rollout:
    """Forecast of the training losses that follow an action; entry j - 1 is for j observations ahead (F15).

    Attributes:
        mean: Expected loss, shape (horizon,).
        epistemic: Variance for want of knowledge: what the members of an ensemble disagree by.
        aleatoric: Variance of the loss's own noise, as predicted. Both are calibrated on recent errors (F16).
        seconds: Expected seconds of one real step.
        confidence: In [0, 1]: probability that the last loss lies within two running deviations of its
            forecast, as often as it recently did; 0 before there are errors to learn that from (F17).
    """

    mean: NDArray[np.float64]
    epistemic: NDArray[np.float64]
    aleatoric: NDArray[np.float64]
    seconds: NDArray[np.float64]
    confidence: float

    def interval(self, coverage: float = 0.9) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower and upper ends of the central interval that holds this share of the losses."""
        reach = NormalDist().inv_cdf(0.5 + coverage / 2.0) * np.sqrt(self.epistemic + self.aleatoric)
        return self.mean - reach, self.mean + reach


@runtime_checkable
class Dynamics(Protocol):
    """Foretells the loss under an action, learning online. `DynamicsContract` tests every sentence here.

    Time is counted in observations; one stands for a fixed number of real steps. Losses may have any
    scale: multiplying all of them by a constant multiplies forecasts by it and leaves confidence as it is.
    ``Config`` keys live in ``[dynamics.<name>]``. No decision depends on a clock, so that the same seed and
    the same losses give the same forecasts bit for bit (F72).
    """

    name: ClassVar[str]
    api_version: ClassVar[int]

    def reset(
        self, predictors: Sequence[str], rng: np.random.Generator, xp: ModuleType, memory_bytes: int
    ) -> None:
        """Forget everything.

        Args:
            predictors: Registry names that actions may carry.
            rng: Source of all randomness.
            xp: Array namespace to compute in.
            memory_bytes: Upper bound of `nbytes`; fewer observations are remembered to stay inside.

        Raises:
            MemoryBudgetError: It does not fit, even at its smallest.
        """
        ...

    def observe(self, features: NDArray[np.float64], action: Action, outcome: StepOutcome) -> None:
        """Remember one observation; cheap, learns nothing yet.

        Args:
            features: `Statistics.features` before the action, shape ``(len(FEATURE_NAMES),)``.
            action: What was done.
            outcome: What came of it.
        """
        ...

    def interrupt(self) -> None:
        """The path breaks here (a rollback): what comes next does not follow from what came before."""
        ...

    def train(self, updates: int) -> int:
        """Calibrate on what is new, then take at most so many training updates; gives those taken."""
        ...

    def rollout(self, features: NDArray[np.float64], action: Action, horizon: int) -> Rollout:
        """Forecast if `action` is taken now and real steps follow; changes nothing but `confidence`.

        Args:
            features: Of now, right after the newest observation.
            action: What would be done.
            horizon: Observations ahead, at least 1.
        """
        ...

    @property
    def confidence(self) -> float:
        """That of the newest rollout; 0 before the first."""
        ...

    @property
    def samples(self) -> int:
        """Observations remembered now."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of everything kept (F51)."""
        ...

    @property
    def flops_per_update(self) -> float:
        """Floating-point operations of one update, about; what training is budgeted by."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """State as plain data and NumPy arrays, random generators included."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave, so that all that follows is equal bit for bit."""
        ...


class SignalLevel(IntEnum):
    """How bad a signal is."""

    CAUTION = 1
    WARNING = 2
    CRITICAL = 3

    @property
    def word(self) -> str:
        """Lower-case name, as events and configurations write it."""
        return self.name.lower()


@attrs.frozen(slots=True)
class Signal:
    """What a monitor has found.

    Attributes:
        level: How bad it is.
        name: Registry name of the monitor.
        value: What was measured.
        limit: The limit of this level that `value` is beyond.
    """

    level: SignalLevel
    name: str
    value: float
    limit: float


@runtime_checkable
class Monitor(Protocol):
    """Watches real steps for one sign of divergence. `MonitorContract` tests every sentence here.

    ``Config`` keys live in ``[divergence.<name>]``. A class with ``every_step = True`` is checked after each
    real step, every other one after each ``divergence.check_every`` steps.
    """

    name: ClassVar[str]
    api_version: ClassVar[int]

    def observe(self, record: StepRecord) -> None:
        """Take in one real step; a non-finite loss or gradient norm leaves no trace in any baseline."""
        ...

    def check(self, record: StepRecord) -> Signal | None:
        """The worst that was seen since the last check, or None.

        Args:
            record: The latest step, already observed.
        """
        ...

    def reset(self) -> None:
        """Forget everything."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """State as plain data."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        ...


Runs = Sequence[tuple[ParamGroup, int, slice]]
"""``(group, bucket, slice)`` of contiguous stretches of one group, as `ParamLayout.group_slices` gives."""


@attrs.frozen
class EncodedBuckets:
    """Buckets in fewer bytes (F65).

    Attributes:
        dtype: ``"bfloat16"`` or ``"int8"``.
        codes: One 1-D array per bucket: bfloat16 (uint16 bit patterns where the namespace has no bfloat16)
            or int8.
        scales: One 1-D float32 array per bucket, a scale for each block of 256 numbers; empty for bfloat16.
    """

    dtype: str
    codes: Buckets
    scales: Buckets = ()


@attrs.frozen
class Ensemble:
    """Weights of E recurrent models, each a GRU cell with a linear read-out; float32 arrays.

    Gates are ordered reset, update, candidate (Cho et al. 2014, with the reset gate applied after the
    recurrent product, as in cuDNN)::

        r, z = sigmoid(x W + b + h U + c)    n = tanh(x W + b + r * (h U + c))
        h' = (1 - z) * n + z * h             y = h' V + d

    Attributes:
        inputs: W, shape (E, I, 3 H).
        recurrent: U, shape (E, H, 3 H).
        input_bias: b, shape (E, 3 H).
        recurrent_bias: c, shape (E, 3 H).
        readout: V, shape (E, H, O).
        readout_bias: d, shape (E, O).
    """

    inputs: Array
    recurrent: Array
    input_bias: Array
    recurrent_bias: Array
    readout: Array
    readout_bias: Array


@runtime_checkable
class KernelSet(Protocol):
    """Fused operations on buckets; `hybridcore.kernels.ReferenceKernels` says what each one must give.

    No operation writes to its arguments, so that one that fails can be repeated by the reference.
    Operations that give Python numbers wait for the device once; all others only queue work on the
    framework's current stream. Where they must not be trusted to be right or fast, the engine measures:
    see `hybridcore.kernels.choose`.
    """

    name: ClassVar[str]
    api_version: ClassVar[int]

    def supports(self, xp: ModuleType, device: str, dtype: str) -> bool:
        """Whether arrays of this namespace, on this device and of this dtype, can be worked on here."""
        ...

    def products(self, a: Buckets, b: Buckets, xp: ModuleType) -> tuple[float, float, float]:
        """``|a|^2``, ``|b|^2`` and ``a . b``."""
        ...

    def distance(self, a: Buckets, b: Buckets, xp: ModuleType) -> float:
        """``|a - b|``."""
        ...

    def gram(self, vectors: Sequence[Buckets], xp: ModuleType) -> NDArray[np.float64]:
        """Inner products of all pairs, shape (k, k)."""
        ...

    def combine(self, vectors: Sequence[Buckets], weights: Sequence[float], xp: ModuleType) -> Buckets:
        """Sum of ``weights[i] * vectors[i]``, new buckets."""
        ...

    def window_mean(
        self, total: Buckets, count: int, previous: Buckets | None, xp: ModuleType
    ) -> tuple[Buckets, Buckets | None]:
        """Mean ``total / count`` of a window and its displacement from the `previous` window's mean."""
        ...

    def displace(
        self, newer: Buckets, older: Buckets, last: Buckets | None, xp: ModuleType
    ) -> tuple[Buckets, tuple[float, float, float] | None]:
        """``d = newer - older``, and with `last` also ``|d|^2``, ``|last|^2`` and ``d . last``."""
        ...

    def run_norms(self, buckets: Buckets, runs: Runs, xp: ModuleType) -> list[float]:
        """Euclidean norm of each run."""
        ...

    def apply_jump(
        self,
        weights: Buckets,
        deltas: Buckets,
        runs: Runs,
        scales: Mapping[ParamGroup, float],
        cap: float,
        xp: ModuleType,
    ) -> tuple[Buckets, dict[ParamGroup, float]]:
        """``weights + f_g * deltas`` and the factors ``f_g`` used, new buckets.

        ``f_g`` is ``scales[g]``, shortened where ``|f_g| |d_g|`` exceeds ``cap * max(|w_g|, 0.01 |w|)``.
        Where a delta or weight is not finite, every factor is NaN and the weights come back as they were.
        """
        ...

    def encode(self, buckets: Buckets, dtype: str, seed: int, xp: ModuleType) -> EncodedBuckets:
        """Buckets as ``"bfloat16"`` (nearest, ties to even) or ``"int8"`` (stochastic rounding by `seed`)."""
        ...

    def decode(self, encoded: EncodedBuckets, xp: ModuleType) -> Buckets:
        """Float32 buckets again."""
        ...

    def compress(self, matrix: Array, rank: int, seed: int, xp: ModuleType) -> tuple[Array, Array]:
        """Factors (m, r) and (r, n) whose product is close to `matrix` (m, n), r = min(rank, m, n)."""
        ...

    def rollout(
        self, ensemble: Ensemble, hidden: Array, actions: Array, output: Array, xp: ModuleType
    ) -> tuple[Array, Array]:
        """Closed-loop prediction: each step's input is the last output beside that step's action.

        Args:
            ensemble: E models with ``I = O + A`` inputs.
            hidden: State before the first step, shape (E, B, H).
            actions: Shape (T, B, A), shared by all models.
            output: Output before the first step, shape (E, B, O).
            xp: Array namespace.

        Returns:
            Outputs, shape (T, E, B, O), and the last state, shape (E, B, H).
        """
        ...


@runtime_checkable
class Tracker(Protocol):
    """Receives every event of a run; ``Config`` keys live in ``[trackers.<name>]``."""

    name: ClassVar[str]

    def on_event(self, event: str, payload: Mapping[str, Any]) -> None:
        """Hear one event."""
        ...

    def close(self) -> None:
        """Flush and release."""
        ...


@attrs.frozen
class TaskRun:
    """A task built for one framework and one seed.

    Attributes:
        adapter: Model and optimizer behind the adapter.
        batches: Endless training batches, the same for every framework and arm of this seed.
        probes: Held-out batches for probes; never overlap `evaluate`'s examples.
        evaluate: Mean validation loss, and other named metrics, of the current weights.
        schedule_step: Called after every real step (learning-rate schedule); None without one.
    """

    adapter: Adapter
    batches: Iterator[Any]
    probes: tuple[Any, ...]
    evaluate: Any
    schedule_step: Any = None


@runtime_checkable
class Task(Protocol):
    """Data, model and optimizer of a training problem; ``Config`` keys live in ``[task]``."""

    name: ClassVar[str]
    frameworks: ClassVar[tuple[str, ...]]

    def build(self, framework: str, seed: int, device: str = "cpu") -> TaskRun:
        """Build it.

        Raises:
            TaskError: The framework is not served, or its data is not installed.
        """
        ...


@runtime_checkable
class Framework(Protocol):
    """What an entry point of the group ``hybridcore.adapters`` loads to: one object per framework.

    Attributes:
        name: Registry name, equal to the entry point's name.
        api_version: `API_VERSION` it was written for.
    """

    name: str
    api_version: int

    def owns(self, model: object) -> bool:
        """Whether `model` is one of this framework's; looks at the object only, never at ``sys.modules``."""
        ...

    def build(self, problem: Problem, device: str) -> TaskRun:
        """Model, optimizer and data of a built-in problem in this framework.

        Raises:
            TaskError: The framework does not know the problem's model or optimizer.
        """
        ...

    def versions(self) -> dict[str, str]:
        """Versions of the framework's packages, for `hybridcore doctor`."""
        ...

    def devices(self) -> tuple[str, ...]:
        """Names of the devices it can use now."""
        ...


@attrs.frozen
class OptimizerSpec:
    """An optimizer in words that every framework knows.

    Attributes:
        name: ``"sgd"``, ``"momentum"``, ``"adam"`` or ``"adamw"``.
        learning_rate: Peak learning rate.
        momentum: Heavy-ball coefficient; ``"momentum"`` only.
        weight_decay: Decoupled weight decay (``"adamw"``), L2 otherwise.
        schedule: ``"constant"``, ``"cosine"`` or ``"linear"`` decay to zero over `total_steps`.
        total_steps: Real steps of the schedule.
        warmup_steps: Linear learning-rate warm-up at its start.
    """

    name: str = "sgd"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"
    total_steps: int = 1000
    warmup_steps: int = 0


@attrs.frozen
class Problem:
    """A training problem without framework words; frameworks build models from it.

    Attributes:
        name: The task's registry name.
        model: ``"mlp"``, ``"cnn"``, ``"transformer"`` or ``"pinn"``, known to the framework.
        shape: The model's own sizes, for example ``{"widths": (784, 512, 512, 10)}``.
        weights: Initial weights, float32 arrays by dotted name, the same in every framework.
        optimizer: What trains it.
        batches: Makes the endless stream of training batches: tuples of NumPy arrays.
        probes: Held-out batches for probes.
        validation: Batches for evaluation, disjoint from training and probes.
        metrics: Names that `TaskRun.evaluate` returns; the first is the mean validation loss ``"loss"``.
    """

    name: str
    model: str
    shape: Mapping[str, Any]
    weights: Mapping[str, NDArray[np.float32]]
    optimizer: OptimizerSpec
    batches: Any
    probes: tuple[tuple[NDArray[Any], ...], ...]
    validation: tuple[tuple[NDArray[Any], ...], ...]
    metrics: tuple[str, ...] = ("loss",)

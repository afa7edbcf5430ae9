"""Configuration of a run: one attrs class per TOML table; every field changes behaviour (F55, F57)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import attrs

from hybridcore.errors import RecoveryAction

__all__ = [
    "AutotuneConfig",
    "AverageConfig",
    "BudgetConfig",
    "CheckpointConfig",
    "ControllerConfig",
    "CorrectionConfig",
    "DynamicsConfig",
    "DivergenceConfig",
    "GroupsConfig",
    "HistoryConfig",
    "HybridConfig",
    "KernelsConfig",
    "MetricsConfig",
    "PhasesConfig",
    "PluginsConfig",
    "PredictorConfig",
    "ProbeConfig",
    "RecoveryConfig",
    "RunConfig",
    "TaskConfig",
    "TrackersConfig",
    "VerdictConfig",
    "between",
    "choice",
]


def between(
    low: float, high: float = math.inf, *, low_open: bool = False, high_open: bool = False
) -> Callable[[Any, Any, Any], None]:
    """Attrs validator: a number in the interval; the message names the interval.

    Args:
        low: Lower end.
        high: Upper end.
        low_open: Exclude `low`.
        high_open: Exclude `high`.
    """
    left, right = "(" if low_open else "[", ")" if high_open or high == math.inf else "]"
    text = f"a number in {left}{low:g}, {high:g}{right}"

    def check(instance: Any, attribute: Any, value: Any) -> None:
        inside = (value > low if low_open else value >= low) and (
            value < high if high_open else value <= high
        )
        if not inside:
            raise ValueError(f"out of range: got {value!r}, expected {text}")

    return check


def choice(*names: str) -> Callable[[Any, Any, Any], None]:
    """Attrs validator: one of `names`."""

    def check(instance: Any, attribute: Any, value: Any) -> None:
        if value not in names:
            raise ValueError(f"unknown choice: got {value!r}, expected one of {', '.join(map(repr, names))}")

    return check


@attrs.frozen(kw_only=True)
class RunConfig:
    """Table ``[run]``.

    Attributes:
        steps: Real optimizer steps (those with a backward pass).
        seed: Seeds initial weights, data order and the engine.
        framework: Registry name of the adapter.
        device: Device name in the framework's own words.
        dtype: Precision of the built-in tasks' weights and data: ``"float32"`` or ``"float64"``; the NumPy
            reference computes in float64 always. Where all weights are float64, so are histories, jumps and
            snapshots. JAX needs the environment variable ``JAX_ENABLE_X64=1`` for it.
        evaluate_every: Real steps between evaluations on the validation set.
        directory: Folder that receives one sub-folder per run.
    """

    steps: int = attrs.field(default=1000, validator=between(1))
    seed: int = attrs.field(default=0, validator=between(0, 2**31 - 1))
    framework: str = "torch"
    device: str = "cpu"
    dtype: str = attrs.field(default="float32", validator=choice("float32", "float64"))
    evaluate_every: int = attrs.field(default=50, validator=between(1))
    directory: str = "runs"


@attrs.frozen(kw_only=True)
class TaskConfig:
    """Table ``[task]``: `name` picks the task; all other keys are the task's own options.

    Attributes:
        name: Registry name, or ``module:function`` of your own.
        options: The table's other keys, checked by the task.
    """

    name: str = "digits-mlp"
    options: dict[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class PhasesConfig:
    """Table ``[phases]``: the rules of the cycle, whatever the controller wants.

    Attributes:
        warmup_steps: Real steps before anything is predicted.
        full_steps: Real steps of the mandatory Full block between warm-up and the first Predict.
        max_consecutive_predicts: Predict phases in a row (Correct between them) before a Full phase.
        predict_mode: ``"jump"`` applies a change between two real steps and consumes no batch;
            ``"step"`` spreads it over `predict_steps` batches that are consumed without a backward pass.
        predict_steps: Batches of a Predict phase in mode ``"step"``.
        forward_every: In mode ``"step"``, every this many predicted steps the loss is measured by a
            forward pass; 0 measures none.
    """

    warmup_steps: int = attrs.field(default=10, validator=between(0))
    full_steps: int = attrs.field(default=10, validator=between(1))
    max_consecutive_predicts: int = attrs.field(default=5, validator=between(1))
    predict_mode: str = attrs.field(default="jump", validator=choice("jump", "step"))
    predict_steps: int = attrs.field(default=5, validator=between(1))
    forward_every: int = attrs.field(default=0, validator=between(0))


@attrs.frozen(kw_only=True)
class ControllerConfig:
    """Table ``[controller]``: `name` picks it; the table ``[controller.<name>]`` holds its own keys.

    Attributes:
        name: Registry name.
        options: Own tables by registry name.
    """

    name: str = "credit"
    options: dict[str, dict[str, Any]] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class PredictorConfig:
    """Table ``[predictor]``: `name` picks it; the table ``[predictor.<name>]`` holds its own keys.

    Attributes:
        name: Registry name.
        options: Own tables by registry name.
    """

    name: str = "last-update"
    options: dict[str, dict[str, Any]] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class DynamicsConfig:
    """Table ``[dynamics]``: the model that foretells the loss; ``[dynamics.<name>]`` holds its own keys.

    Attributes:
        name: Registry name; ``"none"`` keeps no model.
        stride: Real steps per observation; features are worked out at every this many steps only.
        share: Share of the run's cost that training the model may take.
        max_updates: Most training updates at one phase boundary.
        count_seconds: Hold the share in wall-clock seconds as well as in floating-point operations. Without
            it no decision depends on a clock, and the same seed gives the same run (F72).
        memory_budget_mib: Upper bound in MiB for the model, its optimizer and all it remembers (F51).
        options: Own tables by registry name.
    """

    name: str = "none"
    stride: int = attrs.field(default=2, validator=between(1))
    share: float = attrs.field(default=0.005, validator=between(0.0, 1.0))
    max_updates: int = attrs.field(default=32, validator=between(0))
    count_seconds: bool = False
    memory_budget_mib: float = attrs.field(default=50.0, validator=between(0.0, low_open=True))
    options: dict[str, dict[str, Any]] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class CorrectionConfig:
    """Table ``[correction]``: learning from what became of predictions (F24 to F31).

    Attributes:
        name: Registry name of the corrector; the table ``[correction.<name>]`` holds its own keys.
        max_factor: A change is made longer or shorter by at most this share of itself, before it is applied
            by the corrector's scale, or afterwards by a correction.
        interval: In mode ``"step"``, predicted steps between micro-corrections; 0 makes none.
        capacity: Residuals kept; the oldest go.
        memory_budget_mib: Upper bound in MiB for the residuals kept; the oldest go (F51).
        store: Folder in which residuals outlive the run: read at its start, written at its end; none if
            empty.
        options: Own tables by registry name.
    """

    name: str = "none"
    max_factor: float = attrs.field(default=0.5, validator=between(0.0, 1.0))
    interval: int = attrs.field(default=0, validator=between(0))
    capacity: int = attrs.field(default=1000, validator=between(1))
    memory_budget_mib: float = attrs.field(default=50.0, validator=between(0.0, low_open=True))
    store: str = ""
    options: dict[str, dict[str, Any]] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class ProbeConfig:
    """Table ``[probe]``: forward-only losses on held-out examples (F81).

    Attributes:
        batches: Held-out batches that one probe reads; where the host gives none, the first this many
            training batches are remembered instead.
        tentative: Compare paired losses right before and after a jump, and undo one that is clearly worse.
        tolerance: Share of the loss by which the mean may rise in the tentative test; a jump that first
            raises the loss can still pay, so only clear damage is undone.
        confidence_z: Standard errors beyond the tolerance that count as clear.
    """

    batches: int = attrs.field(default=4, validator=between(1))
    tentative: bool = True
    tolerance: float = attrs.field(default=0.1, validator=between(0.0))
    confidence_z: float = attrs.field(default=2.0, validator=between(0.0))


@attrs.frozen(kw_only=True)
class VerdictConfig:
    """Table ``[verdict]``: the delayed judgement of a trial (F82).

    Attributes:
        confidence_z: A trial fails when its gain is below minus this many standard errors.
        guard_z: One-sided guard inside a trial: training losses this many deviations above the level before
            it, and above the peak of the last 32 losses, fail the trial: the second one, or one that is three
            times as far out.
        guard_factor: The guard also needs a loss above this multiple of that level.
    """

    confidence_z: float = attrs.field(default=2.0, validator=between(0.0))
    guard_z: float = attrs.field(default=6.0, validator=between(1.0))
    guard_factor: float = attrs.field(default=1.5, validator=between(1.0))


@attrs.frozen(kw_only=True)
class BudgetConfig:
    """Table ``[budget]``: what trying may cost (F83).

    Attributes:
        share: Share of the run's cost that probes, failed trials and restores may take unearned.
        credit_share: Share of the verified credit that may be spent on top.
        grace_steps: Real steps' worth of cost granted at the start, so that the first trials can happen.
        backoff_steps: Real steps of pause after a failed trial.
        backoff_factor: The pause grows by this factor with each failure in a row.
        max_backoff_steps: Longest pause.
        count_seconds: Hold the budget in wall-clock seconds as well as in step equivalents. Both are always
            counted; without this no decision depends on a clock, and the same seed gives the same run (F72).
    """

    share: float = attrs.field(default=0.02, validator=between(0.0, 1.0))
    credit_share: float = attrs.field(default=0.5, validator=between(0.0, 1.0))
    grace_steps: float = attrs.field(default=20.0, validator=between(0.0))
    backoff_steps: int = attrs.field(default=20, validator=between(0))
    backoff_factor: float = attrs.field(default=2.0, validator=between(1.0))
    max_backoff_steps: int = attrs.field(default=2000, validator=between(0))
    count_seconds: bool = False


@attrs.frozen(kw_only=True)
class HistoryConfig:
    """Table ``[history]``: what is remembered of the weights.

    Attributes:
        window: Real steps averaged into one window mean.
        windows: Window means kept.
        dtype: How window means are kept: ``"float32"``, whole (and in float64 where all weights are); or
            ``"bfloat16"``, half the memory, each number off by
            at most 2^-8 of itself; or ``"int8"``, about a quarter, each off by at most 1/127 of the largest
            of 256 neighbours, with no bias. Differences of means shrink with the learning rate, the errors
            do not, so that a coarse encoding fits the early part of a run.
        memory_budget_mib: Upper bound in MiB for window means, snapshots and work buffers together;
            fewer windows are kept to stay inside, and an error says so where even the least does not fit.
            0 takes half of what the device, or the host's memory, has free when the run starts (F66).
    """

    window: int = attrs.field(default=10, validator=between(1))
    windows: int = attrs.field(default=3, validator=between(2))
    dtype: str = attrs.field(default="float32", validator=choice("float32", "bfloat16", "int8"))
    memory_budget_mib: float = attrs.field(default=0.0, validator=between(0.0))


@attrs.frozen(kw_only=True)
class MemoryConfig:
    """Table ``[memory]``: what leaves an accelerator's memory; results are the same bit for bit.

    Attributes:
        snapshots: ``"device"`` keeps the copies that rollbacks need beside the model; ``"host"`` in pinned
            host memory, at the price of a transfer per trial.
        offload_optimizer: In Predict phases of mode ``"step"``, which need no optimizer, its state waits in
            host memory (F63).
    """

    snapshots: str = attrs.field(default="device", validator=choice("device", "host"))
    offload_optimizer: bool = False


@attrs.frozen(kw_only=True)
class KernelsConfig:
    """Table ``[kernels]``: who does the arithmetic on whole sets of weights.

    Attributes:
        name: ``"auto"`` times the installed kernel sets against the reference when a run starts on an
            accelerator, and takes each operation from where it is faster; ``"reference"`` is plain Array
            API; the registry name of a kernel set takes it wherever its results are right, untimed, so that
            no choice depends on a clock.
    """

    name: str = "auto"


@attrs.frozen(kw_only=True)
class GroupsConfig:
    """Table ``[groups]``: predicted changes per kind of parameter (F86).

    Attributes:
        matrix_scale: Multiplier of the predicted change for weight matrices and kernels.
        embedding_scale: The same for embeddings.
        norm_scale: The same for normalisation scales and shifts.
        bias_scale: The same for biases.
        max_relative_jump: Largest norm of one predicted change over the norm of the weights, per group;
            a longer one is shortened.
    """

    matrix_scale: float = attrs.field(default=1.0, validator=between(0.0))
    embedding_scale: float = attrs.field(default=1.0, validator=between(0.0))
    norm_scale: float = attrs.field(default=1.0, validator=between(0.0))
    bias_scale: float = attrs.field(default=1.0, validator=between(0.0))
    max_relative_jump: float = attrs.field(default=0.5, validator=between(0.0, low_open=True))


@attrs.frozen(kw_only=True)
class AverageConfig:
    """Table ``[average]``: the running mean of the weights as a second read-out (F85).

    Attributes:
        enabled: Keep the mean; costs one more copy of the weights and a share of a pass per step.
        share: Memory of the mean as a share of the real steps so far.
        max_memory: Longest memory, in real steps.
        every: Real steps between the samples that enter the mean.
    """

    enabled: bool = False
    share: float = attrs.field(default=0.1, validator=between(0.0, 1.0, low_open=True))
    max_memory: float = attrs.field(default=100.0, validator=between(1.0))
    every: int = attrs.field(default=4, validator=between(1))


_LEVELS = ("caution", "warning", "critical")


def _check_policy(instance: Any, attribute: Any, value: Any) -> None:
    """Attrs validator of `RecoveryConfig.policy`."""
    if not isinstance(value, dict):
        raise ValueError(f"wrong type: got {value!r}, expected a table of actions by monitor and level")
    actions = [action.value for action in RecoveryAction]
    for monitor, ladders in value.items():
        for level, ladder in ladders.items():
            if level not in _LEVELS:
                names = ", ".join(map(repr, _LEVELS))
                raise ValueError(f"unknown level of {monitor}: got {level!r}, expected one of {names}")
            for action in ladder or ("an empty list",):
                if action not in actions:
                    names = ", ".join(map(repr, actions))
                    where = f"unknown action for {monitor}.{level}"
                    raise ValueError(f"{where}: got {action!r}, expected one of {names}")


@attrs.frozen(kw_only=True)
class DivergenceConfig:
    """Table ``[divergence]``: the monitors' own keys live in ``[divergence.<name>]`` (F32-F36).

    Attributes:
        monitors: Registry names of the monitors that watch the run; none for an empty list.
        check_every: Real steps between two checks; `non-finite` looks at every step.
        escalate_after: Warnings of one monitor at this many checks in a row are critical.
        options: Own tables by registry name.
    """

    monitors: tuple[str, ...] = (
        "non-finite",
        "loss-deviation",
        "gradient-norm",
        "prediction-error",
        "oscillation",
        "plateau",
    )
    check_every: int = attrs.field(default=10, validator=between(1))
    escalate_after: int = attrs.field(default=3, validator=between(1))
    options: dict[str, dict[str, Any]] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class RecoveryConfig:
    """Table ``[recovery]``: what is done about signals of divergence (F37-F43).

    Attributes:
        policy: Actions by monitor and level, as in ``[recovery.policy.<monitor>]``; the first signal takes
            the first action of the list, a repeated one the next. What is not named keeps its default.
        forget_after: Real steps without a warning after which signals count as first ones again.
        snapshot_every: Real steps between two snapshots of a good state; 0 keeps none, so that nothing can be
            rolled back. Two are held, within ``history.memory_budget_mib``.
        prove_after: Real steps without a warning after which a snapshot counts as good.
        max_rollbacks: Rollbacks without `forget_after` good steps between them before the run is aborted.
        learning_rate_factor: A rollback retries at this multiple of the learning rate, the next one at its
            square; after every `forget_after` good steps one factor is taken back.
        predict_ratio: Multiplier of horizons after the action ``reduce-predict-ratio``.
        full_steps: Real steps of a forced Full block.
        raise_threshold: Confidence that predictions need on top after ``raise-confidence-threshold``.
        relax_steps: Real steps in which a reduced ratio and a raised threshold return by a factor of e.
    """

    policy: dict[str, dict[str, tuple[str, ...]]] = attrs.field(factory=dict, validator=_check_policy)
    forget_after: int = attrs.field(default=200, validator=between(1))
    snapshot_every: int = attrs.field(default=100, validator=between(0))
    prove_after: int = attrs.field(default=20, validator=between(1))
    max_rollbacks: int = attrs.field(default=3, validator=between(0))
    learning_rate_factor: float = attrs.field(default=0.5, validator=between(0.0, 1.0, low_open=True))
    predict_ratio: float = attrs.field(default=0.5, validator=between(0.0, 1.0, low_open=True))
    full_steps: int = attrs.field(default=50, validator=between(1))
    raise_threshold: float = attrs.field(default=0.2, validator=between(0.0, 1.0))
    relax_steps: int = attrs.field(default=200, validator=between(1))


@attrs.frozen(kw_only=True)
class AutotuneConfig:
    """Table ``[autotune]``: changes of the learning rate and clipping that the engine makes by itself (F69).

    Attributes:
        enabled: Allow them.
        restart: Restart the learning rate warm where the loss has reached a plateau.
        patience: Plateau signals in a row before a restart.
        restart_factor: Multiple of your learning rate at which a restart begins.
        restart_floor: Multiple of your learning rate at which it ends; below 1, smaller steps than your own.
        restart_steps: Real steps of the cosine from the one to the other.
        min_health: A restart needs at least this health, between 0 and 1.
        clipping: Adaptive gradient clipping: ``"never"``, ``"always"``, or ``"unhealthy"`` for only as long
            as the health is below `clip_health`.
        clip_ratio: Largest norm of a unit's gradient over the norm of its weights.
        clip_health: Health below which ``"unhealthy"`` clips.
    """

    enabled: bool = False
    restart: bool = True
    patience: int = attrs.field(default=5, validator=between(1))
    restart_factor: float = attrs.field(default=3.0, validator=between(0.0, low_open=True))
    restart_floor: float = attrs.field(default=1.0, validator=between(0.0, low_open=True))
    restart_steps: int = attrs.field(default=200, validator=between(1))
    min_health: float = attrs.field(default=0.5, validator=between(0.0, 1.0))
    clipping: str = attrs.field(default="unhealthy", validator=choice("never", "unhealthy", "always"))
    clip_ratio: float = attrs.field(default=0.01, validator=between(0.0, low_open=True))
    clip_health: float = attrs.field(default=0.9, validator=between(0.0, 1.0))


@attrs.frozen(kw_only=True)
class CheckpointConfig:
    """Table ``[checkpoint]``: the whole run on disk, to go on with ``hybridcore run --resume`` (F53, F54).

    Attributes:
        every: Batches between two checkpoints; 0 writes none.
        keep: Checkpoints kept; the oldest go.
        directory: Folder in which each run gets a folder for its checkpoints; ``checkpoints`` in the run's
            own folder if empty.
        asynchronous: Write in a thread beside the training, from a copy of the state in host memory.
    """

    every: int = attrs.field(default=0, validator=between(0))
    keep: int = attrs.field(default=3, validator=between(1))
    directory: str = ""
    asynchronous: bool = True


@attrs.frozen(kw_only=True)
class MetricsConfig:
    """Table ``[metrics]``.

    Attributes:
        step_every: A step record is written every this many real steps; phases, jumps, verdicts and
            evaluations are always written.
        trace: Log each decision with its reason at INFO level.
    """

    step_every: int = attrs.field(default=1, validator=between(1))
    trace: bool = False


@attrs.frozen(kw_only=True)
class PluginsConfig:
    """Table ``[plugins]``.

    Attributes:
        load: Entry points that must load; a broken one among them is an error instead of a warning.
        block: Entry points that must not be loaded.
        on_error: What happens where a predictor, controller, corrector, monitor, dynamics model, tracker or
            listener raises, takes too long or returns what it must not: ``"drop"`` goes on without it,
            ``"raise"`` ends the run with a `PluginFailedError` (F42).
        timeout_seconds: Longest time of one call into any of these; 0 never interrupts.
    """

    load: tuple[str, ...] = ()
    block: tuple[str, ...] = ()
    on_error: str = attrs.field(default="drop", validator=choice("drop", "raise"))
    timeout_seconds: float = attrs.field(default=300.0, validator=between(0.0))


@attrs.frozen(kw_only=True)
class TrackersConfig:
    """Table ``[trackers]``: each table ``[trackers.<name>]``, even an empty one, adds that tracker to a run.

    Attributes:
        options: Own tables by registry name.
    """

    options: dict[str, dict[str, Any]] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class HybridConfig:
    """A whole configuration; without arguments, the defaults.

    Example:
        >>> HybridConfig().phases.predict_mode
        'jump'
    """

    run: RunConfig = attrs.field(factory=RunConfig)
    task: TaskConfig = attrs.field(factory=TaskConfig)
    phases: PhasesConfig = attrs.field(factory=PhasesConfig)
    controller: ControllerConfig = attrs.field(factory=ControllerConfig)
    predictor: PredictorConfig = attrs.field(factory=PredictorConfig)
    dynamics: DynamicsConfig = attrs.field(factory=DynamicsConfig)
    correction: CorrectionConfig = attrs.field(factory=CorrectionConfig)
    probe: ProbeConfig = attrs.field(factory=ProbeConfig)
    verdict: VerdictConfig = attrs.field(factory=VerdictConfig)
    budget: BudgetConfig = attrs.field(factory=BudgetConfig)
    history: HistoryConfig = attrs.field(factory=HistoryConfig)
    groups: GroupsConfig = attrs.field(factory=GroupsConfig)
    kernels: KernelsConfig = attrs.field(factory=KernelsConfig)
    memory: MemoryConfig = attrs.field(factory=MemoryConfig)
    average: AverageConfig = attrs.field(factory=AverageConfig)
    divergence: DivergenceConfig = attrs.field(factory=DivergenceConfig)
    recovery: RecoveryConfig = attrs.field(factory=RecoveryConfig)
    autotune: AutotuneConfig = attrs.field(factory=AutotuneConfig)
    checkpoint: CheckpointConfig = attrs.field(factory=CheckpointConfig)
    metrics: MetricsConfig = attrs.field(factory=MetricsConfig)
    trackers: TrackersConfig = attrs.field(factory=TrackersConfig)
    plugins: PluginsConfig = attrs.field(factory=PluginsConfig)

"""Errors under `HybridCoreError`; each says what, where, got/expected and how to mend it (F44)."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

__all__ = [
    "AdapterError",
    "AdapterNotFoundError",
    "ApiVersionError",
    "BatchError",
    "CheckpointError",
    "ConfigError",
    "ConfigProblem",
    "DeltaError",
    "DivergenceError",
    "HybridCoreError",
    "MemoryBudgetError",
    "MetricsError",
    "ModelError",
    "PhaseTransitionError",
    "PluginError",
    "PluginFailedError",
    "PredictionError",
    "ProbeError",
    "RankError",
    "RecoveryAction",
    "SnapshotError",
    "StoreError",
    "TaskError",
]


class RecoveryAction(StrEnum):
    """What an error suggests that the engine, or the user, does next (F44)."""

    CONTINUE = "continue"
    REDUCE_RATIO = "reduce-predict-ratio"
    FORCE_FULL = "force-full-phase"
    RAISE_THRESHOLD = "raise-confidence-threshold"
    ROLLBACK = "roll-back-and-retry"
    SKIP_BATCH = "skip-batch"
    RESET_PREDICTOR = "reset-predictor"
    ABORT = "abort"


class HybridCoreError(Exception):
    r"""Root of every error that hybridcore raises.

    Args:
        what: What happened, one sentence.
        where: Dotted key, file, parameter name or step.
        got: The value found.
        expected: What would have been right.
        fix: How to mend it: a command, a key, a value.
        action: The recovery action that fits; the class default if None.

    Example:
        >>> str(ModelError("the model has no parameters", where="model", fix="pass a module with weights"))
        'the model has no parameters\n  where: model\n  fix: pass a module with weights'
    """

    action: RecoveryAction = RecoveryAction.ABORT

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        got: object = None,
        expected: str | None = None,
        fix: str | None = None,
        action: RecoveryAction | None = None,
    ) -> None:
        self.what, self.where, self.got, self.expected, self.fix = what, where, got, expected, fix
        if action is not None:
            self.action = action
        super().__init__(what)

    def __reduce__(self) -> tuple[Any, ...]:
        # `Exception` would call the class with the message alone, where a worker process sends it.
        return _restored, (type(self), self.args, vars(self))

    def __str__(self) -> str:
        lines = [self.what]
        if self.where is not None:
            lines.append(f"  where: {self.where}")
        if self.got is not None:
            lines.append(f"  got: {self.got}")
        if self.expected is not None:
            lines.append(f"  expected: {self.expected}")
        if self.fix is not None:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


def _restored(
    kind: type[HybridCoreError], arguments: tuple[Any, ...], state: dict[str, Any]
) -> HybridCoreError:
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(state)
    return error


class ConfigProblem:
    """One mistake in a configuration.

    Args:
        path: Dotted key, such as ``phases.warmup_steps``.
        message: What is wrong, without the path.
        got: The value found, or None.
        expected: What would have been right, or None.
        hint: For example a did-you-mean, or None.
    """

    def __init__(
        self,
        path: str,
        message: str,
        *,
        got: object = None,
        expected: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.path, self.message, self.got, self.expected, self.hint = path, message, got, expected, hint

    def __str__(self) -> str:
        text = f"{self.path}: {self.message}"
        if self.expected is not None:
            text += f" (got {self.got!r}, expected {self.expected})"
        if self.hint is not None:
            text += f"; {self.hint}"
        return text

    def __repr__(self) -> str:
        return f"ConfigProblem({str(self)!r})"


class ConfigError(HybridCoreError):
    """One or more mistakes in a configuration, all of them at once.

    Args:
        problems: Every mistake found, in file order where known.
        source: File or object the configuration came from.
        fix: How to mend it.
    """

    def __init__(self, problems: Sequence[ConfigProblem], *, source: str, fix: str | None = None) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        what = f"{count} problem{'s' if count != 1 else ''} in the configuration\n" + "\n".join(
            f"  {i}. {p}" for i, p in enumerate(self.problems, 1)
        )
        super().__init__(
            what, where=source, fix=fix or "correct the keys above; `hybridcore config show` lists all keys"
        )


class PluginError(HybridCoreError):
    """A plugin cannot be loaded, is unknown, or registers something invalid."""


class PluginFailedError(PluginError):
    """A plugin failed during a run whose configuration demands it (``plugins.on_error = "raise"``) (F42)."""


class AdapterNotFoundError(PluginError):
    """No installed adapter serves the framework asked for."""


class ApiVersionError(PluginError):
    """A plugin was written for another `api_version` of the protocols."""


class AdapterError(HybridCoreError):
    """A framework adapter received something that it cannot train."""


class ModelError(AdapterError):
    """The model cannot be trained: no parameters, mixed devices, or not built."""


class BatchError(AdapterError):
    """A batch cannot be used; the weights are unchanged."""

    action = RecoveryAction.SKIP_BATCH


class SnapshotError(AdapterError):
    """A snapshot does not fit the model it is restored into."""


class DeltaError(HybridCoreError):
    """A weight delta has an unknown name, a wrong shape or non-finite values (F22)."""

    action = RecoveryAction.RESET_PREDICTOR


class PredictionError(HybridCoreError):
    """A predictor failed or returned something unusable; the weights are unchanged."""

    action = RecoveryAction.RESET_PREDICTOR


class PhaseTransitionError(HybridCoreError):
    """A phase transition that the rules forbid (F2)."""

    action = RecoveryAction.FORCE_FULL


class ProbeError(HybridCoreError):
    """The probe set is empty, ill-formed or gives no finite losses."""

    action = RecoveryAction.FORCE_FULL


class RankError(HybridCoreError):
    """A process of a distributed run is gone, late, or differs from the others; all of them must stop."""


class MemoryBudgetError(HybridCoreError):
    """The history does not fit into the memory budget, even at its smallest."""


class MetricsError(HybridCoreError):
    """A metrics file cannot be read or does not hold a run."""


class CheckpointError(HybridCoreError):
    """A checkpoint cannot be written or read, is damaged, or belongs to another run, model or version."""


class StoreError(HybridCoreError):
    """A store of residuals on disk cannot be read, is damaged, or was written for other features."""


class TaskError(HybridCoreError):
    """A task is unknown, cannot be built, or its data is not installed."""


class DivergenceError(HybridCoreError):
    """The run diverged and recovery was exhausted (F43)."""

"""Tables of divergence: what watches, what is done, and what the engine tunes by itself."""

from __future__ import annotations

from typing import Any

import attrs

from hybridcore.config.validators import between, choice
from hybridcore.errors import RecoveryAction

__all__ = ["AutotuneConfig", "DivergenceConfig", "RecoveryConfig"]


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

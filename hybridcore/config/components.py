"""Tables that pick a component by its registry name."""

from __future__ import annotations

from typing import Any

import attrs

from hybridcore.config.validators import between, choice

__all__ = [
    "ControllerConfig",
    "CorrectionConfig",
    "DynamicsConfig",
    "KernelsConfig",
    "PluginsConfig",
    "PredictorConfig",
    "TrackersConfig",
]


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
class TrackersConfig:
    """Table ``[trackers]``: each table ``[trackers.<name>]``, even an empty one, adds that tracker to a run.

    Attributes:
        options: Own tables by registry name.
    """

    options: dict[str, dict[str, Any]] = attrs.field(factory=dict)


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

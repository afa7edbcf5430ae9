"""What every callback needs: a configuration that fits, probes, the engine's numbers, and its state (F87)."""

from __future__ import annotations

from pathlib import Path

from hybridcore.checkpoint.codec import Decoder, Encoder
from hybridcore.checkpoint.files import Contents
from hybridcore.checkpoint.ownership import belongs_to, require_same
from hybridcore.config import HybridConfig
from hybridcore.configfile import load_config
from hybridcore.engine import Engine
from hybridcore.errors import ConfigError, ConfigProblem, ModelError, ProbeError
from hybridcore_torch.adapter import TorchAdapter

__all__ = ["jump_config", "numbers", "pack", "require_attached", "require_probes", "unpack"]

_NUMBERS = ("jumps", "predicted_steps", "refused", "verdicts_kept", "rollbacks", "skipped")


def jump_config(config: HybridConfig | str | Path | None, where: str) -> HybridConfig:
    """The configuration of a run whose host takes a real step on every batch.

    Args:
        config: A configuration, the path of a TOML file, or None for the defaults.
        where: Who asks.

    Raises:
        ConfigError: It has mistakes, or ``phases.predict_mode`` is not ``"jump"``.
    """
    if not isinstance(config, HybridConfig):
        config = load_config(config) if config is not None else HybridConfig()
    if config.phases.predict_mode != "jump":
        problem = ConfigProblem(
            "phases.predict_mode",
            "the host takes a real step on every batch",
            got=config.phases.predict_mode,
            expected="'jump'",
        )
        raise ConfigError([problem], source=where)
    return config


def require_probes(count: int, where: str) -> None:
    """Make sure that there is something to judge a jump by.

    Raises:
        ProbeError: There is not.
    """
    if count == 0:
        raise ProbeError(
            "the host keeps its batches to itself, so probes need held-out data",
            where=where,
            got="no examples",
            expected="a few held-out examples of the training distribution",
            fix="set a few batches of the training data aside",
        )


def require_attached(engine: Engine | None, where: str) -> Engine:
    """The engine.

    Raises:
        ModelError: Training has not begun.
    """
    if engine is None:
        raise ModelError("training has not begun", where=where, fix="pass the callback to the host first")
    return engine


def numbers(engine: Engine, prefix: str) -> dict[str, float]:
    """What the engine did so far, for the host's log."""
    summary = engine.summary()
    return {f"{prefix}{name}": float(summary[name]) for name in _NUMBERS}


def pack(engine: Engine, adapter: TorchAdapter) -> Contents:
    """Take the state of an engine apart, with all of its model's (F53)."""
    encoder = Encoder(adapter.snapshot_state, adapter.xp)
    tree = encoder.encode(engine.state_dict())
    step = engine.counts.real_steps
    return Contents(step, step, belongs_to(engine.config, "hybrid", adapter), tree, encoder.arrays)


def unpack(engine: Engine, adapter: TorchAdapter, contents: Contents, where: str) -> None:
    """Make an engine that was built alike go on where `pack` was called.

    Raises:
        CheckpointError: It belongs to another model or configuration, or is damaged.
    """
    require_same(contents.belongs_to, belongs_to(engine.config, "hybrid", adapter), where)
    decoder = Decoder(contents.arrays, adapter.snapshot_from_state, adapter.xp, adapter.read_params())
    engine.load_state_dict(decoder.decode(contents.tree))

"""What an engine has done so far, in numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridcore.engine import Engine

__all__ = ["engine_summary"]


def engine_summary(engine: Engine) -> dict[str, Any]:
    """Counts, credit, overhead and memory so far, as plain data."""
    counts, average, foresight = engine.counts, engine.average, engine.foresight
    return {
        "real_steps": counts.real_steps,
        "backward_passes": counts.backward_passes,
        "predicted_steps": counts.predicted_steps,
        "jumps": counts.jumps,
        "refused": counts.refused,
        "verdicts_kept": counts.kept,
        "verdicts_failed": counts.failed,
        "rollbacks": counts.rollbacks,
        "skipped": counts.skipped,
        "residuals": len(engine.corrections.store),
        "residual_bytes": engine.corrections.store.nbytes,
        "corrections": counts.corrections,
        "corrections_reverted": counts.corrections_reverted,
        "micro_corrections": counts.micro_corrections,
        "credit_steps": engine.budget.credit_steps,
        "credit_seconds": engine.budget.credit_seconds,
        "overhead_share": engine.budget.overhead_share,
        "history_bytes": engine.history.planned_bytes(),
        "budget_bytes": int(engine.config.history.memory_budget_mib * 2**20),
        "probes": engine.probes.count,
        "average_seconds": average.seconds if average is not None else 0.0,
        **(engine.read_out.summary() if engine.read_out is not None else {}),
        "cost": counts.cost,
        "elapsed": engine.clock.elapsed(),
        **engine.recovery.summary(),
        **(foresight.summary() if foresight is not None else {}),
        "kernels": engine.kernels.summary(),
        "plugins_dropped": [" ".join(lost) for lost in engine.containment.dropped],
    }

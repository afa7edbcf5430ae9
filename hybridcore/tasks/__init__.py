"""Built-in tasks on real data that ships in packages."""

from __future__ import annotations

__all__ = ["BUILTIN"]

BUILTIN: tuple[str, ...] = (
    "hybridcore.tasks.quadratic:QuadraticTask",
    "hybridcore.tasks.logistic:LogisticTask",
)
"""Import paths of the task classes."""

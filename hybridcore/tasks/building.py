"""Data, model and optimizer of a run, from the task that its configuration names."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hybridcore.components import build_component, import_function
from hybridcore.config import HybridConfig
from hybridcore.errors import TaskError
from hybridcore.protocols import TaskRun

if TYPE_CHECKING:
    from hybridcore.plugins import Registry

__all__ = ["build_task"]


def build_task(config: HybridConfig, registry: Registry) -> TaskRun:
    """Data, model and optimizer that the configuration names.

    Raises:
        HybridCoreError: The task is unknown, its options are wrong, or it does not serve the framework.
    """
    name, run = config.task.name, config.run
    if ":" in name:
        function = import_function(name)
        made = function(
            framework=run.framework,
            seed=run.seed,
            device=run.device,
            **_precision(function, config),
            **config.task.options,
        )
        if not isinstance(made, TaskRun):
            raise TaskError(
                "the task's function returned something else than a TaskRun",
                where="task.name",
                got=type(made).__name__,
                expected="hybridcore.protocols.TaskRun",
                fix=f"return TaskRun(adapter=..., batches=..., probes=..., evaluate=...) from {name}",
            )
        return _checked(made, config)
    task = build_component(registry.get("task", name), config.task.options, "task")
    return _checked(task.build(run.framework, run.seed, run.device, **_precision(task.build, config)), config)


def _precision(build: Callable[..., Any], config: HybridConfig) -> dict[str, str]:
    """The argument `dtype`, for a task that takes one.

    Raises:
        TaskError: The run is to be in float64, and the task cannot be told.
    """
    parameters = inspect.signature(build).parameters
    if "dtype" in parameters:
        return {"dtype": config.run.dtype}
    if config.run.dtype == "float32":
        return {}
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return {"dtype": config.run.dtype}
    raise TaskError(
        f"task {config.task.name!r} cannot be told a precision",
        where="run.dtype",
        got=config.run.dtype,
        expected="float32, or a task whose function takes an argument `dtype`",
        fix='set run.dtype = "float32", or let the task take `dtype` and build float64 weights for "float64"',
    )


def _checked(made: TaskRun, config: HybridConfig) -> TaskRun:
    """The run, when its weights have the precision that was asked for.

    Raises:
        TaskError: They are not all float64.
    """
    found = {p.dtype for p in made.adapter.layout.params}
    if config.run.dtype == "float64" and found != {"float64"}:
        raise TaskError(
            f"task {config.task.name!r} was not built in float64",
            where="run.dtype",
            got=f"weights in {', '.join(sorted(found))} of the framework {config.run.framework!r}",
            expected="float64 alone",
            fix='set run.dtype = "float32"',
        )
    return made

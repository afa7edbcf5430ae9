"""What the entry point ``sklearn`` of the group ``hybridcore.adapters`` loads to."""

from __future__ import annotations

from importlib import metadata

from hybridcore.errors import TaskError
from hybridcore.protocols import API_VERSION, Problem, TaskRun

__all__ = ["FRAMEWORK", "SklearnFramework"]


class SklearnFramework:
    """scikit-learn, seen from the engine; nothing of it is imported here."""

    name = "sklearn"
    api_version = API_VERSION

    def owns(self, model: object) -> bool:
        """Whether `model` is an `MLPClassifier`; looks at its class only."""
        return any(
            kind.__name__ == "MLPClassifier" and kind.__module__.startswith("sklearn.")
            for kind in type(model).__mro__
        )

    def build(self, problem: Problem, device: str) -> TaskRun:
        """This adapter brings a task of its own and none of the built-in problems.

        Raises:
            TaskError: Always.
        """
        raise TaskError(
            "the scikit-learn adapter serves none of the built-in problems",
            where="task.name",
            got=problem.name,
            expected="a task by module:function",
            fix='set task.name = "hybridcore_example_sklearn.task:digits"',
        )

    def versions(self) -> dict[str, str]:
        """scikit-learn's version."""
        return {"scikit-learn": metadata.version("scikit-learn")}

    def devices(self) -> tuple[str, ...]:
        """The CPU."""
        return ("cpu",)


FRAMEWORK = SklearnFramework()
"""The framework object that `hybridcore` discovers."""

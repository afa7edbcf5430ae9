"""What the entry point ``tensorflow`` of the group ``hybridcore.adapters`` loads to."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata
from typing import Any

from hybridcore.errors import TaskError
from hybridcore.protocols import API_VERSION, Problem, TaskRun
from hybridcore.tasks.batches import ConvertedBatches
from hybridcore.tasks.quadratic import noisy_batches
from hybridcore_tensorflow.installed import require_tensorflow

__all__ = ["FRAMEWORK", "TensorFlowFramework"]

_MODELS = {
    ("Layer", "keras.src.layers.layer"),
    ("Module", "tensorflow.python.module.module"),
}


class TensorFlowFramework:
    """TensorFlow, seen from the engine; nothing of it is imported before it is needed."""

    name = "tensorflow"
    api_version = API_VERSION

    def owns(self, model: object) -> bool:
        """Whether `model` is a `tf.Module` or a Keras model; looks at its class only, imports nothing."""
        return any((kind.__name__, kind.__module__) in _MODELS for kind in type(model).__mro__)

    def build(self, problem: Problem, device: str) -> TaskRun:
        """Model, optimizer, schedule and data of a built-in problem.

        Raises:
            AdapterNotFoundError: TensorFlow is not installed.
            TaskError: The model, the optimizer, the schedule or the device is unknown.
        """
        require_tensorflow()
        import numpy as np
        import tensorflow as tf

        from hybridcore_tensorflow.adapter import TensorFlowAdapter
        from hybridcore_tensorflow.models import build_model
        from hybridcore_tensorflow.models.precision import floats
        from hybridcore_tensorflow.optimizers import build_optimizer

        if device not in self.devices():
            raise TaskError(
                "TensorFlow cannot use this device",
                where="run.device",
                got=device,
                expected=f"one of {', '.join(self.devices())}",
                fix='set run.device = "cpu"',
            )
        with tf.device("/CPU:0" if device == "cpu" else device):
            built = build_model(problem)
            double = any(array.dtype == np.float64 for array in problem.weights.values())
            with floats("float64" if double else "float32"):  # Keras rounds the learning rate to it
                adapter = TensorFlowAdapter(
                    built.model,
                    build_optimizer(problem.optimizer),
                    built.loss_fn,
                    residual_fn=built.residual_fn,
                )
            validation = [_tensors(batch) for batch in problem.validation]
            probes = tuple(_tensors(batch) for batch in problem.probes)
        batches = problem.batches()
        if problem.model == "quadratic":
            batches = noisy_batches(problem.shape, batches)
        return TaskRun(
            adapter=adapter,
            batches=ConvertedBatches(batches, _tensors),
            probes=probes,
            evaluate=lambda: built.evaluate(validation),
        )

    def versions(self) -> dict[str, str]:
        """Versions of TensorFlow and Keras, read without importing them."""
        found = {}
        for package, names in (
            ("tensorflow", ("tensorflow", "tensorflow-cpu", "tensorflow_cpu")),
            ("keras", ("keras",)),
        ):
            for name in names:
                try:
                    found[package] = metadata.version(name)
                    break
                except metadata.PackageNotFoundError:
                    continue
        return found

    def devices(self) -> tuple[str, ...]:
        """``"cpu"`` and every GPU that TensorFlow sees.

        Raises:
            AdapterNotFoundError: TensorFlow is not installed.
        """
        require_tensorflow()
        import tensorflow as tf

        return ("cpu", *(f"gpu:{i}" for i, _ in enumerate(tf.config.list_physical_devices("GPU"))))


def _tensors(batch: Iterable[Any]) -> tuple[Any, ...]:
    import tensorflow as tf

    return tuple(tf.convert_to_tensor(array) for array in batch)


FRAMEWORK = TensorFlowFramework()
"""The framework object that `hybridcore` discovers."""

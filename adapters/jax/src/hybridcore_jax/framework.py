"""What the entry point ``jax`` of the group ``hybridcore.adapters`` loads to."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any

from hybridcore.errors import TaskError
from hybridcore.protocols import API_VERSION, Problem, TaskRun
from hybridcore.tasks.batches import ConvertedBatches
from hybridcore.tasks.quadratic import noisy_batches

if TYPE_CHECKING:
    import jax

    from hybridcore_jax.models import BuiltModel

__all__ = ["FRAMEWORK", "JaxFramework"]

_MODULES = (("flax", "Module"), ("equinox", "Module"), ("hybridcore_jax", "LinenModel"))


class JaxFramework:
    """JAX, seen from the engine; nothing of it is imported before it is needed."""

    name = "jax"
    api_version = API_VERSION

    def owns(self, model: object) -> bool:
        """Whether `model` is a flax or equinox module; looks at its class only, and imports nothing."""
        return any(
            kind.__name__ == name and kind.__module__.partition(".")[0] == package
            for kind in type(model).__mro__
            for package, name in _MODULES
        )

    def build(self, problem: Problem, device: str) -> TaskRun:
        """Model, optimizer, schedule and data of a built-in problem.

        Raises:
            TaskError: The model, the optimizer, the schedule or the device is unknown, or the weights are
                float64 and JAX has double precision switched off.
        """
        import optax

        from hybridcore_jax.adapter import JaxAdapter
        from hybridcore_jax.batches import to_device
        from hybridcore_jax.interfaces.base import PureModel
        from hybridcore_jax.models import build_model
        from hybridcore_jax.optimizers import build_optimizer, build_schedule

        place = self._device(device)
        built = build_model(problem, place)
        parts = PureModel(built.params, built.state)
        parts.groups = built.groups
        optimizer = build_optimizer(problem.optimizer)
        if built.trainable is not None:  # no moments for what is frozen
            optimizer = optax.masked(optimizer, {name: built.trainable(name) for name in built.params})
        adapter = JaxAdapter(
            parts,
            optimizer,
            built.loss_fn,
            key=_key(built) if built.random else None,
            learning_rate=build_schedule(problem.optimizer),
            trainable=built.trainable,
            residual_fn=built.residual_fn,
        )
        batches = problem.batches()
        if problem.model == "quadratic":
            batches = noisy_batches(problem.shape, batches)
        validation = _moved(problem.validation, place)
        return TaskRun(
            adapter=adapter,
            batches=ConvertedBatches(batches, partial(to_device, device=place)),
            probes=_moved(problem.probes, place),
            evaluate=lambda: built.evaluate(adapter.params, adapter.train_state.model_state, validation),
        )

    def _device(self, name: str) -> jax.Device:
        """The device of a name such as ``"cpu"`` or ``"cuda:1"``."""
        import jax

        platform, _, index = name.partition(":")
        try:
            return jax.local_devices(backend=platform)[int(index or 0)]
        except (RuntimeError, ValueError, IndexError) as error:
            raise TaskError(
                "JAX cannot use this device",
                where="run.device",
                got=name,
                expected=f"one of {', '.join(self.devices())}",
                fix='set run.device = "cpu"',
            ) from error

    def versions(self) -> dict[str, str]:
        """Versions of JAX and of the libraries around it that are installed."""
        found = {}
        for package in ("jax", "jaxlib", "optax", "flax", "equinox"):
            try:
                found[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                continue
        return found

    def devices(self) -> tuple[str, ...]:
        """``"cpu"`` and every further device that JAX finds."""
        import jax

        from hybridcore_jax.trees import device_name

        return tuple(dict.fromkeys(("cpu", *map(device_name, jax.local_devices()))))


def _key(built: BuiltModel) -> Any:
    """A random key that follows the run's seed, which the initial weights carry."""
    import jax
    import numpy as np

    first = next(iter(built.params.values()))
    return jax.random.key(zlib.crc32(np.asarray(first).tobytes()) & 0x7FFFFFFF)


def _moved(batches: Iterable[Any], device: jax.Device) -> tuple[Any, ...]:
    from hybridcore_jax.batches import to_device

    return tuple(to_device(batch, device) for batch in batches)


FRAMEWORK = JaxFramework()
"""The framework object that `hybridcore` discovers."""

"""Snapshots as NumPy arrays and plain data, and weights for the users of Keras (F53)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from hybridcore.errors import CheckpointError, SnapshotError
from hybridcore.layout import ParamLayout
from hybridcore.protocols import ArrayRef
from hybridcore_tensorflow.snapshot import TensorFlowSnapshot
from hybridcore_tensorflow.variables import components, exported, make_global_generator

__all__ = ["export", "load_exported", "make_globals", "put_together", "take_apart"]

_ORDER = "order"


def take_apart(snapshot: TensorFlowSnapshot) -> tuple[dict[str, NDArray[Any]], Any]:
    """Arrays by number, and their places by the names of the variables.

    Values of dtypes that NumPy does not have, such as bfloat16, become integers of the same bits.
    """
    arrays: dict[str, NDArray[Any]] = {}
    places = {}
    for name, value in zip(snapshot.names, snapshot.values, strict=True):
        key = str(len(arrays))
        arrays[key] = _bits(value.numpy())
        places[name] = ArrayRef(key, value.dtype.name)
    return arrays, {"variables": places, "pending": snapshot.pending}


def _bits(host: Any) -> NDArray[Any]:
    array = np.asarray(host)
    return array if array.dtype.kind in "biuf" else array.view(f"u{array.dtype.itemsize}")


def put_together(
    arrays: Mapping[str, NDArray[Any]],
    data: Any,
    layout: ParamLayout,
    held: Mapping[str, tf.Variable],
) -> TensorFlowSnapshot:
    """The snapshot that `take_apart` took apart, for the variables `held` by this model and optimizer.

    A snapshot may know less than is held: it was taken before a process-wide generator was made.

    Raises:
        SnapshotError: A variable is missing or unknown, or has another shape or dtype.
    """
    try:
        places = dict(data["variables"])
        missing = [name for name in held if name not in places and not name.startswith("global.")]
        if missing or not isinstance(data["pending"], bool):
            raise ValueError(f"no value for {', '.join(missing[:4]) or 'pending'}")
        values = [_value(places[name], held[name], arrays, name) for name in places]
        variables = tuple(held[name] for name in places)
        return TensorFlowSnapshot(layout, tuple(places), variables, tuple(values), data["pending"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SnapshotError(
            f"a snapshot cannot be put together: {type(error).__name__}: {error}",
            where="snapshot_from_state",
            got=type(error).__name__,
            expected=f"values of the {len(held)} variables of this model and optimizer",
            fix="restore it with the model and the optimizer it was taken with",
        ) from error


def make_globals(data: Any, held: Mapping[str, Any]) -> None:
    """Make the process-wide generators that a snapshot has values for, where they are not made yet."""
    places = data.get("variables") if isinstance(data, Mapping) else None
    for name in places if isinstance(places, Mapping) else ():
        if name not in held:
            make_global_generator(name)


def _value(place: Any, variable: tf.Variable, arrays: Mapping[str, NDArray[Any]], name: str) -> Any:
    host = np.array(arrays[place.key])
    dtype = variable.dtype
    if place.dtype != dtype.name or host.shape != tuple(variable.shape):
        raise ValueError(f"{name}: {place.dtype} {host.shape} where {dtype.name} {variable.shape} is needed")
    own = np.dtype(dtype.as_numpy_dtype)
    if host.dtype != own:
        host = host.view(own)
    with tf.device(variable.device):
        return tf.raw_ops.DeepCopy(x=tf.constant(host))


def export(model: Any, path: str) -> None:
    """Write the model's weights, trained and not, as safetensors, with their order in the file's header."""
    weights = {name: np.array(_first(v).numpy(), order="C") for name, v in exported(model).items()}
    # One key alone: safetensors writes several in any order, and equal weights would give unequal files.
    save_file(weights, path, metadata={_ORDER: json.dumps(list(weights))})


def load_exported(model: Any, path: str) -> None:
    """Give a model the weights of ``best.safetensors`` or ``average.safetensors`` of a run (F53).

    As with ``model.set_weights`` the order decides, since Keras counts up the names of its layers. Then
    ``model.save_weights("best.weights.h5")`` writes them as Keras has them.

    Args:
        model: A built Keras model, or a `tf.Module`, built as in the run.
        path: The file.

    Raises:
        CheckpointError: The file does not fit the model; nothing was changed.

    Example:
        >>> import keras, tempfile
        >>> one, other = (keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]) for _ in range(2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export(one, folder + "/best.safetensors")
        ...     load_exported(other, folder + "/best.safetensors")
        >>> bool((one.get_weights()[0] == other.get_weights()[0]).all())
        True
    """
    targets = list(exported(model).values())
    try:
        with safe_open(path, framework="numpy") as file:
            names = json.loads((file.metadata() or {})[_ORDER])
            values = [file.get_tensor(name) for name in names]
    except Exception as error:  # safetensors has its own, and the file may be anything
        raise CheckpointError(
            f"weights cannot be read: {error}",
            where=path,
            got=type(error).__name__,
            expected="a file that export_weights of the TensorFlow adapter wrote",
        ) from error
    got = [(tuple(value.shape), value.dtype.name) for value in values]
    expected = [(tuple(v.shape), _first(v).dtype.name) for v in targets]
    if got != expected:
        raise CheckpointError(
            "weights belong to another model",
            where=path,
            got=f"{len(got)} arrays: {got[:6]}",
            expected=f"{len(expected)} arrays: {expected[:6]}",
            fix="build the model as in the run",
        )
    for target, value in zip(targets, values, strict=True):
        for part in components(target):
            part.assign(value)


def _first(variable: Any) -> tf.Variable:
    return components(variable)[0]

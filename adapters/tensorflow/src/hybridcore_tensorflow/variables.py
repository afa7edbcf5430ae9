"""Which variables a model has, what they are called, and in which group each trained one is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import attrs
import keras
import tensorflow as tf
from keras.src.backend.common import global_state as keras_state
from keras.src.random import seed_generator as keras_seeds
from tensorflow.python.ops import stateful_random_ops as tf_generators

from hybridcore.errors import ModelError
from hybridcore.layout import ParamGroup, ParamLayout
from hybridcore_tensorflow.installed import require_keras_backend

__all__ = [
    "Variables",
    "collect",
    "components",
    "exported",
    "global_generators",
    "layers_of",
    "make_global_generator",
    "raw",
    "strategy_of",
    "trainable",
    "weights_of",
]

_NORMS = (
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
)
_VARIABLES = (tf.Variable, keras.Variable)
_GENERATORS = (tf.random.Generator, keras.random.SeedGenerator)
_KEEPERS = (keras.layers.Layer, *_GENERATORS)
_FLOATS = (tf.float16, tf.bfloat16, tf.float32, tf.float64)


@attrs.frozen
class Variables:
    """The variables of one model.

    Attributes:
        layout: Where the trained ones lie in buckets.
        trained: Trained variables in layout order, as the optimizer knows them.
        state: All others that a step or a draw of random numbers may change, as plain `tf.Variable`.
        seeds: Those of `state` that hold the state of a random generator.
        norms: Keras BatchNormalization layers of the model.
    """

    layout: ParamLayout
    trained: tuple[Any, ...]
    state: tuple[tf.Variable, ...]
    seeds: tuple[tf.Variable, ...]
    norms: tuple[Any, ...]


def raw(variable: Any) -> Any:
    """The `tf.Variable` inside a Keras variable."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def components(variable: Any) -> tuple[tf.Variable, ...]:
    """The plain variables of a variable, one per replica, the first one first."""
    inner = raw(variable)
    return tuple(inner.values) if isinstance(inner, tf.distribute.DistributedValues) else (inner,)


def strategy_of(variables: Iterable[Any]) -> Any:
    """The `tf.distribute` strategy that mirrors the variables; None without one."""
    for variable in variables:
        if isinstance(raw(variable), tf.distribute.DistributedValues):
            return raw(variable).distribute_strategy
    return None


def collect(model: Any, optimizer: Any) -> Variables:
    """Find the variables of a model; builds the optimizer on the trained ones where it is not built.

    Args:
        model: A built Keras model or layer, or a `tf.Module`, also one that holds Keras layers.
        optimizer: A Keras optimizer.

    Raises:
        ModelError: The model is of another kind, not built, or has nothing that the optimizer trains; or
            its variables cannot be represented in buckets on one device.
    """
    require_keras_backend()
    found, owners = _named(model)
    named = {name: v for name, v in found.items() if isinstance(v, _VARIABLES)}
    candidates = {name: v for name, v in named.items() if v.trainable}
    if not candidates:
        raise ModelError(
            "the model has no trainable variables",
            where=type(model).__name__,
            got=f"{len(named)} variables, none of them trainable",
            fix="pass a built model: call it on a batch once, or `model.build(input_shape)`",
        )
    kept = _held(candidates, optimizer)
    _check(kept)
    layout = ParamLayout.plan(
        (name, tuple(v.shape), raw(v).dtype.name, _device(v), _group(owners.get(id(v)), name, v))
        for name, v in kept.items()
    )
    trained = {id(v) for v in kept.values()}
    seeds = [_generator_state(g) for g in found.values() if isinstance(g, _GENERATORS)] + [
        v for v in named.values() if isinstance(owners.get(id(v)), keras.random.SeedGenerator)
    ]
    state = [v for v in named.values() if id(v) not in trained]
    return Variables(
        layout,
        tuple(kept[name] for name in layout.names),
        tuple(_unique([*state, *seeds])),
        tuple(_unique(seeds)),
        tuple(layer for layer in _layers(model) if isinstance(layer, keras.layers.BatchNormalization)),
    )


def _unique(variables: Iterable[Any]) -> Iterator[tf.Variable]:
    seen: set[int] = set()
    for variable in variables:
        for part in components(variable):
            if id(part) not in seen:
                seen.add(id(part))
                yield part


def _generator_state(generator: Any) -> Any:
    return generator.state


def _named(model: Any) -> tuple[dict[str, Any], dict[int, Any]]:
    """Variables and generators by dotted name, each once; and what owns each variable, by its id."""
    found: dict[str, Any] = {}
    owners: dict[int, Any] = {}
    seen: set[int] = set()

    def add(name: str, value: Any) -> None:
        if id(value) in seen:
            return
        seen.add(id(value))
        unique, count = name, 1
        while unique in found:
            count += 1
            unique = f"{name}_{count}"
        found[unique] = value

    def add_layer(layer: Any, prefix: str) -> None:
        _require_built(layer)
        for inner in layer._flatten_layers():
            owners.update((id(v), inner) for v in inner.weights)
        states = [(g, g.state) for inner in layer._flatten_layers() for g in inner._seed_generators]
        owners.update((id(state), generator) for generator, state in states)
        root = f"{layer.name}/"
        # Weights and generators; metrics count what really happened, also after a rollback.
        for variable in (*layer.weights, *(state for _, state in states)):
            add(prefix + variable.path.removeprefix(root).replace("/", "."), variable)

    if isinstance(model, keras.layers.Layer):
        add_layer(model, "")
    elif isinstance(model, tf.Module):
        for name, value, owner in _leaves(model, (), model, set()):
            if isinstance(value, keras.layers.Layer):
                add_layer(value, f"{name}.")
            else:
                owners.setdefault(id(value), owner)
                add(name, value)
    else:
        raise ModelError(
            "this is no TensorFlow model",
            where="model",
            got=f"{type(model).__module__}.{type(model).__qualname__}",
            expected="a keras.Model, a keras.Layer or a tf.Module",
            fix="pass the model itself",
        )
    return found, owners


def _leaves(value: Any, path: tuple[str, ...], owner: Any, seen: set[int]) -> Iterator[tuple[str, Any, Any]]:
    """Variables, generators and Keras layers below a module, in the order of definition, with their owners.

    `tf.Module` itself lists attributes in alphabetical order; the order of definition is the one in which
    other frameworks list theirs.
    """
    if isinstance(value, (*_VARIABLES, *_GENERATORS, keras.layers.Layer)):
        yield ".".join(path), value, owner
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, str(index)), owner, seen)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, (*path, str(key)), owner, seen)
    elif isinstance(value, tf.Module) and id(value) not in seen:
        seen.add(id(value))
        for name, item in vars(value).items():
            if not name.startswith("_self_"):
                yield from _leaves(item, (*path, name), value, seen)


def _layers(model: Any) -> Iterator[Any]:
    if isinstance(model, keras.layers.Layer):
        yield from model._flatten_layers()
        return
    for _, value, _ in _leaves(model, (), model, set()):
        if isinstance(value, keras.layers.Layer):
            yield from value._flatten_layers()


def _require_built(layer: Any) -> None:
    missing = [inner.name for inner in layer._flatten_layers() if not inner.built]
    if missing:
        raise ModelError(
            "the Keras model is not built: its variables do not exist yet",
            where=layer.name,
            got=f"unbuilt: {', '.join(missing[:5])}",
            expected="a model whose variables exist",
            fix="call the model on a batch once, or `model.build(input_shape)`, before handing it over",
        )


def _held(candidates: dict[str, Any], optimizer: Any) -> dict[str, Any]:
    """Those that the optimizer trains."""
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise ModelError(
            "this is no Keras optimizer",
            where="optimizer",
            got=f"{type(optimizer).__module__}.{type(optimizer).__qualname__}",
            expected="a keras.optimizers.Optimizer of Keras 3",
            fix="use one of keras.optimizers; tf.keras of Keras 2 is not served",
        )
    strategy = strategy_of(candidates.values())
    if strategy is not None and optimizer._distribution_strategy is not strategy:
        raise ModelError(
            "model and optimizer belong to different distribution strategies",
            where=type(optimizer).__name__,
            got=type(optimizer._distribution_strategy).__name__,
            expected=f"the {type(strategy).__name__} of the model",
            fix="make the optimizer under the same strategy.scope()",
        )
    if not optimizer.built:
        with strategy.scope() if strategy is not None else nullcontext():
            optimizer.build(list(candidates.values()))
        return candidates
    held = {id(raw(v)) for v in optimizer._trainable_variables}
    kept = {name: v for name, v in candidates.items() if id(raw(v)) in held}
    if not kept:
        raise ModelError(
            "the optimizer trains no variable of the model",
            where=type(optimizer).__name__,
            got=f"{len(held)} variables, none of them a trainable one of the model",
            expected=f"some of the model's {len(candidates)} trainable variables",
            fix="build the optimizer with `optimizer.build(model.trainable_variables)` of this very model",
        )
    return kept


def devices_of(variable: Any) -> tuple[str, ...]:
    """Short names of the devices that hold a variable's replicas, such as ``"cpu"`` or ``"gpu:0"``."""
    return tuple(map(_short, components(variable)))


def _device(variable: Any) -> str:
    """Short device name of the first replica."""
    return _short(components(variable)[0])


def _short(replica: Any) -> str:
    spec = tf.DeviceSpec.from_string(replica.device or "/device:CPU:0")
    kind = (spec.device_type or "CPU").lower()
    return kind if kind == "cpu" and not spec.device_index else f"{kind}:{spec.device_index or 0}"


def _check(kept: dict[str, Any]) -> None:
    for name, variable in kept.items():
        if raw(variable).dtype not in _FLOATS or None in tuple(variable.shape):
            raise ModelError(
                "a variable cannot be trained by prediction",
                where=name,
                got=f"{raw(variable).dtype.name} {tuple(variable.shape)}",
                expected="a real floating-point variable of known shape",
                fix="freeze it with trainable=False; complex and ragged variables are not served",
            )
    places: dict[str, str] = {}
    for name, variable in kept.items():
        places.setdefault(_device(variable), name)
    if len(places) > 1:
        raise ModelError(
            "the model's variables lie on several devices",
            where=" and ".join(places.values()),
            got=" and ".join(places),
            expected="one device, or a tf.distribute strategy that mirrors them",
            fix="create the whole model under one tf.device, or under strategy.scope()",
        )


def _group(owner: Any, name: str, variable: Any) -> ParamGroup | None:
    """Group where the owner's type or the leaf name tells it."""
    kind = type(owner).__name__
    few = len(variable.shape) < 2
    if isinstance(owner, keras.layers.Embedding) or kind.endswith("Embedding"):
        return ParamGroup.EMBEDDING
    if isinstance(owner, _NORMS) or (kind.endswith(("Norm", "Normalization")) and few):
        return ParamGroup.NORM
    if few and "bias" in name.rsplit(".", 1)[-1]:
        return ParamGroup.BIAS
    return None


def trainable(model: Any) -> dict[str, Any]:
    """Trainable variables of a model by dotted name."""
    found, _ = _named(model)
    return {name: v for name, v in found.items() if isinstance(v, _VARIABLES) and v.trainable}


def weights_of(model: Any) -> dict[str, Any]:
    """Trainable variables by dotted name, and frozen ones that no Keras layer keeps statistics in."""
    found, owners = _named(model)
    return {
        name: v
        for name, v in found.items()
        if isinstance(v, _VARIABLES) and (v.trainable or not isinstance(owners.get(id(v)), _KEEPERS))
    }


def layers_of(model: Any) -> list[Any]:
    """All Keras layers in a model, the model itself among them."""
    return list(_layers(model))


def exported(model: Any) -> dict[str, Any]:
    """All weights of a model by dotted name, trained and not, without the states of random generators."""
    found, owners = _named(model)
    return {
        name: v
        for name, v in found.items()
        if isinstance(v, _VARIABLES) and not isinstance(owners.get(id(v)), keras.random.SeedGenerator)
    }


_TENSORFLOW, _KERAS = "global.tensorflow", "global.keras"


def global_generators() -> dict[str, Any]:
    """States of the process-wide generators of TensorFlow and Keras, where they have been made."""
    found = {}
    if tf_generators.global_generator is not None:
        found[_TENSORFLOW] = tf_generators.global_generator.state
    shared = keras_state.get_global_attribute("global_seed_generator")
    if shared is not None:
        found[_KERAS] = shared.state
    return found


def make_global_generator(name: str) -> None:
    """Make the process-wide generator that `global_generators` gives this name; other names make nothing."""
    if name == _TENSORFLOW:
        tf.random.get_global_generator()
    elif name == _KERAS:
        keras_seeds.global_seed_generator()

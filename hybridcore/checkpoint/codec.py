"""State as JSON and NumPy arrays, exactly: not-a-number, tuples, aliases, arrays of any framework."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping
from enum import Enum
from types import ModuleType
from typing import Any, NoReturn

import attrs
import numpy as np
from numpy.typing import NDArray

from hybridcore.checkpoint.classes import CLASSES, ENUMS, SNAPSHOT_FIELD
from hybridcore.dynamics.adam import to_numpy
from hybridcore.errors import CheckpointError
from hybridcore.layout import Buckets
from hybridcore.protocols import HostCopy, Snapshot

__all__ = ["Arrays", "Decoder", "Encoder"]

Arrays = dict[str, NDArray[Any]]

_DEEPEST = 64
# A name from a file never reaches np.dtype itself, which reads a small language of its own.
_SCALARS = {
    kind.name: kind.type
    for kind in map(np.dtype, ("?", *np.typecodes["AllInteger"], "float16", "float32", "float64"))
}
_KINDS = "biuf"
_BFLOAT16 = "bfloat16"


def _refuse(what: str, where: str, got: object, expected: str) -> NoReturn:
    raise CheckpointError(what, where=where, got=got, expected=expected, fix="use an older checkpoint")


class Encoder:
    """Takes state apart.

    Numbers, text, None and lists are JSON's own; everything else is an object with one key that names its
    kind. An array that several places hold is written once and is one array again afterwards, since some
    components write into arrays that others look at. All arrays are copied.

    Args:
        take_apart: ``snapshot -> (arrays, data)`` of the adapter; None where there are no snapshots.
        xp: Namespace of the adapter's arrays, for dtypes that NumPy does not have.

    Attributes:
        arrays: What was found so far, by key.

    Example:
        >>> encoder = Encoder()
        >>> encoder.encode({"loss": float("nan"), "path": (1, 2)})
        {'dict': {'loss': {'float': 'nan'}, 'path': {'tuple': [1, 2]}}}
    """

    def __init__(
        self,
        take_apart: Callable[[Snapshot], tuple[Mapping[str, NDArray[Any]], Any]] | None = None,
        xp: ModuleType | None = None,
    ) -> None:
        self._take_apart, self._xp = take_apart, xp
        self.arrays: Arrays = {}
        self._known: dict[int, tuple[Any, Any]] = {}
        self._snapshots = 0

    def encode(self, value: Any, where: str = "state") -> Any:
        """The JSON side of a value.

        Raises:
            CheckpointError: It holds something that a checkpoint cannot hold; `where` names the place.
        """
        if isinstance(value, Enum):
            if type(value) is not ENUMS.get(type(value).__name__):
                self._unknown(value, where)
            return {"enum": [type(value).__name__, value.value]}
        if isinstance(value, np.generic):
            return self._scalar(value, where)
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"float": repr(value)}
        if isinstance(value, list):
            return self._items(value, where)
        return self._compound(value, where)

    def _compound(self, value: Any, where: str) -> Any:
        if isinstance(value, np.ndarray):
            return self._array(value, value, where)
        if type(value) is tuple:
            return {"tuple": self._items(value, where)}
        if isinstance(value, deque):
            return {"deque": [value.maxlen, self._items(value, where)]}
        if isinstance(value, set | frozenset):
            return {"set": self._items(sorted(value), where)}
        if isinstance(value, Counter):
            return {"counter": self._pairs(value, where)}
        if isinstance(value, Mapping):
            if all(type(key) is str for key in value):
                return {"dict": {key: self.encode(item, f"{where}.{key}") for key, item in value.items()}}
            return {"pairs": self._pairs(value, where)}
        if type(value) is CLASSES.get(type(value).__name__):
            return self._instance(value, where)
        if hasattr(value, "dtype") and hasattr(value, "shape"):
            return self._device_array(value, where)
        if isinstance(value, HostCopy):
            return self._host_copy(value, where)
        return self._unknown(value, where)

    def _items(self, values: Any, where: str) -> list[Any]:
        return [self.encode(item, f"{where}[{index}]") for index, item in enumerate(values)]

    def _pairs(self, value: Mapping[Any, Any], where: str) -> list[Any]:
        return [[self.encode(k, where), self.encode(v, f"{where}[{k!r}]")] for k, v in value.items()]

    def _scalar(self, value: np.generic, where: str) -> Any:
        if value.dtype.kind not in _KINDS:
            self._unknown(value, where)
        return {"scalar": [value.dtype.name, self.encode(value.item(), where)]}

    def _array(self, owner: Any, array: NDArray[Any], where: str, kind: str = "array", *more: Any) -> Any:
        if id(owner) in self._known:
            return self._known[id(owner)][1]
        if array.dtype.kind not in _KINDS or array.dtype.itemsize > 8:
            self._unknown(array.dtype, where)
        key = str(len(self.arrays))
        self.arrays[key] = np.array(array, order="C", copy=True)
        node = {kind: [key, *more]}
        self._known[id(owner)] = owner, node  # holding on to the owner keeps its id its own
        return node

    def _device_array(self, value: Any, where: str) -> Any:
        dtype = str(value.dtype).rpartition(".")[2]
        if id(value) in self._known:
            return self._known[id(value)][1]
        try:
            plain = (
                value if dtype != _BFLOAT16 or self._xp is None else self._xp.astype(value, self._xp.float32)
            )
            host = to_numpy(plain)
        except (TypeError, ValueError, RuntimeError, AttributeError, BufferError) as error:
            raise CheckpointError(
                f"an array cannot be read: {error}", where=where, got=type(value).__name__
            ) from error
        return self._array(value, host, where, "device", dtype, str(getattr(value, "device", "")))

    def _host_copy(self, value: HostCopy, where: str) -> Any:
        """Arrays that wait in host memory are written as those of the device that they belong to."""
        rows = zip(value.numpy(), value.dtypes, value.homes, strict=True)
        return {"tuple": [self._array(a, a, where, "device", dtype, home) for a, dtype, home in rows]}

    def _instance(self, value: Any, where: str) -> Any:
        fields = {}
        for field in attrs.fields(type(value)):
            item = getattr(value, field.name)
            place = f"{where}.{field.name}"
            taken = field.name == SNAPSHOT_FIELD
            fields[field.alias] = self.snapshot(item, place) if taken else self.encode(item, place)
        return {"object": [type(value).__name__, fields]}

    def snapshot(self, snapshot: Snapshot, where: str = "snapshot") -> Any:
        """The JSON side of an adapter's snapshot."""
        if id(snapshot) in self._known:
            return self._known[id(snapshot)][1]
        if self._take_apart is None:
            self._unknown(snapshot, where)
        arrays, data = self._take_apart(snapshot)
        number, self._snapshots = self._snapshots, self._snapshots + 1
        keys = {}
        for name, array in arrays.items():
            keys[name] = self._array(array, array, f"{where}.{name}")["array"][0]
        node = {"snapshot": [number, keys, self.encode(data, where)]}
        # A second place refers to the first one: the decoder meets places in the same order.
        self._known[id(snapshot)] = snapshot, {"snapshot": [number]}
        return node

    def _unknown(self, value: Any, where: str) -> NoReturn:
        raise CheckpointError(
            "a checkpoint cannot hold this",
            where=where,
            got=f"{type(value).__module__}.{type(value).__qualname__}",
            expected="numbers, text, arrays, and lists, tuples and dictionaries of them",
            fix="let the component's state_dict() return such data alone",
        )


class Decoder:
    """Puts together what `Encoder` took apart; builds data and the classes of `CLASSES`, nothing else.

    Args:
        arrays: Arrays by key.
        build: ``(arrays, data) -> snapshot`` of the adapter.
        xp: Namespace of the adapter's arrays.
        like: Buckets of the adapter, whose devices arrays go to.

    Example:
        >>> Decoder({}).decode({"dict": {"loss": {"float": "-inf"}, "path": {"tuple": [1, 2]}}})
        {'loss': -inf, 'path': (1, 2)}
    """

    def __init__(
        self,
        arrays: Mapping[str, NDArray[Any]],
        build: Callable[[Mapping[str, NDArray[Any]], Any], Snapshot] | None = None,
        xp: ModuleType | None = None,
        like: Buckets = (),
    ) -> None:
        self._arrays, self._build, self._xp = arrays, build, xp
        self._devices = {str(getattr(bucket, "device", "")): bucket for bucket in like}
        self._made: dict[tuple[str, str], Any] = {}
        self._snapshots: dict[int, Snapshot] = {}
        self._kinds: dict[str, Callable[[Any, int], Any]] = {
            "float": lambda x, _: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[x],
            "tuple": lambda x, depth: tuple(self._list(x, depth)),
            "set": lambda x, depth: set(self._list(x, depth)),
            "dict": lambda x, depth: {_text(k): self._node(v, depth) for k, v in x.items()},
            "pairs": lambda x, depth: dict(self._pairs(x, depth)),
            "counter": lambda x, depth: Counter(dict(self._pairs(x, depth))),
            "deque": self._deque,
            "enum": lambda x, _: ENUMS[x[0]](x[1]),
            "scalar": self._scalar,
            "array": lambda x, _: self._array(x[0]),
            "device": self._device_array,
            "object": self._instance,
            "snapshot": self._snapshot,
        }

    def decode(self, node: Any) -> Any:
        """The value of a JSON tree.

        Raises:
            CheckpointError: The tree is none that an `Encoder` writes.
        """
        try:
            return self._node(node, 0)
        except CheckpointError:
            raise
        except Exception as error:  # whatever a damaged tree may lead to
            raise CheckpointError(
                f"the state is damaged: {type(error).__name__}: {error}",
                where="state.json",
                fix="use an older checkpoint",
            ) from error

    def _node(self, node: Any, depth: int) -> Any:
        if depth > _DEEPEST:
            _refuse("the state is nested too deeply", "state.json", f"{depth} levels", f"at most {_DEEPEST}")
        if isinstance(node, list):
            return self._list(node, depth)
        if not isinstance(node, dict):
            return node
        if len(node) != 1:
            _refuse("the state is damaged", "state.json", sorted(node)[:3], "objects of one key")
        ((kind, content),) = node.items()
        make = self._kinds.get(kind)
        if make is None:
            _refuse("the state holds an unknown kind", "state.json", kind, f"one of {sorted(self._kinds)}")
        return make(content, depth + 1)

    def _list(self, items: list[Any], depth: int) -> list[Any]:
        return [self._node(item, depth + 1) for item in items]

    def _pairs(self, items: list[Any], depth: int) -> list[tuple[Any, Any]]:
        return [(self._node(k, depth + 1), self._node(v, depth + 1)) for k, v in items]

    def _deque(self, content: Any, depth: int) -> deque[Any]:
        longest, items = content
        return deque(self._list(items, depth), maxlen=longest)

    def _scalar(self, content: Any, depth: int) -> Any:
        name, value = content
        if name not in _SCALARS:
            _refuse("the state is damaged", "state.json", name, f"one of {sorted(_SCALARS)}")
        with np.errstate(over="ignore"):
            return _SCALARS[name](self._node(value, depth))

    def _array(self, key: str) -> NDArray[Any]:
        place = "host", key
        if place not in self._made:
            self._made[place] = np.array(self._arrays[key])  # its own, and writable
        return self._made[place]  # type: ignore[no-any-return]

    def _device_array(self, content: Any, _: int) -> Any:
        key, dtype, device = content
        place = "device", key
        if place in self._made:
            return self._made[place]
        if self._xp is None:
            _refuse("the state holds arrays of a framework", "state.json", dtype, "NumPy arrays alone")
        if device and device not in self._devices and self._devices:
            device = next(iter(self._devices))  # the run goes on on another device
        there = {"device": self._devices[device].device} if device else {}
        made = self._xp.asarray(np.array(self._arrays[key]), **there)
        if dtype == _BFLOAT16:
            made = self._xp.astype(made, self._xp.bfloat16)
        self._made[place] = made
        return made

    def _instance(self, content: Any, depth: int) -> Any:
        name, fields = content
        return CLASSES[name](**{_text(k): self._node(v, depth) for k, v in fields.items()})

    def _snapshot(self, content: Any, depth: int) -> Snapshot:
        number = int(content[0])
        if len(content) > 1:
            if self._build is None:
                _refuse("the state holds a snapshot", "state.json", number, "none")
            arrays = {_text(name): self._array(key) for name, key in content[1].items()}
            self._snapshots[number] = self._build(arrays, self._node(content[2], depth))
        return self._snapshots[number]


def _text(key: Any) -> str:
    if not isinstance(key, str):
        _refuse("the state is damaged", "state.json", key, "a name")
    return key

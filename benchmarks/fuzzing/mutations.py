"""Mutations that know the formats: JSON, JSON lines, TOML, safetensors, and bytes of anything."""

from __future__ import annotations

import copy
import json
import random
import tomllib
from collections.abc import Callable
from typing import Any

import tomli_w

__all__ = ["Mutation", "json_bytes", "json_lines", "plain_bytes", "safetensors_bytes", "toml_bytes"]

Mutation = Callable[[bytes, random.Random], bytes]

SCALARS: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 64, 255, 2**31, 2**53, 2**62, 2**63, 2**64, -(2**63), 10**30, 0.0, -0.0,
    0.5,
    1e-320, 1e308, float("inf"), float("nan"), "", "0", "1", "a", "nan", "inf", "..", "../../etc/passwd",
    "/etc/passwd", "os:system", "a\0b", "\ud800", "é" * 50, "x" * 5000, "float32", "F32", "object", "O", "V9",
    "f4,f4", "datetime64[ns]", "__class__", "__init__", "__builtins__", "cpu", "hybrid", "numpy", "torch",
    [], {}, [[]], [0], [1, 2], {"a": 1}, {"dict": {}}, {"array": ["0"]}, {"tuple": []},
)  # fmt: skip
KEYS = (
    "float", "tuple", "set", "dict", "pairs", "counter", "deque", "enum", "scalar", "array", "device",
    "object",
    "snapshot", "format", "files", "step", "batches", "nbytes", "sha256", "name", "loss", "event", "schema",
    "dtype",
    "shape", "data_offsets", "__metadata__", "arrays", "", "a.b", "__class__", "options", "Trial", "Phase",
    "Point",
)  # fmt: skip
TOKENS = (
    b"[", b"]", b"{", b"}", b'"', b"'", b'"""', b"\\", b"\\u", b"\\ud800", b",", b":", b"=", b".", b"\n",
    b"\r\n",
    b"#", b"[[", b"]]", b"\0", b"\xff", b"\xef\xbb\xbf", b"-", b"+", b"e", b"1e400", b"-0", b"nan", b"inf",
    b"NaN",
    b"Infinity", b"null", b"true", b"9" * 30, b"9" * 5000, b"0x", b"1979-05-27T07:32:00Z", b"25:61:61",
    b"[" * 500, b"[" * 5000, b'{"a":' * 900, b'{"tuple":[' * 70, b"a." * 3000, b"x={y=" * 500, b"@1", b"x5",
    b":1e9",
)  # fmt: skip


def plain_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, copy, insert."""
    made = bytearray(data)
    at = rng.randrange(len(made) + 1)
    length = min(len(made) - at, rng.choice((1, 1, 2, 4, 8, 50, 400)))
    kind = rng.randrange(7)
    if kind == 0 and length:
        made[at] ^= 1 << rng.randrange(8)
    elif kind == 1 and length:
        made[at] = rng.randrange(256)
    elif kind == 2:
        del made[at : at + length]
    elif kind == 3:
        del made[at:]
    elif kind == 4:
        made[at:at] = made[at : at + length] * rng.choice((1, 2, 10))
    elif kind == 5:
        made[at:at] = rng.choice(TOKENS)
    else:
        other = rng.randrange(len(made) + 1)
        made[at:at] = made[other : other + length]
    return bytes(made)


def json_bytes(data: bytes, rng: random.Random) -> bytes:
    """Change the tree, or now and then the text."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return plain_bytes(data, rng)
    if rng.random() < 0.2:
        return plain_bytes(data, rng)
    return _dump(_tree(tree, rng), data)


def json_lines(data: bytes, rng: random.Random) -> bytes:
    """Change one line, or the order of lines."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    kind = rng.randrange(8)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(rng.randrange(len(lines) + 1), lines[at])
    elif kind == 2:
        return plain_bytes(data, rng)
    else:
        lines[at] = json_bytes(lines[at], rng)
    return b"\n".join(lines)


def toml_bytes(data: bytes, rng: random.Random) -> bytes:
    """Change the tables, or the text."""
    try:
        tree = tomllib.loads(data.decode())
        if rng.random() < 0.6:
            return tomli_w.dumps(_no_null(_tree(tree, rng))).encode()
    except (ValueError, TypeError, RecursionError, AttributeError):
        pass
    return plain_bytes(data, rng)


def safetensors_bytes(data: bytes, rng: random.Random) -> bytes:
    """Change the header's tree, its length, or the body."""
    length = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + length], data[8 + length :]
    kind = rng.randrange(6)
    if kind == 0 or not header:
        return plain_bytes(data, rng)
    if kind == 1:
        body = plain_bytes(body, rng)
    else:
        header = json_bytes(header, rng)
    length = len(header)
    if rng.random() < 0.1:
        length = rng.choice((0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1, 10**8))
    return max(length, 0).to_bytes(8, "little") + header + body


def _dump(tree: Any, otherwise: bytes) -> bytes:
    try:
        return json.dumps(tree).encode("utf-8", "replace")
    except (ValueError, RecursionError, TypeError):
        return otherwise


def _no_null(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _no_null(item) for key, item in tree.items() if item is not None}
    return [_no_null(item) for item in tree if item is not None] if isinstance(tree, list) else tree


def _places(tree: Any, depth: int = 0) -> list[tuple[Any, Any]]:
    """Pairs of a container and a key or index in it."""
    found: list[tuple[Any, Any]] = []
    if depth < 30:
        items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
        for key, item in items:
            found.append((tree, key))
            found += _places(item, depth + 1)
    return found


def _tree(tree: Any, rng: random.Random) -> Any:
    tree = {"root": tree}
    places = _places(tree)
    owner, key = rng.choice(places)
    kind = rng.randrange(8)
    if kind <= 2:
        owner[key] = copy.deepcopy(rng.choice(SCALARS))
    elif kind == 3:
        del owner[key]
    elif kind == 4:
        other, its = rng.choice(places)
        owner[key] = copy.deepcopy(other.get(its) if isinstance(other, dict) else other[its])
    elif kind == 5 and isinstance(owner, dict):
        owner[rng.choice(KEYS)] = owner.pop(key)
    elif kind == 6:
        owner[key] = rng.choice(([owner[key]], {rng.choice(KEYS): owner[key]}, [owner[key]] * 3))
    elif isinstance(owner[key], dict):
        owner[key][rng.choice(KEYS)] = copy.deepcopy(rng.choice(SCALARS))
    elif isinstance(owner[key], list):
        owner[key].insert(rng.randrange(len(owner[key]) + 1), copy.deepcopy(rng.choice(SCALARS)))
    elif isinstance(owner[key], int | float) and abs(owner[key]) < 1e300:
        owner[key] = owner[key] + rng.choice((-1, 1, 0.5, 1000))
    elif isinstance(owner[key], str):
        owner[key] = owner[key] + rng.choice(("x", "..", "/", ":f", "\n"))
    return next(iter(tree.values()), None)

"""Residuals on disk: one safetensors file of arrays and one JSON file that names it (F24)."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import numpy as safetensors

from hybridcore.correction.compression import CompressedBuckets, LowRank
from hybridcore.errors import StoreError
from hybridcore.layout import ParamGroup
from hybridcore.protocols import Residual, Situation
from hybridcore.state import FEATURE_NAMES

__all__ = ["HEADER", "pack", "read", "unpack", "write"]

HEADER = "residuals.json"
"""The file that makes a folder a store."""

FORMAT = 1
_ARRAYS = re.compile(r"residuals-[0-9a-f]{16}\.safetensors")
_SCALARS = ("step", "horizon", "loss", "predicted_change")
_GROUPS = tuple(ParamGroup)

Arrays = dict[str, NDArray[Any]]


def pack(entries: Sequence[Residual]) -> tuple[dict[str, Any], Arrays]:
    """Entries as a JSON header and named arrays."""
    n = len(entries)
    arrays: Arrays = {
        "features": np.array([r.situation.features for r in entries]).reshape(n, len(FEATURE_NAMES)),
        "scalars": np.array(
            [[float(getattr(r.situation, k)) for k in _SCALARS] + [r.realised_change] for r in entries]
        ).reshape(n, len(_SCALARS) + 1),
        # NaN marks a group that was not measured.
        "groups": np.array(
            [[r.groups.get(g, (np.nan, np.nan)) for g in _GROUPS] for r in entries], dtype=np.float64
        ).reshape(n, len(_GROUPS), 2),
    }
    weights = [_pack_weights(i, r.weights, arrays) for i, r in enumerate(entries) if r.weights is not None]
    header = {
        "format": FORMAT,
        "entries": n,
        "features": list(FEATURE_NAMES),
        "groups": [g.value for g in _GROUPS],
        "predictors": [r.situation.predictor for r in entries],
        "weights": weights,
    }
    return header, arrays


def _pack_weights(index: int, weights: CompressedBuckets, arrays: Arrays) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    for number, (bucket, part) in enumerate(weights.to_host().parts):
        key = f"weights.{index}.{number}"
        if isinstance(part, LowRank):
            arrays[f"{key}.left"], arrays[f"{key}.right"] = part.left, part.right
            parts.append({"bucket": bucket, "error": part.error, "norm": part.norm})
        else:
            arrays[key] = part
            parts.append({"bucket": bucket})
    sizes = {"sizes": list(weights.sizes), "error": weights.error, "norm": weights.norm}
    return {"entry": index, "parts": parts, **sizes}


def unpack(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], where: str) -> list[Residual]:
    """Entries from what `pack` gave.

    Raises:
        StoreError: They were written in another format or for other features.
    """
    expected = {"format": FORMAT, "features": list(FEATURE_NAMES), "groups": [g.value for g in _GROUPS]}
    for key, value in expected.items():
        if header.get(key) != value:
            raise StoreError(
                f"a store of residuals has another {key}",
                where=where,
                got=header.get(key),
                expected=str(value),
                fix="remove the folder, or name another one in correction.store",
            )
    weights = {w["entry"]: _unpack_weights(w, arrays) for w in header["weights"]}
    entries = []
    for i, predictor in enumerate(header["predictors"]):
        step, horizon, loss, predicted, realised = (float(v) for v in arrays["scalars"][i])
        place = Situation(int(step), np.array(arrays["features"][i]), predictor, horizon, loss, predicted)
        groups = {
            g: (float(a), float(b)) for g, (a, b) in zip(_GROUPS, arrays["groups"][i], strict=True) if b == b
        }
        entries.append(Residual(place, realised, groups, weights.get(i)))
    return entries


def _unpack_weights(record: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> CompressedBuckets:
    parts: list[tuple[int, Any]] = []
    for number, part in enumerate(record["parts"]):
        key = f"weights.{record['entry']}.{number}"
        if "norm" in part:
            factors = arrays[f"{key}.left"], arrays[f"{key}.right"]
            parts.append((part["bucket"], LowRank(*factors, part["error"], part["norm"])))
        else:
            parts.append((part["bucket"], arrays[key]))
    return CompressedBuckets(tuple(parts), tuple(record["sizes"]), record["error"], record["norm"])


def write(folder: Path, entries: Sequence[Residual]) -> None:
    """Write a store; the arrays' file is named after its content, so that the header's swap is the commit.

    Raises:
        StoreError: The folder cannot be written.
    """
    header, arrays = pack(entries)
    data = safetensors.save({k: np.ascontiguousarray(v) for k, v in arrays.items()})
    digest = hashlib.sha256(data).hexdigest()
    name = f"residuals-{digest[:16]}.safetensors"
    header |= {"arrays": name, "sha256": digest}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for target, content in ((name, data), (HEADER, json.dumps(header).encode())):
            unfinished = folder / f"{target}.part"
            unfinished.write_bytes(content)
            os.replace(unfinished, folder / target)  # noqa: PTH105 - Path.replace is the same call
        for old in folder.glob("residuals-*.safetensors"):
            if old.name != name:
                old.unlink()
    except OSError as error:
        raise StoreError(
            f"the store of residuals cannot be written: {error.strerror or error}",
            where=str(folder),
            fix="name a folder that can be written in correction.store",
        ) from error


def read(folder: Path) -> list[Residual]:
    """Read a store.

    Raises:
        StoreError: There is none, it is damaged, or it was written for other features.
    """
    try:
        header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
        if not _ARRAYS.fullmatch(header["arrays"]):
            raise ValueError(f"{header['arrays']!r:.80} is no name of such a file")
        data = (folder / header["arrays"]).read_bytes()
        if hashlib.sha256(data).hexdigest() != header["sha256"]:
            raise ValueError("the checksum does not fit")
        arrays = safetensors.load(data)
        return unpack(header, arrays, str(folder))
    except StoreError:
        raise
    except Exception as error:  # whatever a damaged header may lead to
        reason = error.strerror if isinstance(error, OSError) and error.strerror else repr(error)
        raise StoreError(
            f"the store of residuals cannot be read: {reason}",
            where=str(folder),
            expected="a folder written by ResidualStore.save",
            fix="remove the folder, or name another one in correction.store",
        ) from error

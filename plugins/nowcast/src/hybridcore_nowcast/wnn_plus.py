"""The MLP variant of NiNo ("WNN+", Knyazev et al., ICLR 2025), from its published checkpoint format."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridcore.layout import Array, ParamGroup, ParamSpec
from hybridcore_nowcast.arrays import Constants, chunks, silu, stack
from hybridcore_nowcast.errors import CheckpointError
from hybridcore_nowcast.network import Displacement

__all__ = ["WnnPlus", "edge_type"]

FC, OTHER, CONVOLUTION, NORM, TOKENS, POSITIONS, QUERY, KEY, VALUE = range(1, 10)

_ROLES = {"q": QUERY, "query": QUERY, "k": KEY, "key": KEY, "v": VALUE, "value": VALUE}


def edge_type(spec: ParamSpec) -> int:
    """Row of the type embedding for a parameter, by its name, shape and group.

    Query, key and value matrices count as such where they are separate parameters named so (``q_proj``,
    ``query``); a fused one counts as a linear layer.

    Example:
        >>> from hybridcore.layout import ParamLayout
        >>> rows = [(n, (4,) * i, "float32", "cpu", None) for n, i in (("q_proj.weight", 2), ("a.bias", 1))]
        >>> [edge_type(spec) for spec in ParamLayout.plan(rows).params]
        [7, 2]
    """
    axes, words = len(spec.shape), re.split(r"[._]", spec.name.lower())
    if axes == 1:
        return NORM if spec.name.endswith(".weight") or spec.group is ParamGroup.NORM else OTHER
    if axes in {2, 3} and (spec.group is ParamGroup.EMBEDDING or {"wte", "wpe"} & set(words)):
        return POSITIONS if any(w.startswith("pos") or w == "wpe" for w in words) else TOKENS
    if axes == 4:
        return CONVOLUTION
    if axes == 2:
        return next((role for word, role in _ROLES.items() if word in words), FC)
    return OTHER


class WnnPlus:
    """NiNo without its graph: one MLP for all weights, told what kind of parameter each one is.

    All K snapshots of a tensor are shifted by their common mean and divided by their common standard
    deviation sigma (the unbiased one). A linear layer takes them to a hidden vector, the embedding of the
    parameter's type is added, and an MLP with SiLU units gives as many outputs as it looks spacings ahead.
    Output k, times sigma, is the displacement from the newest snapshot after k spacings (direct multi-step
    forecasting).

    Arrays: ``layer_embed.weight`` (types, h), ``edge_proj.fc.N.weight`` and ``.bias``, the first (h, K), and
    ``edge_mlp.fc.N.weight`` and ``.bias``, the last (spacings, h); N counts activations too.

    Args:
        arrays: The state dict.
        about: ``model_args``, the model's arguments where they differ from its defaults.
        where: Where it came from, for messages.

    Raises:
        CheckpointError: It is one with a graph network, or of another structure.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any], where: str) -> None:
        _refuse_options(about.get("model_args", {}), where)
        if any(name.startswith(("gnn.", "node_", "edge_out.", "wte_pos_enc")) for name in arrays):
            raise CheckpointError(
                "a checkpoint holds a graph network, which nowcast does not apply",
                where=where,
                expected="NiNo's MLP variant",
                fix="use nino_mlp.pt or nino_mlp_h32.pt",
            )
        self._projection = _chain(arrays, "edge_proj.fc", where)
        self._mlp = _chain(arrays, "edge_mlp.fc", where)
        layers = [arrays[f"{name}.weight"] for name in self._projection + self._mlp]
        embedding = arrays.get("layer_embed.weight")
        self._types = 0 if embedding is None else int(embedding.shape[0])
        widths = [layer.shape for layer in layers]
        joined = all(a[0] == b[1] for a, b in pairwise(widths))
        hidden = widths[len(self._projection) - 1][0]
        fits = embedding is None or (embedding.ndim == 2 and embedding.shape[1] == hidden)
        if not joined or not fits or (0 < self._types <= VALUE):
            raise CheckpointError(
                "the layers of a WNN+ checkpoint do not fit together",
                where=where,
                got={n: tuple(a.shape) for n, a in arrays.items()},
                expected="each layer's inputs are the outputs of the one before, and ten types or more",
                fix="copy the file again",
            )
        self.snapshots = int(widths[0][1])
        self.furthest = float(widths[-1][0])
        self._constants = Constants({k: np.asarray(v, dtype=np.float64) for k, v in arrays.items()})

    def bind(
        self, spec: ParamSpec, path: Sequence[Array], windows: float, xp: ModuleType, chunk: int
    ) -> Displacement:
        """See `Network.bind`; `windows` is rounded to a whole number of spacings, one at least."""
        ahead = min(max(round(windows), 1), int(self.furthest)) - 1
        mean, deviation = _spread(path, xp, chunk, self.snapshots)
        w, kind = self._constants.beside(path[-1], xp), edge_type(spec)
        last = self._mlp[-1]

        def displacement(part: slice) -> Array:
            x = (stack(path, part, xp, self.snapshots) - mean) / (deviation + 1e-6)
            x = self._run(self._projection, w, x, xp)
            if self._types:
                x = x + w["layer_embed.weight"][kind, :][:, None]
            x = silu(self._run(self._mlp[:-1], w, x, xp), xp) if len(self._mlp) > 1 else x
            out = xp.matmul(w[f"{last}.weight"][ahead, :], x) + w[f"{last}.bias"][ahead]
            return out * deviation

        return displacement

    def _run(self, layers: Sequence[str], w: dict[str, Array], x: Array, xp: ModuleType) -> Array:
        """Linear layers with SiLU between them; columns are weights."""
        for index, name in enumerate(layers):
            x = xp.matmul(w[f"{name}.weight"], silu(x, xp) if index else x)
            x = x + w[f"{name}.bias"][:, None]
        return x


def _spread(path: Sequence[Array], xp: ModuleType, chunk: int, rows: int) -> tuple[float, float]:
    """Common mean and unbiased standard deviation of all snapshots of a tensor."""
    size = int(path[0].shape[0])
    count = size * rows
    mean = sum(float(xp.sum(stack(path, part, xp, rows))) for part in chunks(size, chunk)) / count
    squares = 0.0
    for part in chunks(size, chunk):
        centred = stack(path, part, xp, rows) - mean
        squares += float(xp.sum(centred * centred))
    return mean, math.sqrt(squares / max(count - 1, 1))


def _chain(arrays: Mapping[str, NDArray[Any]], prefix: str, where: str) -> list[str]:
    """Names of the linear layers under a prefix, in order."""
    found = sorted(
        int(match[1])
        for name in arrays
        if (match := re.fullmatch(re.escape(prefix) + r"\.(\d+)\.weight", name)) is not None
    )
    names = [f"{prefix}.{index}" for index in found]
    for name in names:
        weight, bias = arrays[f"{name}.weight"], arrays.get(f"{name}.bias")
        if weight.ndim != 2 or bias is None or tuple(bias.shape) != (weight.shape[0],):
            names = []
            break
    if not names:
        raise CheckpointError(
            "a WNN+ checkpoint lacks linear layers",
            where=where,
            got=", ".join(sorted(arrays)),
            expected=f"{prefix}.N.weight of two axes and {prefix}.N.bias to match",
            fix="copy the file again",
        )
    return names


def _refuse_options(options: Mapping[str, Any], where: str) -> None:
    """Raise where the model's arguments ask for something that is not applied here."""
    expected: dict[str, tuple[object, ...]] = {
        "gnn": (False, None, "None", "none"),
        "act_name": ("silu",),
        "residual": (True,),
        "dms": (True,),
        "scale_method": ("std",),
        "upd_scale": (1.0,),
    }
    for key, allowed in expected.items():
        if key in options and options[key] not in allowed:
            raise CheckpointError(
                "a WNN+ checkpoint asks for something that nowcast does not do",
                where=f"{where}: model_args.{key}",
                got=repr(options[key]),
                expected=" or ".join(map(repr, allowed)),
                fix="use nino_mlp.pt or nino_mlp_h32.pt",
            )

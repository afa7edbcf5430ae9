"""A checkpoint in the format of NiNo's MLP variant, and its forward pass written out in float64."""

from __future__ import annotations

import numpy as np


def state(hidden=12, snapshots=5, ahead=40, types=15, seed=0):
    """A state dict with that variant's names and shapes, random numbers."""
    rng = np.random.default_rng(seed)

    def random(*shape):
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    arrays = {
        "layer_embed.weight": random(types, hidden),
        "edge_proj.fc.0.weight": random(hidden, snapshots),
        "edge_proj.fc.0.bias": random(hidden),
    }
    for index, out in ((0, hidden), (2, hidden), (4, hidden), (6, ahead)):
        arrays[f"edge_mlp.fc.{index}.weight"] = random(out, hidden)
        arrays[f"edge_mlp.fc.{index}.bias"] = random(out)
    return arrays


def displacement(arrays, path, kind, ahead):
    """Weight by weight: what the network says of a tensor; `path` is (K, n), `ahead` counts from 1."""
    w = {name: value.astype(np.float64) for name, value in arrays.items()}
    path = np.asarray(path, dtype=np.float64)
    mean, deviation = path.mean(), path.std(ddof=1)
    moved = []
    for weight in path.T:
        x = (weight - mean) / (deviation + 1e-6)
        h = w["edge_proj.fc.0.weight"] @ x + w["edge_proj.fc.0.bias"] + w["layer_embed.weight"][kind]
        for index in (0, 2, 4):
            h = w[f"edge_mlp.fc.{index}.weight"] @ h + w[f"edge_mlp.fc.{index}.bias"]
            h = h / (1.0 + np.exp(-h))
        out = w["edge_mlp.fc.6.weight"] @ h + w["edge_mlp.fc.6.bias"]
        moved.append(out[ahead - 1] * deviation)
    return np.array(moved)

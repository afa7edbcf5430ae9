"""Closed-loop roll-out of an ensemble of recurrent models, by batched products."""

from __future__ import annotations

from types import ModuleType

from hybridcore.layout import Array
from hybridcore.protocols import Ensemble

__all__ = ["rollout"]


def rollout(
    ensemble: Ensemble, hidden: Array, actions: Array, output: Array, xp: ModuleType
) -> tuple[Array, Array]:
    """Outputs of every model and step; see `hybridcore.protocols.KernelSet.rollout`."""
    width = int(hidden.shape[2])
    members, rows = int(hidden.shape[0]), int(hidden.shape[1])
    recurrent_bias = xp.expand_dims(ensemble.recurrent_bias, axis=1)
    input_bias = xp.expand_dims(ensemble.input_bias, axis=1)
    readout_bias = xp.expand_dims(ensemble.readout_bias, axis=1)
    outputs = []
    for step in range(int(actions.shape[0])):
        shared = xp.expand_dims(actions[step, :, :], axis=0)
        action = xp.broadcast_to(shared, (members, rows, int(actions.shape[2])))
        inside = xp.matmul(xp.concat([output, action], axis=2), ensemble.inputs) + input_bias
        before = xp.matmul(hidden, ensemble.recurrent) + recurrent_bias
        reset = _sigmoid(inside[:, :, :width] + before[:, :, :width], xp)
        update = _sigmoid(inside[:, :, width : 2 * width] + before[:, :, width : 2 * width], xp)
        fresh = xp.tanh(inside[:, :, 2 * width :] + reset * before[:, :, 2 * width :])
        hidden = fresh + update * (hidden - fresh)
        output = xp.matmul(hidden, ensemble.readout) + readout_bias
        outputs.append(output)
    shape = (0, members, rows, int(output.shape[2]))
    return xp.stack(outputs) if outputs else xp.zeros(shape, dtype=xp.float32), hidden


def _sigmoid(x: Array, xp: ModuleType) -> Array:
    return 0.5 * xp.tanh(0.5 * x) + 0.5  # cannot overflow

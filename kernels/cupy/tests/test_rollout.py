"""F70: the roll-out of an ensemble against PyTorch's own GRU cell in float64 (CUDA code on the CPU)."""

from __future__ import annotations

import array_api_compat.torch as xp
import numpy as np
import pytest
import torch

from hybridcore.kernels import REFERENCE
from hybridcore.protocols import Ensemble


def make(members, rows, steps, width, made, acted):
    rng = np.random.default_rng(3)

    def draw(*shape):
        return torch.as_tensor(rng.standard_normal(shape).astype(np.float32) * 0.4)

    seen = made + acted
    models = Ensemble(
        draw(members, seen, 3 * width),
        draw(members, width, 3 * width),
        draw(members, 3 * width),
        draw(members, 3 * width),
        draw(members, width, made),
        draw(members, made),
    )
    return models, draw(members, rows, width), draw(steps, rows, acted), draw(members, rows, made)


def truth(models, hidden, actions, output):
    """`torch.nn.GRUCell` in float64, one model after the other."""
    members, _, width = hidden.shape
    seen = output.shape[2] + actions.shape[2]
    outputs, last = [], []
    for e in range(members):
        cell = torch.nn.GRUCell(seen, width, dtype=torch.float64)
        with torch.no_grad():
            cell.weight_ih.copy_(models.inputs[e].T)
            cell.weight_hh.copy_(models.recurrent[e].T)
            cell.bias_ih.copy_(models.input_bias[e])
            cell.bias_hh.copy_(models.recurrent_bias[e])
            h, y, row = hidden[e].double(), output[e].double(), []
            for action in actions.double():
                h = cell(torch.cat([y, action], dim=1), h)
                y = h @ models.readout[e].double() + models.readout_bias[e].double()
                row.append(y)
        outputs.append(torch.stack(row))
        last.append(h)
    return torch.stack(outputs, dim=1), torch.stack(last)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1, 0), (5, 6, 20, 19, 3, 2), (2, 4, 3, 70, 2, 1)])
@pytest.mark.parametrize("which", ["kernel", "reference"])
def test_f70_rollout_equals_gru_cells(emulated, sizes, which):
    kernels = emulated if which == "kernel" else REFERENCE
    arguments = make(*sizes)
    outputs, last = kernels.rollout(*arguments, xp)
    expected, final = truth(*arguments)
    assert outputs.shape == expected.shape
    assert (outputs.double() - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (last.double() - final).abs().max() < 1e-4


def test_f70_states_beyond_shared_memory_go_to_the_reference(emulated):
    arguments = make(1, 2, 2, 2000, 1, 1)
    outputs, _ = emulated.rollout(*arguments, xp)
    assert torch.equal(outputs, REFERENCE.rollout(*arguments, xp)[0])

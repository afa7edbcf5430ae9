"""F11, F12, F14: the hand-written gradients of the dynamics models against PyTorch's autograd."""

from __future__ import annotations

import array_api_compat.numpy as xp
import numpy as np
import pytest
import torch

from hybridcore.dynamics.categorical import UNIFORM
from hybridcore.dynamics.layers import gru, gru_backward
from hybridcore.dynamics.mlp import mlp_loss, mlp_weights
from hybridcore.dynamics.state_space import Objective, Sizes, StateSpace

F = torch.nn.functional


def tensors(arrays):
    return {n: torch.tensor(a, dtype=torch.float64, requires_grad=True) for n, a in arrays.items()}


def test_f11_gru_equals_the_cell_of_pytorch():
    cell = torch.nn.GRUCell(3, 4, dtype=torch.float64)
    rng = np.random.default_rng(0)
    x, h, seen = (
        rng.standard_normal((1, 5, 3)),
        rng.standard_normal((1, 5, 4)),
        rng.standard_normal((1, 5, 4)),
    )
    names = {"gru_x": cell.weight_ih, "gru_bx": cell.bias_ih, "gru_h": cell.weight_hh, "gru_bh": cell.bias_hh}
    p = {n: np.atleast_2d(w.detach().numpy().T)[None] for n, w in names.items()}
    got, kept = gru(x, h, p, xp)
    tx, th = (torch.tensor(a[0], requires_grad=True) for a in (x, h))
    wanted = cell(tx, th)
    np.testing.assert_allclose(got[0], wanted.detach(), atol=1e-12)
    wanted.backward(torch.tensor(seen[0]))
    dx, dh, grads = gru_backward(seen, kept, p, xp)
    np.testing.assert_allclose(dx[0], tx.grad, atol=1e-12)
    np.testing.assert_allclose(dh[0], th.grad, atol=1e-12)
    for name, weight in names.items():
        np.testing.assert_allclose(grads[name][0], np.atleast_2d(weight.grad.numpy().T), atol=1e-12)


@pytest.mark.parametrize("activation", ["gelu", "relu", "silu", "tanh"])
def test_f18_mlp(activation):
    rng = np.random.default_rng(0)
    params = {n: a + 0.1 * rng.standard_normal(a.shape) for n, a in mlp_weights((4, 6, 5, 2), 3, rng).items()}
    x, target = rng.standard_normal((3, 8, 4)), rng.standard_normal((3, 8, 1))
    weight = (rng.random((3, 8, 1)) > 0.3) * 1.0
    total, grads = mlp_loss(params, x, target, weight, activation, 0.2, [], xp)
    p, y = tensors(params), torch.tensor(x)
    apply = {
        "gelu": lambda v: F.gelu(v, approximate="tanh"),
        "relu": F.relu,
        "silu": F.silu,
        "tanh": torch.tanh,
    }
    for k in range(3):
        y = y @ p[f"w{k}"] + p[f"b{k}"]
        y = apply[activation](y) if k < 2 else y
    variance = torch.exp(6.0 * torch.tanh(y[..., 1:] / 6.0))
    nll = F.gaussian_nll_loss(y[..., :1], torch.tensor(target), variance, reduction="none", eps=1e-12)
    counts = torch.tensor(weight)
    wanted = (nll * counts / counts.sum(1, keepdim=True)).sum()
    wanted = wanted + 0.1 * sum((p[f"w{k}"] ** 2).sum() for k in range(3))
    wanted.backward()
    assert float(total) == pytest.approx(wanted.item())
    for name in params:
        np.testing.assert_allclose(grads[name], p[name].grad, atol=1e-10)


SIZES = Sizes(features=3, actions=2, deterministic=4, stochastic=2, classes=3, hidden=5, members=2)


def draw(logits, noise):
    """Straight-through sample as in Dreamer's code: one-hot plus probabilities minus their constant."""
    shape = (*logits.shape[:-1], SIZES.stochastic, SIZES.classes)
    p = (1.0 - UNIFORM) * torch.softmax(logits.reshape(shape), -1) + UNIFORM / SIZES.classes
    hot = F.one_hot((p.log() + noise.reshape(shape)).argmax(-1), SIZES.classes).to(p.dtype)
    return (hot + p - p.detach()).reshape(logits.shape), p


def kl(q, p):
    return (q * (q.log() - p.log())).sum((-1, -2))


def reference_loss(p, x, actions, targets, weights, noise, context, objective):
    """The objective for autograd: detach stops gradients, between ticks and in the divergence."""

    def dense(name, v):
        return v @ p[name] + p[f"{name}_b"]

    def posterior(h, x, noise):
        return draw(dense("posterior", torch.cat([h, F.silu(dense("embed", x))], -1)), noise)

    ticks, d = len(actions), SIZES.deterministic
    h = torch.zeros((*x.shape[1:-1], d), dtype=x.dtype)
    z, _ = posterior(h, x[0], noise[ticks])
    total, so_far, rows = 0.0, None, x.shape[2] * context
    for t in range(ticks):
        if t and t % objective.bptt == 0:
            h, z = h.detach(), z.detach()
        v = F.silu(dense("enter", torch.cat([z, actions[t]], -1)))
        a, c = v @ p["gru_x"] + p["gru_bx"], h @ p["gru_h"] + p["gru_bh"]
        r, u = torch.sigmoid(a[..., :d] + c[..., :d]), torch.sigmoid(a[..., d : 2 * d] + c[..., d : 2 * d])
        n = torch.tanh(a[..., 2 * d :] + r * c[..., 2 * d :])
        h = (1.0 - u) * n + u * h
        z, prior = draw(dense("prior_out", F.silu(dense("prior_in", h))), noise[t])
        out = dense("head", F.silu(dense("trunk", torch.cat([h, z, x[min(t, context)]], -1))))
        so_far = out[..., :1] if so_far is None else so_far + out[..., :1]
        mean = torch.sign(so_far) * torch.log1p(so_far.abs())
        log_variance = 6.0 * torch.tanh(out[..., 1:] / 6.0)
        nll = 0.5 * (log_variance + (mean - targets[t]) ** 2 * torch.exp(-log_variance))
        total = total + (weights[t] * nll).sum()
        if t < context:
            z, q = posterior(h, x[t + 1], noise[ticks + 1 + t])
            pulls = (
                (objective.dynamics, kl(q.detach(), prior)),
                (objective.representation, kl(q, prior.detach())),
            )
            free = torch.tensor(objective.free_nats, dtype=x.dtype)
            total = total + sum(weight * torch.maximum(free, part).sum() for weight, part in pulls) / rows
            miss = dense("decoder", torch.cat([h, z], -1)) - x[t + 1]
            total = total + 0.5 * objective.reconstruction / rows * (miss**2).sum()
            so_far = None
    return total


@pytest.mark.parametrize("bptt", [1, 2, 3, 99])
@pytest.mark.parametrize("free", [0.0, 0.15])
def test_f11_f12_f14_state_space_model(bptt, free):
    context, ticks, batch = 3, 8, 4
    rng = np.random.default_rng(0)
    params = {n: v + 0.2 * rng.standard_normal(v.shape) for n, v in SIZES.weights(rng).items()}
    shapes = {
        "x": (context + 1, 2, batch, 3), "actions": (ticks, 2, batch, 2), "targets": (ticks, 2, batch, 1),
    }  # fmt: skip
    data = {n: rng.standard_normal(s) for n, s in shapes.items()}
    data["weights"] = rng.random((ticks, 2, batch, 1)) / (ticks * batch)
    data["noise"] = rng.gumbel(size=(ticks + context + 1, 2, batch, SIZES.latent))
    objective = Objective(free_nats=free, dynamics=0.5, representation=0.1, reconstruction=0.3, bptt=bptt)
    total, grads = StateSpace(SIZES, xp).loss(params, **data, context=context, objective=objective)
    p = tensors(params)
    wanted = reference_loss(
        p, **{n: torch.tensor(a) for n, a in data.items()}, context=context, objective=objective
    )
    wanted.backward()
    assert float(total) == pytest.approx(wanted.item())
    for name in params:
        np.testing.assert_allclose(grads[name], p[name].grad, atol=1e-10, err_msg=name)

"""F11, F14: hand-written gradients against central differences in float64."""

from __future__ import annotations

from itertools import pairwise

import array_api_compat.numpy as xp
import numpy as np
import pytest

from hybridcore.dynamics import state_space
from hybridcore.dynamics.categorical import kl_balanced, sample, sample_backward
from hybridcore.dynamics.layers import ACTIVATIONS, dense, dense_backward, gaussian_nll, gru, gru_backward
from hybridcore.dynamics.mlp import mlp_loss
from hybridcore.dynamics.state_space import Objective, Sizes, StateSpace


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def numeric(function, array, count=12, step=1e-5):
    """Central differences at the first and some random entries: flat places and slopes."""
    places = np.unique(np.random.default_rng(0).integers(0, array.size, count))
    slopes = []
    for place in places:
        values = []
        for sign in (1.0, -1.0):
            moved = array.copy()
            moved.flat[place] += sign * step
            values.append(function(moved))
        slopes.append((values[0] - values[1]) / (2.0 * step))
    return places, np.array(slopes)


def check(function, array, gradient):
    places, slopes = numeric(function, array)
    np.testing.assert_allclose(
        np.broadcast_to(gradient, array.shape).flat[places], slopes, rtol=1e-5, atol=1e-8
    )


def check_along(function, array, gradient, step=1e-5):
    """Slope along a random direction: every entry takes part in one difference."""
    way = np.random.default_rng(7).standard_normal(array.shape)
    slope = (function(array + step * way) - function(array - step * way)) / (2.0 * step)
    np.testing.assert_allclose(
        np.sum(np.broadcast_to(gradient, array.shape) * way), slope, rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_f18_slopes_of_the_activations(name):
    x = 2.0 * draw(1, 4, 5)
    check(lambda v: float(np.sum(ACTIVATIONS[name](v, xp)[0])), x, ACTIVATIONS[name](x, xp)[1])


def test_f11_a_gru_step():
    n, d = 3, 4
    x, h, seen = draw(2, 5, n), draw(2, 5, d), draw(2, 5, d, seed=1)
    p = {
        "gru_x": draw(2, n, 3 * d), "gru_bx": draw(2, 1, 3 * d),
        "gru_h": draw(2, d, 3 * d, seed=2), "gru_bh": draw(2, 1, 3 * d, seed=3),
    }  # fmt: skip

    def loss(**changed):
        values = {"x": x, "h": h, **p, **changed}
        return float(np.sum(seen * gru(values["x"], values["h"], values, xp)[0]))

    dx, dh, grads = gru_backward(seen, gru(x, h, p, xp)[1], p, xp)
    check(lambda v: loss(x=v), x, dx)
    check(lambda v: loss(h=v), h, dh)
    for name in p:
        check(lambda v, name=name: loss(**{name: v}), p[name], grads[name])


def test_f16_the_likelihood():
    mean, raw, target, weight = (draw(2, 4, 1, seed=s) for s in range(4))
    losses, d_mean, d_raw, log_variance = gaussian_nll(mean, raw, target, weight, xp)
    density = np.exp(-((target - mean) ** 2) / (2.0 * np.exp(log_variance))) / np.sqrt(
        2.0 * np.pi * np.exp(log_variance)
    )
    np.testing.assert_allclose(losses, weight * (-np.log(density) - 0.5 * np.log(2.0 * np.pi)))
    check(lambda v: float(np.sum(gaussian_nll(v, raw, target, weight, xp)[0])), mean, d_mean)
    check(lambda v: float(np.sum(gaussian_nll(mean, v, target, weight, xp)[0])), raw, d_raw)


def test_f12_the_divergence_and_its_two_pulls():
    q, p = (np.exp(draw(3, 2, 4, seed=s)) for s in (0, 1))
    q, p = q / q.sum(-1, keepdims=True), p / p.sum(-1, keepdims=True)
    total, dq, dp = kl_balanced(q, p, 0.0, 0.5, 0.1, xp)
    kl = np.sum(q * np.log(q / p))
    assert total == pytest.approx(0.6 * kl)
    check(lambda v: float(kl_balanced(v, p, 0.0, 0.0, 0.1, xp)[0]), q, dq)
    check(lambda v: float(kl_balanced(q, v, 0.0, 0.5, 0.0, xp)[0]), p, dp)
    free, dq, dp = kl_balanced(q, p, 1e3, 0.5, 0.1, xp)
    assert free == pytest.approx(0.6 * 1e3 * 6)
    assert not dq.any() and not dp.any()


def test_f18_dense_layers_with_dropout_and_l2():
    widths, batch = (4, 5, 3, 2), 6
    params = {}
    for k, (a, b) in enumerate(pairwise(widths)):
        params |= {f"w{k}": draw(2, a, b), f"b{k}": draw(2, 1, b, seed=1)}
    x, target, weight = draw(2, batch, 4), draw(2, batch, 1), (draw(2, batch, 1, seed=5) > -0.5) * 1.0
    masks = [(draw(2, batch, w, seed=6) > 0.0) * 2.0 for w in widths[1:-1]]
    for activation in sorted(ACTIVATIONS):

        def value(changed, activation=activation):
            return float(mlp_loss({**params, **changed}, x, target, weight, activation, 0.3, masks, xp)[0])

        _, grads = mlp_loss(params, x, target, weight, activation, 0.3, masks, xp)
        for name in params:
            check(lambda v, name=name: value({name: v}), params[name], grads[name])


SIZES = Sizes(features=3, actions=2, deterministic=4, stochastic=2, classes=3, hidden=5, members=2)


def problem(context, ticks, batch=3):
    """Parameters and data for `StateSpace.loss`, float64."""
    rng = np.random.default_rng(0)
    p = {n: v.astype(np.float64) + 0.1 * rng.standard_normal(v.shape) for n, v in SIZES.weights(rng).items()}
    m = SIZES.members
    return p, {
        "x": rng.standard_normal((context + 1, m, batch, SIZES.features)),
        "actions": rng.standard_normal((ticks, m, batch, SIZES.actions)),
        "targets": rng.standard_normal((ticks, m, batch, 1)),
        "weights": rng.random((ticks, m, batch, 1)) / (ticks * batch),
        "noise": rng.gumbel(size=(ticks + context + 1, m, batch, SIZES.latent)),
        "context": context,
    }


@pytest.mark.parametrize(("context", "ticks"), [(2, 5), (3, 3), (1, 4)])
def test_f11_f14_the_whole_unrolled_model(monkeypatch, context, ticks):
    """With probabilities in place of draws, what straight-through differentiates is the true function."""
    monkeypatch.setattr(state_space, "sample", lambda *a: (sample(*a)[1], sample(*a)[1]))
    core = StateSpace(SIZES, xp)
    # Equal pulls: then nothing is hidden from the sum by a stopped gradient.
    objective = Objective(free_nats=0.0, dynamics=0.4, representation=0.4, reconstruction=0.7, bptt=99)
    p, data = problem(context, ticks)
    _, grads = core.loss(p, **data, objective=objective)
    half = Objective(free_nats=0.0, dynamics=0.4, representation=0.0, reconstruction=0.7, bptt=99)
    for name in p:
        check_along(
            lambda v, name=name: float(core.loss({**p, name: v}, **data, objective=half)[0]),
            p[name],
            grads[name],
        )


def test_f14_bptt_bounds_how_far_a_gradient_goes_back():
    """With a bound of one tick, posteriors hear nothing of the open ticks; longer bounds hear more."""
    core, (p, data) = StateSpace(SIZES, xp), problem(1, 6)
    data["weights"][:5] = 0.0  # only the last tick counts
    grads = {
        k: core.loss(p, **data, objective=Objective(free_nats=1e9, dynamics=0.0, representation=0.0,
                                                    reconstruction=0.0, bptt=k))[1]
        for k in (1, 3, 99)
    }  # fmt: skip
    # The first posterior reaches the last loss through the recurrent state only.
    assert not grads[1]["posterior"].any()
    assert grads[99]["posterior"].any()
    assert not np.allclose(grads[1]["gru_h"], grads[3]["gru_h"])
    assert not np.allclose(grads[3]["gru_h"], grads[99]["gru_h"])


def test_f12_straight_through_is_the_gradient_of_the_probabilities():
    logits, seen = draw(2, 3, 6), draw(2, 3, 6, seed=1)
    noise = draw(2, 3, 6, seed=2)
    p = sample(logits, noise, 3, xp)[1]
    check(lambda v: float(np.sum(seen * sample(v, noise, 3, xp)[1])), logits, sample_backward(seen, p, 3, xp))


def test_f11_dense_is_linear():
    x, w, b, dy = draw(2, 3, 4), draw(2, 4, 5), draw(2, 1, 5), draw(2, 3, 5, seed=1)
    dx, dw, db = dense_backward(dy, x, w, xp)
    check(lambda v: float(np.sum(dy * dense(v, w, b, xp))), x, dx)
    check(lambda v: float(np.sum(dy * dense(x, v, b, xp))), w, dw)
    check(lambda v: float(np.sum(dy * dense(x, w, v, xp))), b, db)

"""The recurrent state-space model (Hafner et al. 2019, 2023) with gradients written out by hand.

State: a GRU's h and a categorical z. One tick, from action a::

    h' = GRU([z, a], h)    prior p(z' | h')    posterior q(z' | h', x')    head(h', z', x) -> step, noise

x are the newest features seen. Without them in the head, all that it knows goes through saturating units and
a few categories: it could neither tell fine differences nor how far features lie from all it has learned on.

Arrays carry axes (members, batch, ...); members share nothing, the heads included.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import attrs
import numpy as np

from hybridcore.dynamics.categorical import kl_balanced, sample, sample_backward
from hybridcore.dynamics.layers import (
    Array,
    Arrays,
    dense,
    dense_backward,
    gaussian_nll,
    gru,
    gru_backward,
    initial,
    sigmoid,
)

__all__ = ["Objective", "Sizes", "StateSpace", "Tick"]


@attrs.frozen(kw_only=True)
class Sizes:
    """Widths of the model.

    Attributes:
        features: Observed features x.
        actions: Action vector a.
        deterministic: GRU state h.
        stochastic: Categorical variables in z.
        classes: Classes of each.
        hidden: Layers between.
        members: Models in the ensemble.
    """

    features: int
    actions: int
    deterministic: int
    stochastic: int
    classes: int
    hidden: int
    members: int

    @property
    def latent(self) -> int:
        """Length of z."""
        return self.stochastic * self.classes

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each dense layer."""
        d, n, z = self.deterministic, self.hidden, self.latent
        return {
            "embed": (self.features, n),
            "enter": (z + self.actions, n),
            "gru_x": (n, 3 * d),
            "gru_h": (d, 3 * d),
            "prior_in": (d, n),
            "prior_out": (n, z),
            "posterior": (d + n, z),
            "trunk": (d + z + self.features, n),
            "head": (n, 2),
            "decoder": (d + z, self.features),
        }

    def weights(self, rng: np.random.Generator) -> dict[str, Any]:
        """Fresh parameters, NumPy float32; another draw for each member."""
        params = {}
        for name, (n_in, n_out) in self.shapes().items():
            params[name] = initial(self.members, n_in, n_out, rng, 0.5 if name == "head" else 1.0)
            params[_bias(name)] = np.zeros((self.members, 1, n_out), np.float32)
        return params


@attrs.frozen(kw_only=True)
class Objective:
    """What training minimises.

    Attributes:
        free_nats: Divergence below this many nats is not reduced.
        dynamics: Weight of the divergence that pulls the prior to the posterior.
        representation: Weight of the one that pulls the posterior to the prior.
        reconstruction: Weight of the squared error of decoded features.
        bptt: Ticks that a gradient goes back through the recurrent state.
    """

    free_nats: float
    dynamics: float
    representation: float
    reconstruction: float
    bptt: int


@attrs.frozen(slots=True, eq=False)
class Tick:
    """What one tick leaves for the backward pass: see `StateSpace.loss`."""

    entered: Any
    gru: Any
    prior: Any
    head: Any
    posterior: Any
    z_in: Any
    closed: bool


def _bias(name: str) -> str:
    return {"gru_x": "gru_bx", "gru_h": "gru_bh"}.get(name, f"{name}_b")


def _silu(x: Array, xp: ModuleType) -> tuple[Array, Array]:
    s = sigmoid(x, xp)
    return x * s, s * (1.0 + x * (1.0 - s))


class StateSpace:
    """Forward and backward passes over sequences of ticks.

    The first `context` ticks are closed: the posterior sees x and carries on; divergence and reconstruction
    are counted. The ticks after them are open: the prior's samples carry on, as in a forecast. The head
    always reads prior samples, so that it learns on what it will be used on. Its first output is the step of
    the normalised loss; steps of open ticks add up from the branch point.

    Args:
        sizes: Widths.
        xp: Array namespace.
    """

    def __init__(self, sizes: Sizes, xp: ModuleType) -> None:
        self.sizes, self.xp = sizes, xp

    def start(self, p: Arrays, x: Array, noise: Array) -> tuple[Array, Array, Any]:
        """Begin with h = 0 and z from the first features' posterior; and what the backward pass needs."""
        xp = self.xp
        h = xp.zeros((*x.shape[:-1], self.sizes.deterministic), dtype=x.dtype)
        logits, kept = self._posterior(p, h, x)
        z, probabilities = sample(logits, noise, self.sizes.classes, xp)
        return h, z, (kept, probabilities)

    def advance(
        self, p: Arrays, h: Array, z: Array, action: Array, noise: Array, seen: Array
    ) -> tuple[Array, Array, Array, Array, Any]:
        """One tick without new features; `seen` are the newest ones.

        Returns:
            h', z' from the prior, step and raw log variance of the head, and what the backward pass needs.
        """
        xp = self.xp
        joined = xp.concat([z, action], axis=-1)
        entered, enter_slope = _silu(dense(joined, p["enter"], p["enter_b"], xp), xp)
        h, gru_kept = gru(entered, h, p, xp)
        inner, inner_slope = _silu(dense(h, p["prior_in"], p["prior_in_b"], xp), xp)
        logits = dense(inner, p["prior_out"], p["prior_out_b"], xp)
        z, probabilities = sample(logits, noise, self.sizes.classes, xp)
        state = xp.concat([h, z, seen], axis=-1)
        trunk, trunk_slope = _silu(dense(state, p["trunk"], p["trunk_b"], xp), xp)
        out = dense(trunk, p["head"], p["head_b"], xp)
        kept = (
            (joined, enter_slope),
            gru_kept,
            (h, inner, inner_slope, probabilities),
            (state, trunk, trunk_slope),
        )
        return h, z, out[..., :1], out[..., 1:], kept

    def observe(self, p: Arrays, h: Array, x: Array, noise: Array) -> tuple[Array, Any]:
        """Draw z from the posterior, and what the backward pass needs."""
        logits, kept = self._posterior(p, h, x)
        z, probabilities = sample(logits, noise, self.sizes.classes, self.xp)
        return z, (kept, probabilities)

    def _posterior(self, p: Arrays, h: Array, x: Array) -> tuple[Array, Any]:
        xp = self.xp
        embedded, slope = _silu(dense(x, p["embed"], p["embed_b"], xp), xp)
        joined = xp.concat([h, embedded], axis=-1)
        return dense(joined, p["posterior"], p["posterior_b"], xp), (x, slope, joined)

    def loss(
        self,
        p: Arrays,
        x: Array,
        actions: Array,
        targets: Array,
        weights: Array,
        noise: Array,
        context: int,
        objective: Objective,
    ) -> tuple[Array, Arrays]:
        """Objective summed over members, and its gradient.

        Args:
            p: Parameters.
            x: Features of ticks 0 to `context`, shape (context + 1, members, batch, features).
            actions: Shape (ticks, members, batch, actions).
            targets: Normalised losses in symlog: of closed ticks one tick ahead of each, of open ticks since
                the branch point; shape (ticks, members, batch, 1).
            weights: Weight of each target; they sum to one per member.
            noise: Gumbel noise, shape (ticks + context + 1, members, batch, latent): first of the prior of
                each tick, then of the posteriors.
            context: Closed ticks.
            objective: Weights of the terms.
        """
        xp, ticks = self.xp, actions.shape[0]
        h, z, first = self.start(p, x[0, ...], noise[ticks, ...])
        total: Any = 0.0
        trail: list[Tick] = []
        heads: list[tuple[Array, Array]] = []
        so_far: Any = None
        rows = float(x.shape[2] * max(context, 1))
        for t in range(ticks):
            closed = t < context
            z_in = z
            h, z, step, raw, kept = self.advance(
                p, h, z, actions[t, ...], noise[t, ...], x[min(t, context), ...]
            )
            so_far = step if closed or so_far is None else so_far + step
            size = xp.abs(so_far)
            mean = xp.sign(so_far) * xp.log1p(size)
            losses, d_mean, d_raw, _ = gaussian_nll(mean, raw, targets[t, ...], weights[t, ...], xp)
            total = total + xp.sum(losses)
            heads.append((d_mean / (1.0 + size), d_raw))
            posterior = None
            if closed:
                prior = kept[2][3]
                z, (post_kept, q) = self.observe(p, h, x[t + 1, ...], noise[ticks + 1 + t, ...])
                state = xp.concat([h, z], axis=-1)
                miss = dense(state, p["decoder"], p["decoder_b"], xp) - x[t + 1, ...]
                kl, dq, dp = kl_balanced(
                    q,
                    prior,
                    objective.free_nats,
                    objective.dynamics / rows,
                    objective.representation / rows,
                    xp,
                )
                total = total + kl + 0.5 * objective.reconstruction / rows * xp.sum(miss * miss)
                posterior = (post_kept, q, state, objective.reconstruction / rows * miss, dq, dp)
                so_far = None
            trail.append(Tick(kept[0], kept[1], kept[2], kept[3], posterior, z_in, closed))
        return total, self._backward(p, trail, heads, first, objective.bptt)

    def _backward(self, p: Arrays, trail: list[Tick], heads: list[Any], first: Any, bptt: int) -> Arrays:
        xp, d = self.xp, self.sizes.deterministic
        grads: Arrays = {}

        def back(name: str, dy: Array, x: Array) -> Array:
            dx, dw, db = dense_backward(dy, x, p[name], xp)
            _accumulate(grads, {name: dw, _bias(name): db})
            return dx

        h_next: Any = 0.0
        z_next: Any = 0.0
        later: Any = 0.0
        for t in range(len(trail) - 1, -1, -1):
            tick = trail[t]
            dh, dz = h_next, z_next
            h_new, inner, inner_slope, prior = tick.prior
            dz_prior, d_prior = dz, 0.0
            if tick.closed:
                post_kept, q, state, d_miss, dq, d_prior = tick.posterior
                d_state = back("decoder", d_miss, state)
                dh = dh + d_state[..., :d]
                dh = dh + self._posterior_backward(back, dz + d_state[..., d:], dq, q, post_kept)
                dz_prior = 0.0
            # The step of an open tick counts in the sums of all later open ticks too.
            d_step, d_raw = heads[t]
            d_sum = d_step if tick.closed else d_step + later
            later = 0.0 if tick.closed else d_sum
            state, trunk, trunk_slope = tick.head
            d_trunk = back("head", xp.concat([d_sum, d_raw], axis=-1), trunk) * trunk_slope
            d_state = back("trunk", d_trunk, state)
            dh = dh + d_state[..., :d]
            dz_prior = dz_prior + d_state[..., d : d + self.sizes.latent] + d_prior
            d_logits = sample_backward(dz_prior, prior, self.sizes.classes, xp)
            d_inner = back("prior_out", d_logits, inner) * inner_slope
            dh = dh + back("prior_in", d_inner, h_new)
            d_entered, h_next, gru_grads = gru_backward(dh, tick.gru, p, xp)
            _accumulate(grads, gru_grads)
            joined, enter_slope = tick.entered
            z_next = back("enter", d_entered * enter_slope, joined)[..., : self.sizes.latent]
            if t % bptt == 0 and t > 0:
                h_next, z_next = 0.0 * h_next, 0.0 * z_next
        post_kept, q = first
        self._posterior_backward(back, z_next, 0.0, q, post_kept)
        for name, value in p.items():
            if name not in grads:
                grads[name] = xp.zeros_like(value)
        return grads

    def _posterior_backward(self, back: Any, dz: Array, dq: Array, q: Array, kept: Any) -> Array:
        d = self.sizes.deterministic
        x, slope, joined = kept
        d_joined = back("posterior", sample_backward(dz + dq, q, self.sizes.classes, self.xp), joined)
        back("embed", d_joined[..., d:] * slope, x)
        return d_joined[..., :d]


def _accumulate(into: Arrays, more: Arrays) -> None:
    for name, value in more.items():
        into[name] = into[name] + value if name in into else value

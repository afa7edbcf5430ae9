"""One training with jumps that several ways of placing weights and batches must repeat; a program of its own.

python many_devices.py devices            all devices of this process
python many_devices.py process RANK PORT  one of two processes
"""

from __future__ import annotations

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hybridcore.checkpoint.codec import Decoder, Encoder
from hybridcore.config import BudgetConfig, HybridConfig, PhasesConfig, ProbeConfig
from hybridcore.controllers.fixed import Fixed, FixedConfig
from hybridcore.engine import Engine
from hybridcore.errors import ModelError
from hybridcore.events import Event
from hybridcore.predictors.last_update import LastUpdate
from hybridcore_jax import Hybrid, JaxAdapter
from hybridcore_jax.trees import find_nodes, is_a

RNG = np.random.default_rng(0)
SHAPES = {"up": (6, 8), "bias": (8,), "down": (8, 4), "free": (4,)}
PLAIN = {n: (0.4 * RNG.standard_normal(s)).astype(np.float32) for n, s in SHAPES.items()}
TARGET = RNG.standard_normal((6, 4))
INPUTS = [RNG.standard_normal((8, 6)).astype(np.float32) for _ in range(30)]
BATCHES = [(x, np.tanh(x @ TARGET).astype(np.float32)) for x in INPUTS]
BAD = {2: np.inf, 11: np.nan, 12: np.nan, 20: np.nan}
"""Batches in which one number is not finite, and that number."""
HORIZON = 35.0
"""Far enough that three jumps are kept and one is taken back."""


def loss_fn(params, batch):
    hidden = jnp.tanh(batch[0] @ params["up"] + params["bias"])
    return jnp.square(hidden @ params["down"] + params["free"] - batch[1]).mean(1)


def attach(params, probe, **options):
    adapter = JaxAdapter(params, optax.sgd(0.02, momentum=0.5), loss_fn, learning_rate=0.02, **options)
    config = HybridConfig(
        phases=PhasesConfig(warmup_steps=5, full_steps=4),
        budget=BudgetConfig(share=1.0, grace_steps=1000.0, backoff_steps=0, count_seconds=False),
        probe=ProbeConfig(batches=1, tentative=False),
    )
    controller = Fixed(FixedConfig(horizon=HORIZON, full_steps=4, correct_steps=4))
    engine = Engine(adapter, config, controller, {"last-update": LastUpdate()}, probes=[probe])
    return Hybrid(engine, adapter)


def listened(hybrid, decisions=None):
    """A list that jumps and verdicts are added to as they happen."""
    decisions = [] if decisions is None else decisions

    def listen(event, payload):
        if event in (Event.JUMP, Event.VERDICT):
            decisions.append([event.value, payload.get("step"), payload.get("kept")])

    hybrid.engine.events.listen(listen)
    return decisions


def train(params, place=lambda batch: batch, resume_at=None):
    """Decisions, losses and final weights; with `resume_at` by a second engine from there on."""
    hybrid = attach(params, place(BATCHES[0]))
    decisions, losses = listened(hybrid), []
    for number, batch in enumerate(BATCHES):
        if number == resume_at:
            hybrid = resumed(hybrid, params, place)
            listened(hybrid, decisions)
        losses.append(hybrid.step(place(batch)))
        for name, leaf in hybrid.params.items():
            wanted = getattr(params[name], "sharding", leaf.sharding)
            assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim), (number, name, leaf.sharding)
    traces = [n.trace for n in find_nodes(hybrid.adapter.opt_state, is_a(optax.TraceState))]
    for name, leaf in traces[0].items():
        assert leaf.sharding.device_set == hybrid.params[name].sharding.device_set
    return decisions, losses, {n: np.asarray(w) for n, w in hybrid.params.items()}


def bad_batches(params, place=lambda batch: batch):
    """Decisions where one number of some batches is not finite, in the half of the second process."""
    hybrid = attach(params, place(BATCHES[0]))
    decisions, kept = listened(hybrid), []

    def weights():
        return [np.asarray(leaf).tolist() for _, leaf in sorted(hybrid.params.items())]

    for number, (inputs, targets) in enumerate(BATCHES):
        before = weights()
        if number in BAD:
            inputs = inputs.copy()
            inputs[5, 0] = BAD[number]
        hybrid.step(place((inputs, targets)))
        if number in BAD:
            kept.append(weights() == before)
    return {
        "decisions": decisions,
        "kept": kept,
        "skipped": hybrid.finish()["skipped"],
        "weights": weights(),
    }


def resumed(hybrid, params, place):
    """A new engine that goes on from a checkpoint's NumPy arrays."""
    old = hybrid.adapter
    encoder = Encoder(old.snapshot_state, old.xp)
    tree = json.loads(json.dumps(encoder.encode(hybrid.engine.state_dict())))
    fresh = attach(params, place(BATCHES[0]))
    adapter = fresh.adapter
    decoder = Decoder(encoder.arrays, adapter.snapshot_from_state, adapter.xp, adapter.read_params())
    fresh.engine.load_state_dict(decoder.decode(tree))
    return fresh


def agree(found, truth):
    assert found[0] == truth[0], (found[0], truth[0])
    np.testing.assert_allclose(found[1], truth[1], rtol=1e-4)
    for name, weight in truth[2].items():
        np.testing.assert_allclose(found[2][name], weight, rtol=1e-3, atol=1e-5)


@functools.cache
def truth():
    """The training on one device."""
    found = train(PLAIN)
    assert [row[2] for row in found[0] if row[0] == "verdict"] == [True, True, True, False], found[0]
    return found


def devices():
    count = jax.device_count()
    mesh = Mesh(np.array(jax.devices()).reshape(count // 2, 2), ("data", "model"))

    def over(spec):
        return NamedSharding(mesh, spec)

    parts = {"up": P(None, "model"), "bias": P(), "down": P("model", "data"), "free": P("data")}
    copied = {n: jax.device_put(w, over(P())) for n, w in PLAIN.items()}
    spread = {n: jax.device_put(w, over(parts[n])) for n, w in PLAIN.items()}

    def dealt(batch):
        return jax.device_put(batch, over(P(("data", "model"))))

    expected = truth()
    agree(train(copied, dealt), expected)
    whole = train(spread, dealt)
    agree(whole, expected)
    again = train(spread, dealt, resume_at=24)  # in a trial that is going to fail
    assert again[:2] == whole[:2]
    assert all(np.array_equal(w, whole[2][n]) for n, w in again[2].items())
    print(json.dumps({"devices": count}))


def process(rank, port):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    everywhere, dealt = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))

    def place(batch):  # each process reads its own half
        return tuple(jax.make_array_from_process_local_data(dealt, x[4 * rank : 4 * rank + 4]) for x in batch)

    copied = {n: jax.device_put(w, everywhere) for n, w in PLAIN.items()}
    decisions, losses, weights = train(copied, place, resume_at=24)
    adapter = JaxAdapter(copied, optax.sgd(0.1), loss_fn, learning_rate=0.1)
    half = {**copied, "up": jax.device_put(PLAIN["up"], dealt)}
    try:
        JaxAdapter(half, optax.sgd(0.1), loss_fn, learning_rate=0.1)
    except ModelError as error:
        refused = [error.where, str(error.got).partition(" in ")[0]]
    run = [decisions, losses, {n: w.tolist() for n, w in weights.items()}]
    found = {"run": run, "mean": adapter.mean_scalar(1.0 / 3.0 + rank), "refused": refused}
    print(json.dumps({**found, "bad": bad_batches(copied, place)}))
    jax.distributed.shutdown()


if __name__ == "__main__":
    devices() if sys.argv[1] == "devices" else process(int(sys.argv[2]), sys.argv[3])

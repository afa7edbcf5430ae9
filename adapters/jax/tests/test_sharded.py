"""Parameters spread over several devices: local buckets, equal results; in a process with four of them."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = """
import numpy as np, jax, jax.numpy as jnp, optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from hybridcore.config import BudgetConfig, HybridConfig, PhasesConfig, ProbeConfig
from hybridcore.controllers.fixed import Fixed, FixedConfig
from hybridcore.engine import Engine
from hybridcore.errors import ModelError
from hybridcore.layout import ParamGroup
from hybridcore.predictors.last_update import LastUpdate
from hybridcore_jax import Hybrid, JaxAdapter

assert jax.device_count() == 4
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "model"))
rng = np.random.default_rng(0)
plain = {n: jnp.asarray(0.4 * rng.standard_normal(s), jnp.float32)
         for n, s in {"up": (6, 8), "bias": (8,), "down": (8, 4), "free": (4,)}.items()}
specs = {"up": P(None, "model"), "bias": P(), "down": P("model", "data"), "free": P("data")}
spread = {n: jax.device_put(w, NamedSharding(mesh, specs[n])) for n, w in plain.items()}

def loss_fn(params, batch):
    hidden = jnp.tanh(batch[0] @ params["up"] + params["bias"])
    return jnp.square(hidden @ params["down"] + params["free"] - batch[1]).mean(1)

target = rng.standard_normal((6, 4))
inputs = [rng.standard_normal((8, 6)).astype(np.float32) for _ in range(40)]
batches = [(x, np.tanh(x @ target).astype(np.float32)) for x in inputs]

def adapter(params, **options):
    return JaxAdapter(params, optax.sgd(0.02, momentum=0.5), loss_fn, learning_rate=0.02, **options)

# Layout: one bucket per device that holds first copies; parts have the names of their slices.
a, b = adapter(plain), adapter(spread, donate=True)
layout = b.layout
assert layout.total == a.layout.total
assert "up[0:6, 4:8]" in layout.names and "bias" in layout.names and "down[0:4, 2:4]" in layout.names
assert len(layout.bucket_sizes) == len({p.device for p in layout.params}) > 1
groups = {p.name.partition("[")[0]: p.group for p in layout.params}
assert groups["bias"] is ParamGroup.BIAS and groups["down"] is ParamGroup.MATRIX
for bucket, size in zip(b.read_params(), layout.bucket_sizes):
    assert bucket.shape == (size,) and len(bucket.devices()) == 1
read = layout.unpack(b.read_params(), jnp)
np.testing.assert_array_equal(read["up[0:6, 4:8]"], plain["up"][:, 4:])
np.testing.assert_array_equal(read["down[4:8, 0:2]"], plain["down"][4:, :2])

# Norms over buckets are those of the whole.
norms = [sum(float(x @ x) for x in m.read_params()) for m in (a, b)]
np.testing.assert_allclose(norms[0], norms[1], rtol=1e-6)

# A delta moves exactly its own part, on every copy, and keeps the sharding.
deltas = layout.pack({"bias": jnp.arange(8.0), "down[4:8, 0:2]": jnp.ones((4, 2))}, jnp)
b.apply_delta(deltas, 2.0, {ParamGroup.BIAS: 0.5})
for shard in b.params["bias"].addressable_shards:
    np.testing.assert_allclose(shard.data, plain["bias"] + np.arange(8.0), rtol=1e-6)
want = np.array(plain["down"]); want[4:, :2] += 2.0
np.testing.assert_allclose(b.params["down"], want, rtol=1e-6)
assert all(b.params[n].sharding == spread[n].sharding for n in plain)

# Snapshot, step, restore: bit for bit; and the write of what was read changes nothing.
b.write_params(b.read_params())
point, before = b.snapshot(), {n: np.asarray(w) for n, w in b.params.items()}
first = [b.train_step(batch).loss for batch in batches[:3]]
b.restore(point)
assert all(np.array_equal(before[n], w) for n, w in b.params.items())
assert [b.train_step(batch).loss for batch in batches[:3]] == first
with b.weights(tuple(0.0 * x for x in b.read_params())):
    assert not any(np.asarray(w).any() for w in b.params.values())

# The engine jumps alike on one device and on four.
def train(params):
    made = adapter(params)
    config = HybridConfig(phases=PhasesConfig(warmup_steps=5, full_steps=5),
                          budget=BudgetConfig(share=1.0, grace_steps=1000.0), probe=ProbeConfig(batches=1))
    controller = Fixed(FixedConfig(horizon=3.0, full_steps=5, correct_steps=5))
    hybrid = Hybrid(Engine(made, config, controller, {"last-update": LastUpdate()}, probes=batches[:1]), made)
    return hybrid, [hybrid.step(batch) for batch in batches]

(one, losses), (two, again) = train(plain), train(spread)
assert one.engine.counts.jumps == two.engine.counts.jumps > 0
np.testing.assert_allclose(again, losses, rtol=1e-4)
assert all(two.params[n].sharding == spread[n].sharding for n in plain)

# Parameters on different devices are refused.
try:
    adapter({**plain, "up": jax.device_put(plain["up"], jax.devices()[1])})
except ModelError as error:
    assert "cpu:1" in str(error.got) and error.fix
else:
    raise AssertionError("mixed devices were accepted")

# So are those that a loop or a step of one's own moves to another device.
elsewhere = jax.device_put(plain, jax.devices()[3])
for move in (
    lambda: a.adopt(elsewhere, a.opt_state, None),
    lambda: JaxAdapter((plain, ()), None, loss_fn, train_step=lambda s, b: ((elsewhere, ()), jnp.ones(())),
                       learning_rate=0.1).train_step(batches[0]),
):
    try:
        move()
    except ModelError as error:
        assert (error.got, error.expected) == ("cpu:3", "cpu"), error
    else:
        raise AssertionError("another device was accepted")
print("sharded: ok")
"""


def test_f71_sharded_parameters_are_local_buckets():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    result = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert "sharded: ok" in result.stdout

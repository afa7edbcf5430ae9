"""F71: an engine on two and on four replicas decides and trains as on one device with the same batches."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

WORKER = """
import json, os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
from contextlib import nullcontext
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
tf.config.threading.set_intra_op_parallelism_threads(1)
from hybridcore.configfile import config_from_dict
from hybridcore.engine import Engine
from hybridcore_tensorflow import TensorFlowAdapter

COMMON = {
    "phases": {"warmup_steps": 6, "full_steps": 5},
    "history": {"window": 4},
    "controller": {"name": "fixed", "fixed": {"horizon": 6.0, "full_steps": 5, "correct_steps": 6}},
    "budget": {"share": 1.0, "grace_steps": 1000.0, "backoff_steps": 0},
}
RUNS = {
    "kept": (
        lambda: keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.01, 200)),
        {**COMMON, "predictor": {"name": "drift"}},
    ),
    "rolled back": (
        lambda: keras.optimizers.SGD(0.05, momentum=0.9),
        {
            **COMMON,
            "predictor": {"name": "random"},
            "controller": {"name": "fixed", "fixed": {"horizon": 300.0, "full_steps": 5, "correct_steps": 6}},
            "groups": {"max_relative_jump": 5.0},
            "probe": {"tentative": False},
        },
    ),
}

def loss_fn(model, batch):
    return tf.reduce_mean(tf.square(model(batch[0]) - batch[1]), 1)

def replicas_alike(adapter):
    held = [*adapter.model.variables, *adapter.optimizer.variables]
    return all(
        np.array_equal(variable.value.values[0].numpy(), part.numpy())
        for variable in held if hasattr(variable.value, "values") for part in variable.value.values
    )

def run(name, replicas):
    make_optimizer, tables = RUNS[name]
    keras.utils.set_random_seed(0)
    places = [f"CPU:{i}" for i in range(replicas)]
    strategy = (
        tf.distribute.MirroredStrategy(places, tf.distribute.ReductionToOneDevice()) if replicas > 1 else None
    )
    with strategy.scope() if strategy else nullcontext():
        dense = keras.layers.Dense
        model = keras.Sequential([keras.Input((5,)), dense(8, activation="tanh"), dense(2)])
        optimizer = make_optimizer()
    adapter = TensorFlowAdapter(model, optimizer, loss_fn)
    rng = np.random.default_rng(3)
    way = rng.standard_normal((5, 2))
    inputs = rng.standard_normal((42, 18, 5)).astype(np.float32)  # 18 examples do not divide by four
    batches = [(x, np.tanh(x @ way).astype(np.float32)) for x in inputs]
    engine = Engine.from_config(adapter, config_from_dict(tables), probes=batches[:2])
    decisions, losses, alike, jumped = [], [], [], []

    def hear(event, payload):
        if event.value in ("jump", "rollback"):
            alike.append(replicas_alike(adapter))
            jumped.append([b.tolist() for b in adapter.read_params()])
        kept = {k: payload[k] for k in ("step", "phase", "length", "kept", "predictor") if k in payload}
        if event.value not in ("probe", "real-step"):
            decisions.append([event.value, kept])

    engine.events.listen(hear)
    copies = {len(v.value.values) for v in model.variables} if strategy else {1}
    for batch in batches[2:]:
        losses.append(engine.step(batch).loss)
        alike.append(replicas_alike(adapter))
    summary = engine.finish()
    return {
        "decisions": decisions, "losses": losses, "alike": all(alike), "jumped": jumped,
        "weights": [b.tolist() for b in adapter.read_params()], "copies": sorted(copies),
        "rollbacks": summary["rollbacks"], "kept": summary["verdicts_kept"], "jumps": summary["jumps"],
    }

print(json.dumps({name: {n: run(name, n) for n in (1, 2, 4)} for name in RUNS}))
"""


@pytest.fixture(scope="module")
def runs():
    done = subprocess.run([sys.executable, "-c", WORKER], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("replicas", ["2", "4"])
@pytest.mark.parametrize("name", ["kept", "rolled back"])
def test_replicas_decide_and_train_like_one_device(runs, name, replicas):
    one, many = runs[name]["1"], runs[name][replicas]
    assert many["copies"] == [int(replicas)]
    assert one["jumps"] > 1
    assert one["kept"] > 0 if name == "kept" else one["rollbacks"] > 0
    assert many["decisions"] == one["decisions"]
    np.testing.assert_allclose(many["losses"], one["losses"], rtol=1e-4)
    np.testing.assert_allclose(many["weights"], one["weights"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("replicas", ["2", "4"])
@pytest.mark.parametrize("name", ["kept", "rolled back"])
def test_all_replicas_hold_the_same_bits_after_every_jump_and_rollback(runs, name, replicas):
    """Weights and optimizer, and the weights are those of one device at that moment."""
    one, many = runs[name]["1"], runs[name][replicas]
    assert many["alike"]
    assert len(many["jumped"]) == len(one["jumped"]) == one["jumps"] + one["rollbacks"]
    np.testing.assert_allclose(many["jumped"], one["jumped"], rtol=1e-4, atol=1e-5)

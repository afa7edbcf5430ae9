"""F53: TensorFlow runs resume bit for bit, in every phase; weights are exported as Keras users read them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file

from hybridcore.checkpoint.codec import Decoder, Encoder
from hybridcore.checkpoint.engine_state import Moment
from hybridcore.configfile import config_from_dict
from hybridcore.engine import Engine
from hybridcore.errors import CheckpointError, SnapshotError
from hybridcore.plugins import load_registry
from hybridcore.protocols import ArrayRef
from hybridcore.runner import run_task
from hybridcore.testing import without_clock
from hybridcore_tensorflow import TensorFlowAdapter, load_exported

layers = keras.layers
REGISTRY = load_registry()
SHARES = {
    "predictor": {"name": "drift"},
    "controller": {"name": "threshold", "threshold": {"confidence_threshold": 0.05}},
    "phases": {"warmup_steps": 5, "full_steps": 5, "predict_mode": "step"},
    "history": {"window": 5, "dtype": "bfloat16"},
    "correction": {"name": "gains", "interval": 2},
}
JUMPS = {
    "phases": {"warmup_steps": 6, "full_steps": 5},
    "history": {"window": 4},
    "controller": {"name": "threshold", "threshold": {"confidence_threshold": 0.05}},
    "predictor": {"name": "last-update"},
    "budget": {"share": 1.0, "grace_steps": 100.0, "backoff_steps": 0},
}
RUNS = {
    "adam, cosine schedule, continuous jumps": {
        "task": {"name": "digits-mlp", "optimizer": "adam", "schedule": "cosine", "schedule_steps": 900},
        "controller": {"name": "credit", "credit": {"least_gain": 0.0}},
        "average": {"enabled": True},
    },
    "momentum, shares": {"task": {"name": "digits-mlp", "optimizer": "momentum"}, **SHARES},
    "batch norm and dropout": {
        "task": {"name": "mnist-cnn", "filters": 2, "dropout": 0.5, "batch_size": 8},
        "average": {"enabled": True},
        **JUMPS,
    },
}


def config(name, steps=45):
    run = {"steps": steps, "evaluate_every": 20, "framework": "tensorflow"}
    return config_from_dict(
        {"run": run, "checkpoint": {"every": 13, "asynchronous": False}, **json.loads(json.dumps(RUNS[name]))}
    )


def record(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [without_clock(line) for line in lines]


class Stop(BaseException):
    pass


@pytest.mark.parametrize("name", RUNS)
def test_resumed_run_equals_the_uninterrupted_one(name, tmp_path):
    def stop(event, payload):
        if event.value == "real-step" and payload["step"] == 35:
            raise Stop

    run_task(config(name), out_dir=tmp_path / "whole", registry=REGISTRY)
    with pytest.raises(Stop):
        run_task(config(name), out_dir=tmp_path / "run", registry=REGISTRY, progress=stop)
    keras.utils.set_random_seed(1)
    run_task(config(name), out_dir=tmp_path / "run", registry=REGISTRY, resume=True)
    assert record(tmp_path / "run") == record(tmp_path / "whole")
    assert any(line["event"] == "jump" for line in record(tmp_path / "run"))
    averaged = RUNS[name].get("average", {}).get("enabled", False)
    for file in ("best.safetensors", *(["average.safetensors"] if averaged else [])):
        one, other = (tmp_path / kind / "checkpoints" / file for kind in ("run", "whole"))
        assert one.read_bytes() == other.read_bytes()


# The engine alone, cut in every phase


def loss_fn(model, batch, training):
    logits = tf.cast(model(batch[0], training=training), tf.float32)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(batch[1], logits)


def network(dtype=None):
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, dtype=dtype),
            layers.BatchNormalization(dtype=dtype),
            layers.Activation("tanh", dtype=dtype),
            layers.Dropout(0.2, seed=3, dtype=dtype),
            layers.Dense(3, dtype=dtype),
        ]
    )


class Noisy(tf.Module):
    """Noise of a `tf.random.Generator`, and of Keras's process-wide generator."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)
        self.dense.build((None, 6))
        self.generator = tf.random.Generator.from_seed(7)

    def __call__(self, inputs, training=False):
        if training:
            inputs += 0.1 * self.generator.normal(tf.shape(inputs))
            inputs += 0.1 * keras.random.normal(tf.shape(inputs))
        return self.dense(inputs)


def adam_with_everything():
    schedule = keras.optimizers.schedules.CosineDecay(0.02, 200)
    return network(), keras.optimizers.AdamW(schedule, use_ema=True, amsgrad=True)


def scaled_half_precision():
    inner = keras.optimizers.SGD(0.02, momentum=0.9)
    return network("mixed_float16"), keras.optimizers.LossScaleOptimizer(
        inner, 1024.0, dynamic_growth_steps=7
    )


def bfloat16_accumulated():
    return network("bfloat16"), keras.optimizers.RMSprop(
        0.005, momentum=0.8, gradient_accumulation_steps=3, centered=True
    )


def generators():
    return Noisy(), keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True)


ROLLED_BACK = {
    **JUMPS,
    "predictor": {"name": "random"},
    "groups": {"max_relative_jump": 5.0},
    "probe": {"tentative": False},
}
LABS = {
    "adam, schedule, average": (adam_with_everything, {**JUMPS, "average": {"enabled": True}}),
    "loss scale, shares": (scaled_half_precision, {**JUMPS, **SHARES}),
    "bfloat16, accumulation": (bfloat16_accumulated, JUMPS),
    "generators, rollbacks": (generators, ROLLED_BACK),
}


class Trace:
    def __init__(self, adapter, tables, batches):
        self.adapter, self.events = adapter, []
        self.engine = Engine.from_config(adapter, config_from_dict(tables), probes=batches[:2])
        self.engine.events.listen(self.hear)

    def hear(self, event, payload):
        plain = {k: repr(v) for k, v in payload.items() if isinstance(v, int | float | str)}
        self.events.append((event.value, without_clock(plain)))

    def step(self, batch):
        if self.engine.needs_backward:
            self.engine.step(batch)
        else:
            self.engine.predicted_step(batch)
        return [v.numpy().tobytes() for v in self.adapter._all_variables().values()]

    @property
    def moment(self):
        judged = self.engine._trials.trial is not None
        return f"{self.engine.phase.value}{' in a trial' if judged else ''}"


@pytest.mark.parametrize("name", LABS)
def test_an_engine_goes_on_from_any_moment(name):
    build, tables = LABS[name]
    rng = np.random.default_rng(1)
    batches = [(rng.standard_normal((16, 6)).astype(np.float32), rng.integers(0, 3, 16)) for _ in range(45)]
    keras.utils.set_random_seed(0)
    adapters = []
    for _ in range(2):
        model, optimizer = build()
        adapters.append(TensorFlowAdapter(model, optimizer, loss_fn))
    for one, two in zip(*(a._all_variables().values() for a in adapters), strict=True):
        two.assign(one)
    first, second = adapters
    trace = Trace(first, tables, batches)
    weights, ends, saved = [], [], {}
    for index, batch in enumerate(batches):
        weights.append(trace.step(batch))
        ends.append(len(trace.events))
        moment = trace.moment
        if moment not in saved or index % 19 == 0:
            encoder = Encoder(first.snapshot_state, first.xp)
            tree = json.dumps(encoder.encode(trace.engine.state_dict()))
            saved[moment if moment not in saved else index] = index, tree, encoder.arrays
    predicting = {"predict in a trial"} if "shares" in name else set()
    assert {"warmup", "full", "correct in a trial"} | predicting <= set(saved), list(saved)
    for index, tree, arrays in saved.values():
        other = Trace(second, tables, batches)
        decoder = Decoder(arrays, second.snapshot_from_state, second.xp, second.read_params())
        other.engine.load_state_dict(decoder.decode(json.loads(tree)))
        other.events.clear()
        for later in range(index + 1, min(index + 11, len(batches))):
            assert other.step(batches[later]) == weights[later], f"{later} after {index}"
        stop = ends[min(index + 10, len(batches) - 1)]
        assert other.events == trace.events[ends[index] : stop]


# Another process


SCRIPT = """
import sys
import keras, numpy as np, tensorflow as tf
from hybridcore.checkpoint.codec import Decoder, Encoder
from hybridcore.checkpoint.engine_state import Moment
from hybridcore_tensorflow import TensorFlowAdapter
from test_checkpoint import generators, loss_fn
import json, pathlib

keras.utils.set_random_seed(int(sys.argv[2]))
adapter = TensorFlowAdapter(*generators(), loss_fn)
folder = pathlib.Path(sys.argv[1])
tree, arrays = json.loads((folder / "tree.json").read_text()), dict(np.load(folder / "arrays.npz"))
adapter.restore(Decoder(arrays, adapter.snapshot_from_state).decode(tree).snapshot)
batch = np.ones((8, 6), np.float32), np.zeros(8, np.int64)
print(json.dumps([adapter.train_step(batch).loss for _ in range(3)]))
"""


def test_another_process_goes_on_with_the_same_random_numbers(tmp_path):
    """Keras's own generator for the whole process among them, which nobody has made there yet."""
    adapter = TensorFlowAdapter(*generators(), loss_fn)
    batch = np.ones((8, 6), np.float32), np.zeros(8, np.int64)
    for _ in range(2):
        adapter.train_step(batch)
    encoder = Encoder(adapter.snapshot_state)
    (tmp_path / "tree.json").write_text(json.dumps(encoder.encode(Moment(adapter.snapshot()))))
    np.savez(tmp_path / "arrays.npz", **encoder.arrays)
    expected = [adapter.train_step(batch).loss for _ in range(3)]
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), "5"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent)
    assert json.loads(done.stdout.splitlines()[-1]) == expected


# Weights for others


def test_exported_weights_are_those_of_the_model(tmp_path):
    model, other = network(), network()
    adapter = TensorFlowAdapter(model, keras.optimizers.SGD(0.1), loss_fn)
    adapter.train_step((np.ones((4, 6), np.float32), np.zeros(4, np.int64)))
    adapter.export_weights(str(tmp_path / "weights.safetensors"))
    held = load_file(tmp_path / "weights.safetensors")
    assert len(held) == len(model.get_weights()) == 8  # moving statistics, and no seeds
    by_name = {v.path.removeprefix(f"{model.name}/").replace("/", "."): v.numpy() for v in model.weights}
    for name, value in held.items():
        np.testing.assert_array_equal(value, by_name[name])
    load_exported(other, str(tmp_path / "weights.safetensors"))
    other.save_weights(tmp_path / "best.weights.h5")
    last = network()
    last.load_weights(tmp_path / "best.weights.h5")
    for one, two in zip(model.get_weights(), last.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_exported_bfloat16_weights_come_back(tmp_path):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3, dtype="bfloat16")])
    adapter = TensorFlowAdapter(model, keras.optimizers.SGD(0.1), loss_fn)
    adapter.export_weights(str(tmp_path / "weights.safetensors"))
    values = [tf.cast(w, tf.float32).numpy() for w in model.weights]
    adapter.train_step((np.ones((4, 6), np.float32), np.zeros(4, np.int64)))
    load_exported(model, str(tmp_path / "weights.safetensors"))
    for variable, value in zip(model.weights, values, strict=True):
        assert variable.dtype == "bfloat16"
        np.testing.assert_array_equal(tf.cast(variable, tf.float32), value)


def test_weights_of_another_model_are_refused(tmp_path):
    adapter = TensorFlowAdapter(network(), keras.optimizers.SGD(0.1), loss_fn)
    path = tmp_path / "weights.safetensors"
    adapter.export_weights(str(path))
    other = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    before = other.get_weights()
    with pytest.raises(CheckpointError, match="another model"):
        load_exported(other, str(path))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_exported(other, str(path))
    np.testing.assert_array_equal(before[0], other.get_weights()[0])


# Snapshots that do not fit


def spoil(kind, arrays, data):
    first = next(iter(data["variables"]))
    if kind == "missing":
        del data["variables"][first]
    elif kind == "unknown":
        data["variables"]["trained.99"] = data["variables"][first]
    elif kind == "dtype":
        data["variables"][first] = ArrayRef(data["variables"][first].key, "float31")
    elif kind == "shape":
        arrays[data["variables"][first].key] = np.zeros((1, 1), np.float32)
    elif kind == "array":
        del arrays[data["variables"][first].key]
    elif kind == "pending":
        data["pending"] = "yes"
    else:
        data["variables"] = kind


@pytest.mark.parametrize("kind", ["missing", "unknown", "dtype", "shape", "array", "pending", "no mapping"])
def test_a_snapshot_that_does_not_fit_is_refused(kind):
    adapter = TensorFlowAdapter(network(), keras.optimizers.SGD(0.1), loss_fn)
    before = adapter.read_params()[0].copy()
    arrays, data = adapter.snapshot_state(adapter.snapshot())
    spoil(kind, arrays, data)
    with pytest.raises(SnapshotError, match="cannot be put together"):
        adapter.snapshot_from_state(arrays, data)
    np.testing.assert_array_equal(adapter.read_params()[0], before)

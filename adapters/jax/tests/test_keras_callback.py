"""The callback against the real ``model.fit`` of Keras on JAX (F87)."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras")

from hybridcore.config import (  # noqa: E402
    BudgetConfig,
    ControllerConfig,
    HybridConfig,
    PhasesConfig,
    ProbeConfig,
    VerdictConfig,
)
from hybridcore.errors import ConfigError, ModelError, ProbeError  # noqa: E402
from hybridcore.events import Event  # noqa: E402
from hybridcore_jax.keras_callback import HybridCallback  # noqa: E402
from hybridcore_jax.keras_model import compiled_losses, read_state  # noqa: E402

layers = keras.layers
RNG = np.random.default_rng(0)
X = RNG.standard_normal((576, 5)).astype("float32")
Y = np.tanh(X @ RNG.standard_normal((5, 2))).astype("float32")
PROBE = [(X[:64], Y[:64])]
QUIET = HybridConfig(phases=PhasesConfig(warmup_steps=1000))


def net(rate=0.003, optimizer=None, loss="mse", **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(8, activation="tanh"),
            layers.BatchNormalization(),
            layers.Dropout(0.1),
            layers.Dense(2),
        ]
    )
    model.compile(optimizer or keras.optimizers.SGD(rate, momentum=0.5), loss, **options)
    return model


def jumping(horizon=8.0, **tables):
    fixed = {"horizon": horizon, "full_steps": 5, "correct_steps": 5}
    return HybridConfig(
        phases=PhasesConfig(warmup_steps=5, full_steps=5),
        budget=BudgetConfig(share=1.0, grace_steps=1000.0, backoff_steps=5, count_seconds=False),
        controller=ControllerConfig(name="fixed", options={"fixed": fixed}),
        **{"probe": ProbeConfig(batches=1), **tables},
    )


def fit(model, epochs=3, **options):
    return model.fit(X[64:], Y[64:], batch_size=32, epochs=epochs, shuffle=False, verbose=0, **options)


def everything(model):
    return [np.array(v.value) for v in (*model.weights, *model.optimizer.variables)]


def test_fit_jumps_keeps_and_trains_better_than_without():
    plain, model, heard = net(), net(), []
    fit(plain)
    config = jumping(verdict=VerdictConfig(least_progress=0.0))
    callback = HybridCallback(config, probe=PROBE, events=[lambda *record: heard.append(record)])
    history = fit(model, callbacks=[callback])
    events = [event for event, _ in heard]
    assert events.count(Event.REAL_STEP) == 48 == int(model.optimizer.iterations.value)
    assert events.count(Event.JUMP) == callback.summary["jumps"] > 0
    assert callback.summary["verdicts_kept"] > 0
    losses = [payload["loss"] for event, payload in heard if event is Event.REAL_STEP]
    means = np.mean(np.reshape(losses, (3, 16)), 1)
    np.testing.assert_allclose(history.history["loss"], means, rtol=1e-4)
    assert model.evaluate(*PROBE[0], verbose=0) < plain.evaluate(*PROBE[0], verbose=0)


@pytest.mark.parametrize("optimizer", [None, "adam"])
def test_without_a_jump_fit_is_the_very_same(optimizer):
    """F84: bit for bit, metrics included; a second fit goes on with the same engine."""
    plain, model = net(optimizer=optimizer), net(optimizer=optimizer)
    callback = HybridCallback(QUIET, probe=PROBE)
    for epochs in (1, 2):
        one, other = fit(plain, epochs), fit(model, epochs, callbacks=[callback])
        assert one.history == other.history
        for a, b in zip(everything(plain), everything(model), strict=True):
            np.testing.assert_array_equal(a, b)
    assert callback.summary["real_steps"] == 48
    assert (callback.adapter.moments()["v_std"] > 0.0) is (optimizer == "adam")


def test_a_failed_verdict_restores_everything_in_the_middle_of_fit():
    """F82: weights, moving statistics, generators and the optimizer, bit for bit; then fit goes on."""
    model, before, rolled = net(0.3), {}, []
    probe, verdict = ProbeConfig(batches=1, tentative=False), VerdictConfig(guard_factor=1.0, guard_z=1.0)
    callback = HybridCallback(jumping(600.0, probe=probe, verdict=verdict), probe=PROBE)

    def listen(event, payload):
        if event is Event.ROLLBACK:
            rolled.append(payload["to_step"])

    class Watch(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            callback.engine.events.listen(listen)
            original = callback.adapter.snapshot

            def snapshot():
                before.setdefault(callback.engine.counts.real_steps, everything(model))
                return original()

            callback.adapter.snapshot = snapshot

        def on_train_batch_end(self, batch, logs=None):
            while rolled:
                kept, step = everything(model), rolled.pop()
                for now, then in zip(kept, before[step], strict=True):
                    np.testing.assert_array_equal(now, then)
                self.params.setdefault("checked", []).append(step)

    watch = Watch()
    fit(model, callbacks=[callback, watch])
    assert watch.params["checked"]
    assert callback.summary["rollbacks"] >= len(watch.params["checked"])
    assert int(model.optimizer.iterations.value) < 48


def test_a_batch_of_nans_does_not_end_the_run():
    """F41: the engine goes back to good weights, and Keras' running mean leaves the batch out."""
    poisoned, heard = X[64:].copy(), []
    poisoned[20 * 8] = np.nan
    callback = HybridCallback(QUIET, probe=PROBE, events=[lambda *record: heard.append(record)])
    model = net()
    history = model.fit(poisoned, Y[64:], batch_size=8, shuffle=False, verbose=0, callbacks=[callback])
    assert np.isfinite(history.history["loss"]).all()
    assert all(np.isfinite(array).all() for array in everything(model))
    assert Event.RECOVERY in [event for event, _ in heard]


@pytest.mark.parametrize("loss", ["mse", "mean_absolute_error", keras.losses.Huber(0.5)])
def test_losses_of_examples_have_the_compiled_mean(loss):
    """In evaluation mode of a model without BatchNorm, against ``model.evaluate``."""
    model = keras.Sequential([keras.Input((5,)), layers.Dense(2), layers.Dropout(0.5)])
    model.compile("sgd", loss)
    params, rest = read_state(model)
    losses, _ = compiled_losses(model)(params, PROBE[0], {"opt_state": rest})
    assert losses.shape == (64,)
    assert float(losses.mean()) == pytest.approx(model.evaluate(*PROBE[0], verbose=0), rel=1e-5)


def test_what_is_not_served_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match="predict_mode"):
        HybridCallback(HybridConfig(phases=PhasesConfig(predict_mode="step")), probe=PROBE)
    with pytest.raises(ProbeError, match="held-out"):
        HybridCallback(QUIET, probe=[])
    accumulating = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    for model, match in (
        (net(steps_per_execution=2), "several steps at once"),
        (net(optimizer=accumulating), "inside itself"),
        (net(loss=["mse"]), "per-example"),
    ):
        with pytest.raises(ModelError, match=match):
            fit(model, callbacks=[HybridCallback(QUIET, probe=PROBE)])
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(ModelError, match="KERAS_BACKEND=jax"):
        fit(net(), callbacks=[HybridCallback(QUIET, probe=PROBE)])


def test_the_documented_block_runs():
    page = Path(__file__).parents[3] / "docs" / "how-to" / "host-integrations.md"
    blocks = re.findall(r"```python[^\n]*\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    (block,) = (text for text in blocks if "hybridcore_jax.keras_callback" in text)
    names = {}
    exec(block, names)
    assert names["hybrid"].summary["real_steps"] == 70

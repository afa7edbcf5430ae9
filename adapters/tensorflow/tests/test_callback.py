"""The callback against the real ``model.fit`` (F87): jumps, verdicts and rollbacks between its batches."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from hybridcore.config import BudgetConfig, ControllerConfig, HybridConfig, PhasesConfig, ProbeConfig
from hybridcore.errors import ConfigError, ModelError, ProbeError
from hybridcore.events import Event
from hybridcore_tensorflow import HybridCallback
from hybridcore_tensorflow.callback import compiled_losses

layers = keras.layers
RNG = np.random.default_rng(0)
X = RNG.standard_normal((576, 5)).astype("float32")
Y = np.tanh(X @ RNG.standard_normal((5, 2))).astype("float32")
PROBE = [(X[:64], Y[:64])]


def net(rate=0.003, **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((5,)), layers.Dense(8, activation="tanh"), layers.BatchNormalization(), layers.Dense(2)]
    )
    model.compile(keras.optimizers.SGD(rate, momentum=0.5), "mse", **options)
    return model


def config(horizon=8.0, **tables):
    fixed = {"horizon": horizon, "full_steps": 5, "correct_steps": 5}
    return HybridConfig(
        phases=PhasesConfig(warmup_steps=5, full_steps=5),
        budget=BudgetConfig(share=1.0, grace_steps=1000.0, backoff_steps=5),
        controller=ControllerConfig(name="fixed", options={"fixed": fixed}),
        **tables,
    )


def fit(model, epochs=3, **options):
    return model.fit(X[64:], Y[64:], batch_size=32, epochs=epochs, shuffle=False, verbose=0, **options)


def test_fit_jumps_keeps_and_trains_better_than_without():
    """Below the best learning rate a jump pays; the losses heard are those of the single batches."""
    plain = net()
    fit(plain)
    heard = []
    callback = HybridCallback(config(), probe=PROBE, events=[lambda *record: heard.append(record)])
    model = net()
    first = np.mean(np.square(model(X[64:96], training=True) - Y[64:96]))
    history = fit(model, callbacks=[callback])
    events = [event for event, _ in heard]
    assert events.count(Event.REAL_STEP) == 48
    assert events.count(Event.JUMP) == callback.summary["jumps"] > 0
    assert callback.summary["verdicts_kept"] > 0
    losses = [payload["loss"] for event, payload in heard if event is Event.REAL_STEP]
    assert losses[0] == pytest.approx(first, rel=1e-5)
    # Keras shows the running mean of the epoch, by examples.
    assert history.history["loss"][0] == pytest.approx(np.mean(losses[:16]), rel=1e-5)
    norms = [payload["grad_norm"] for event, payload in heard if event is Event.REAL_STEP]
    assert np.isfinite(norms).all()
    assert model.evaluate(*PROBE[0], verbose=0) < plain.evaluate(*PROBE[0], verbose=0)


def test_a_failed_verdict_restores_everything_in_the_middle_of_fit():
    """F82: model, statistics, optimizer and iteration count, bit for bit; then fit goes on."""
    model, before, rolled, losses = net(0.05), {}, [], []
    callback = HybridCallback(config(600.0, probe=ProbeConfig(batches=1, tentative=False)), probe=PROBE)

    def everything():
        return [v.numpy() for v in (*model.weights, *model.optimizer.variables)]

    def listen(event, payload):
        if event is Event.ROLLBACK:
            for value, kept in zip(everything(), before[payload["to_step"]], strict=True):
                np.testing.assert_array_equal(value, kept)
            rolled.append(payload["step"])
        if event is Event.REAL_STEP:
            losses.append(payload["loss"])

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if not before:
                callback.engine.events.listen(listen)
                original = callback.adapter.snapshot
                callback.adapter.snapshot = lambda: (
                    before.setdefault(callback.engine.counts.real_steps, everything()) and original()
                )
            before.setdefault(-1, None)

    history = fit(model, callbacks=[callback, Watch()])
    assert rolled
    # Batches that were rolled back happened all the same: Keras' metrics go on counting them.
    means = np.mean(np.reshape(losses, (3, 16)), 1)
    np.testing.assert_allclose(history.history["loss"], means, rtol=1e-5)
    assert max(rolled) < 48
    assert callback.summary["rollbacks"] == len(rolled)
    assert int(model.optimizer.iterations) < 48
    assert np.isfinite(model.evaluate(*PROBE[0], verbose=0))


def test_without_a_jump_fit_is_the_very_same():
    """F84: bit for bit, whatever the callback listens to; the optimizer is left as it was found."""
    quiet = HybridConfig(phases=PhasesConfig(warmup_steps=1000))
    plain, model = net(), net()
    fit(plain, epochs=1)
    callback = HybridCallback(quiet, probe=PROBE)
    fit(model, epochs=1, callbacks=[callback])
    for a, b in zip(plain.weights, model.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert not {"apply", "scale_loss"} & set(vars(model.optimizer))
    engine = callback.engine
    fit(model, epochs=1, callbacks=[callback])
    assert callback.engine is engine
    assert engine.counts.real_steps == 32


def test_a_batch_of_nans_changes_no_weight():
    """F41, inside Keras' own compiled train step."""
    model, skipped = net(), []
    model.fit(X, Y, batch_size=32, epochs=1, verbose=0)  # a train function without the hook exists
    poisoned = X[64:].copy()
    poisoned[100] = np.nan

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.before = [v.numpy() for v in self.model.trainable_variables]

        def on_train_batch_end(self, batch, logs=None):
            after = self.model.trainable_variables
            if all(np.array_equal(a, b.numpy()) for a, b in zip(self.before, after, strict=True)):
                skipped.append(batch)

    quiet = HybridConfig(phases=PhasesConfig(warmup_steps=1000))
    callback = HybridCallback(quiet, probe=PROBE)
    model.fit(poisoned, Y[64:], batch_size=32, shuffle=False, verbose=0, callbacks=[Watch(), callback])
    assert skipped == [3]
    assert callback.summary["skipped"] == 1


class Unusual(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return tf.reduce_sum(tf.abs(y_true - y_pred), -1)


@pytest.mark.parametrize(
    "loss", ["mse", "mean_absolute_error", keras.losses.Huber(0.5), Unusual(), keras.losses.log_cosh]
)
def test_probe_losses_are_the_compiled_loss_example_by_example(loss):
    """Their weighted mean is what Keras' own evaluation gives, layers' own losses included."""
    model = keras.Sequential(
        [keras.Input((5,)), layers.Dense(2, kernel_regularizer=keras.regularizers.L2(0.1))]
    )
    model.compile("sgd", loss)
    losses = compiled_losses(model)(model, (X[:10], Y[:10]), False)
    assert losses.shape == (10,)
    for row in (0, 7):
        one = model.evaluate(X[row : row + 1], Y[row : row + 1], verbose=0)
        assert float(losses[row]) == pytest.approx(one, rel=1e-5)
    weight = np.linspace(0.5, 2.0, 10, dtype=np.float32)
    weighted = compiled_losses(model)(model, (X[:10], Y[:10], weight), False)
    own = float(tf.add_n(model.losses))
    np.testing.assert_allclose(weighted - own, (losses - own) * weight, rtol=1e-4, atol=1e-6)


def test_sparse_classes_of_either_shape():
    model = keras.Sequential([keras.Input((5,)), layers.Dense(3, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    labels = np.arange(9) % 3
    flat = compiled_losses(model)(model, (X[:9], labels), False)
    column = compiled_losses(model)(model, (X[:9], labels[:, None]), False)
    np.testing.assert_array_equal(flat, column)
    want = -np.log(np.asarray(model(X[:9]))[np.arange(9), labels])
    np.testing.assert_allclose(flat, want, rtol=1e-5)


def test_what_cannot_be_followed_is_refused():
    with pytest.raises(ProbeError, match="held-out"):
        HybridCallback(probe=[])
    with pytest.raises(ConfigError, match="real step on every batch"):
        HybridCallback(HybridConfig(phases=PhasesConfig(predict_mode="step")), probe=PROBE)
    with pytest.raises(ModelError, match="several steps at once"):
        fit(net(steps_per_execution=4), callbacks=[HybridCallback(probe=PROBE)])
    inputs = keras.Input((5,))
    two = keras.Model(inputs, {"a": layers.Dense(2)(inputs), "b": layers.Dense(2)(inputs)})
    two.compile("sgd", {"a": "mse", "b": "mse"})
    with pytest.raises(ModelError, match="per-example form"):
        two.fit(X, {"a": Y, "b": Y}, verbose=0, callbacks=[HybridCallback(probe=PROBE)])
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice())
    with strategy.scope():
        mirrored = net()
    with pytest.raises(ModelError, match="distribution strategy"):
        fit(mirrored, callbacks=[HybridCallback(probe=PROBE)])
    with pytest.raises(ModelError, match="not attached"):
        HybridCallback(probe=PROBE).on_train_batch_begin(0)


def test_keras_on_another_backend_is_refused(monkeypatch):
    model = net()
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ModelError, match="KERAS_BACKEND=tensorflow"):
        fit(model, callbacks=[HybridCallback(probe=PROBE)])

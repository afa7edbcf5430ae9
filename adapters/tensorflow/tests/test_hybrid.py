"""The ways to train with an attached engine, on real models (F58, F59, F60, F41, F82)."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from hybridcore.config import BudgetConfig, HybridConfig, PhasesConfig, ProbeConfig, VerdictConfig
from hybridcore.controllers.fixed import Fixed, FixedConfig
from hybridcore.engine import Engine
from hybridcore.errors import AdapterError, ProbeError
from hybridcore.events import Event
from hybridcore.predictors.last_update import LastUpdate
from hybridcore_tensorflow import Hybrid, TensorFlowAdapter, hybridize


def squares(model, batch):
    return tf.reduce_mean(tf.square(model(batch[0]) - batch[1]), 1)


def data(count, n=16, seed=3):
    rng = np.random.default_rng(seed)
    target = np.random.default_rng(0).standard_normal((5, 2))
    inputs = [rng.standard_normal((n, 5)).astype(np.float32) for _ in range(count)]
    return [(x, np.tanh(x @ target).astype(np.float32)) for x in inputs]


def net():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(7, activation="tanh"), keras.layers.Dense(2)]
    )


def attach(mode="jump", lr=0.003, horizon=4.0, own=False, **tables):
    model, optimizer = net(), keras.optimizers.SGD(lr, momentum=0.5)
    step = compiled(model, optimizer)
    adapter = TensorFlowAdapter(model, optimizer, squares, train_step=step if own else None)
    config = HybridConfig(
        phases=PhasesConfig(warmup_steps=5, full_steps=5, predict_mode=mode, predict_steps=4),
        budget=BudgetConfig(share=1.0, grace_steps=1000.0),
        **{"probe": ProbeConfig(batches=1), **tables},
    )
    controller = Fixed(FixedConfig(horizon=horizon, full_steps=5, correct_steps=5))
    engine = Engine(adapter, config, controller, {"last-update": LastUpdate()}, probes=data(1, 16, seed=4))
    return model, step, Hybrid(engine, adapter)


def compiled(model, optimizer):
    @tf.function
    def step(batch):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(squares(model, batch))
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return step


def weights(model):
    return np.concatenate([v.numpy().ravel() for v in model.trainable_variables])


@pytest.mark.parametrize("mode", ["jump", "step"])
def test_batch_own_step_closure_and_own_loop_train_alike(mode):
    """The probe batch has a training batch's size, which a loop of its own does not tell."""
    batches = data(40)
    by_batch, _, one = attach(mode)
    real = []
    for batch in batches:
        one.step(batch)
        real.append(one.stepped)
    by_step, _, two = attach(mode, own=True)
    for batch in batches:
        two.step(batch)
    own, step, three = attach(mode)
    loss = None
    for batch in batches:
        if three.needs_backward:
            loss = step(batch)
        three.advance(loss)
    by_closure, _, four = attach(mode)
    for batch in batches:
        four.step(lambda batch=batch: tf.reduce_mean(squares(by_closure, batch)))
    assert one.engine.counts.jumps > 0
    for other, model in ((two, by_step), (three, own), (four, by_closure)):
        assert other.engine.counts.jumps == one.engine.counts.jumps
        assert other.engine.counts.real_steps == sum(real)
        np.testing.assert_allclose(weights(model), weights(by_batch), rtol=1e-5, atol=1e-6)
    assert (sum(real) < 40) == (mode == "step")


def test_a_jump_moves_the_weights_and_training_gains_by_it():
    """F23: against the same loop without an engine, far below the best learning rate."""
    batches = data(150)
    model, _, hybrid = attach(lr=0.001)
    heard = []
    hybrid.engine.events.listen(lambda event, payload: heard.append(event))
    for batch in batches:
        hybrid.step(batch)
    plain = net()
    step = compiled(plain, keras.optimizers.SGD(0.001, momentum=0.5))
    for batch in batches:
        step(batch)
    assert heard.count(Event.JUMP) == hybrid.engine.counts.jumps > 0
    test = data(1, 256, seed=9)[0]
    assert np.mean(squares(model, test)) < np.mean(squares(plain, test))
    assert hybrid.finish()["real_steps"] == 150


def test_a_failed_trial_is_rolled_back_bit_for_bit():
    """F82: a jump far too long; every variable is what it was when the trial opened."""
    model, _, hybrid = attach(lr=0.05, horizon=400.0, probe=ProbeConfig(batches=1, tentative=False))
    adapter = hybrid.adapter
    everything = lambda: [v.numpy() for v in (*model.variables, *adapter.optimizer.variables)]  # noqa: E731
    before, checked = {}, []

    def listen(event, payload):
        if event is Event.ROLLBACK:
            for value, kept in zip(everything(), before[payload["to_step"]], strict=True):
                np.testing.assert_array_equal(value, kept)
            checked.append(payload["to_step"])

    hybrid.engine.events.listen(listen)
    original = adapter.snapshot

    def snapshot():
        before[hybrid.engine.counts.real_steps] = everything()
        return original()

    adapter.snapshot = snapshot
    for batch in data(80):
        hybrid.step(batch)
    assert checked
    assert np.isfinite(weights(model)).all()


def test_an_interrupted_run_goes_on_exactly():
    """A snapshot of one model, put back after other training, and the counters beside it."""
    model, _, hybrid = attach()
    adapter, batches = hybrid.adapter, data(12)
    for batch in batches[:6]:
        adapter.train_step(batch)
    point, counters = adapter.snapshot(), adapter.state_dict()
    first = [adapter.train_step(batch) for batch in batches[6:]]
    end = weights(model)
    adapter.restore(point)
    adapter.load_state_dict(counters)
    assert [adapter.train_step(batch) for batch in batches[6:]] == first
    assert weights(model).tobytes() == end.tobytes()


def test_skipped_batches_of_an_own_loop_are_seen():
    """F41: the guard inside the optimizer refuses the gradient; the engine hears of a skipped step."""
    model, step, hybrid = attach()
    heard = []
    hybrid.engine.events.listen(lambda event, payload: heard.append(event))
    for index, (x, y) in enumerate(data(8)):
        before = weights(model)
        assert hybrid.needs_backward
        assert hybrid.needs_backward  # asking twice is asking once
        hybrid.advance(step((x, y * (np.nan if index == 5 else 1.0))))
        assert hybrid.stepped == (index != 5)
        assert np.array_equal(weights(model), before) == (index == 5)
    assert heard.count(Event.STEP_SKIPPED) == 1
    assert hybrid.engine.counts.skipped == 1


def test_loops_that_cannot_be_followed_are_told():
    model, step, hybrid = attach()
    step(data(1)[0])
    with pytest.raises(AdapterError, match="was not asked"):
        hybrid.advance(0.0)
    early = compiled(model, optimizer := keras.optimizers.SGD(0.1))
    optimizer.build(model.trainable_variables)
    early(data(1)[0])
    late = hybridize(model, optimizer, loss_fn=squares, probe=data(1))
    assert late.needs_backward
    with pytest.raises(AdapterError, match="compiled before"):
        late.advance(early(data(1)[0]))
    with pytest.raises(ProbeError, match="held-out"):
        hybridize(net(), keras.optimizers.SGD(0.1), loss_fn=squares).advance(0.0)


def test_hybridize_takes_five_lines_and_wraps_nothing(tmp_path):
    """F58: with a file and with an object; the optimizer's class and configuration stay."""
    file = tmp_path / "hybrid.toml"
    file.write_text("[phases]\nwarmup_steps = 7\n")
    own = HybridConfig(phases=PhasesConfig(warmup_steps=3), verdict=VerdictConfig())
    for config, warmup in ((file, 7), (own, 3)):
        model, optimizer, heard = net(), keras.optimizers.Adam(1e-3), []
        kinds, settings = (type(model), type(optimizer)), optimizer.get_config()
        hybrid = hybridize(
            model,
            optimizer,
            config,
            loss_fn=squares,
            probe=data(2),
            events=[lambda event, payload, heard=heard: heard.append(event)],
        )
        losses = [hybrid.step(batch) for batch in data(30)]
        assert (type(model), type(optimizer)) == kinds
        assert optimizer.get_config() == settings
        assert hybrid.engine.config.phases.warmup_steps == warmup
        assert all(map(math.isfinite, losses))
        assert heard.count(Event.REAL_STEP) == 30
        hybrid.adapter.detach()
        assert not {"apply", "scale_loss"} & set(vars(optimizer))


def test_f86_the_mean_gets_statistics_of_its_own_and_all_comes_back():
    """The averaged read-out on a model with BatchNormalization."""
    from hybridcore.config import AverageConfig, PredictorConfig

    model = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(7), keras.layers.BatchNormalization(), keras.layers.Dense(2)]
    )
    loss_fn = lambda m, b, training: tf.reduce_mean(tf.square(m(b[0], training=training) - b[1]), 1)  # noqa: E731
    config = HybridConfig(
        average=AverageConfig(enabled=True, every=1, share=1.0, max_memory=1e6),
        predictor=PredictorConfig(name="none"),
    )
    batches = data(10)
    hybrid = hybridize(model, keras.optimizers.SGD(0.1), config, loss_fn=loss_fn, probe=batches[:2])
    path = []
    for batch in batches[2:]:
        hybrid.step(batch)
        path.append([v.numpy() for v in model.layers[0].weights])
    before = [v.numpy() for v in model.variables]
    kernel, bias = (np.mean(values, 0) for values in zip(*path, strict=True))
    with hybrid.averaged():
        np.testing.assert_allclose(model.layers[0].kernel.numpy(), kernel, rtol=1e-4, atol=1e-6)
        hidden = [batch[0] @ kernel + bias for batch in batches[:2]]
        mean = model.layers[1].moving_mean.numpy()
        np.testing.assert_allclose(mean, np.mean([h.mean(0) for h in hidden], 0), rtol=1e-4, atol=1e-5)
    with hybrid.chosen() as averaged:
        own = before[0] if not averaged else kernel
        np.testing.assert_allclose(model.layers[0].kernel.numpy(), own, rtol=1e-4, atol=1e-6)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)

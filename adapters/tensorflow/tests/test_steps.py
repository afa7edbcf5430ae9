"""Real steps against plain loops: traces, accumulation, clipping, skipping, own steps, bad input."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from hybridcore.errors import BatchError, ModelError, ProbeError
from hybridcore_tensorflow import TensorFlowAdapter

layers = keras.layers


def squares(model, batch, training=False):
    return tf.reduce_mean(tf.square(model(batch[0], training=training) - batch[1]), 1)


def net(dtype="float32"):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((5,), dtype=dtype),
            layers.Dense(7, activation="tanh", dtype=dtype),
            layers.Dense(2, dtype=dtype),
        ]
    )


def batch(n=10, seed=1, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((n, k)).astype(dtype) for k in (5, 2))


def values(model):
    return [v.numpy() for v in model.variables]


def assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def eager_step(model, optimizer, data):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(squares(model, data))
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    optimizer.apply(gradients, model.trainable_variables)
    norm = math.sqrt(sum(float(np.square(g.numpy().astype(np.float64)).sum()) for g in gradients))
    return float(loss), norm


def test_step_equals_the_plain_eager_loop():
    ours, theirs = net(), net()
    adapter = TensorFlowAdapter(ours, keras.optimizers.SGD(0.1, momentum=0.9), squares)
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    for seed in range(4):
        result = adapter.train_step(batch(seed=seed))
        loss, norm = eager_step(theirs, optimizer, batch(seed=seed))
        assert (result.loss, result.grad_norm) == pytest.approx((loss, norm), rel=1e-5)
        assert result.n_examples == 10
    for a, b in zip(values(ours), values(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parts", [3, 64])
def test_accumulation_equals_the_large_batch(parts):
    """F61, in float64; 3 does not divide 10, 64 exceeds it."""
    whole, cut = net("float64"), net("float64")
    one = TensorFlowAdapter(whole, keras.optimizers.SGD(0.5), squares)
    many = TensorFlowAdapter(cut, keras.optimizers.SGD(0.5), squares, accumulate=parts)
    for seed in range(2):
        data = batch(seed=seed, dtype=np.float64)
        a, b = one.train_step(data), many.train_step(data)
        assert a.loss == pytest.approx(b.loss, rel=1e-12)
        assert b.backward_passes == min(parts, 10)
    for a, b in zip(values(whole), values(cut), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11)
    with pytest.raises(BatchError, match="cannot be split"):
        many.train_step("no arrays")


def test_clipping_bounds_the_update():
    model = net()
    before = np.concatenate([v.ravel() for v in values(model)])
    adapter = TensorFlowAdapter(model, keras.optimizers.SGD(2.0), squares, max_grad_norm=0.01)
    assert adapter.train_step(batch()).grad_norm == pytest.approx(0.01)
    after = np.concatenate([v.ravel() for v in values(model)])
    assert np.linalg.norm(after - before) == pytest.approx(0.02, rel=1e-3)


def test_nothing_is_traced_after_the_first_cycle():
    """Steps, probes, snapshots, jumps, restores and another batch size: each makes its graph once."""
    model = net()
    adapter = TensorFlowAdapter(model, keras.optimizers.SGD(0.01, momentum=0.9), squares)

    def cycle(seed):
        adapter.train_step(batch(seed=seed))
        point, read = adapter.snapshot(), adapter.read_params()
        adapter.apply_delta(read, 1e-3 * seed)
        adapter.after_jump(read)
        adapter.probe_loss(batch(seed=seed))
        adapter.train_step(batch(n=6 + seed % 2, seed=seed))
        with adapter.weights(read):
            adapter.probe_loss(batch(n=7, seed=seed))
        adapter.restore(point)

    for seed in (1, 2, 3):
        cycle(seed)
    counts = adapter.traces, *_graphs(adapter)
    assert adapter.traces >= 2
    for seed in range(4, 12):
        cycle(seed)
    assert (adapter.traces, *_graphs(adapter)) == counts


def _graphs(adapter):
    store, held = adapter._store, adapter._keeper._set
    functions = (store._gather, store._set, store._shift, store._save, store._load, held._copy, held._assign)
    return [f.experimental_get_tracing_count() for f in functions]


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_non_finite_loss_or_gradient_changes_nothing(poison):
    """F41: the gradient of sqrt at zero is infinite behind a finite loss."""

    def loss_fn(model, batch, training):
        out = tf.reduce_sum(model(batch[0], training=training), 1)
        return out + (batch[1][:, 0] if poison == "loss" else tf.sqrt(tf.abs(out - out)))

    model = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(3),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Dense(2),
        ]
    )
    adapter = TensorFlowAdapter(model, keras.optimizers.Adam(0.1), loss_fn)
    before = values(model) + [v.numpy() for v in adapter.optimizer.variables]
    x, y = batch()
    result = adapter.train_step((x, y * (np.inf if poison == "loss" else 1.0)))
    assert result.skipped
    assert math.isfinite(result.loss) == (poison == "gradient")
    assert_same(values(model) + [v.numpy() for v in adapter.optimizer.variables], before)
    assert adapter.state_dict() == {"real_steps": 0, "skipped": 1, "pending": False}


def test_an_error_while_running_changes_nothing():
    """Labels out of range are found in the graph's midst, after BatchNormalization has been run."""
    model = keras.Sequential([keras.Input((5,)), layers.Dense(3), layers.BatchNormalization()])
    table = tf.constant([0.0, 1.0, 2.0])

    def loss_fn(model, batch, training):
        return tf.reduce_mean(model(batch[0], training=training), 1) * tf.gather(table, batch[1])

    adapter = TensorFlowAdapter(model, keras.optimizers.SGD(0.1), loss_fn)
    adapter.train_step((batch()[0], np.zeros(10, np.int64)))
    before = values(model)
    with pytest.raises(BatchError, match="cannot take"):
        adapter.train_step((batch()[0], np.full(10, 5)))
    assert_same(values(model), before)


class TestOwnStep:
    def step(self, model, optimizer, returns=lambda loss: loss, after=None):
        @tf.function
        def train(batch):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(squares(model, batch))
            gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
            optimizer.apply(gradients, model.trainable_variables)
            return returns(loss)

        return train

    @pytest.mark.parametrize("early", [False, True])
    def test_it_trains_and_harm_is_undone(self, early):
        """Compiled before the adapter was made, the step knows of no hook; the copy before it does."""
        model, optimizer, twin = net(), keras.optimizers.SGD(0.1, momentum=0.9), net()
        train = self.step(model, optimizer)
        start = values(model)
        if early:
            optimizer.build(model.trainable_variables)
            train(batch())
            model.set_weights(start)
            for variable in optimizer.variables:
                if "learning_rate" not in variable.path:
                    variable.assign(tf.zeros_like(variable))
        adapter = TensorFlowAdapter(model, optimizer, squares, train_step=train)
        plain = keras.optimizers.SGD(0.1, momentum=0.9)
        for seed in range(3):
            result = adapter.train_step(batch(seed=seed))
            loss, norm = eager_step(twin, plain, batch(seed=seed))
            assert result.loss == pytest.approx(loss, rel=1e-5)
            assert (
                math.isnan(result.grad_norm) if early else result.grad_norm == pytest.approx(norm, rel=1e-5)
            )
        for a, b in zip(values(model), values(twin), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        before = values(model) + [v.numpy() for v in optimizer.variables]
        x, y = batch()
        assert adapter.train_step((x, y * np.nan)).skipped
        assert_same(values(model) + [v.numpy() for v in optimizer.variables], before)

    @pytest.mark.parametrize(
        "wrong",
        [
            lambda loss: None,
            lambda loss: {"cost": loss},
            lambda loss: [loss, loss],
            lambda loss: tf.stack([loss, loss]),
            lambda loss: tf.strings.as_string(loss),
            lambda loss: tf.cast(loss, tf.int32),
        ],
    )
    def test_a_wrong_result_is_named_and_undone(self, wrong):
        model, optimizer = net(), keras.optimizers.SGD(0.1)
        adapter = TensorFlowAdapter(model, optimizer, squares, train_step=self.step(model, optimizer, wrong))
        before = values(model)
        with pytest.raises(ModelError, match="returned no loss"):
            adapter.train_step(batch())
        assert_same(values(model), before)

    def test_options_of_our_own_step_are_refused(self):
        for options in ({"accumulate": 2}, {"max_grad_norm": 1.0}):
            with pytest.raises(ModelError, match="accumulates and clips"):
                TensorFlowAdapter(net(), keras.optimizers.SGD(0.1), squares, train_step=print, **options)
        with pytest.raises(ModelError, match="cannot be called"):
            TensorFlowAdapter(net(), keras.optimizers.SGD(0.1), squares, train_step=3)


class TestBadInput:
    def test_models(self):
        sgd = keras.optimizers.SGD
        with pytest.raises(ModelError, match="not built"):
            TensorFlowAdapter(keras.Sequential([layers.Dense(2)]), sgd(0.1), squares)
        with pytest.raises(ModelError, match="no TensorFlow model"):
            TensorFlowAdapter(object(), sgd(0.1), squares)
        with pytest.raises(ModelError, match="no trainable"):
            TensorFlowAdapter(tf.Module(), sgd(0.1), squares)
        foreign = sgd(0.1)
        foreign.build(net().trainable_variables)
        with pytest.raises(ModelError, match="trains no variable"):
            TensorFlowAdapter(net(), foreign, squares)
        with pytest.raises(ModelError, match="no Keras optimizer"):
            TensorFlowAdapter(net(), "sgd", squares)
        with pytest.raises(ModelError, match="accumulate"):
            TensorFlowAdapter(net(), sgd(0.1), squares, accumulate=0)

    def test_variables_on_two_devices(self):
        module = tf.Module()
        with tf.device("CPU:0"):
            module.a = tf.Variable([1.0])
        with tf.device("CPU:1"):
            module.b = tf.Variable([1.0])
        with pytest.raises(ModelError, match="several devices"):
            TensorFlowAdapter(module, keras.optimizers.SGD(0.1), squares)

    def test_variables_that_are_no_real_floats(self):
        module = tf.Module()
        module.phase = tf.Variable([1.0 + 1.0j])
        optimizer = keras.optimizers.SGD(0.1)
        with pytest.raises(ModelError, match="cannot be trained by prediction"):
            TensorFlowAdapter(module, optimizer, squares)

    def test_a_loss_function_without_the_training_flag(self):
        """Dropout and BatchNormalization would silently be in evaluation mode all the time."""
        model = keras.Sequential([keras.Input((5,)), layers.Dropout(0.5), layers.Dense(2)])
        with pytest.raises(ModelError, match="in training"):
            TensorFlowAdapter(model, keras.optimizers.SGD(0.1), lambda model, batch: model(batch))

    def test_losses_of_the_wrong_form(self):
        sgd = keras.optimizers.SGD
        with pytest.raises(BatchError, match="no losses"):
            TensorFlowAdapter(net(), sgd(0.1), lambda m, b: None).train_step(batch())
        mean = TensorFlowAdapter(net(), sgd(0.1), lambda m, b: tf.reduce_mean(squares(m, b)))
        assert not mean.train_step(batch()).skipped
        with pytest.raises(ProbeError, match="per-example"):
            mean.probe_loss(batch())
        with pytest.raises(ProbeError, match="no examples"):
            TensorFlowAdapter(net(), sgd(0.1), squares).probe_loss(batch(n=0))


class Grows(tf.Module):
    """Makes one more variable when it is called for the second time, as lazily built layers do."""

    def __init__(self):
        super().__init__()
        self.weight, self.calls = tf.Variable(tf.ones((5, 2))), 0

    def __call__(self, inputs, training=False):
        self.calls += 1
        if self.calls > 1 and not hasattr(self, "late"):
            with tf.init_scope():
                self.late = tf.Variable(tf.ones(2))
        return inputs @ self.weight + getattr(self, "late", 0.0)


class TestVariablesThatComeLater:
    """They would be trained by no step and turned back by no rollback, and nobody would notice."""

    def test_a_layer_added_to_a_keras_model(self):
        model = net()
        adapter = TensorFlowAdapter(model, keras.optimizers.SGD(0.1), squares)
        adapter.train_step(batch())
        before = values(model)
        model.add(layers.Dense(2, name="afterwards"))
        with pytest.raises(ModelError, match="had not at the start") as caught:
            adapter.snapshot()
        assert "afterwards" in str(caught.value)
        with pytest.raises(ModelError, match="had not at the start"):
            adapter.probe_loss(batch(7))  # makes the probe's graph
        assert_same(values(model)[: len(before)], before)

    def test_a_layer_that_is_unfrozen(self):
        model = net()
        model.layers[0].trainable = False
        adapter = TensorFlowAdapter(model, keras.optimizers.SGD(0.1), squares)
        adapter.train_step(batch())
        model.layers[0].trainable = True
        with pytest.raises(ModelError, match="had not at the start"):
            adapter.snapshot()
        model.layers[0].trainable = False
        adapter.snapshot()

    def test_a_variable_that_the_model_makes_while_it_is_called(self):
        model = Grows()
        adapter = TensorFlowAdapter(model, keras.optimizers.SGD(0.1), squares)
        adapter.train_step(batch())
        weight = model.weight.numpy()
        with pytest.raises(ModelError, match="had not at the start") as caught:
            adapter.train_step(batch(4))
        assert "late" in str(caught.value)
        np.testing.assert_array_equal(model.weight.numpy(), weight)

    def test_a_step_of_ones_own(self):
        model, optimizer = net(), keras.optimizers.SGD(0.1)

        def step(data):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(squares(model, data))
            variables = [v.value for v in model.trainable_variables]
            optimizer.apply(tape.gradient(loss, variables), model.trainable_variables)
            return loss

        adapter = TensorFlowAdapter(model, optimizer, squares, train_step=step)
        adapter.train_step(batch())
        before = values(model)
        model.add(layers.Dense(2))
        with pytest.raises(ModelError, match="had not at the start"):
            adapter.train_step(batch())
        assert_same(values(model)[: len(before)], before)


def test_a_batch_of_another_dtype_than_the_weights_is_named():
    """Keras casts; plain TensorFlow does not, and the error shows what it found."""

    class Plain(tf.Module):
        def __init__(self):
            super().__init__()
            self.weight = tf.Variable(tf.ones((5, 2)))

        def __call__(self, inputs, training=False):
            return inputs @ self.weight

    model = Plain()
    adapter = TensorFlowAdapter(model, keras.optimizers.SGD(0.1), squares)
    with pytest.raises(BatchError, match="cannot take") as caught:
        adapter.train_step(batch(dtype=np.float64))
    assert "float64 (10, 5)" in str(caught.value)
    with pytest.raises(BatchError, match="cannot take"):
        adapter.probe_loss(batch(dtype=np.float64))
    np.testing.assert_array_equal(model.weight.numpy(), 1.0)
    assert not adapter.train_step(batch()).skipped


class TestMirrored:
    def make(self):
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice())
        with strategy.scope():
            return net(), keras.optimizers.SGD(0.1, momentum=0.9)

    def test_two_replicas_equal_one_on_the_whole_batch_and_stay_alike(self):
        """F71; 9 examples do not divide by two. A jump reaches both replicas, a restore too."""
        model, optimizer = self.make()
        adapter = TensorFlowAdapter(model, optimizer, squares)
        twin = net()
        single = TensorFlowAdapter(twin, keras.optimizers.SGD(0.1, momentum=0.9), squares)
        for seed in range(3):
            a, b = adapter.train_step(batch(9, seed)), single.train_step(batch(9, seed))
            assert (a.loss, a.grad_norm) == pytest.approx((b.loss, b.grad_norm), rel=1e-5)
        point, traces = adapter.snapshot(), adapter.traces
        for one in (adapter, single):
            jump = tuple(np.full_like(x, 0.01) for x in one.read_params())
            one.apply_delta(jump, 2.0)
            one.after_jump(jump)
            one.train_step(batch(9, 7))
        for ours, theirs in zip(model.variables, twin.variables, strict=True):
            first, second = (part.numpy() for part in ours.value.values)
            np.testing.assert_array_equal(first, second)
            np.testing.assert_allclose(first, theirs.numpy(), rtol=1e-4, atol=1e-5)
        assert adapter.traces == traces
        assert adapter.mean_scalar(0.3) == 0.3
        adapter.restore(point)
        for variable in model.variables:
            first, second = (part.numpy() for part in variable.value.values)
            np.testing.assert_array_equal(first, second)

    def test_what_is_not_served_is_refused(self):
        model, optimizer = self.make()
        with pytest.raises(ModelError, match="micro-batches"):
            TensorFlowAdapter(model, optimizer, squares, accumulate=2)
        with pytest.raises(ModelError, match="different distribution"):
            TensorFlowAdapter(model, keras.optimizers.SGD(0.1), squares)
        adapter = TensorFlowAdapter(model, optimizer, squares)
        with pytest.raises(BatchError, match="fewer examples"):
            adapter.train_step(batch(1))
        with pytest.raises(ModelError, match="closure"):
            adapter.closure_step(lambda: 0.0)

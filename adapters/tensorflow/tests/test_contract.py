"""The adapter contract on the kinds of models and optimizers that people train."""

from __future__ import annotations

import functools

import keras
import numpy as np
import tensorflow as tf

from hybridcore.layout import ParamGroup
from hybridcore.testing import AdapterContract, AdapterFixture
from hybridcore_tensorflow import TensorFlowAdapter

layers = keras.layers


def cross_entropy(model, batch, training=False):
    logits = model(batch[0], training=training)
    logits = logits if logits.dtype == tf.float64 else tf.cast(logits, tf.float32)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(batch[1], logits)


def plain(model, batch):
    return tf.nn.sparse_softmax_cross_entropy_with_logits(batch[1], model(batch[0]))


def mlp(dtype=None):
    hidden = [layers.Dense(8, activation="tanh", dtype=dtype) for _ in range(2)]
    return keras.Sequential([keras.Input((6,)), *hidden, layers.Dense(3, dtype=dtype)])


def data(shape=(6,), n=16, count=4):
    rng = np.random.default_rng(1)
    return [
        (rng.standard_normal((n, *shape)).astype(np.float32), rng.integers(0, 3, n)) for _ in range(count)
    ]


@functools.cache
def another():
    """An adapter of another layout; nothing but its snapshots is used."""
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    return TensorFlowAdapter(model, keras.optimizers.SGD(0.1), cross_entropy)


def first(variable):
    inner = variable.value if isinstance(variable, keras.Variable) else variable
    return inner.values[0] if isinstance(inner, tf.distribute.DistributedValues) else inner


def parts(variable):
    inner = variable.value if isinstance(variable, keras.Variable) else variable
    return inner.values if isinstance(inner, tf.distribute.DistributedValues) else (inner,)


class Contract(AdapterContract):
    """Making graphs takes the time, so a class makes one adapter, two where a test wants two.

    Each test begins anew, without the adapter's help: every variable of model and optimizer gets its first
    value.
    """

    random_steps = False
    shape = (6,)

    def build(self):
        """Model, optimizer, loss function, further options."""
        raise NotImplementedError

    def batches(self):
        return data(self.shape)

    def names(self, adapter):
        """Trained variables by layout name, found without the adapter."""
        root = f"{adapter.model.name}/"
        return {v.path.removeprefix(root).replace("/", "."): v for v in adapter.model.trainable_variables}

    def state(self, adapter):
        held = (*adapter.model.variables, *adapter.optimizer.variables, adapter.hook.rate_factor)
        return [p for v in held for p in parts(v)]

    def make(self):
        pool = type(self).__dict__.get("pool") or []
        type(self).pool = pool
        self.made = getattr(self, "made", -1) + 1
        if self.made == len(pool):
            keras.utils.set_random_seed(0)
            model, optimizer, loss_fn, options = self.build()
            adapter = TensorFlowAdapter(model, optimizer, loss_fn, **options)
            pool.append((adapter, [v.numpy() for v in self.state(adapter)], adapter.state_dict()))
        adapter, values, counters = pool[self.made]
        for variable, value in zip(self.state(adapter), values, strict=True):
            variable.assign(value)
        adapter.load_state_dict(counters)
        if "adaptive-clipping" in adapter.capabilities:
            adapter.clip_adaptively(None)
        batches = self.batches()
        inputs, labels = batches[0]
        floating = np.issubdtype(inputs.dtype, np.floating)
        return AdapterFixture(
            adapter=adapter,
            batches=batches,
            probe=batches[3],
            nan_batch=(np.full_like(inputs, np.nan), labels) if floating else None,
            bad_batch=(inputs[:, :2], labels) if floating else (inputs, labels[:3]),
            n_probe=labels.shape[0],
            random_steps=self.random_steps,
            weights=lambda: {n: first(v).numpy().astype(np.float64) for n, v in self.names(adapter).items()},
            other=another(),
        )


class TestMomentum(Contract):
    def build(self):
        return mlp(), keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True), plain, {}


class TestAdamWithScheduleAndAverage(Contract):
    def build(self):
        schedule = keras.optimizers.schedules.CosineDecay(0.02, 100)
        return mlp(), keras.optimizers.AdamW(schedule, use_ema=True, clipnorm=1.0), plain, {}


class TestBatchNormAndDropout(Contract):
    shape = (4, 4, 1)

    def build(self):
        model = keras.Sequential(
            [
                keras.Input((4, 4, 1)),
                layers.Conv2D(4, 3, padding="same"),
                layers.BatchNormalization(),
                layers.ReLU(),
                layers.Dropout(0.3),
                layers.Flatten(),
                layers.Dense(3),
            ]
        )
        return model, keras.optimizers.RMSprop(0.01, momentum=0.5), cross_entropy, {}


class Tied(keras.Model):
    """Input and output embeddings are one variable; the norm is frozen; the gradient is sparse."""

    def __init__(self):
        super().__init__(name="tied")
        self.embed = layers.Embedding(3, 8, name="embed")
        self.body = layers.Dense(8, activation="tanh", name="body")
        self.norm = layers.LayerNormalization(trainable=False, name="norm")

    def call(self, tokens):
        hidden = self.norm(self.body(self.embed(tokens)))
        return tf.matmul(hidden, tf.convert_to_tensor(self.embed.embeddings), transpose_b=True)


class TestTiedFrozenSubclassed(Contract):
    def batches(self):
        rng = np.random.default_rng(1)
        return [tuple(rng.integers(0, 3, 16) for _ in range(2)) for _ in range(4)]

    def build(self):
        model = Tied()
        model(np.zeros(2, np.int64))
        return model, keras.optimizers.Adam(0.01), plain, {}

    def test_tied_once_frozen_absent_embedding_recognised(self):
        layout = self.make().adapter.layout
        assert {p.name: p.group for p in layout.params} == {
            "embed.embeddings": ParamGroup.EMBEDDING,
            "body.kernel": ParamGroup.MATRIX,
            "body.bias": ParamGroup.BIAS,
        }


class TestMixedDtypes(Contract):
    """Float64, bfloat16 and float32 layers: three buckets."""

    def build(self):
        model = keras.Sequential(
            [
                keras.Input((6,)),
                layers.Dense(8, activation="tanh", dtype="float64", name="body"),
                layers.Dense(4, dtype="bfloat16", name="neck"),
                layers.Dense(3, name="head"),
            ]
        )
        return model, keras.optimizers.Adam(0.1), cross_entropy, {}

    def test_three_buckets(self):
        layout = self.make().adapter.layout
        assert layout.bucket_sizes == (36, 15, 56)
        assert [p.dtype for p in layout.params] == ["bfloat16"] * 2 + ["float32"] * 2 + ["float64"] * 2


class TestFloat64(Contract):
    """F62: buckets, and all that is done with them, have the precision of the weights."""

    def build(self):
        return mlp("float64"), keras.optimizers.SGD(0.05, momentum=0.9), plain, {}

    def batches(self):
        return [(x.astype(np.float64), y) for x, y in data()]

    def test_buckets_are_float64(self):
        layout = self.make().adapter.layout
        assert (layout.bucket_dtype, layout.nbytes) == ("float64", 8 * layout.total)


class TestMixedPrecision(Contract):
    """Float16 computation, float32 variables, dynamic loss scale."""

    def build(self):
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01), initial_scale=128.0)
        return mlp("mixed_float16"), optimizer, cross_entropy, {}

    def test_non_finite_batch_changes_nothing(self):
        """But the scale, which must come down (F62)."""
        fixture = self.make()
        adapter = fixture.adapter
        adapter.train_step(fixture.batches[0])
        before = [v.numpy() for v in adapter.model.variables]
        scale = float(adapter.optimizer.dynamic_scale)
        assert adapter.train_step(fixture.nan_batch).skipped
        assert float(adapter.optimizer.dynamic_scale) == scale / 2
        for variable, value in zip(adapter.model.variables, before, strict=True):
            np.testing.assert_array_equal(variable.numpy(), value)

    def test_an_overflow_is_told_from_trouble(self):
        """A scale beyond float16 overflows behind a finite loss; the next scales are tried until one fits."""
        fixture = self.make()
        adapter = fixture.adapter
        adapter.optimizer.dynamic_scale.assign(2.0**24)
        results = [adapter.train_step(fixture.batches[0]) for _ in range(30)]
        skips = [r.skipped for r in results]
        assert skips[0]
        assert not skips[-1]
        assert skips == sorted(skips, reverse=True)
        assert [r.overflow for r in results] == skips


class Affine(tf.Module):
    """Two affine maps, a noise generator of TensorFlow, and dropout by Keras' generator."""

    def __init__(self):
        super().__init__()
        start = np.random.default_rng(0)
        self.weights = [
            tf.Variable(start.standard_normal(s).astype(np.float32) / 3) for s in ((6, 8), (8, 3))
        ]
        self.bias = tf.Variable(tf.zeros(3))
        self.noise = tf.random.Generator.from_seed(1)
        self.generator = keras.random.SeedGenerator(2)

    def __call__(self, inputs, training):
        hidden = tf.tanh(inputs @ self.weights[0])
        if training:
            hidden = hidden + 0.1 * self.noise.normal(tf.shape(hidden))
            hidden = keras.random.dropout(hidden, 0.2, seed=self.generator)
        return hidden @ self.weights[1] + self.bias


class TestModuleWithOwnGenerators(Contract):
    def build(self):
        return Affine(), keras.optimizers.SGD(0.1, momentum=0.9), cross_entropy, {}

    def names(self, adapter):
        model = adapter.model
        return {"weights.0": model.weights[0], "weights.1": model.weights[1], "bias": model.bias}

    def state(self, adapter):
        model = adapter.model
        return [
            *(p for v in (*model.weights, model.bias, *adapter.optimizer.variables) for p in parts(v)),
            adapter.hook.rate_factor,
            model.noise.state,
            model.generator.state.value,
        ]


class TestOwnTrainStep(Contract):
    """A compiled step of the user's own, which guards nothing."""

    def build(self):
        model, optimizer = mlp(), keras.optimizers.SGD(0.05, momentum=0.9)

        @tf.function
        def step(batch):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(plain(model, batch))
            variables = model.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            return {"loss": loss}

        return model, optimizer, plain, {"train_step": step}


class TestMirrored(Contract):
    """Two replicas on logical CPUs; BatchNormalization keeps statistics per replica (F71)."""

    def build(self):
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice())
        with strategy.scope():
            model = keras.Sequential(
                [
                    keras.Input((6,)),
                    layers.Dense(4, activation="tanh"),
                    layers.BatchNormalization(),
                    layers.Dense(3),
                ]
            )
            return model, keras.optimizers.SGD(0.05, momentum=0.9), cross_entropy, {}


def test_layout_groups_follow_layer_types():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Embedding(5, 4, name="token"),
            layers.LayerNormalization(name="norm"),
            layers.RMSNormalization(name="rms"),
            layers.Dense(4, name="dense"),
            layers.BatchNormalization(name="batch"),
        ]
    )
    adapter = TensorFlowAdapter(model, keras.optimizers.SGD(0.1), cross_entropy)
    assert {p.name: p.group.value for p in adapter.layout.params} == {
        "token.embeddings": "embedding",
        "norm.gamma": "norm",
        "norm.beta": "norm",
        "rms.scale": "norm",
        "dense.kernel": "matrix",
        "dense.bias": "bias",
        "batch.gamma": "norm",
        "batch.beta": "norm",
    }
    assert adapter.layout.total == sum(int(np.prod(v.shape)) for v in model.trainable_variables)

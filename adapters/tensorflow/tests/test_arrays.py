"""Memory is never shared with the model: every trap of array exchange, on vectors large enough to alias."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from hybridcore.errors import DeltaError
from hybridcore_tensorflow import TensorFlowAdapter
from hybridcore_tensorflow.arrays import NumpyBridge


class Vector(tf.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = tf.Variable(tf.ones(size))


def make(size=100_000):
    model = Vector(size)
    loss_fn = lambda model, batch: 0.5 * tf.square(model.weight[None, :] - batch)  # noqa: E731
    return model, TensorFlowAdapter(model, keras.optimizers.SGD(0.5), loss_fn)


def aligned(size, shift=0):
    """Zeros that begin `shift` bytes past a multiple of 64; TensorFlow may alias aligned memory only."""
    raw = np.zeros(size + 32, np.float32)
    start = (-raw.ctypes.data % 64 + shift) // 4
    return raw[start : start + size]


@pytest.mark.parametrize("shift", [0, 4])
def test_the_model_never_sees_later_writes_to_what_was_written(shift):
    model, adapter = make()
    bucket = aligned(100_000, shift)
    adapter.write_params((bucket,))
    bucket[:] = 7.0
    np.testing.assert_array_equal(model.weight.numpy(), 0.0)
    adapter.train_step(np.full((1, 100_000), 4.0, np.float32))
    assert model.weight.numpy().min() > 0.0
    np.testing.assert_array_equal(bucket, 7.0)
    bucket[:] = 0.25
    adapter.apply_delta((bucket,), 2.0)
    moved = model.weight.numpy()
    bucket[:] = 9.0
    np.testing.assert_array_equal(model.weight.numpy(), moved)


def test_what_was_read_never_follows_the_model():
    model, adapter = make()
    (read,) = adapter.read_params()
    assert read.flags.writeable
    assert read.flags.owndata
    model.weight.assign_add(tf.ones(100_000))
    tf.raw_ops.AssignSubVariableOp(resource=model.weight.handle, value=tf.ones(100_000) * 5.0)
    np.testing.assert_array_equal(read, 1.0)
    read[:] = 3.0
    np.testing.assert_array_equal(model.weight.numpy(), -3.0)


def test_snapshots_survive_a_write_through_dlpack():
    """A write through an imported buffer of a variable reaches it; the snapshot must hold a copy."""
    model, adapter = make()
    point = adapter.snapshot()
    numpy_view = np.from_dlpack(_Capsule(model.weight.read_value()))
    address = numpy_view.ctypes.data
    alias = np.ctypeslib.as_array(_floats(address), (100_000,))
    alias[:] = 5.0
    assert model.weight.numpy()[0] == 5.0, "the trap is real: the buffer belongs to the variable"
    adapter.restore(point)
    np.testing.assert_array_equal(model.weight.numpy(), 1.0)
    assert point.nbytes >= 400_000


class _Capsule:
    def __init__(self, tensor):
        self._tensor = tensor

    def __dlpack__(self, **options):
        return tf.experimental.dlpack.to_dlpack(self._tensor)

    def __dlpack_device__(self):
        return (1, 0)


def _floats(address):
    import ctypes

    return ctypes.cast(address, ctypes.POINTER(ctypes.c_float))


def test_restored_weights_train_without_touching_the_snapshot():
    model, adapter = make()
    point = adapter.snapshot()
    for _ in range(2):
        adapter.restore(point)
        adapter.train_step(np.full((1, 100_000), 4.0, np.float32))
        assert model.weight.numpy()[0] != 1.0
    adapter.restore(point)
    np.testing.assert_array_equal(model.weight.numpy(), 1.0)


def test_bfloat16_weights_are_float32_in_buckets():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, dtype="bfloat16")])
    loss_fn = lambda model, batch: tf.reduce_mean(model(batch), 1)  # noqa: E731
    adapter = TensorFlowAdapter(model, keras.optimizers.SGD(0.1), loss_fn)
    assert adapter.read_params()[0].dtype == np.float32
    adapter.write_params((np.full(8, 1.0 + 2.0**-9, np.float32),))
    np.testing.assert_array_equal(adapter.read_params()[0], 1.0)


def test_read_only_and_foreign_buckets():
    model, adapter = make(10)
    frozen = np.ones(10, np.float32)
    frozen.flags.writeable = False
    adapter.apply_delta((frozen,), 2.0)
    np.testing.assert_array_equal(model.weight.numpy(), 3.0)
    (total,) = adapter.add_params((frozen,), 1.0, 1.0)
    np.testing.assert_array_equal(total, 4.0)
    np.testing.assert_array_equal(frozen, 1.0)
    with pytest.raises(DeltaError, match="no array"):
        NumpyBridge().tensor([object()])
    with pytest.raises(DeltaError, match="layout"):
        adapter.write_params((np.ones(9, np.float32),))


def test_tensorflow_has_no_namespace_so_the_engine_computes_in_numpy():
    from array_api_compat import array_namespace

    with pytest.raises(TypeError):
        array_namespace(tf.ones(2))
    _, adapter = make(4)
    assert adapter.xp is array_namespace(adapter.read_params()[0])

"""F58: float64 in JAX, which must be switched on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybridcore.errors import TaskError
from hybridcore.tasks.digits_mlp import DigitsMlp
from hybridcore.tasks.mnist_cnn import MnistCnn
from hybridcore.tasks.precision import in_float64
from hybridcore_jax.framework import FRAMEWORK
from hybridcore_jax.models.transformer import _mixed


def test_f58_float64_with_x64_switched_off_is_an_error():
    problem = in_float64(DigitsMlp(DigitsMlp.Config(width=8)).problem(0))
    with pytest.raises(TaskError, match="JAX has switched off") as caught:
        FRAMEWORK.build(problem, "cpu")
    assert caught.value.where == "run.dtype"
    assert "JAX_ENABLE_X64=1" in caught.value.fix


@pytest.mark.parametrize("cls", [DigitsMlp, MnistCnn], ids=lambda cls: cls.name)
def test_f58_models_their_statistics_and_batches_are_float64(cls):
    with jax.enable_x64(True):
        run = FRAMEWORK.build(in_float64(cls(cls.Config()).problem(0)), "cpu")
        state = (run.adapter.params, run.adapter.train_state.model_state, next(run.batches))
        kinds = {x.dtype.name for x in jax.tree.leaves(state)}
        assert kinds - {"int64", "int32"} == {"float64"}
        assert run.adapter.layout.bucket_dtype == "float64"


def test_f58_attention_is_float64_throughout():
    """Against NumPy; the softmax of `jax.nn.dot_product_attention` is float32 and ends 1e-8 away."""
    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, 2, 5, 2, 4))
    scores = np.einsum("nqhs,nkhs->nhqk", query, key) / 2.0
    scores[..., np.triu_indices(5, 1)[0], np.triu_indices(5, 1)[1]] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    with jax.enable_x64(True):
        found = np.asarray(_mixed(jnp.asarray(query), jnp.asarray(key), jnp.asarray(value)))
    np.testing.assert_allclose(found, np.einsum("nhqk,nkhs->nqhs", weights, value), rtol=1e-13, atol=1e-14)

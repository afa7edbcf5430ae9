"""Running statistics: probes by the batch's own, re-estimation as plain means (F86)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax_lab import cross_entropy, data
from test_contract import Linen, Nnx, by_model, equinox_fixture

from hybridcore_jax import JaxAdapter, LinenModel

BATCHES = data(n=32)


def pure(params, batch, *, state, training):
    """A hand-written BatchNorm with one flag, a counter, a constant, and momentum 0.8."""
    hidden = batch[0] @ params["up"]
    mean, var = (hidden.mean(0), hidden.var(0)) if training else (state["mean"], state["var"])
    new = {
        "mean": 0.8 * state["mean"] + 0.2 * mean,
        "var": 0.8 * state["var"] + 0.2 * var,
        "seen": state["seen"] + 1,
        "scale": state["scale"],
    }
    normal = state["scale"] * (hidden - mean) / jnp.sqrt(var + 1e-5)
    return cross_entropy(normal @ params["down"], batch[1]), new if training else state


def pure_adapter():
    rng = np.random.default_rng(0)
    params = {"up": rng.standard_normal((6, 5)), "down": rng.standard_normal((5, 3))}
    params = {name: jnp.asarray(w, jnp.float32) for name, w in params.items()}
    state = {"mean": jnp.zeros(5), "var": jnp.ones(5), "seen": jnp.zeros((), int), "scale": jnp.full(5, 2.0)}
    return JaxAdapter(params, optax.sgd(0.1), pure, state=state, learning_rate=0.1)


def expected(hidden):
    """Mean over batches of each batch's mean and biased variance, in float64."""
    hidden = [np.asarray(h, np.float64) for h in hidden]
    return np.mean([h.mean(0) for h in hidden], axis=0), np.mean([h.var(0) for h in hidden], axis=0)


def test_statistics_of_a_pure_function_are_found_and_averaged():
    adapter = pure_adapter()
    assert "batch-statistics" in adapter.capabilities
    for batch in BATCHES:
        adapter.train_step(batch)
    adapter.refresh_statistics(BATCHES[:3])
    state = adapter.train_state.model_state
    mean, var = expected([b[0] @ adapter.params["up"] for b in BATCHES[:3]])
    np.testing.assert_allclose(state["mean"], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state["var"], var, rtol=1e-4)
    assert int(state["seen"]) == 4
    assert np.array_equal(state["scale"], jnp.full(5, 2.0))


def test_probes_of_a_pure_function_use_the_batchs_own_statistics():
    adapter, batch = pure_adapter(), BATCHES[3]
    params = {name: np.asarray(w, np.float64) for name, w in adapter.params.items()}
    hidden = np.asarray(batch[0], np.float64) @ params["up"]
    logits = 2.0 * (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5) @ params["down"]
    want = np.log(np.exp(logits).sum(1)) - logits[np.arange(32), np.asarray(batch[1])]
    np.testing.assert_allclose(adapter.probe_loss(batch), want, rtol=1e-4, atol=1e-5)


def nnx_case():
    adapter = JaxAdapter(Nnx(), optax.sgd(0.05), by_model, learning_rate=0.05)
    inner = adapter.model.inner
    return adapter, inner.kernel[...], inner.bias[...], lambda s: (s["norm"]["mean"], s["norm"]["var"])


def linen_case():
    module = Linen()
    variables = module.init(jax.random.key(0), jnp.ones((2, 6)), train=False)
    model = LinenModel(module, variables, rngs=("dropout",))
    adapter = JaxAdapter(model, optax.sgd(0.05), by_model, learning_rate=0.05, key=jax.random.key(1))
    dense = variables["params"]["Dense_0"]
    stats = lambda s: tuple(s["batch_stats"]["BatchNorm_0"][n] for n in ("mean", "var"))  # noqa: E731
    return adapter, dense["kernel"], dense["bias"], stats


def equinox_case():
    adapter = equinox_fixture().adapter
    module, _ = adapter.model

    def stats(state):
        mean, var = state.get(module.norm.batch_state_index)
        scale = 1 - 0.9 ** state.get(module.norm.batch_counter).astype(float)
        return mean / scale, var / scale  # as equinox reads them in inference

    return adapter, module.inner.weight.T, module.inner.bias, stats


@pytest.mark.parametrize("case", [nnx_case, linen_case, equinox_case])
def test_libraries_statistics_are_re_estimated(case):
    adapter, weight, bias, stats = case()
    adapter.refresh_statistics(BATCHES[:2])
    mean, var = expected([b[0] @ weight + bias for b in BATCHES[:2]])
    state = adapter.train_state.model_state
    found = stats(state if not hasattr(state, "to_pure_dict") else state.to_pure_dict())
    np.testing.assert_allclose(found[0], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], var, rtol=1e-4)


@pytest.mark.parametrize("case", [nnx_case, linen_case, equinox_case])
def test_libraries_probes_ignore_running_statistics_and_dropout(case):
    adapter, *_ = case()
    before = adapter.probe_loss(BATCHES[3])
    assert np.array_equal(adapter.probe_loss(BATCHES[3]), before)
    adapter.refresh_statistics(BATCHES[:2])
    np.testing.assert_allclose(adapter.probe_loss(BATCHES[3]), before, rtol=1e-4, atol=1e-5)


def test_an_nnx_module_follows_the_training():
    module = Nnx()
    adapter = JaxAdapter(module, optax.sgd(0.5), by_model, learning_rate=0.5)
    start = np.asarray(module.inner.kernel[...])
    adapter.train_step(BATCHES[0])
    assert adapter.model is module
    assert not np.array_equal(module.inner.kernel[...], start)
    read = adapter.layout.unpack(adapter.read_params(), jnp)
    np.testing.assert_array_equal(module.inner.kernel[...], read["inner.kernel"])

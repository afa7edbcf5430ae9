"""The ways to train with an attached engine, on real models (F58, F59, F82, F87)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax_lab import flat

from hybridcore.config import AverageConfig, BudgetConfig, HybridConfig, PhasesConfig, ProbeConfig
from hybridcore.controllers.fixed import Fixed, FixedConfig
from hybridcore.engine import Engine
from hybridcore.errors import ProbeError
from hybridcore.events import Event
from hybridcore.predictors.last_update import LastUpdate
from hybridcore_jax import Hybrid, JaxAdapter, hybridize, rescale_velocity


def squares(params, batch):
    hidden = jnp.tanh(batch[0] @ params["up"] + params["bias"])
    return jnp.square(hidden @ params["down"] - batch[1]).mean(1)


def data(count, n=16):
    rng = np.random.default_rng(3)
    target = rng.standard_normal((5, 2))
    inputs = [rng.standard_normal((n, 5)).astype(np.float32) for _ in range(count)]
    return [(x, np.tanh(x @ target).astype(np.float32)) for x in inputs]


def net():
    rng = np.random.default_rng(0)
    shapes = {"up": (5, 7), "bias": (7,), "down": (7, 2)}
    return {n: jnp.asarray(0.4 * rng.standard_normal(s), jnp.float32) for n, s in shapes.items()}


def attach(mode="jump", lr=0.003, model=None, optimizer=None, average=False, **options):
    optimizer = optimizer or optax.sgd(lr, momentum=0.5)
    adapter = JaxAdapter(net() if model is None else model, optimizer, squares, learning_rate=lr, **options)
    config = HybridConfig(
        phases=PhasesConfig(warmup_steps=5, full_steps=5, predict_mode=mode, predict_steps=4),
        budget=BudgetConfig(share=1.0, grace_steps=1000.0),
        probe=ProbeConfig(batches=1),
        average=AverageConfig(enabled=average, every=1, share=1.0, max_memory=1e6),
    )
    controller = Fixed(FixedConfig(horizon=4.0, full_steps=5, correct_steps=5))
    engine = Engine(adapter, config, controller, {"last-update": LastUpdate()}, probes=data(1))
    return Hybrid(engine, adapter)


def optax_step(optimizer, donate=False):
    def step(params, opt_state, batch):
        loss, gradients = jax.value_and_grad(lambda p: squares(p, batch).mean())(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return jax.jit(step, donate_argnums=(0, 1) if donate else ())


@pytest.mark.parametrize("mode", ["jump", "step"])
def test_f87_own_optax_loop_trains_like_the_adapters_step(mode):
    """The loop donates its state to its own step, and takes back what the engine made of it."""
    batches = data(60)
    one = attach(mode)
    real = []
    for batch in batches:
        one.step(batch)
        real.append(one.stepped)
    optimizer = rescale_velocity(optax.sgd(0.003, momentum=0.5))
    step = optax_step(optimizer, donate=True)
    two = attach(mode)
    params = net()
    opt_state, loss, calls = optimizer.init(params), None, 0
    for batch in batches:
        if two.needs_backward:
            params, opt_state, loss = step(params, opt_state, batch)
            calls += 1
        params, opt_state = two.advance(params, opt_state, loss)
    assert one.engine.counts.jumps == two.engine.counts.jumps > 0
    assert calls == sum(real) == one.engine.real_steps == two.engine.real_steps
    assert (calls < 60) == (mode == "step")
    np.testing.assert_allclose(flat(params), flat(one.params), rtol=1e-5, atol=1e-7)
    assert one.finish()["real_steps"] == calls


def test_own_train_step_trains_like_the_adapters_step():
    """With optax state of the user's own shape: plain SGD has no velocity to adjust, so both are equal."""
    optimizer = optax.sgd(0.003)
    step = optax_step(optimizer)

    def train_step(state, batch):
        params, opt_state, loss = step(state["params"], state["opt_state"], batch)
        return {"params": params, "opt_state": opt_state, "seen": state["seen"] + 1}, {"loss": loss}

    params = net()
    state = {"params": params, "opt_state": optimizer.init(params), "seen": jnp.zeros((), jnp.int32)}
    own = attach(model=state, optimizer=optimizer, train_step=train_step)
    built = attach(optimizer=optimizer)
    for batch in data(60):
        assert own.step(batch) == pytest.approx(built.step(batch), rel=1e-5)
    assert own.engine.counts.jumps == built.engine.counts.jumps > 0
    assert own.engine.counts.rollbacks == 0
    assert int(own.adapter.train_state["seen"]) == 60
    np.testing.assert_allclose(flat(own.params), flat(built.params), rtol=1e-5, atol=1e-7)


def test_nothing_is_compiled_after_the_first_cycle():
    """Jumps, probes, verdicts and rollbacks use programs that exist; scales and weights are arguments."""
    hybrid, batches = attach(), data(120)
    compiled = []
    for batch in batches[:60]:
        hybrid.step(batch)
    before = hybrid.engine.counts.jumps
    assert before > 1
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
    try:
        for batch in batches[60:]:
            hybrid.step(batch)
        again = [e for e in compiled if "compile" in e or "trace" in e]
        assert hybrid.engine.counts.jumps > before
        assert again == []
        jax.jit(lambda x: x * 17.0)(jnp.ones(5))  # the listener does hear of a new program
        assert [e for e in compiled if "compile" in e or "trace" in e]
    finally:
        jax.monitoring.clear_event_listeners()


def test_f23_a_jump_moves_the_weights_and_training_gains_by_it():
    """Against the same loop without an engine, far below the best learning rate."""
    batches = data(150)
    hybrid, heard = attach(lr=0.001), []
    hybrid.engine.events.listen(lambda event, payload: heard.append(event))
    for batch in batches:
        hybrid.step(batch)
    optimizer = optax.sgd(0.001, momentum=0.5)
    step, params = optax_step(optimizer), net()
    opt_state = optimizer.init(params)
    for batch in batches:
        params, opt_state, _ = step(params, opt_state, batch)
    held_out = data(1, 256)[0]
    assert heard.count(Event.JUMP) == hybrid.engine.counts.jumps > 0
    assert squares(hybrid.params, held_out).mean() < squares(params, held_out).mean()


@pytest.mark.parametrize("donate", [False, True])
def test_f82_a_failed_trial_is_undone_bit_for_bit(donate):
    """A loss far over the guard right after a jump: weights and velocity are those before the jump."""
    hybrid, batches = attach(donate=donate), data(60)
    adapter, rolled = hybrid.adapter, []
    hybrid.engine.events.listen(
        lambda event, payload: rolled.append(payload["step"]) if event is Event.ROLLBACK else None
    )
    opened = None
    for x, y in batches:
        jumps = hybrid.engine.counts.jumps
        poison = 1.0 if opened is None else 1e4
        hybrid.step((x, poison * y))
        if opened is None and hybrid.engine.counts.jumps > jumps:
            trial = hybrid.engine._trials.trial
            opened = [np.asarray(a).copy() for a in jax.tree.leaves(trial.snapshot.state)]
        if rolled:
            break
    assert rolled
    now = [np.asarray(a) for a in jax.tree.leaves(adapter.train_state)]
    assert all(np.array_equal(a, b) for a, b in zip(now, opened, strict=True))


def test_resume_in_a_fresh_adapter_is_exact():
    """F53: a snapshot and the counters go into a new adapter, which then trains bit for bit alike."""
    batches = data(20)
    schedule = optax.cosine_decay_schedule(0.01, 30)

    def make():
        return JaxAdapter(net(), optax.adam(schedule), squares, learning_rate=schedule)

    whole = make()
    for batch in batches[:10]:
        whole.train_step(batch)
    point, counters = whole.snapshot(), whole.state_dict()
    resumed = make()
    resumed.restore(point)
    resumed.load_state_dict(counters)
    for batch in batches[10:]:
        assert resumed.train_step(batch) == whole.train_step(batch)
        assert resumed.learning_rate == whole.learning_rate
    assert np.array_equal(flat(resumed.train_state), flat(whole.train_state))


def test_f41_own_loop_gets_the_state_before_a_broken_step_back():
    optimizer = rescale_velocity(optax.sgd(0.003, momentum=0.5))
    step, hybrid = optax_step(optimizer), attach()
    params = net()
    opt_state = optimizer.init(params)
    for index, (x, y) in enumerate(data(6)):
        before = flat(params)
        params, opt_state, loss = step(params, opt_state, (x, y * (math.nan if index == 3 else 1.0)))
        params, opt_state = hybrid.advance(params, opt_state, loss)
        assert hybrid.stepped == (index != 3)
        assert np.array_equal(flat(params), before) == (index == 3)
    assert hybrid.engine.counts.skipped == 1


def test_the_average_is_lent_and_taken_back():
    hybrid, path = attach(average=True, lr=1e-5), []
    for batch in data(4):
        hybrid.step(batch)
        path.append(flat(hybrid.params))
    before = flat(hybrid.params)
    with hybrid.averaged():
        mean = flat(hybrid.params)
        np.testing.assert_allclose(mean, np.mean(path, axis=0), rtol=1e-5, atol=1e-7)
    with hybrid.chosen() as averaged:
        assert np.array_equal(flat(hybrid.params), mean if averaged else before)
    assert np.array_equal(flat(hybrid.params), before)


def test_hybridize_takes_a_file_a_configuration_or_none(tmp_path):
    file = tmp_path / "hybrid.toml"
    file.write_text("[phases]\nwarmup_steps = 7\n")
    default = HybridConfig().phases.warmup_steps
    own = HybridConfig(phases=PhasesConfig(warmup_steps=3))
    for config, warmup in ((None, default), (file, 7), (own, 3)):
        heard = []
        hybrid = hybridize(
            net(),
            optax.adam(1e-3),
            config,
            loss_fn=squares,
            learning_rate=1e-3,
            probe=data(2),
            events=[lambda event, payload, heard=heard: heard.append(event)],
        )
        losses = [hybrid.step(batch) for batch in data(12)]
        assert hybrid.engine.config.phases.warmup_steps == warmup
        assert all(map(math.isfinite, losses))
        assert heard.count(Event.REAL_STEP) == 12


def test_an_own_loop_needs_probes():
    hybrid = hybridize(net(), optax.sgd(0.1), loss_fn=squares, learning_rate=0.1)
    with pytest.raises(ProbeError, match="held-out batches"):
        hybrid.advance(net(), optax.sgd(0.1).init(net()), 1.0)

"""What the engine turns by itself, and only where it may (F69)."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
from engine_lab import Scripted, bowl, build, clouds, configure, drive
from test_divergence import Scripted as ScriptedMonitor

from hybridcore.autotune import restart_factor
from hybridcore.config import AutotuneConfig
from hybridcore.monitors.plateau import Plateau
from hybridcore.reference import clip_units


def tuned(autotune, *, monitors=None, adapter=None, every=5, steps=400):
    adapter = adapter or bowl()
    engine, recorder = build(
        adapter,
        configure(autotune=autotune, divergence={"check_every": every}),
        Scripted(),
        probes=[None],
        monitors=[Plateau(Plateau.Config(window=40))] if monitors is None else monitors,
    )
    drive(engine, steps)
    return engine, recorder, np.array([e["learning_rate"] for e in recorder.named("real-step")])


class Stuck:
    """Model whose loss never moves."""

    rng = np.random.default_rng(0)

    def losses(self, params, batch):
        return np.ones(1)

    def gradient(self, params, batch):
        return {"w": np.full(20, 0.1)}


def stuck():
    adapter = bowl()
    adapter.model = Stuck()
    return adapter


def test_f69_a_plateau_restarts_the_learning_rate_which_shows_in_the_trace():
    settings = {"enabled": True, "patience": 3, "restart_factor": 4.0, "restart_steps": 100}
    _, recorder, rates = tuned(settings, adapter=stuck())
    restarts = [e["step"] for e in recorder.named("tuning") if e["change"] == "warm-restart"]
    first = restarts[0]
    assert first == 50, "a window of 40 steps, then three checks in a row"
    assert (rates[:first] == 0.01).all()
    for age in range(5, 100, 5):
        expected = 0.01 * (1 + 3 * 0.5 * (1 + math.cos(math.pi * age / 100)))
        assert rates[first + age] == pytest.approx(expected)
    assert rates[first] == pytest.approx(0.04) and len(restarts) > 1
    assert restarts[1] - first >= 100


def test_f69_restart_factor_is_a_cosine_between_its_ends():
    config = AutotuneConfig(restart_factor=5.0, restart_floor=0.5, restart_steps=80)
    assert restart_factor(0, config) == 5.0
    assert restart_factor(40, config) == pytest.approx(2.75)
    assert restart_factor(80, config) == restart_factor(500, config) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "settings",
    [{"enabled": False}, {"enabled": True, "restart": False}, {"enabled": True, "patience": 1000}],
)
def test_f69_nothing_is_turned_without_leave(settings):
    _, recorder, rates = tuned(settings, adapter=stuck())
    assert (rates == 0.01).all() and not recorder.named("tuning")


def test_f69_a_falling_loss_is_not_restarted():
    _, _, rates = tuned({"enabled": True}, steps=150)
    assert (rates == 0.01).all()


def test_f69_an_unhealthy_run_is_not_restarted():
    plateau = Plateau(Plateau.Config(window=40))
    sick = ScriptedMonitor("W-" * 1000, "sick")
    settings = {"enabled": True, "clipping": "never", "patience": 1, "min_health": 0.9}
    engine, recorder, _ = tuned(settings, adapter=stuck(), monitors=[plateau, sick])
    assert engine.recovery.watch.health < 0.9 and not recorder.named("tuning")


def test_f69_clipping_follows_the_health():
    sick = ScriptedMonitor("-" * 20 + "WW" + "-" * 100, "sick")
    _, recorder, _ = tuned(
        {"enabled": True, "restart": False, "clip_health": 0.8, "clip_ratio": 1e-5},
        monitors=[sick],
        every=1,
        steps=100,
    )
    changes = [(e["step"], e["change"]) for e in recorder.named("tuning")]
    assert changes[0] == (22, "clipping") and changes[1][1] == "no-clipping"
    norms = {e["step"]: e["grad_norm"] for e in recorder.named("real-step")}
    (on, _), (off, _) = changes
    assert norms[on] > 100 * norms[on + 1], "clipped from the next step on"
    assert norms[off + 1] > 100 * norms[off]


def test_f69_clipping_always_and_never():
    for clipping, clipped in (("always", True), ("never", False)):
        engine, _, _ = tuned(
            {"enabled": True, "clipping": clipping, "clip_ratio": 1e-5}, monitors=[], every=1, steps=10
        )
        assert (engine.statistics.grad_norms[-1] < 1e-3) is clipped


def test_f69_an_adapter_that_cannot_is_left_alone(caplog):
    adapter = stuck()
    adapter.capabilities = frozenset()
    with caplog.at_level(logging.WARNING, "hybridcore"):
        _, recorder, rates = tuned({"enabled": True, "clipping": "always"}, adapter=adapter)
    assert (rates == 0.01).all() and not recorder.named("tuning")
    assert "'learning-rate'" in caplog.text and "'adaptive-clipping'" in caplog.text


def test_f69_clipped_units_have_the_stated_norm():
    rng = np.random.default_rng(0)
    gradient, weights = (
        rng.standard_normal((6, 3, 2)) * 10.0 ** np.arange(-3, 3)[:, None, None],
        rng.random((6, 3, 2)),
    )
    weights[2] = 0.0
    clipped = clip_units(gradient, weights, 0.1)
    for g, w, c in zip(gradient, weights, clipped, strict=True):
        limit = 0.1 * max(np.linalg.norm(w), 1e-3)
        expected = g * min(1.0, limit / np.linalg.norm(g))
        np.testing.assert_allclose(c, expected, rtol=1e-12)
    vector = clip_units(gradient[0, 0], weights[0, 0], 1e-6)
    assert np.linalg.norm(vector) == pytest.approx(1e-6 * np.linalg.norm(weights[0, 0]))


def test_f69_a_batch_that_is_not_finite_is_still_skipped_while_clipping():
    adapter, batches, _ = clouds()
    adapter.clip_adaptively(0.01)
    x, y = next(batches)
    before = adapter.params["weight"].copy()
    assert adapter.train_step((x * np.inf, y)).skipped
    np.testing.assert_array_equal(adapter.params["weight"], before)

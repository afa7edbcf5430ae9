"""F13 to F18: what the models forecast on losses of known form and on recorded real runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dynamics_lab import REAL, covered, drive, exponential, featured, fresh, recorded, truth

from hybridcore.dynamics.conformal import Conformal
from hybridcore.dynamics.level import LossLevel
from hybridcore.dynamics.linear import Linear, LinearOptions
from hybridcore.dynamics.mlp import Mlp, MlpOptions
from hybridcore.dynamics.replay import Replay
from hybridcore.dynamics.rssm import Rssm, RssmOptions
from hybridcore.plugins import load_registry
from hybridcore.protocols import Action, Phase, StepOutcome

SMALL = {
    "deterministic": 16,
    "stochastic": 2,
    "classes": 4,
    "hidden": 16,
    "batch": 8,
    "longest": 8,
    "samples": 4,
    "context": 2,
}
MODELS = {
    "linear": (Linear, 1),
    "mlp": (lambda: Mlp(MlpOptions(hidden=(16, 16), dropout=0.0)), 4),
    "rssm": (lambda: Rssm(RssmOptions(**SMALL)), 3),
}


@pytest.fixture(params=sorted(MODELS))
def model(request):
    make, updates = MODELS[request.param]
    made = fresh(make())
    made.default_updates = updates
    return made


def test_f14_an_exponential_loss_is_foretold(model):
    """R^2 above 0.85 of the change from now, eight ahead, on steps not yet seen, after 250 samples."""
    losses = exponential(350, memory=120.0)
    forecasts = drive(model, losses, featured(losses), updates=3 * model.default_updates, horizon=8)
    late = [(t, f) for t, f in forecasts if t >= 250]
    now = losses[[t for t, _ in late]][:, None]
    change = truth(losses, late) - now
    missed = np.array([f.mean for _, f in late]) - now - change
    assert len(late) >= 9
    assert 1.0 - np.sum(missed**2) / np.sum(change**2) > 0.85


def test_f15_entry_j_is_about_step_t_plus_j():
    """On a sawtooth of period 8, which only the right alignment can foretell."""
    saw = (np.arange(600) % 8).astype(float)
    phase = np.arange(600) % 8
    features = np.zeros((600, 28))
    features[np.arange(600), phase] = 1.0
    model = fresh(Linear(LinearOptions(l2=1e-3, longest=8)))
    forecasts = drive(model, saw, features, updates=3, horizon=8)[-5:]
    got = np.array([f.mean for _, f in forecasts])
    exact = np.array([1, 2, 4, 8]) - 1  # horizons with weights of their own
    np.testing.assert_allclose(got[:, exact], truth(saw, forecasts)[:, exact], atol=0.35)
    shifted = np.array([saw[t : t + 8] for t, _ in forecasts])
    assert np.abs(got - shifted)[:, exact].mean() > 0.9


def test_f15_targets_of_the_replay():
    """Loss number t + j is the target of start t at horizon j; breaks and the future have none."""
    ring = Replay(50, 1, 1)
    for t in range(30):
        if t == 20:
            ring.interrupt()
        ring.add(np.zeros(1), np.zeros(1), level=0.0, scale=1.0, loss=float(t + 1))
    starts = np.array([5, 18, 25])
    target, known = ring.targets(starts, np.tile([1, 3, 6], (3, 1)))
    np.testing.assert_array_equal(known, [[1, 1, 1], [1, 0, 0], [1, 1, 0]])
    np.testing.assert_allclose(np.expm1(target)[known], [6, 8, 11, 19, 26, 28])


@pytest.mark.parametrize("run", ["clouds", "bowl"])
def test_f16_intervals_hold_what_they_say_on_real_runs(model, run):
    """90 % intervals made before the losses hold 80 to 97 % of them, all horizons together."""
    losses, features = recorded(run, 800)
    every = 20 if model.name == "rssm" else 10
    forecasts = drive(model, losses, features, every=every, updates=model.default_updates, horizon=8)
    late = [(t, f) for t, f in forecasts if t >= 300]
    assert len(late) >= 24
    assert 0.8 <= covered(losses, late) <= 0.97


def test_f16_noise_is_found():
    """White noise of known size: aleatoric variance near its square, epistemic variance far below."""
    losses = 5.0 + 0.1 * np.random.default_rng(0).standard_normal(900)
    features = featured(losses)
    for name in ("linear", "mlp"):
        make, updates = MODELS[name]
        late = [f for _, f in drive(fresh(make()), losses, features, updates=updates, horizon=8)[-40:]]
        epistemic = np.mean([f.epistemic for f in late])
        aleatoric = np.mean([f.aleatoric for f in late])
        assert np.sqrt(epistemic + aleatoric) == pytest.approx(0.1, rel=0.15)
        assert epistemic < 0.5 * aleatoric


@pytest.mark.parametrize("name", sorted(MODELS))
def test_f13_members_disagree_off_the_distribution(name):
    """Epistemic variance at features and actions never seen is larger than at those of the run."""
    losses, features = recorded("clouds", 400)
    make, updates = MODELS[name]
    model = fresh(make())
    drive(model, losses[:300], features, updates=updates)
    rng = np.random.default_rng(0)
    jump = Action(Phase.PREDICT, 0, "", predictor="drift", horizon=200.0)
    seen = np.mean([model.rollout(row, REAL, 4).epistemic.mean() for row in features[280:300]])
    strange = rng.choice([-2.0, 2.0], (20, 28))
    for row in strange[:5]:  # the model's memory is strange to it too
        model.observe(row, jump, StepOutcome(float(losses[300]), 0.01))
    assert np.mean([model.rollout(row, jump, 4).epistemic.mean() for row in strange]) > 3.0 * seen


def test_f17_confidence_tells_good_forecasts_from_bad_ones():
    """On a run that is calm and wild by turns, told by a feature; errors in running deviations."""
    rng = np.random.default_rng(0)
    wild = (np.arange(1000) // 40) % 2
    losses = 4.0 + np.where(wild, 0.5, 0.05) * rng.standard_normal(1000)
    features = featured(losses)
    features[:, 0] = wild
    for name in ("linear", "mlp"):
        make, updates = MODELS[name]
        model = fresh(make())
        level, scales = LossLevel(), []
        for loss in losses:
            level.observe(loss)
            scales.append(level.scale)
        forecasts = [(t, f) for t, f in drive(model, losses, features, updates=updates, horizon=4) if t > 500]
        confidence = np.array([f.confidence for _, f in forecasts])
        error = np.array([abs(f.mean[-1] - losses[t + 4]) / scales[t] for t, f in forecasts])
        high = confidence > np.median(confidence)
        assert error[high].mean() < 0.8 * error[~high].mean(), name
        # Calibrated: what it says is how often the loss is within two running deviations.
        assert np.mean(error <= 2.0) == pytest.approx(confidence.mean(), abs=0.12), name


def test_f16_factors_undo_a_deviation_stated_wrongly():
    """Split conformal: scores of a forecaster whose deviation is too small by 4 give intervals that hold."""
    rng = np.random.default_rng(0)
    calibration = Conformal([1, 8])
    for _ in range(300):
        calibration.add(1, abs(rng.standard_t(4)) * 4.0)
    reach = 1.6448536 * calibration.factors(np.array([1]))[0]
    assert np.mean(np.abs(rng.standard_t(4, 20000)) * 4.0 <= reach) == pytest.approx(0.9, abs=0.04)
    assert calibration.probability(1, reach) == pytest.approx(0.9, abs=0.01)
    assert calibration.probability(8, reach) == 0.0


def test_f17_level_follows_a_trend_without_lag():
    level = LossLevel()
    for t in range(1200):
        level.observe(3.0 - 0.002 * t)
    assert level.level == pytest.approx(3.0 - 0.002 * 1199, abs=1e-6)
    assert level.scale == pytest.approx(16 * 0.002, rel=1e-6)


def test_f3_warm_up_gives_samples():
    """After k warm-up steps there are at least k training targets, and training begins."""
    losses, features = recorded("clouds", 40)
    model = fresh(Linear())
    drive(model, losses[:30], features, every=1000)
    pairs = sum(max(0, model.samples - j + 1) for j in model.horizons)
    assert pairs >= 30
    assert model.train(5) > 0


def test_f18_each_model_is_selectable_and_distinct():
    classes = load_registry().dynamics
    assert set(classes) >= set(MODELS)
    losses, features = recorded("clouds", 200)
    means = set()
    for name in MODELS:
        model = fresh(classes[name]())
        drive(model, losses, features, updates=1, every=50)
        means.add(tuple(model.rollout(features[-1], REAL, 4).mean))
    assert len(means) == len(MODELS)


def test_f18_l2_shrinks_and_dropout_changes_training():
    losses, features = recorded("clouds", 200)

    def weights(**options):
        model = fresh(Mlp(MlpOptions(hidden=(16,), **{"dropout": 0.0, "l2": 0.0, **options})))
        drive(model, losses, features, updates=8)
        return model.state_dict()["model"]["params"]

    plain, shrunk, dropped = weights(), weights(l2=0.3), weights(dropout=0.5)
    size = {n: float(np.sum(p["w0"] ** 2)) for n, p in {"plain": plain, "shrunk": shrunk}.items()}
    assert size["shrunk"] < 0.7 * size["plain"]
    assert (plain["w0"] != dropped["w0"]).any()


def test_f18_the_ridge_solution_is_the_ridge_solution():
    """After any number of chunks: the minimum of weighted squares plus penalty, by lstsq on stacked rows."""
    losses, features = recorded("clouds", 200)
    options = LinearOptions(l2=2.0, forgetting=0.99, longest=2)
    model = fresh(Linear(options))
    drive(model, losses, features, updates=3)
    state, ring = model.state_dict()["model"], model._replay
    for k, horizon in enumerate(model.horizons):
        starts = np.arange(ring.first, int(state["next"][k]))
        x, a = ring.context(starts, 1)
        phi = np.concatenate([x[:, 0], a[:, 0], np.ones((len(starts), 1))], 1, dtype=np.float64)
        y = ring.targets(starts, np.full((len(starts), 1), horizon))[0][:, 0]
        root = 0.99 ** (np.arange(len(starts))[::-1] / 2.0)
        penalty = math.sqrt(2.0) * np.eye(phi.shape[1])
        penalty[-1, -1] = math.sqrt(2e-6)
        rows = np.concatenate([root[:, None] * phi, penalty])
        wanted = np.linalg.lstsq(rows, np.concatenate([root * y, np.zeros(phi.shape[1])]), rcond=None)[0]
        np.testing.assert_allclose(model._weights[k, :, 0], wanted, atol=1e-6)


CHANGES = {
    "linear": {"l2": 5.0, "forgetting": 0.9, "longest": 4, "capacity": 64},
    "mlp": {
        "hidden": (8,), "activation": "tanh", "dropout": 0.3, "l2": 0.1, "members": 2, "batch": 16,
        "learning_rate": 1e-3, "longest": 4, "capacity": 64,
    },
    "rssm": {
        "deterministic": 12, "stochastic": 3, "classes": 3, "hidden": 12, "members": 2, "context": 3,
        "bptt": 2, "batch": 4, "samples": 3, "learning_rate": 1e-3, "l2": 0.1, "free_nats": 5.0,
        "pull_prior": 2.0, "pull_posterior": 2.0, "reconstruction": 1.0, "longest": 4, "capacity": 64,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_f57_every_key_changes_the_forecast(name):
    import attrs

    cls = load_registry().dynamics[name]
    assert set(CHANGES[name]) == {field.name for field in attrs.fields(cls.Config)}
    losses, features = recorded("clouds", 160)
    base = {**SMALL, "free_nats": 0.0} if name == "rssm" else {}

    def mean(**options):
        model = fresh(cls(cls.Config(**{**base, **options})))
        drive(model, losses, features, updates=1, every=75)
        return tuple(model.rollout(features[-1], REAL, 6).mean)

    means = {key: mean(**{key: value}) for key, value in CHANGES[name].items()}
    assert mean() not in means.values(), [k for k, v in means.items() if v == mean()]


def test_f53_a_model_in_mid_run_goes_on_bit_for_bit(model):
    losses, features = recorded("clouds", 200)
    drive(model, losses[:120], features, updates=1)
    make, _ = MODELS[model.name]
    heir = fresh(make(), seed=5)
    heir.load_state_dict(model.state_dict())
    ends = [drive(m, losses, features, updates=1, horizon=4, begin=120)[-1][1] for m in (model, heir)]
    np.testing.assert_array_equal(ends[0].mean, ends[1].mean)
    np.testing.assert_array_equal(ends[0].aleatoric, ends[1].aleatoric)

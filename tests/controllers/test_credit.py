"""The credit controller on runs with known best steps."""

from __future__ import annotations

import math

import attrs
import numpy as np
import pytest
from engine_lab import Recorder, bits, bowl, clouds, configure, drive

from hybridcore.controllers.credit import Credit, CreditConfig
from hybridcore.engine import Engine
from hybridcore.events import EventBus
from hybridcore.predictors.controls import Frozen, NoPrediction, RandomJump
from hybridcore.predictors.last_update import LastUpdate
from hybridcore.protocols import OptimizerSpec, Outcome

UNCAPPED = {"max_relative_repeat": 0.5}
"""For toys whose updates are long beside their weights."""


def run(adapter, batches, steps, *, predictor=None, probes=(None,), config=None, **tables):
    recorder, bus = Recorder(), EventBus()
    bus.listen(recorder)
    predictor = predictor or LastUpdate()
    engine = Engine(
        adapter,
        configure(**tables),
        Credit(config),
        {predictor.name: predictor},
        probes=probes,
        events=bus,
    )
    drive(engine, steps, batches)
    return engine, recorder


def watched(adapter):
    """Norms of all changes that are applied from now on, over that of the weights."""
    moved, apply = [], adapter.apply_delta

    def applied(*arguments, **named):
        before = np.concatenate(adapter.read_params())
        apply(*arguments, **named)
        after = np.concatenate(adapter.read_params())
        moved.append(float(np.linalg.norm(after - before) / np.linalg.norm(before)))

    adapter.apply_delta = applied
    return moved


def loss(adapter):
    return float(adapter.model.losses(adapter.params, None)[0])


def test_f84_small_steps_are_made_longer_and_the_user_s_are_the_floor():
    """On a bowl with curvature 1 and rate 1e-4, fifty steps get where plain SGD needs thousands."""
    plain = bowl(optimizer=OptimizerSpec("sgd", 1e-4))
    start = loss(plain)
    for _ in range(2000):
        plain.train_step(None)
    fast = bowl(optimizer=OptimizerSpec("sgd", 1e-4))
    _, recorder = run(fast, None, 150)
    assert loss(fast) < loss(plain) < start
    assert all(j["horizon"] >= 0.0 for j in recorder.named("jump"))
    assert fast.learning_rate == 1e-4


def test_a_good_rate_is_left_nearly_alone():
    """At a rate where the path turns at once, few jumps happen and none of them harms."""
    plain, ours = (bowl(optimizer=OptimizerSpec("sgd", 0.5), noise=0.3) for _ in range(2))
    for _ in range(300):
        plain.train_step(None)
    engine, _ = run(ours, None, 300)
    assert engine.counts.predicted_steps < 300
    assert loss(ours) < 2.0 * loss(plain) + 0.1


@pytest.mark.parametrize("control", [Frozen, RandomJump])
def test_f74_beats_its_controls_at_equal_cost(control):
    results = []
    for predictor in (LastUpdate(), control()):
        model, batches, held_out = clouds(optimizer=OptimizerSpec("sgd", 1e-3))
        run(model, batches, 200, predictor=predictor, probes=held_out)
        results.append(np.mean([model.probe_loss(batch) for batch in held_out]))
    assert results[0] < 0.8 * results[1]


def test_a_cliff_is_rolled_back_and_the_horizon_divided():
    """A spike of the loss inside a trial restores an earlier state; the next trial goes half as far."""
    adapter = bowl(optimizer=OptimizerSpec("sgd", 1e-3))
    engine, recorder = run(adapter, None, 60)
    h = engine.controller._h
    assert h > 1.5
    adapter.params["w"] += 100.0
    drive(engine, 3)
    assert len(recorder.named("rollback")) == 1
    assert loss(adapter) < 1e3
    assert engine.controller._divisor == 2.0
    assert engine.controller._h <= h / 2.0 + 1e-12


def test_a_failed_trial_in_a_row_goes_back_to_the_state_before_the_last_kept_one():
    adapter = bowl(optimizer=OptimizerSpec("sgd", 1e-3))
    engine, recorder = run(adapter, None, 60, config=CreditConfig(window=10))
    trial = engine._trials.trial
    assert trial.previous is not None
    state = bits(trial.previous.snapshot)
    adapter.params["w"] += 100.0
    while not recorder.named("rollback"):
        drive(engine, 1)
    assert bits(adapter.snapshot()) == state
    assert recorder.named("rollback")[0]["to_step"] == trial.previous.step if trial.previous else True


def outcome(kept, gain=math.nan, jumps=3):
    return Outcome(kept, "last-update", 1.0, jumps, 20, gain, 0.0, 0.0, 0.0, math.nan, "")


def test_caution_is_taken_back_after_a_row_of_kept_trials():
    credit = Credit(CreditConfig(caution=3.0, recovery=2))
    credit.feedback(outcome(False))
    assert credit._divisor == 3.0
    credit.feedback(outcome(True))
    assert credit._divisor == 3.0
    credit.feedback(outcome(True))
    assert credit._divisor == 1.0


def test_a_refusal_is_no_failure_of_the_horizon():
    credit = Credit()
    credit.feedback(outcome(False, jumps=0))
    assert credit._divisor == 1.0


def test_probes_become_rarer():
    """The gap between probed trials doubles up to `probe_every`."""
    credit = Credit(CreditConfig(probe_every=4))
    probed = []
    for index in range(20):
        due = credit._trials + 1 >= credit._next_probe
        if due:
            probed.append(index)
        credit.feedback(outcome(True, gain=0.1 if due else math.nan))
    assert probed == [0, 2, 6, 10, 14, 18]


def test_jumps_rest_after_verdicts_that_prove_nothing_and_longer_each_time():
    credit, rests = Credit(CreditConfig(patience=2, rest=50)), []
    credit._step = 100
    for gain in (0.1, 0.0, 0.1, -0.1, 0.0, 0.0, 0.0, 0.1, 0.0):
        before = credit._resumes
        credit.feedback(attrs.evolve(outcome(True, gain=gain), overfitted=True))
        rests.append(credit._resumes - 100 if credit._resumes != before else None)
    assert rests == [None, None, None, None, 50, 100, 200, None, None]


def test_a_trial_behind_the_curve_shortens_the_horizon_and_is_no_reason_to_rest():
    credit = Credit(CreditConfig(patience=1))
    credit.feedback(attrs.evolve(outcome(True, gain=-1.0), behind_steps=3.0))
    assert credit._resumes == 0 and credit._divisor == 2.0


def test_jumps_whose_gain_nobody_can_see_become_few():
    taken = {}
    for patience in (0, 2):
        adapter, batches, held_out = clouds(optimizer=OptimizerSpec("adam", 1e-3))
        config = CreditConfig(patience=patience, trust=1.0)
        _, recorder = run(adapter, batches, 600, probes=held_out, config=config, groups=UNCAPPED)
        taken[patience] = len(recorder.named("jump"))
    assert 0 < taken[2] < 0.3 * taken[0]


def test_trust_doubles_with_each_proven_gain_and_is_halved_by_what_fails():
    credit = Credit(CreditConfig(trust=0.01))
    seen = []
    for kept, gain, behind in [
        (True, 0.1, 0.0),
        (True, math.nan, 0.0),
        (True, 0.0, 0.0),
        (True, 0.1, 0.0),
        (True, -0.5, 4.0),
        (False, -0.5, 0.0),
    ]:
        credit.feedback(attrs.evolve(outcome(kept, gain=gain), behind_steps=behind))
        seen.append(credit._trust)
    assert seen == pytest.approx([0.02, 0.02, 0.02, 0.04, 0.02, 0.01])
    for _ in range(2000):
        credit.feedback(outcome(False, gain=-0.5))
    assert credit._trust == pytest.approx(1e-5), "a change of length zero is no action"


def test_f86_the_first_trial_moves_no_further_than_trust_allows():
    adapter, batches, held_out = clouds(optimizer=OptimizerSpec("sgd", 1e-3))
    _, recorder = run(
        adapter, batches, 300, probes=held_out, config=CreditConfig(trust=0.002), groups=UNCAPPED
    )
    jumps, verdicts = recorder.named("jump"), recorder.named("verdict")
    first = [j["relative"] for j in jumps if j["step"] < verdicts[0]["step"]]
    assert first and max(first) == pytest.approx(0.002)
    assert max(j["relative"] for j in jumps) > 0.0035  # after a verdict that proved a gain


def test_f86_no_repetition_moves_the_weights_further_than_its_cap():
    """Neither by what is told of it nor in truth, though updates grow and shrink within a trial."""
    moved, truly = {}, {}
    for cap in (0.003, 0.5):
        adapter, batches, held_out = clouds(optimizer=OptimizerSpec("sgd", 1e-3))
        truly[cap] = watched(adapter)
        _, recorder = run(
            adapter,
            batches,
            200,
            probes=held_out,
            groups={"max_relative_repeat": cap, "max_relative_jump": 0.5},
        )
        moved[cap] = [jump["relative"] for jump in recorder.named("jump")]
    assert moved[0.003] and max(moved[0.003]) == pytest.approx(0.003)
    assert max(moved[0.5]) > 0.006
    assert 0.0029 < max(truly[0.003]) < 1.02 * 0.003  # the weights' own norm is that of the trial's opening
    assert min(truly[0.003]) > 0.0


def test_windows_are_averaged_only_for_trials_that_a_probe_judges():
    """A trial by its guard alone saves a pass over the weights at each step, but for one before a probe."""
    adapter, sums = bowl(optimizer=OptimizerSpec("sgd", 1e-5)), []
    engine, _ = run(adapter, None, 150)
    add = adapter.add_params

    def added(into, *factors, **named):
        if not factors and not named:
            sums.append(trial)  # a window's sum; the last update is made with factors
        return add(into, *factors, **named)

    adapter.add_params = added
    trials = {}
    for _ in range(400):
        trial = engine._trials.trial
        trials[id(trial)] = trial
        drive(engine, 1)
    judged, guarded = ([t for t in trials.values() if t and t.by == by] for by in ("probe", "guard"))
    times = {name: sum(t is trial for t in sums) for name, trial in trials.items()}
    assert len(guarded) > 2 * len(judged) > 0
    assert all(times[id(trial)] >= 10 for trial in judged[:-1])
    assert 0 < sum(times[id(trial)] > 0 for trial in guarded) <= len(judged) + 1


def test_short_trials_are_averaged_early_enough_for_the_next_verdict():
    """Two windows must have closed before a verdict, which takes several trials that are shorter."""
    adapter = bowl(optimizer=OptimizerSpec("sgd", 1e-5))
    _, recorder = run(adapter, None, 800, config=CreditConfig(window=6), history={"window": 10})
    waits = [p for p in recorder.named("phase-start") if "how fast the loss falls" in p["reason"]]
    gains = [v["gain"] for v in recorder.named("verdict") if math.isfinite(v["gain"])]
    assert len(gains) > 4
    assert len(waits) <= len(gains), "32 waits where the trial before a verdict alone is averaged"


def test_a_verdict_waits_until_the_slope_without_jumps_is_known():
    """After a rest the first trial opens when two window means have shown how fast the loss falls."""
    adapter, batches, held_out = clouds(optimizer=OptimizerSpec("adam", 1e-3))
    _, recorder = run(adapter, batches, 600, probes=held_out, config=CreditConfig(rest=30))
    waits = [p for p in recorder.named("phase-start") if "how fast the loss falls" in p["reason"]]
    assert waits and len(recorder.named("verdict")) > 3


def test_no_jumps_while_the_learning_rate_decays():
    """Below half of the peak rate the user is annealing: averaging's and decay's work, not ours."""
    spec = OptimizerSpec("sgd", 1e-3, schedule="linear", total_steps=200)
    adapter = bowl(optimizer=spec)
    _, recorder = run(adapter, None, 200)
    steps = [j["step"] for j in recorder.named("jump")]
    assert steps and max(steps) <= 102


@pytest.mark.parametrize(("least", "earliest", "latest"), [(1.0, 1, 30), (4.5, 31, 78), (1e9, 79, 110)])
def test_f86_after_a_warm_up_jumps_wait_for_as_long_again_unless_the_path_supports_far_more(
    least, earliest, latest
):
    """A path walked at the low rates of a warm-up of 40 steps says little about those it leads to."""
    spec = OptimizerSpec("sgd", 1e-3, warmup_steps=40, total_steps=400)
    _, recorder = run(bowl(optimizer=spec), None, 150, config=CreditConfig(least_rising=least))
    assert earliest <= min(j["step"] for j in recorder.named("jump")) <= latest
    if least > 100.0:
        reasons = [p["reason"] for p in recorder.named("phase-start") if p["step"] < 70]
        assert any("too few after a warm-up" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("field", "one", "other"),
    [
        ("window", 5, 40),
        ("growth", 1.05, 1.5),
        ("least_gain", 0.0, 3.0),
        ("probe_every", 1, 64),
    ],
)
def test_f57_every_option_changes_a_run(field, one, other):
    traces = []
    for value in (one, other):
        adapter = bowl(optimizer=OptimizerSpec("sgd", 1e-3))
        config = CreditConfig(**{field: value})
        _, recorder = run(adapter, None, 120, config=config, budget={"count_seconds": False})
        traces.append(recorder.trace())
    assert traces[0] != traces[1]


def test_f72_same_seed_same_trace():
    traces = []
    for _ in range(2):
        adapter, batches, held_out = clouds(optimizer=OptimizerSpec("adam", 1e-4))
        _, recorder = run(adapter, batches, 150, probes=held_out, budget={"count_seconds": False})
        traces.append(recorder.trace())
    assert traces[0] == traces[1]
    assert any(event == "jump" for event, _ in traces[0])


def test_a_predictor_that_is_never_ready_is_asked_ever_more_rarely():
    """Refusing every jump costs next to nothing: after a while the history sleeps nearly all the time."""
    adapter = bowl(optimizer=OptimizerSpec("sgd", 1e-4))
    _, recorder = run(adapter, None, 2000, predictor=NoPrediction())
    awake = sum(p["length"] for p in recorder.named("phase-start") if "not ready" in p["reason"])
    assert not recorder.named("jump")
    assert len(recorder.named("phase-start")) < 60
    assert awake > 1000


@pytest.mark.parametrize(
    ("memory", "reach", "factor"),
    [
        (1.0, 30.0, 1.0),
        (10.0, 1.5, 1.0),
        (10.0, 1.2, 1.0),
        (10.0, 2.25, 1.25),
        (10.0, 3.0, 1.5),
        (10.0, 30.0, 1.5),
    ],
)
def test_with_momentum_a_long_reach_is_taken_half_as_far_again(memory, reach, factor):
    from types import SimpleNamespace

    state = SimpleNamespace(momentum_memory=memory)
    assert Credit()._boosted(reach, state) == pytest.approx(factor * reach)
    assert Credit(CreditConfig(boost=1.0))._boosted(reach, state) == reach


def following(reach=100.0, **settings):
    """A controller, and what it makes of cosines shown one after another."""
    from types import SimpleNamespace

    controller, seen = Credit(CreditConfig(**settings)), []

    def show(*cosines):
        for cosine in cosines:
            seen.append(cosine)
            state = SimpleNamespace(
                aligned_steps=len(seen), alignments=tuple(seen[-20:]), reach_growth=math.nan
            )
            controller._follow(state, reach)
        return controller._aligned

    return controller, show


AGREE = (0.30, 0.31, 0.29, 0.30, 0.31, 0.29)
OPPOSE = tuple(-c for c in AGREE)


def test_f85_the_horizon_grows_while_gradients_point_along_the_steps_before_them():
    _, show = following(align_growth=1.1)
    assert show(*AGREE[:4]) == 1.0  # too few
    assert show(*AGREE[4:]) == pytest.approx(1.1**2)
    assert show(0.3) == pytest.approx(1.1**3)


def test_f85_it_shrinks_where_they_point_back_and_counts_anew():
    controller, show = following(align_growth=1.1)
    show(*AGREE, *AGREE)
    high = controller._aligned
    controller._since = 12
    assert show(*OPPOSE[:5]) == pytest.approx(high / 1.1**2)
    assert show(*OPPOSE[:4]) == pytest.approx(high / 1.1**2)
    assert show(-0.3) == pytest.approx(high / 1.1**4)


def test_f85_noise_moves_nothing_and_the_reach_is_a_bound():
    _, show = following()
    assert show(*(0.3, -0.3) * 20) == 1.0
    for reach, bound in ((1.2, 2.4), (3.9, 6.0), (7.0, 6.0), (0.1, 1.0)):
        _, show = following(reach=reach, align_reach=2.0, align_most=6.0)
        assert show(*AGREE * 10) == pytest.approx(bound)


@pytest.mark.parametrize(
    ("reach", "growth", "lifted"),
    [(1.4, 0.2, False), (1.4, 0.3, True), (1.6, 0.2, True), (1.6, math.nan, True), (1.4, math.nan, False)],
)
def test_f86_alignment_lifts_only_a_reach_that_grows_or_is_long_enough(reach, growth, lifted):
    """Gradients agree for a while at the best rate too, where three times the step ruins a transformer."""
    from types import SimpleNamespace

    controller = Credit(CreditConfig(align_floor=1.5, align_trend=0.25))
    for count in range(1, 40):
        state = SimpleNamespace(
            aligned_steps=count, alignments=(AGREE * 7)[: min(count, 20)], reach_growth=growth
        )
        found = controller._follow(state, reach)
    assert controller._aligned == pytest.approx(3.0 * reach)
    assert found == (controller._aligned if lifted else 1.0)


def test_f85_without_a_clear_sign_the_horizon_leaks_away():
    controller, show = following(align_leak=1.02)
    show(*AGREE * 4)
    high = controller._aligned
    controller._since = 24
    show(*(0.3, -0.3) * 2)
    assert controller._aligned == high  # too few
    show(0.3)
    assert controller._aligned == pytest.approx(high / 1.02)


@pytest.mark.parametrize(
    ("falling", "overfitted", "normalised", "rests"),
    [(False, True, False, True), (False, False, True, True), (False, False, False, False)]
    + [(True, o, n, False) for o in (False, True) for n in (False, True)],
)
def test_f84_jumps_rest_where_nothing_is_learned_any_more(falling, overfitted, normalised, rests):
    controller = Credit(CreditConfig(patience=2))
    controller._normalised = normalised
    kept = Outcome(
        True,
        "last-update",
        3.0,
        5,
        20,
        0.0,
        0.1,
        0.0,
        0.0,
        math.nan,
        "",
        falling=falling,
        overfitted=overfitted,
    )
    for _ in range(3):
        controller.feedback(kept)
    assert (controller._resumes > 0) == rests


def test_f84_a_failed_trial_shortens_what_alignment_supports():
    controller, show = following()
    show(*AGREE * 4)
    high = controller._aligned
    controller.feedback(
        Outcome(False, "last-update", 3.0, 5, 5, math.nan, math.nan, 0.0, 0.0, math.nan, "guard")
    )
    assert controller._aligned == pytest.approx(high / 2.0)
    assert show(*AGREE[:4]) == pytest.approx(high / 2.0)


def test_f85_alignment_leads_where_the_optimizer_normalises_and_only_there():
    """The same bowl: Adam's horizon follows the cosines, SGD's the reach."""
    seen = {}
    for optimizer in ("adam", "sgd"):
        adapter = bowl(optimizer=OptimizerSpec(optimizer, 1e-4))
        engine, recorder = run(adapter, None, 80)
        seen[optimizer] = (engine.reach.alignment.count, max(j["horizon"] for j in recorder.named("jump")))
    assert seen["adam"][0] > 20 and seen["sgd"][0] == 0
    assert seen["adam"][1] > 3.0

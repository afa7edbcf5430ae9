"""F42: a plugin that raises, hangs or gives what it must not is named and dropped, and training goes on."""

from __future__ import annotations

import gc
import logging
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from engine_lab import Proposes, Scripted, bits, bowl, build, clouds, configure, correct, drive, full, predict

from hybridcore.config import PluginsConfig
from hybridcore.containment import Containment
from hybridcore.controllers.credit import Credit
from hybridcore.controllers.fixed import Fixed, FixedConfig
from hybridcore.correction.loss_level import LossLevel
from hybridcore.dynamics.linear import Linear
from hybridcore.errors import MemoryBudgetError, PluginFailedError
from hybridcore.events import Event, EventBus
from hybridcore.foresight import Foresight
from hybridcore.history import History
from hybridcore.monitors.plateau import Plateau
from hybridcore.predictors.drift import Drift
from hybridcore.predictors.last_update import LastUpdate
from hybridcore.protocols import Action, Adapter, Correction, Phase, Prediction, Rollout

pytestmark = pytest.mark.drops_plugins

QUICK = {"on_error": "drop", "timeout_seconds": 0.2}
STEPS = 150


def fails(cls, method, doing):
    """An instance of a class whose method does something else from its tenth call on."""
    original, calls = getattr(cls, method), [0]

    def instead(self, *args, **more):
        calls[0] += 1
        return original(self, *args, **more) if calls[0] < 10 else doing(self, *args)

    return type(cls.__name__, (cls,), {method: instead})()


def raises(self, *args):
    raise ZeroDivisionError("of its own making")


def hangs(self, *args):
    while True:
        pass


def plain(steps=STEPS):
    """Weights after so many steps of plain training on the same batches."""
    adapter, batches, _ = clouds()
    for _ in range(steps):
        adapter.train_step(next(batches))
    return adapter


def run(steps=STEPS, plugins=None, controller=None, predictor=None, **more):
    adapter, batches, probes = clouds()
    config = configure(plugins=plugins or {}, dynamics={"stride": 1}, correction=more.pop("correction", {}))
    controller = controller or Fixed(FixedConfig(full_steps=4, correct_steps=4, horizon=4.0))
    engine, recorder = build(adapter, config, controller, predictor or Drift(), probes, **more)
    engine.probes_of_test = probes
    drive(engine, steps, batches)
    return engine, recorder


def loss(engine_or_adapter, probes=None):
    adapter = getattr(engine_or_adapter, "adapter", engine_or_adapter)
    return float(np.mean([adapter.probe_loss(b).mean() for b in clouds()[2]]))


def only(recorder):
    (failure,) = recorder.named("plugin-failed")
    return failure["kind"], failure["name"], failure["method"]


CALLS = [
    ("predictor", Drift, "observe"),
    ("predictor", Drift, "ready"),
    ("predictor", Drift, "predict"),
    ("controller", Fixed, "choose"),
    ("controller", Fixed, "feedback"),
    ("monitor", Plateau, "observe"),
    ("monitor", Plateau, "check"),
    ("dynamics", Linear, "observe"),
    ("dynamics", Linear, "rollout"),
    ("corrector", LossLevel, "correct"),
    ("corrector", LossLevel, "observe"),
]


def with_plugin(kind, plugin, **more):
    if kind == "predictor":
        return run(predictor=plugin, **more)
    if kind == "controller":
        return run(controller=plugin, **more)
    if kind == "monitor":
        return run(monitors=[plugin], **more)
    if kind == "dynamics":
        # Only where the path is straight enough is the forecast asked for.
        return run(dynamics=plugin, **more)
    return run(corrector=plugin, **more)


class TestRaising:
    @pytest.mark.parametrize(("kind", "cls", "method"), CALLS, ids=lambda v: getattr(v, "__name__", v))
    def test_f42_it_is_named_dropped_and_training_goes_on(self, kind, cls, method, caplog, monkeypatch):
        if kind == "dynamics":
            monkeypatch.setattr(History, "straightness", lambda self: 0.9)
        engine, recorder = with_plugin(kind, fails(cls, method, raises))
        assert engine.counts.real_steps == STEPS
        assert only(recorder) == (kind, cls.name, method)
        warnings = [r.getMessage() for r in caplog.records if "dropped" in r.getMessage()]
        assert len(warnings) == 1
        assert all(word in warnings[0] for word in (kind, cls.name, method, "ZeroDivisionError: of its own"))
        assert engine.summary()["plugins_dropped"] == [f"{kind} {cls.name}"]
        assert loss(engine) < 1.05 * loss(plain())

    @pytest.mark.parametrize("kind", ["predictor", "controller"])
    def test_f42_without_its_only_predictor_or_controller_the_rest_is_plain_training(self, kind):
        cls, method = (Drift, "ready") if kind == "predictor" else (Fixed, "choose")
        plugin = type(cls.__name__, (cls,), {method: raises})()
        engine, _ = with_plugin(kind, plugin)
        assert engine.counts.jumps == 0
        assert bits(engine.adapter.read_params()) == bits(plain().read_params())

    def test_f42_only_the_faulty_one_of_several_is_dropped(self):
        good, bad = LastUpdate(), fails(Drift, "observe", raises)
        engine, recorder = run(predictor={"last-update": good, "drift": bad})
        assert engine.predictors["last-update"] is good
        assert engine.predictors["drift"].name == "none"
        assert [f["name"] for f in recorder.named("plugin-failed")] == ["drift"]
        assert len(recorder.named("jump")) > 5

    def test_f42_an_open_trial_is_judged_as_usual(self):
        """The controller fails inside the trial of a ruinous jump: the verdict undoes it all the same."""
        far = Proposes(lambda history, horizon: tuple(0 * b + 3.0 for b in history.current()))
        bad = type("Bad", (Scripted,), {"feedback": raises})(full(4), predict(settle=6), full(1))
        config = configure(probe={"tentative": False}, groups={"max_relative_jump": 1e9})
        adapter = bowl()
        engine, recorder = build(adapter, config, bad, far, probes=[None])
        drive(engine, 60)
        assert only(recorder)[0] == "controller"
        assert [v["kept"] for v in recorder.named("verdict")] == [False]
        reference = bowl()
        for _ in range(60 - recorder.named("verdict")[0]["step"] + recorder.named("rollback")[0]["to_step"]):
            reference.train_step(None)
        assert bits(adapter.read_params()) == bits(reference.read_params())

    @pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, MemoryBudgetError("full")])
    def test_f42_what_is_no_fault_of_a_plugin_passes(self, stop):
        def stops(self, *args):
            raise stop

        with pytest.raises(stop if isinstance(stop, type) else type(stop)):
            run(predictor=fails(LastUpdate, "observe", stops))

    def test_f42_a_predictor_that_says_it_has_nothing_is_not_dropped(self):
        refuses = Proposes(lambda history, horizon: history.displacement(-9))
        _, recorder = run(predictor=refuses)
        assert len(recorder.named("jump-refused")) > 4
        assert not recorder.named("plugin-failed")


class TestDemanded:
    @pytest.mark.parametrize(("kind", "cls", "method"), CALLS[:7], ids=lambda v: getattr(v, "__name__", v))
    def test_f42_with_raise_the_error_names_it_and_the_open_trial_is_undone(self, kind, cls, method):
        with pytest.raises(PluginFailedError, match=f"the {kind} '{cls.name}' failed in {method}") as caught:
            with_plugin(kind, fails(cls, method, raises), plugins={"on_error": "raise"})
        assert isinstance(caught.value.__cause__, ZeroDivisionError)

    def test_f42_the_model_is_what_it_was_before_the_jump(self):
        adapter = bowl()
        script = Scripted(full(4), predict(horizon=3.0, settle=9), correct(3), *[correct(3)] * 9)
        config = configure(plugins={"on_error": "raise"}, probe={"tentative": False})
        bad = fails(LastUpdate, "observe", raises)  # the tenth step, the second after the jump at step 8
        engine, recorder = build(adapter, config, script, bad, probes=[None])
        with pytest.raises(PluginFailedError):
            drive(engine, 30)
        assert [j["step"] for j in recorder.named("jump")] == [8]
        reference = bowl()
        for _ in range(8):
            reference.train_step(None)
        assert bits(adapter.read_params()) == bits(reference.read_params())


class TestHanging:
    @pytest.mark.parametrize(
        ("kind", "cls", "method"),
        [CALLS[0], CALLS[2], CALLS[3], CALLS[6]],
        ids=lambda v: getattr(v, "__name__", v),
    )
    def test_f42_a_hang_is_interrupted_and_contained(self, kind, cls, method):
        engine, recorder = with_plugin(kind, fails(cls, method, hangs), plugins=QUICK)
        assert only(recorder) == (kind, cls.name, method)
        assert "timeout_seconds = 0.2" in recorder.named("plugin-failed")[0]["reason"]
        assert engine.counts.real_steps == STEPS
        assert loss(engine) < 1.05 * loss(plain())

    def test_f42_the_hang_of_a_dynamics_model_is_not_blamed_on_the_controller_that_asked_it(self):
        class Asks(Fixed):
            def choose(self, state):
                if state.forecast is not None:
                    state.forecast(Action(Phase.FULL, 1, ""), 3)
                return super().choose(state)

        engine, recorder = run(controller=Asks(), dynamics=fails(Linear, "rollout", hangs), plugins=QUICK)
        assert only(recorder) == ("dynamics", "linear", "rollout")
        assert engine.controller.name == "fixed" and engine.foresight is None

    def test_f42_a_blocked_call_is_warned_of_and_contained_when_it_returns(self, caplog):
        containment = Containment(PluginsConfig(timeout_seconds=0.1))
        given = containment.call("monitor", "sleeper", "check", lambda: time.sleep(0.6), otherwise="nothing")
        containment.watchdog.stop()
        assert given == "nothing"
        assert "check of monitor 'sleeper'" in caplog.text and "cannot be interrupted" in caplog.text

    def test_f42_the_engines_own_code_is_not_interrupted(self):
        containment, done = Containment(PluginsConfig(timeout_seconds=0.1)), []

        def measures():
            for _ in range(3):
                with containment.own_code():
                    end = time.perf_counter() + 0.2
                    while time.perf_counter() < end:
                        pass
                    done.append(True)
            return "measured"

        assert containment.call("predictor", "m", "predict", measures, otherwise="lost") == "measured"
        assert len(done) == 3 and not containment.failures

    def test_f42_the_interruption_never_reaches_the_caller(self):
        """Calls that end just when they are interrupted: each is either whole or contained."""
        containment = Containment(PluginsConfig(timeout_seconds=1e9))
        dog = containment.watchdog
        dog.seconds, stop = -1.0, threading.Event()  # every call is late at once

        def look():
            while not stop.is_set():
                dog.look()

        def adds():
            total = 0
            for number in range(40):
                total += number
            return total

        hunter = threading.Thread(target=look)
        logging.getLogger("hybridcore").disabled = True
        hunter.start()
        whole = lost = 0
        try:
            end = time.perf_counter() + 3.0
            while time.perf_counter() < end:
                given = containment.call("predictor", "p", "observe", adds, otherwise=-1)
                whole, lost = whole + (given == 780), lost + (given == -1)
                containment.each("observe", [("predictor", "p", lambda: None)] * 3)
        finally:
            stop.set()
            hunter.join()
            logging.getLogger("hybridcore").disabled = False
        assert whole > 100 and lost > 3 and not dog.calls

    def test_f42_the_thread_ends_with_the_run_or_with_the_engine(self):
        def alive():
            gc.collect()
            time.sleep(0.1)  # a thread that was told to end needs a moment
            return sum(t.name == "hybridcore-watchdog" for t in threading.enumerate())

        before = alive()
        engine, _ = build(bowl(), configure())
        assert alive() == before, "constructing an engine starts no thread"
        drive(engine, 20)
        assert alive() == before + 1
        engine.finish()
        assert alive() == before
        drive(engine, 20)
        del engine, _
        assert alive() == before

    def test_f42_without_a_limit_there_is_no_thread(self):
        before = threading.active_count()
        engine, _ = build(bowl(), configure(plugins={"timeout_seconds": 0.0}))
        drive(engine, 20)
        assert threading.active_count() == before


def proposes(**change):
    """A predictor that repeats the last update, with something wrong in it."""

    class Wrong(LastUpdate):
        def predict(self, history, horizon, xp):
            whole = super().predict(history, horizon, xp)
            fields = {f: getattr(whole, f) for f in ("deltas", "horizon", "confidence", "scale")}
            return Prediction(
                **fields | {k: v(whole.deltas) if callable(v) else v for k, v in change.items()}
            )

    return Wrong()


class Alien:
    """An array of some other library."""

    def __init__(self, like):
        self.shape, self.dtype, self.device = like.shape, like.dtype, "elsewhere"


WRONG = {
    "nan": {"deltas": lambda d: tuple(b * np.nan for b in d)},
    "shape": {"deltas": lambda d: tuple(b[:-1] for b in d)},
    "buckets": {"deltas": lambda d: d + d},
    "dtype": {"deltas": lambda d: tuple(b.astype(np.float16) for b in d)},
    "list": {"deltas": lambda d: [b.tolist() for b in d]},
    "library": {"deltas": lambda d: tuple(map(Alien, d))},
    "horizon": {"horizon": float("inf")},
    "text": {"horizon": "far"},
    "confidence": {"confidence": 1.5},
    "scale": {"scale": float("nan")},
}


class TestWrongProposals:
    @pytest.mark.parametrize("case", WRONG)
    @pytest.mark.parametrize("continuous", [False, True])
    def test_f42_wrong_proposals_are_refused_with_a_reason_and_the_third_in_a_row_drops(
        self, case, continuous
    ):
        controller = Credit() if continuous else None
        engine, recorder = run(controller=controller, predictor=proposes(**WRONG[case]))
        assert only(recorder) == ("predictor", "last-update", "predict")
        refused = [r for r in recorder.named("jump-refused") if "last-update" in r["reason"]]
        assert len(refused) >= 3
        assert engine.counts.jumps == 0
        assert bits(engine.adapter.read_params()) == bits(plain().read_params())

    def test_f42_something_else_than_a_prediction(self):
        engine, recorder = run(predictor=type("Odd", (LastUpdate,), {"predict": lambda *args: (1, 2)})())
        assert "something else than a prediction" in recorder.named("jump-refused")[0]["reason"]
        assert engine.counts.jumps == 0

    def test_f42_a_good_proposal_in_between_forgives(self):
        calls = [0]

        class Sometimes(LastUpdate):
            def predict(self, history, horizon, xp):
                calls[0] += 1
                whole = super().predict(history, horizon, xp)
                return whole if calls[0] % 3 == 0 else SimpleNamespace()

        engine, recorder = run(predictor=Sometimes())
        assert calls[0] > 9 and engine.counts.jumps >= 3
        assert not recorder.named("plugin-failed")

    @pytest.mark.parametrize("measured", [True, False])
    def test_f42_not_a_number_inside_a_row_of_continuous_changes_does_no_harm(self, measured, monkeypatch):
        """It is refused by its norm; where that is not measured, the guard and the rollback see to it."""
        if not measured:
            monkeypatch.setattr(History, "norm_of", lambda *arguments: None)
        calls = [0]

        class Turns(LastUpdate):
            def predict(self, history, horizon, xp):
                calls[0] += 1
                whole = super().predict(history, horizon, xp)
                if calls[0] != 12:
                    return whole
                return Prediction(tuple(b * np.nan for b in whole.deltas), horizon, 1.0)

        engine, recorder = run(controller=Credit(), predictor=Turns())
        assert calls[0] > 12 and engine.counts.rollbacks == (0 if measured else 1)
        refused = [r for r in recorder.named("jump-refused") if "not finite" in r["reason"]]
        assert len(refused) == (1 if measured else 0)
        assert all(np.isfinite(b).all() for b in engine.adapter.read_params())
        assert loss(engine) < 1.05 * loss(plain())


def gives(cls, method, value):
    return type(cls.__name__, (cls,), {method: lambda self, *args: value})()


FORECAST = Rollout(np.zeros(2), np.zeros(2), np.zeros(2), np.zeros(2), 0.5)


class TestWrongAnswers:
    @pytest.mark.parametrize(
        "action",
        [
            None,
            "full",
            Action("full", 3, ""),
            Action(Phase.FULL, None, ""),
            Action(Phase.PREDICT, 0, "", predictor="oracle", horizon=3.0, settle=4),
            Action(Phase.PREDICT, 0, "", horizon=float("nan"), settle=4),
            Action(Phase.PREDICT, 0, "", horizon=3.0, settle=4, judge="nobody"),
            Action(Phase.WARMUP, 3, ""),
        ],
        ids=str,
    )
    def test_f42_a_controller_with_no_sound_action_is_replaced(self, action):
        engine, recorder = run(controller=gives(Fixed, "choose", action))
        assert only(recorder) == ("controller", "fixed", "choose")
        assert bits(engine.adapter.read_params()) == bits(plain().read_params())

    @pytest.mark.parametrize("signal", ["bad", 3, SimpleNamespace(level=3, name="x", value=1.0, limit=0.0)])
    def test_f42_a_monitor_with_no_signal_is_dropped(self, signal):
        engine, recorder = run(
            monitors=[gives(Plateau, "check", signal), fails(Plateau, "check", lambda *a: None)]
        )
        assert recorder.named("plugin-failed")[0]["kind"] == "monitor"
        assert engine.counts.real_steps == STEPS

    @pytest.mark.parametrize("case", ["short", "nan", "confidence", "other"])
    def test_f42_a_dynamics_model_with_no_forecast_is_dropped(self, case, monkeypatch):
        monkeypatch.setattr(History, "straightness", lambda self: 0.9)
        nothing = np.zeros(4)
        value = {
            "short": FORECAST,
            "nan": Rollout(nothing * np.nan, nothing, nothing, nothing, 0.5),
            "confidence": Rollout(nothing, nothing, nothing, nothing, 2.0),
            "other": [0.1, 0.2],
        }[case]
        engine, recorder = run(dynamics=gives(Linear, "rollout", value))
        assert only(recorder) == ("dynamics", "linear", "rollout")
        assert engine.foresight is None and engine.counts.jumps > 0

    @pytest.mark.parametrize(
        "correction",
        [
            None,
            Correction(scale=float("nan")),
            Correction(gains={"matrix": 2.0}),
            Correction(residual=(np.zeros(3, np.float32),)),
            Correction(residual=(np.full(27, np.nan, np.float32),)),
        ],
        ids=["none", "scale", "gains", "shape", "nan"],
    )
    def test_f42_a_corrector_with_no_correction_is_dropped(self, correction):
        engine, recorder = run(corrector=gives(LossLevel, "correct", correction))
        assert only(recorder) == ("corrector", "loss-level", "correct")
        assert not engine.corrections.active and engine.counts.jumps > 1


class TestListeners:
    def test_f42_a_listener_that_raises_is_removed_and_all_others_hear_everything(self):
        bus, heard = EventBus(), []
        calls = [0]

        def bad(event, payload):
            calls[0] += 1
            raise OSError("no route to host")

        bus.listen(lambda event, payload: heard.append(("first", event.value)))
        bus.listen(bad)
        bus.listen(lambda event, payload: heard.append(("last", event.value)))
        bus.emit(Event.JUMP, step=1)
        bus.emit(Event.JUMP, step=2)
        assert calls == [1]
        assert [e for e in heard if e[1] == "jump"] == [("first", "jump"), ("last", "jump")] * 2
        assert heard.count(("first", "plugin-failed")) == 1

    def test_f42_listeners_cannot_change_what_others_hear(self):
        bus, heard = EventBus(), []
        bus.listen(lambda event, payload: payload.__setitem__("loss", 0.0))
        bus.listen(lambda event, payload: heard.append(dict(payload)))
        bus.emit(Event.REAL_STEP, step=1, loss=2.0)
        assert {"step": 1, "loss": 2.0} in heard

    def test_f42_an_essential_listener_is_no_plugin(self):
        bus = EventBus()

        def full(event, payload):
            raise OSError(28, "No space left on device")

        bus.listen(full, essential=True)
        with pytest.raises(OSError, match="No space"):
            bus.emit(Event.JUMP, step=1)

    def test_f42_a_run_can_be_stopped_from_a_listener(self):
        class Stop(BaseException):
            pass

        adapter, batches, probes = clouds()
        engine, _ = build(adapter, configure(), probes=probes)

        def stop(event, payload):
            if payload["step"] == 13:
                raise Stop

        engine.events.listen(stop)
        with pytest.raises(Stop):
            drive(engine, 50, batches)
        assert engine.counts.real_steps == 13
        assert not engine.containment.failures


class TestMutation:
    def test_f42_window_means_of_numpy_cannot_be_written_to(self):
        class Writes(Drift):
            def predict(self, history, horizon, xp):
                history.window_means[-1][0][:] = 0.0
                return super().predict(history, horizon, xp)

        engine, recorder = run(predictor=Writes())
        assert only(recorder) == ("predictor", "drift", "predict")
        assert "read-only" in recorder.named("plugin-failed")[0]["reason"]
        assert bits(engine.adapter.read_params()) == bits(plain().read_params())

    @pytest.mark.parametrize("controller", [None, Credit])
    def test_f42_a_predictor_that_ruins_the_last_update_costs_no_loss(self, controller):
        class Ruins(LastUpdate):
            needs = frozenset({"last-update", "window-means"})

            def ready(self, history):
                if history.has_update:
                    for bucket in history.last_update():
                        bucket[:] = 1e3
                return super().ready(history)

        engine, _ = run(controller=controller and controller(), predictor=Ruins())
        assert loss(engine) < 1.05 * loss(plain())

    def test_f42_a_controller_that_ruins_the_statistics_costs_no_loss(self):
        class Ruins(Fixed):
            def choose(self, state):
                state.statistics.losses.clear()
                state.statistics.grad_norms.clear()
                state.predictor_ready.clear()
                return super().choose(state)

        engine, _ = run(controller=Ruins(FixedConfig(full_steps=4, correct_steps=4, horizon=400.0)))
        assert loss(engine) < 1.05 * loss(plain())

    def test_f42_the_models_weights_cannot_be_reached_through_what_is_handed_out(self):
        """A walk over all public attributes finds no adapter, and no array that shares memory."""
        handed = []

        class Keeps(LastUpdate):
            def observe(self, record):
                handed.append(record)

            def ready(self, history):
                handed.append(history)
                return super().ready(history)

        class Chooses(Fixed):
            def choose(self, state):
                handed.append(state)
                return super().choose(state)

            def feedback(self, outcome):
                handed.append(outcome)

        engine, _ = run(controller=Chooses(), predictor=Keeps(), dynamics=Linear())
        weights = list(engine.adapter.params.values())
        seen, todo, arrays = set(), [*handed[-400:], *engine.history.window_means], 0
        while todo:
            thing = todo.pop()
            if id(thing) in seen or isinstance(thing, type | int | float | str | type(None)):
                continue
            seen.add(id(thing))
            assert not isinstance(thing, Adapter | Foresight)
            if isinstance(thing, np.ndarray):
                arrays += 1
                assert not any(np.shares_memory(thing, w) for w in weights)
            elif isinstance(thing, dict):
                todo += [*thing.keys(), *thing.values()]
            elif isinstance(thing, list | tuple | set | frozenset):
                todo += thing
            elif type(thing).__module__.startswith("hybridcore"):
                names = [n for n in dir(thing) if not n.startswith("_")]
                todo += [getattr(thing, n) for n in names if not callable(getattr(thing, n))]
        assert len(seen) > 100 and arrays > 0


def test_f42_a_resumed_engine_goes_on_without_what_was_dropped():
    engine, _ = run(predictor={"drift": fails(Drift, "observe", raises), "last-update": LastUpdate()})
    state = engine.state_dict()
    again, _ = build(
        engine.adapter,
        configure(dynamics={"stride": 1}),
        Fixed(FixedConfig(full_steps=4, correct_steps=4, horizon=4.0)),
        {"drift": Drift(), "last-update": LastUpdate()},
        engine.probes_of_test,
    )
    again.load_state_dict(state)
    assert again.predictors["drift"].name == "none" and again.predictors["last-update"].name == "last-update"
    assert again.summary()["plugins_dropped"] == ["predictor drift"]

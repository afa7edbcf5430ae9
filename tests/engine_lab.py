"""What the core's tests share: small problems with known answers, scripted components, a recorder."""

from __future__ import annotations

import functools
import itertools

import attrs
import numpy as np

from hybridcore.config import HybridConfig
from hybridcore.controllers.fixed import Fixed
from hybridcore.divergence import build_monitors
from hybridcore.engine import Engine
from hybridcore.events import EventBus
from hybridcore.plugins import load_registry
from hybridcore.predictors.last_update import LastUpdate
from hybridcore.protocols import Action, OptimizerSpec, Phase, Prediction
from hybridcore.reference import Quadratic, ReferenceAdapter, SoftmaxRegression

CLOCK_KEYS = {"elapsed", "seconds", "credit_seconds"}


class Recorder:
    """Keeps every event."""

    def __init__(self):
        self.events = []

    def __call__(self, event, payload):
        self.events.append((event.value, dict(payload)))

    def named(self, name):
        return [payload for event, payload in self.events if event == name]

    def trace(self):
        """Events without what a clock wrote into them, comparable by ``==`` (NaN as text)."""
        return [
            (event, {k: repr(v) for k, v in payload.items() if k not in CLOCK_KEYS})
            for event, payload in self.events
        ]


class Scripted:
    """Controller that plays a list of actions, then Full phases of one step."""

    name, api_version, needs = "scripted", 1, frozenset({"window-means", "straightness", "last-update"})

    def __init__(self, *actions, proceed=()):
        self.actions, self.answers = list(actions), list(proceed)
        self.states, self.outcomes, self.asked = [], [], 0

    def choose(self, state):
        self.states.append((state.step, state.phase, state.may_predict, state.why_not))
        return self.actions.pop(0) if self.actions else Action(Phase.FULL, 1, "script over")

    def proceed(self, state):
        self.asked += 1
        return self.answers.pop(0) if self.answers else True

    def feedback(self, outcome):
        self.outcomes.append(outcome)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Proposes:
    """Predictor whose change is ``function(history, horizon)``; always ready after one step."""

    name, api_version, needs = "proposes", 1, frozenset()

    def __init__(self, function, confidence=1.0):
        self.function, self.confidence = function, confidence
        self.records, self.calls = [], 0

    def reset(self, layout, rng):
        self.layout = layout

    def observe(self, record):
        self.records.append(record)

    def ready(self, history):
        return bool(self.records)

    def predict(self, history, horizon, xp):
        self.calls += 1
        return Prediction(self.function(history, horizon), horizon, self.confidence)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Counting(ReferenceAdapter):
    """Reference adapter that counts real steps and gradients, apart from the engine's own counts."""

    def __init__(self, *args):
        super().__init__(*args)
        self.train_steps = self.gradients = 0
        self.rates = []
        inner = self.model.gradient
        outer = self

        class Model:
            rng = getattr(self.model, "rng", None)
            losses = self.model.losses

            def gradient(self, params, batch):
                outer.gradients += 1
                return inner(params, batch)

        self.model = Model()

    def train_step(self, batch):
        self.train_steps += 1
        result = super().train_step(batch)
        self.rates.append(self.learning_rate)
        return result


def full(length, reason="script"):
    return Action(Phase.FULL, length, reason)


def correct(length, reason="script"):
    return Action(Phase.CORRECT, length, reason)


def predict(horizon=10.0, settle=10, *, judge="probe", predictor=None, length=0):
    return Action(
        Phase.PREDICT, length, "script", predictor=predictor, horizon=horizon, settle=settle, judge=judge
    )


def bowl(seed=0, *, size=20, condition=10.0, noise=0.0, optimizer=None, kind=Counting):
    """Quadratic with known optimum and curvature."""
    rng = np.random.default_rng(seed)
    curvature = np.logspace(-np.log10(condition), 0.0, size)
    model = Quadratic(curvature, rng.standard_normal(size), noise, rng)
    start = {"w": 3.0 * rng.standard_normal(size)}
    adapter = kind(model, start, optimizer or OptimizerSpec("sgd", 0.01))
    adapter.curvature, adapter.optimum = curvature, model.optimum
    return adapter


def clouds(seed=0, *, optimizer=None, classes=3, features=8, spread=1.5):
    """Softmax regression on Gaussian clouds: adapter, endless batches, held-out probes."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((classes, features))
    y = rng.integers(0, classes, 400)
    x = centres[y] + spread * rng.standard_normal((400, features))
    start = {"weight": 0.01 * rng.standard_normal((classes, features)), "bias": np.zeros(classes)}
    adapter = Counting(SoftmaxRegression(), start, optimizer or OptimizerSpec("sgd", 0.05))

    def batches():
        order = np.random.default_rng(seed + 1)
        while True:
            rows = order.integers(0, 300, 32)
            yield x[rows], y[rows]

    return adapter, batches(), [(x[300:350], y[300:350]), (x[350:], y[350:])]


FREE = {"share": 1.0, "grace_steps": 1e6, "backoff_steps": 0, "count_seconds": False}
"""Budget that forbids nothing, so that a test sees what it tests."""


def configure(**tables):
    """HybridConfig with tables given as dictionaries; short phases unless told otherwise."""
    tables.setdefault("phases", {})
    tables["phases"] = {"warmup_steps": 4, "full_steps": 4, **tables["phases"]}
    tables["history"] = {"window": 4, **tables.get("history", {})}
    tables["budget"] = {**FREE, **tables.get("budget", {})}
    config = HybridConfig()
    return attrs.evolve(config, **{k: attrs.evolve(getattr(config, k), **v) for k, v in tables.items()})


known = functools.cache(load_registry)


def build(adapter, config=None, controller=None, predictor=None, probes=(), **more):
    """Engine and its recorder; plugins are looked for once, and not again for each engine."""
    config = config or configure()
    more = {"monitors": build_monitors(config.divergence, known()), **more}
    recorder = Recorder()
    bus = EventBus()
    bus.listen(recorder)
    predictor = predictor or LastUpdate()
    predictors = predictor if isinstance(predictor, dict) else {predictor.name: predictor}
    engine = Engine(
        adapter,
        config,
        controller or Fixed(),
        predictors,
        probes=probes,
        events=bus,
        **more,
    )
    return engine, recorder


def drive(engine, steps, batches=None):
    """Feed `steps` batches; the phase of each and its result."""
    batches = itertools.repeat(None) if batches is None else batches
    phases, results = [], []
    for _ in range(steps):
        phases.append(engine.phase.value)
        results.append(engine.step(next(batches)))
    return phases, results


def bits(value):
    """A snapshot as something that is equal only bit for bit."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {k: bits(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(map(bits, value))
    return value

"""Shared fixtures: a small problem on the NumPy adapter, as a task by module:function."""

from __future__ import annotations

import itertools
import logging
import sys
from types import ModuleType

import numpy as np
import pytest

from hybridcore.configfile import config_from_dict
from hybridcore.plugins import load_registry
from hybridcore.protocols import OptimizerSpec, TaskRun
from hybridcore.reference import ReferenceAdapter, SoftmaxRegression


def build(*, framework, seed, device, learning_rate=0.02, finite=None, fail_at=None):
    """Softmax regression on three Gaussian clouds, as a task by module:function."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((3, 10))
    y = rng.integers(0, 3, 600)
    x = centres[y] + rng.standard_normal((600, 10))
    weights = {"weight": np.zeros((3, 10)), "bias": np.zeros(3)}
    adapter = ReferenceAdapter(SoftmaxRegression(), weights, OptimizerSpec("sgd", learning_rate))
    order = np.random.default_rng(seed + 1)

    def batches():
        for count in itertools.count():
            if count == fail_at:
                raise KeyboardInterrupt
            if count == finite:
                return
            picked = order.integers(0, 400, 32)
            yield x[picked], y[picked]

    def evaluate():
        return {"loss": float(adapter.probe_loss((x[500:], y[500:])).mean()), "examples": 100}

    return TaskRun(adapter, batches(), ((x[400:500], y[400:500]),), evaluate)


def _toy_module():
    """The small problem as a module that can be imported while it is in ``sys.modules``."""
    module = ModuleType("toy_problem")
    module.build = build
    module.wrong = lambda **options: options
    return module


@pytest.fixture(autouse=True)
def _own_logging():
    """The command line sends the log to its own handler; the next test finds it as it was."""
    logger = logging.getLogger("hybridcore")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture
def toy(monkeypatch):
    module = _toy_module()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.fixture(scope="session")
def registry():
    return load_registry()


def _configuration(**tables):
    data = {
        "run": {"steps": 60, "framework": "numpy", "evaluate_every": 20, **tables.pop("run", {})},
        "task": {"name": "toy_problem:build", **tables.pop("task", {})},
        "phases": {"warmup_steps": 10, "full_steps": 5},
        "history": {"window": 5},
        "controller": {"name": "fixed", "fixed": {"horizon": 5.0, "full_steps": 5, "correct_steps": 5}},
        **tables,
    }
    return config_from_dict(data)


@pytest.fixture
def configuration(toy):
    """Function that makes a configuration for the small problem, tables overridden by keyword."""
    return _configuration


@pytest.fixture(scope="module")
def shared_configuration():
    """The same function, for runs that the tests of a module share and leave as they are."""
    module = _toy_module()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        yield _configuration

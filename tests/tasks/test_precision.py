"""F58: `run.dtype`: problems, tasks and runs in float64."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

from hybridcore.configfile import config_from_dict
from hybridcore.errors import TaskError
from hybridcore.plugins import load_registry
from hybridcore.tasks.building import build_task
from hybridcore.tasks.precision import in_float64

REGISTRY = load_registry()


def problem(name, seed=0):
    cls = REGISTRY.get("task", name)
    return cls(cls.Config()).problem(seed)


def config(task, framework="numpy", dtype="float64"):
    return config_from_dict({"run": {"framework": framework, "dtype": dtype}, "task": {"name": task}})


@pytest.mark.parametrize("name", ["digits-mlp", "poisson-pinn", "logistic"])
def test_f58_the_numbers_are_those_of_float32(name):
    narrow, wide = problem(name), in_float64(problem(name))
    for key, array in narrow.weights.items():
        assert array.dtype == np.float32 and wide.weights[key].dtype == np.float64
        np.testing.assert_array_equal(wide.weights[key], array)
    first, second = narrow.batches(), wide.batches()
    pairs = [(next(first), next(second)) for _ in range(2)]
    pairs += [*zip(narrow.probes, wide.probes, strict=True)]
    pairs += [*zip(narrow.validation, wide.validation, strict=True)]
    for one, two in pairs:
        for a, b in zip(one, two, strict=True):
            assert b.dtype == (np.float64 if a.dtype.kind == "f" else a.dtype)
            np.testing.assert_array_equal(a, b)


def test_f58_streams_can_be_passed_over_and_begun_later():
    stream, later = in_float64(problem("digits-mlp")).batches(), in_float64(problem("digits-mlp")).batches(3)
    stream.skip(3)
    for a, b in zip(next(stream), next(later), strict=True):
        np.testing.assert_array_equal(a, b)


def test_f58_a_full_batch_is_converted_once():
    stream = in_float64(problem("poisson-pinn")).batches()
    assert next(stream) is next(stream)


def plain_task(framework, seed, device):
    return REGISTRY.get("task", "quadratic")().build(framework, seed, device)


def open_task(framework, seed, device, **options):
    return attrs.evolve(plain_task(framework, seed, device), schedule_step=lambda: options["dtype"])


def test_f58_a_function_that_cannot_be_told_is_an_error():
    assert build_task(config(f"{__name__}:plain_task", dtype="float32"), REGISTRY).adapter.layout.total == 100
    with pytest.raises(TaskError, match="cannot be told a precision") as caught:
        build_task(config(f"{__name__}:plain_task"), REGISTRY)
    assert caught.value.where == "run.dtype"


def test_f58_a_function_with_open_options_is_told():
    assert build_task(config(f"{__name__}:open_task"), REGISTRY).schedule_step() == "float64"


def test_f58_a_task_that_builds_float32_all_the_same_is_an_error():
    pytest.importorskip("hybridcore_torch")
    with pytest.raises(TaskError, match="was not built in float64") as caught:
        build_task(config(f"{__name__}:open_task", "torch"), REGISTRY)
    assert "float32" in caught.value.got

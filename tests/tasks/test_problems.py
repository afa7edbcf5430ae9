"""What holds for every built-in task."""

import sys
from importlib import import_module
from itertools import islice
from types import ModuleType

import attrs
import numpy as np
import pytest

from hybridcore.errors import TaskError
from hybridcore.tasks import BUILTIN
from hybridcore.tasks.base import BuiltinTask, TrainingOptions

TINY = {"depth": 1, "width": 16, "heads": 2, "max_bytes": 500_000, "pretrain_steps": 10}
SMALL = {"stdlib-gpt": {"depth": 1, "max_bytes": 500_000}, "lora-gpt": TINY, "finetune-gpt": TINY}


def _load(path):
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


CLASSES = [_load(path) for path in BUILTIN]
tasks = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.name)


def _problem(cls, seed=0, **options):
    return cls(cls.Config(**SMALL.get(cls.name, {}), **options)).problem(seed)


def _rows(batch):
    """Bytes of every example, as a set; training and held-out rows can be compared."""
    return {row.tobytes() for row in np.ascontiguousarray(batch[0].reshape(len(batch[0]), -1))}


def test_names_are_unique():
    assert len({cls.name for cls in CLASSES}) == len(CLASSES) == 8


@tasks
def test_shapes_and_dtypes(cls):
    problem = _problem(cls)
    assert problem.name == cls.name
    assert problem.metrics[0] == "loss"
    assert all(weight.dtype == np.float32 for weight in problem.weights.values())
    first = next(problem.batches())
    for batch in (first, *problem.probes, *problem.validation):
        assert {array.dtype for array in batch} <= {np.dtype(np.float32), np.dtype(np.int64)}
        assert [a.shape[1:] for a in batch[: len(first)]] == [a.shape[1:] for a in first]
        assert all(array.flags.writeable for array in batch)


@tasks
def test_same_seed_gives_the_same_problem(cls):
    one, two = _problem(cls, 3), _problem(cls, 3)
    assert one.weights.keys() == two.weights.keys()
    assert all(np.array_equal(one.weights[name], two.weights[name]) for name in one.weights)
    for left, right in islice(zip(one.batches(), two.batches(), strict=False), 5):
        assert all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


@tasks
def test_another_seed_changes_weights_but_not_splits(cls):
    one, two = _problem(cls, 0), _problem(cls, 1)
    changed = any(not np.array_equal(one.weights[name], two.weights[name]) for name in one.weights)
    assert changed != (cls.name == "finetune-gpt"), "a trained base is the same for every seed"
    for left, right in zip(one.probes + one.validation, two.probes + two.validation, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize(
    "name", ["digits-mlp", "mnist-mlp", "mnist-cnn", "stdlib-gpt", "lora-gpt", "finetune-gpt"]
)
def test_another_seed_changes_the_order(name):
    cls = next(c for c in CLASSES if c.name == name)
    one, two = (next(_problem(cls, seed).batches()) for seed in (0, 1))
    assert not np.array_equal(one[0], two[0])


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("mnist-mlp", (3488, 512, 1000)),
        ("poisson-pinn", (512, 512, 1024)),
        ("convection-pinn", (512, 512, 1024)),
    ],
)
def test_splits_share_no_example(name, sizes):
    cls = next(c for c in CLASSES if c.name == name)
    pinn = name.endswith("pinn")
    problem = _problem(cls, **({"probe_points": "held-out"} if pinn else {}))
    steps = 1 if pinn else -(-sizes[0] // 64)
    training = set().union(*(_rows(batch) for batch in islice(problem.batches(), steps)))
    probes = set().union(*(_rows(batch) for batch in problem.probes))
    validation = set().union(*(_rows(batch) for batch in problem.validation))
    assert (len(training), len(probes), len(validation)) == sizes
    assert not training & probes
    assert not training & validation
    assert not probes & validation


def test_digit_examples_add_up():
    problem = _problem(next(c for c in CLASSES if c.name == "digits-mlp"), batch_size=8)
    assert problem.batches.count == 1237
    assert sum(len(batch[0]) for batch in problem.validation) == 360
    assert [len(batch[0]) for batch in problem.probes] == [8] * 8


@tasks
@pytest.mark.parametrize(
    ("key", "value"), [("learning_rate", 0.0), ("optimizer", "lion"), ("schedule", "step"), ("momentum", 1.0)]
)
def test_options_are_checked(cls, key, value):
    with pytest.raises(ValueError, match=r"out of range|unknown choice"):
        cls.Config(**{key: value})


@tasks
def test_recipe_reaches_the_optimizer(cls):
    changed = {
        "optimizer": "momentum",
        "learning_rate": 0.123,
        "momentum": 0.5,
        "weight_decay": 0.01,
        "schedule": "linear",
        "schedule_steps": 77,
        "lr_warmup_steps": 5,
    }
    assert changed.keys() == {field.name for field in attrs.fields(TrainingOptions)}
    spec = _problem(cls, **changed).optimizer
    assert attrs.astuple(spec) == ("momentum", 0.123, 0.5, 0.01, "linear", 77, 5)


@tasks
def test_a_framework_that_is_not_served_is_named(cls):
    with pytest.raises(TaskError) as caught:
        cls(cls.Config()).build("cobol", seed=0)
    assert caught.value.got == "cobol"
    assert "torch" in str(caught.value.expected)


def test_build_hands_the_problem_to_the_framework(monkeypatch):
    class Recorder:
        def build(self, problem, device):
            return problem, device

    plugins = ModuleType("hybridcore.plugins")
    plugins.load_framework = {"torch": Recorder()}.__getitem__
    monkeypatch.setitem(sys.modules, "hybridcore.plugins", plugins)
    cls = CLASSES[0]
    problem, device = cls(cls.Config()).build("torch", seed=4, device="cuda:1")
    assert device == "cuda:1"
    assert np.array_equal(problem.weights["layers.0.weight"], _problem(cls, 4).weights["layers.0.weight"])


def test_base_class_needs_a_problem():
    with pytest.raises(TypeError, match="problem"):
        BuiltinTask()

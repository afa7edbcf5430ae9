"""F66, F70: the choice of a kernel set by a trial, and what happens when one is wrong, slow or fails."""

from __future__ import annotations

import logging

import array_api_compat.numpy as xp
import attrs
import numpy as np
import pytest

from hybridcore.components import check_config
from hybridcore.config import HybridConfig, KernelsConfig
from hybridcore.engine import Engine
from hybridcore.errors import ConfigError, PluginError
from hybridcore.kernels import REFERENCE, ChosenKernels, ReferenceKernels, choose
from hybridcore.kernels.chosen import OPERATIONS
from hybridcore.kernels.trial import Sample, difference, same
from hybridcore.plugins import load_registry
from hybridcore.protocols import EncodedBuckets
from hybridcore.reference import quadratic

A = (np.arange(4, dtype=np.float32),)


class Counting(ReferenceKernels):
    """Right, and counts."""

    name = "counting"
    calls = 0

    def gram(self, vectors, xp):
        type(self).calls += 1
        return super().gram(vectors, xp)


class Wrong(ReferenceKernels):
    name = "wrong"

    def gram(self, vectors, xp):
        return super().gram(vectors, xp) * 1.01

    def combine(self, vectors, weights, xp):
        return tuple(b[:-1] for b in super().combine(vectors, weights, xp))


class Turned(ReferenceKernels):
    """Inner products off by a share of ``|a| |b|``, far above what the vectors' own product is."""

    name = "turned"
    share = 0.0

    def products(self, a, b, xp):
        first, second, shared = super().products(a, b, xp)
        return first, second, shared + self.share * (first * second) ** 0.5

    def gram(self, vectors, xp):
        return super().gram(vectors, xp) + self.share * float(vectors[0][0] @ vectors[0][0])

    def displace(self, newer, older, last, xp):
        step = super().displace(newer, older, None, xp)[0]
        return step, None if last is None else self.products(step, last, xp)


class Raising(ReferenceKernels):
    name = "raising"

    def products(self, a, b, xp):
        raise MemoryError("no room")


class Elsewhere(ReferenceKernels):
    name = "elsewhere"

    def supports(self, xp, device, dtype):
        return False


class FailsLater(ReferenceKernels):
    """Right in the trial, out of memory afterwards."""

    name = "fails-later"
    broken = False

    def combine(self, vectors, weights, xp):
        if self.broken:
            raise MemoryError("no room")
        return super().combine(vectors, weights, xp)


@pytest.fixture
def accelerator():
    """The NumPy adapter under the name of another device, so that trials happen."""
    adapter = quadratic(seed=0)
    adapter.device = "fake:0"
    return adapter


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_auto_tries_nothing_on_the_cpu(monkeypatch):
    monkeypatch.setattr(Counting, "calls", 0)
    chosen = choose("auto", {"counting": Counting}, quadratic(seed=0))
    assert Counting.calls == 0 and {chosen.used(op) for op in OPERATIONS} == {"reference"}


def test_a_set_that_is_named_is_used_where_it_is_right(accelerator, caplog):
    chosen = choose("wrong", {"wrong": Wrong}, accelerator)
    assert chosen.used("gram") == chosen.used("combine") == "reference"
    assert chosen.used("products") == "wrong"
    (told,) = warnings(caplog)
    assert "gram: 9 of 9 numbers of array 1 of 1 from index 0 on, by up to" in told
    assert "combine: array 1 has shape (19,), expected (20,)" in told
    reasons = {c.operation: c.reason for c in chosen.choices}
    assert reasons["gram"].startswith("wrong result of wrong: 9 of 9 numbers")
    np.testing.assert_array_equal(chosen.gram([A], xp), [[14.0]])


@pytest.mark.parametrize(("share", "right"), [(1e-6, True), (1e-3, False), (float("nan"), False)])
def test_inner_products_of_orthogonal_vectors_are_judged_by_their_lengths(accelerator, share, right):
    """Rounding of float32 leaves about 1e-7 of ``|a| |b|``, more than ``a . b`` of the trial's vectors."""
    Turned.share = share
    sample = Sample.make(xp, A[0], 100_000)
    a, b, c = (xp.asarray(np.sin(f * np.arange(100_000, dtype=np.float32))) for f in (0.7, 1.1, 1.3))
    assert abs(float(a @ b)) < 1e-4 * float(a @ a) and abs(float((a - b) @ c)) < 1e-4 * float(a @ a)
    for operation in ("products", "gram", "displace"):
        assert same(sample, operation, sample.calls[operation](Turned())) is right
    chosen = choose("turned", {"turned": Turned}, accelerator, elements=100_000)
    expected = "turned" if right else "reference"
    assert {chosen.used(op) for op in ("products", "gram", "displace")} == {expected}
    assert chosen.used("combine") == "turned"


def test_every_operation_of_the_reference_is_right_against_float64():
    sample = Sample.make(xp, A[0], 50_001)
    for operation, call in sample.calls.items():
        assert same(sample, operation, call(REFERENCE)), operation


def test_auto_leaves_what_is_slower_to_the_reference(accelerator, monkeypatch):
    """By a clock that the kernels themselves move."""
    import hybridcore.kernels.trial as trial

    now = [0.0]
    monkeypatch.setattr(trial.time, "perf_counter", lambda: now[0])

    def taking(cost, base):
        def gram(self, vectors, xp):
            now[0] += cost
            return base(self, vectors, xp)

        return gram

    right = ReferenceKernels.gram
    monkeypatch.setattr(ReferenceKernels, "gram", taking(1.0, right))
    slow = type("SlowByClock", (ReferenceKernels,), {"name": "slow", "gram": taking(2.0, right)})
    fast = type("FastByClock", (ReferenceKernels,), {"name": "fast", "gram": taking(0.5, right)})
    assert choose("auto", {"slow": slow}, accelerator).used("gram") == "reference"
    both = choose("auto", {"slow": slow, "fast": fast}, accelerator)
    assert both.used("gram") == "fast"
    (entry,) = [c for c in both.choices if c.operation == "gram"]
    assert (entry.seconds, entry.reference_seconds) == (0.5, 1.0)


def test_f66_a_set_that_raises_in_its_trial_is_left_out_with_one_warning(accelerator, caplog):
    chosen = choose("raising", {"raising": Raising}, accelerator)
    assert {chosen.used(op) for op in OPERATIONS} == {"reference"}
    assert len(warnings(caplog)) == 1 and "no room" in warnings(caplog)[0]


def test_a_set_for_other_devices_is_left_out(accelerator, caplog):
    assert choose("elsewhere", {"elsewhere": Elsewhere}, accelerator).used("gram") == "reference"
    assert len(warnings(caplog)) == 1
    assert choose("auto", {"elsewhere": Elsewhere}, accelerator).used("gram") == "reference"
    assert len(warnings(caplog)) == 1, "under `auto` it is no fault"


def test_f66_a_failure_in_the_run_falls_back_once_and_for_all(accelerator, caplog, monkeypatch):
    chosen = choose("fails-later", {"fails-later": FailsLater}, accelerator)
    assert chosen.used("combine") == chosen.used("gram") == "fails-later"
    monkeypatch.setattr(FailsLater, "broken", True)
    for _ in range(3):
        np.testing.assert_array_equal(chosen.combine([A, A], [1.0, 2.0], xp)[0], 3.0 * A[0])
    assert len(warnings(caplog)) == 1 and "no room" in chosen.summary()["failure"]
    assert chosen.used("gram") == "reference"


def test_operations_are_those_of_the_protocol():
    from hybridcore.plugin_checks import protocol_methods
    from hybridcore.protocols import KernelSet

    assert {*OPERATIONS, "supports"} == set(protocol_methods(KernelSet))
    for operation in OPERATIONS:
        assert callable(getattr(ChosenKernels, operation))


def test_an_engine_uses_and_reports_what_the_configuration_names(accelerator, monkeypatch):
    monkeypatch.setattr(Counting, "calls", 0)
    registry = load_registry()
    object.__setattr__(registry, "kernels", {**registry.kernels, "counting": Counting})

    def run(name):
        adapter = quadratic(seed=0)
        adapter.device = "fake:0"
        config = HybridConfig(kernels=KernelsConfig(name=name))
        engine = Engine.from_config(adapter, config, registry=registry)
        losses = [engine.step(None).loss for _ in range(40)]
        return losses, engine.summary()["kernels"]

    losses, summary = run("counting")
    assert summary["name"] == "counting" and summary["failure"] is None
    assert summary["operations"]["gram"] == "counting: asked for, and right"
    assert Counting.calls > 1, "the run itself uses it"
    same, report = run("reference")
    assert same == losses and report["name"] == "reference"


def test_a_name_that_is_not_installed_is_an_error():
    registry = load_registry()
    with pytest.raises(ConfigError, match=r"kernels\.name"):
        check_config({"kernels": {"name": "cpuy"}}, registry)
    check_config({"kernels": {"name": "auto"}}, registry)
    with pytest.raises(PluginError, match="unknown kernel"):
        Engine.from_config(quadratic(seed=0), HybridConfig(kernels=KernelsConfig(name="cpuy")))


def nudged(coded, places):
    """An int8 encoding with the codes at some places one level higher."""
    codes = coded.codes[0].copy()
    codes[places] += 1
    return EncodedBuckets(coded.dtype, (codes,), coded.scales)


def test_f65_codes_are_right_where_either_the_device_or_numpy_has_them():
    sample = Sample.make(xp, A[0], 5000)
    narrow, coded = sample.calls["encode"](REFERENCE)
    places = np.flatnonzero(coded.codes[0] < 100)[[3, 40]]
    here = narrow, nudged(coded, places)
    device = attrs.evolve(sample, exact={**sample.exact, "encode": lambda: here})
    assert same(sample, "encode", (narrow, coded)) and not same(sample, "encode", here)
    # A device whose reference divides less exactly: its own codes are right, and so are those of NumPy.
    assert same(device, "encode", here) and same(device, "encode", (narrow, coded))
    mixed = narrow, nudged(coded, places[:1])
    told = difference(device, "encode", mixed)
    assert f"1 of 5,000 numbers of array 2 of 2 from index {places[0]:,} on" in told, told


@pytest.mark.parametrize(("share", "right"), [(3e-3, True), (5e-2, False)])
def test_f65_low_rank_factors_may_be_rounded_to_ten_bits(share, right):
    sample = Sample.make(xp, A[0], 5000)
    left, factor = sample.calls["compress"](REFERENCE)
    assert same(sample, "compress", type(sample.calls["compress"](REFERENCE))((left, factor)))
    assert (
        same(sample, "compress", type(sample.calls["compress"](REFERENCE))((left * (1 + share), factor)))
        is right
    )

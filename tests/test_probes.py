from __future__ import annotations

import itertools

import numpy as np
import pytest
from engine_lab import build, clouds, drive
from scipy import stats

from hybridcore.errors import ProbeError
from hybridcore.probes import ProbeSet, paired_difference


class Losses:
    """Adapter whose probe losses are the batch itself."""

    def probe_loss(self, batch):
        return batch


@pytest.mark.parametrize("n", [2, 3, 50, 1000])
def test_f81_paired_difference_against_scipy(n):
    rng = np.random.default_rng(n)
    before = rng.gamma(2.0, size=n)
    after = before + 0.1 * rng.standard_normal(n) - 0.05
    got = paired_difference(after, before)
    truth = stats.ttest_rel(after, before)
    assert got.mean / got.error == pytest.approx(truth.statistic, rel=1e-9)
    # At one standard error, the confidence interval's half width is the t quantile times that error.
    interval = truth.confidence_interval(0.9)
    half = (interval.high - interval.low) / 2
    assert got.error == pytest.approx(half / stats.t.ppf(0.95, n - 1), rel=1e-9)
    assert got.n == n


def test_f81_pairing_removes_what_examples_share():
    """Hard and easy examples differ by 100; the paired error knows nothing of it."""
    rng = np.random.default_rng(0)
    before = 100.0 * rng.random(200)
    after = before - 0.5 + 0.01 * rng.standard_normal(200)
    assert paired_difference(after, before).error < 0.002


def test_f81_one_example_has_no_error_of_its_own():
    got = paired_difference(np.array([3.0]), np.array([5.0]))
    assert (got.mean, got.error, got.n) == (-2.0, 0.0, 1)


@pytest.mark.parametrize("shapes", [((3,), (4,)), ((3, 1), (3, 1)), ((), ())])
def test_f81_probes_of_other_examples_are_an_error(shapes):
    with pytest.raises(ProbeError, match="share their examples"):
        paired_difference(np.zeros(shapes[0]), np.zeros(shapes[1]))


def test_an_empty_probe_set_is_an_error():
    with pytest.raises(ProbeError, match="empty") as caught:
        ProbeSet([], 2).evaluate(Losses())
    assert "probe=" in caught.value.fix


@pytest.mark.parametrize("batch", [np.float64(1.0), np.zeros((3, 1)), np.zeros(0)])
def test_a_probe_that_is_not_one_loss_per_example_is_an_error(batch):
    with pytest.raises(ProbeError, match="one loss per example") as caught:
        ProbeSet([np.ones(3), batch], 2).evaluate(Losses())
    assert caught.value.where == "probe batch 1"


def test_losses_of_all_batches_in_order_and_their_cost():
    probes = ProbeSet([np.arange(4.0), np.arange(6.0)], 5)
    np.testing.assert_array_equal(probes.evaluate(Losses()), [0, 1, 2, 3, 0, 1, 2, 3, 4, 5])
    # A forward pass on ten examples, in steps of five examples, each worth three forward passes.
    assert probes.charge(5) == pytest.approx(10 / 5 / 3)
    # Without the size of a step, a batch of the probe set stands for it.
    assert probes.charge(0) == pytest.approx(2 / 3)
    assert probes.cost == pytest.approx(10 / 5 / 3 + 2 / 3)
    assert probes.count == 1


def test_other_weights_are_read_and_the_models_own_are_back_bit_for_bit():
    adapter, _, batches = clouds()
    probes = ProbeSet(batches, 2)
    own = {n: v.copy() for n, v in adapter.params.items()}
    rng = np.random.default_rng(9)
    other = {n: rng.standard_normal(v.shape).astype(np.float32) for n, v in own.items()}
    got = probes.evaluate(adapter, adapter.layout.pack(other, adapter.xp))
    for name, value in adapter.params.items():
        np.testing.assert_array_equal(value, own[name])
    truth = np.concatenate([adapter.model.losses(other, b) for b in batches])
    np.testing.assert_allclose(got, truth, rtol=1e-6)
    assert not np.allclose(got, probes.evaluate(adapter))


def test_training_batches_are_never_mixed_into_held_out_ones():
    adapter, batches, held_out = clouds()
    engine, _ = build(adapter, probes=held_out[:1])
    drive(engine, 5, batches)
    assert engine.probes.batches == (held_out[0],)


def test_without_held_out_batches_the_first_training_batches_are_remembered():
    adapter, batches, _ = clouds()
    first = [next(batches) for _ in range(4)]
    engine, _ = build(adapter)
    drive(engine, 6, itertools.chain(first, batches))
    assert [id(b) for b in engine.probes.batches] == [id(b) for b in first]


def test_an_endless_source_of_held_out_batches_is_cut_at_the_limit():
    assert ProbeSet(itertools.count(), 3).batches == (0, 1, 2)

"""Agreement of processes, without processes: an adapter that answers for its peers too (F71)."""

from __future__ import annotations

import array_api_compat.numpy as xp
import numpy as np
import pytest

from hybridcore.config import HybridConfig
from hybridcore.errors import RankError
from hybridcore.kernels import REFERENCE, ChosenKernels, KernelChoice
from hybridcore.ranks import Ranks
from hybridcore.reference import quadratic


class Peered:
    """A reference adapter beside peers, whose answers are functions of this rank's numbers."""

    def __init__(self, *peers, copies=1):
        self._adapter, self._peers = quadratic(seed=0), peers
        self.world_size, self.copies = 1 + len(peers), copies
        self.capabilities = self._adapter.capabilities | {"ranks"}

    def __getattr__(self, name):
        return getattr(self._adapter, name)

    def gather_scalars(self, values):
        mine = np.asarray(values, dtype=np.float64)
        return np.stack([mine, *(peer(mine) for peer in self._peers)])

    def step_seconds(self, seconds):
        return float(np.mean(self.gather_scalars([seconds])))


def buckets(*values):
    return (xp.asarray(values, dtype=xp.float32),)


def test_one_process_keeps_its_numbers_and_kernels():
    ranks, kernels = Ranks(quadratic(seed=0)), ChosenKernels({})
    assert not ranks.many
    assert not ranks.sharded
    assert ranks.kernels(kernels) is kernels
    assert (ranks.mean(2.0), ranks.least(3.0), ranks.step_seconds(4.0)) == (2.0, 3.0, 4.0)
    assert ranks.over_weights([1.0, 2.0]) == [1.0, 2.0]
    ranks.require_alike(HybridConfig(), 1)


def test_means_minima_and_clocks_are_over_all_ranks():
    ranks = Ranks(Peered(lambda x: x + 1.0, lambda x: x - 4.0))
    assert ranks.mean(10.0) == pytest.approx(9.0)
    assert ranks.least(10.0) == 6.0
    assert ranks.step_seconds(10.0) == pytest.approx(9.0)
    assert ranks.all_true(True) is False
    assert Ranks(Peered(lambda x: x)).all_true(True) is True


def test_norms_of_shards_are_those_of_the_whole_vector():
    a, b = np.array([3.0, -4.0]), np.array([1.0, 2.0])
    other = np.array([2.0, 5.0])  # the peer's shard of a, and of b too

    def peer(mine):  # squares of a, of b and their product, over the peer's shard
        return np.full(len(mine), other @ other)

    ranks = Ranks(Peered(peer, copies=1))
    assert ranks.sharded
    kernels = ranks.kernels(ChosenKernels({}))
    whole_a, whole_b = np.concatenate([a, other]), np.concatenate([b, other])
    found = kernels.products(buckets(*a), buckets(*b), xp)
    assert found == pytest.approx((whole_a @ whole_a, whole_b @ whole_b, whole_a @ whole_b))
    runs = [(None, 0, slice(0, 2))]
    found = kernels.run_norms([buckets(*a), buckets(*b)], runs, xp)
    assert found == [pytest.approx([np.linalg.norm(w)]) for w in (whole_a, whole_b)]
    gram = kernels.gram([buckets(*a)], xp)
    assert gram == pytest.approx(np.array([[whole_a @ whole_a]]))
    _, products = kernels.displace(buckets(*a), buckets(0.0, 0.0), buckets(*b), xp)
    assert products == pytest.approx((whole_a @ whole_a, whole_b @ whole_b, whole_a @ whole_b))


def test_copies_of_the_weights_count_once():
    ranks = Ranks(Peered(lambda x: x, copies=2))
    assert not ranks.sharded
    kernels = ranks.kernels(ChosenKernels({}))
    assert kernels.distance(buckets(3.0, 4.0), buckets(0.0, 0.0), xp) == pytest.approx(5.0)
    assert kernels.products(buckets(3.0, 4.0), buckets(1.0, 0.0), xp) == pytest.approx((25.0, 1.0, 3.0))


def test_rounding_is_no_drift_but_a_hundredth_is():
    close = Ranks(Peered(lambda x: x * (1.0 + 1e-7), copies=2))
    assert close.over_weights([25.0, 0.0])[0] == pytest.approx(25.0, rel=1e-6)
    for peer in (lambda x: x * 1.01, lambda x: x * float("nan")):
        with pytest.raises(RankError, match="drifted apart"):
            Ranks(Peered(peer, copies=2)).over_weights([25.0])
    shards = Ranks(Peered(lambda x: x * 1.01, copies=1))  # shards may differ as they like
    assert shards.over_weights([1.0]) == pytest.approx([2.01])


def test_unlike_choices_of_kernels_mean_the_reference():
    def chosen():
        return ChosenKernels({"gram": Fast()}, [KernelChoice("gram", "fast", "faster")])

    same, unlike = Ranks(Peered(lambda x: x, copies=2)), Ranks(Peered(lambda x: x + 1.0, copies=2))
    assert same.kernels(chosen())._kernels.used("gram") == "fast"
    assert unlike.kernels(chosen())._kernels.used("gram") == REFERENCE.name


class Fast(type(REFERENCE)):
    name = "fast"


def test_unlike_configurations_are_named():
    with pytest.raises(RankError) as caught:
        Ranks(Peered(lambda x: x + np.array([1.0, 0.0, 0.0]))).require_alike(HybridConfig(), 2)
    assert caught.value.where == "configuration"
    Ranks(Peered(lambda x: x)).require_alike(HybridConfig(), 2)

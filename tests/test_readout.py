from __future__ import annotations

import math

import numpy as np
import pytest
from engine_lab import Scripted, bits, bowl, build, configure, drive, full

from hybridcore.averaging import RunningAverage
from hybridcore.config import AverageConfig
from hybridcore.counts import Counts
from hybridcore.errors import PredictionError
from hybridcore.protocols import OptimizerSpec
from hybridcore.readout import ReadOut
from hybridcore.reference import ReferenceAdapter

KEEP = {"average": {"enabled": True, "every": 1, "share": 1.0, "max_memory": 8.0}}
NOISY = {"noise": 3.0, "condition": 2.0, "optimizer": OptimizerSpec("sgd", 0.3), "kind": ReferenceAdapter}


class Scored:
    """Adapter whose held-out loss is set by hand, of its weights and of the mean."""

    capabilities = frozenset()

    def __init__(self):
        self.own, self.mean = 1.0, 1.0
        self.asked, self.lent = [], False

    def read_params(self, out=None):
        return (np.zeros(1, np.float32),)

    def weights(self, buckets):
        adapter = self

        class Lent:
            def __enter__(self):
                adapter.lent = True

            def __exit__(self, *_):
                adapter.lent = False

        return Lent()

    def probe_loss(self, batch):
        self.asked.append((batch, self.lent))
        return np.full(6, self.mean if self.lent else self.own)


def reader(**options):
    adapter, counts = Scored(), Counts()
    config = AverageConfig(enabled=True, every=1, **options)
    average = RunningAverage(config)
    average.after_step(adapter)
    return adapter, counts, ReadOut(config, adapter, average, lambda: ["first", "second"], counts, lambda: 4)


@pytest.mark.parametrize(
    ("own", "mean", "averaged"),
    [(2.0, 1.0, True), (1.0, 2.0, False), (1.0, 1.0, False), (math.nan, 1.0, True), (1.0, math.nan, False)],
)
def test_the_lower_loss_on_the_first_held_out_batch_decides(own, mean, averaged):
    adapter, _, read_out = reader()
    adapter.own, adapter.mean = own, mean
    assert read_out.decide() is averaged
    assert adapter.asked == [("first", False), ("first", True)]
    assert read_out.cost == pytest.approx(2 * 6 / 3 / 4), "two forward passes of six examples, four to a step"
    assert read_out.summary()["read_out"] == ("average" if averaged else "weights")


@pytest.mark.parametrize(("growth", "decisions"), [(1.0, 100), (2.0, 7), (10.0, 3)])
def test_f57_it_decides_anew_where_the_run_has_grown(growth, decisions):
    adapter, counts, read_out = reader(decide_growth=growth)
    for counts.real_steps in range(1, 101):
        read_out.decide()
    assert len(adapter.asked) == 2 * decisions
    read_out.decide(anew=True)
    assert len(adapter.asked) == 2 * decisions + 2


def test_before_the_first_sample_the_weights_hold():
    adapter = Scored()
    config = AverageConfig(enabled=True)
    read_out = ReadOut(config, adapter, RunningAverage(config), lambda: ["batch"], Counts(), lambda: 4)
    assert not read_out.decide(anew=True)
    assert not adapter.asked


def test_the_state_goes_on():
    adapter, counts, read_out = reader()
    adapter.own, counts.real_steps = 2.0, 10
    read_out.decide()
    _, counts, again = reader()
    again.load_state_dict(read_out.state_dict())
    counts.real_steps = 19
    assert again.decide(), "not due before step 20"
    assert again.cost == read_out.cost
    counts.real_steps = 20
    assert not again.decide()


def held_out_loss(adapter):
    return float(np.mean(adapter.probe_loss(None)))


def test_the_better_of_both_is_in_place_and_then_everything_is_back():
    adapter = bowl(**NOISY)
    engine, _ = build(adapter, configure(**KEEP), Scripted(full(1)), probes=[None])
    with engine.chosen() as averaged:
        assert not averaged
    drive(engine, 200)
    before, own = bits(adapter.snapshot()), held_out_loss(adapter)
    with engine.chosen() as averaged:
        assert averaged
        np.testing.assert_array_equal(adapter.read_params()[0], engine.average.mean[0])
        assert held_out_loss(adapter) < own
    assert bits(adapter.snapshot()) == before


def test_while_weights_travel_far_they_are_better_than_their_mean():
    adapter = bowl(condition=2.0, optimizer=OptimizerSpec("sgd", 0.01))
    engine, _ = build(adapter, configure(**KEEP), Scripted(full(1)), probes=[None])
    drive(engine, 30)
    kept = bits(adapter.snapshot())
    with engine.chosen() as averaged:
        assert not averaged
    assert not engine.adopt_chosen()
    assert bits(adapter.snapshot()) == kept


def test_adopting_the_better_one_makes_it_final():
    adapter = bowl(**NOISY)
    engine, _ = build(adapter, configure(**KEEP), Scripted(full(1)), probes=[None])
    drive(engine, 200)
    mean = engine.average.mean[0].copy()
    assert engine.adopt_chosen()
    np.testing.assert_array_equal(adapter.read_params()[0], mean)
    assert engine.summary()["read_out"] == "average"


def test_training_is_the_same_whether_or_not_anybody_asks():
    runs = []
    for asks in (False, True):
        adapter = bowl(**NOISY)
        engine, recorder = build(adapter, configure(**KEEP), Scripted(full(1)), probes=[None])
        for _ in range(40):
            drive(engine, 1)
            if asks:
                with engine.chosen():
                    pass
        runs.append((bits(adapter.snapshot()), recorder.trace(), engine.counts.cost))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("name", ["chosen", "adopt_chosen"])
def test_without_an_average_the_key_is_named(name):
    engine, _ = build(bowl(), configure(), Scripted(), probes=[None])
    with pytest.raises(PredictionError) as caught:
        getattr(engine, name)() if name == "adopt_chosen" else engine.chosen().__enter__()
    assert caught.value.where == "average.enabled"

from itertools import islice

import numpy as np
import pytest

from hybridcore.tasks.batches import ShuffledBatches, batches_of, split_indices


def _stream(count: int, size: int, seed: int = 0) -> ShuffledBatches:
    return ShuffledBatches(lambda index: (index,), count, size, seed)


@pytest.mark.parametrize(("count", "size"), [(12, 4), (10, 4), (3, 7), (5, 1)])
def test_every_epoch_covers_each_example_once(count, size):
    batches = [batch for (batch,) in islice(_stream(count, size)(), 3 * count)]
    assert {batch.shape for batch in batches} == {(size,)}
    order = np.concatenate(batches)
    for epoch in range(order.size // count):
        assert sorted(order[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epochs_differ_from_one_another():
    stream = _stream(50, 50)()
    assert not np.array_equal(next(stream)[0], next(stream)[0])


def test_streams_of_one_source_are_independent_and_equal():
    source = _stream(20, 3, seed=5)
    first = source()
    ahead = [next(first)[0] for _ in range(9)]
    assert np.array_equal(next(source())[0], ahead[0])
    for seen, again in zip(ahead, source, strict=False):
        assert np.array_equal(seen, again[0])


def test_seeds_decide_the_order():
    orders = [next(_stream(100, 100, seed)())[0] for seed in (0, 1, 0)]
    assert np.array_equal(orders[0], orders[2])
    assert not np.array_equal(orders[0], orders[1])


def test_a_stream_resumes_at_a_position():
    source = _stream(10, 4, seed=2)
    whole = [batch for (batch,) in islice(source(), 12)]
    late = source(position=7)
    assert [next(late)[0].tolist() for _ in range(5)] == [b.tolist() for b in whole[7:]]
    assert late.position == 12
    late.position = 3
    assert next(late)[0].tolist() == whole[3].tolist()


def test_fixed_batches_keep_order_and_remainder():
    parts = batches_of(lambda index: (index,), [5, 3, 1, 0, 4], 2)
    assert [part[0].tolist() for part in parts] == [[5, 3], [1, 0], [4]]


def test_splits_are_disjoint_and_complete():
    parts = split_indices(100, 20, 30)
    assert [part.size for part in parts] == [50, 20, 30]
    assert sorted(np.concatenate(parts)) == list(range(100))

"""F53: an engine restored from bytes goes on exactly like the one that was never stopped."""

from __future__ import annotations

import pytest
from checkpoint_lab import SETUPS, cuts, plain


@pytest.mark.parametrize("name", SETUPS)
def test_resumed_equals_uninterrupted(name):
    setup = SETUPS[name]
    trace, weights = plain(setup)
    met = set()
    for at, count, where, params, events in cuts(setup, setup.every):
        met.add(where)
        (_, start), (expected, stop) = weights[at - 1], weights[at + count - 1]
        assert events == trace[start:stop], f"cut after {at} batches, {where}"
        assert params == expected, f"cut after {at} batches, {where}"
    assert setup.expected <= met, met

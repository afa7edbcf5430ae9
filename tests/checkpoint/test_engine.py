"""F53: an engine restored from bytes goes on exactly like the one that was never stopped."""

from __future__ import annotations

import pytest
from checkpoint_lab import REGISTRY, SETUPS, THRESHOLD, Setup, cuts, named, plain

COMPONENTS = {
    **{f"predictor {n}": {**THRESHOLD, "predictor": {"name": n}} for n in sorted(REGISTRY.predictors)},
    **{f"controller {n}": {"controller": {"name": n}} for n in sorted(REGISTRY.controllers)},
    **{f"corrector {n}": {**THRESHOLD, "correction": {"name": n}} for n in sorted(REGISTRY.correctors)},
    **{
        f"dynamics {n}": {**THRESHOLD, "dynamics": {"name": n, "share": 1.0, "stride": 1}}
        for n in sorted(REGISTRY.dynamics)
    },
    **{f"latent {n}": {**THRESHOLD, **named("predictor", "latent", model=n)} for n in ("mlp", "rssm")},
}


def compare(setup, every, length):
    """Resume at each cut, against the run that nobody stopped; the situations that were met."""
    trace, weights = plain(setup)
    met = set()
    for at, count, where, params, events in cuts(setup, every, length):
        met.add(where)
        (_, start), (expected, stop) = weights[at - 1], weights[at + count - 1]
        assert events == trace[start:stop], f"cut after {at} batches, {where}"
        assert params == expected, f"cut after {at} batches, {where}"
    return met


@pytest.mark.parametrize("name", SETUPS)
def test_resumed_equals_uninterrupted(name):
    setup = SETUPS[name]
    met = compare(setup, setup.every, 40)
    assert setup.expected <= met, met


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_component_resumes(name):
    dear = "rssm" in name
    setup = Setup(tables={"history": {"windows": 8}, **COMPONENTS[name]}, batches=50 if dear else 90)
    compare(setup, 36, 10 if dear else 30)

"""Cosines between an update's fresh part and the update before (F85)."""

import numpy as np
import pytest

from hybridcore.alignment import Alignment


def test_the_cosine_is_that_of_the_gradient_with_the_last_update():
    """Heavy ball: u = beta u' - eta g, so that the fresh part points against g."""
    random = np.random.default_rng(0)
    before, gradient, beta, rate = random.standard_normal(50), random.standard_normal(50), 0.9, 0.1
    update = beta * before - rate * gradient
    alignment = Alignment()
    fresh = update - beta * before
    alignment.observe(float(fresh @ fresh), float(before @ before), float(fresh @ before))
    truth = -(gradient @ before) / np.linalg.norm(gradient) / np.linalg.norm(before)
    assert alignment.samples[0] == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize(("squared", "before"), [(0.0, 0.0), (float("nan"), 1.0), (float("inf"), 1.0)])
def test_updates_without_a_direction_say_nothing(squared, before):
    alignment = Alignment()
    alignment.observe(squared, before, 0.0)
    assert alignment.count == 0


def test_its_state_comes_back():
    alignment, other = Alignment(window=3), Alignment(window=3)
    for cosine in (0.1, 0.2, 0.3, 0.4):
        alignment.add(cosine)
    other.load_state_dict(alignment.state_dict())
    assert (other.samples, other.count) == ((0.2, 0.3, 0.4), 4)

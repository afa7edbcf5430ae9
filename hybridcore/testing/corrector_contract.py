"""Tests that every corrector passes; subclass `CorrectorContract` in a test module of your own."""

from __future__ import annotations

import copy
import math
from typing import Any

import attrs
import numpy as np
import pytest
from numpy.typing import NDArray

from hybridcore.correction.compression import compress_buckets
from hybridcore.correction.store import ResidualStore
from hybridcore.history import History
from hybridcore.layout import Buckets, ParamGroup, ParamLayout
from hybridcore.plugin_checks import check_class
from hybridcore.protocols import Correction, Corrector, Prediction, Residual, Situation
from hybridcore.state import FEATURE_NAMES
from hybridcore.testing.backends import Backend
from hybridcore.testing.trajectories import layout_of_two_buckets, straight_line, synthetic_history

__all__ = ["CorrectorContract"]


class CorrectorContract:
    """Each sentence of the `Corrector` protocol as a test, on residuals made at random.

    Subclass it, name the subclass ``Test...``, and write `make`; tests with arrays run on each installed
    array namespace.

    Example:
        >>> from hybridcore.correction.gains import Gains
        >>> class TestGains(CorrectorContract):
        ...     def make(self):
        ...         return Gains()
    """

    def make(self) -> Corrector:
        """A new instance of the corrector under test."""
        raise NotImplementedError("write make() in the subclass")

    @pytest.fixture(params=list(Backend), ids=str)
    def backend(self, request: pytest.FixtureRequest) -> Backend:
        """Each array namespace that is installed."""
        chosen: Backend = request.param
        pytest.importorskip(chosen.package)
        return chosen

    @pytest.fixture
    def layout(self) -> ParamLayout:
        """Weights in two buckets."""
        return layout_of_two_buckets()

    def prepared(self, layout: ParamLayout) -> tuple[Corrector, ResidualStore]:
        """A new instance and the store that it was given."""
        corrector, store = self.make(), ResidualStore(50)
        corrector.reset(layout, store)
        return corrector, store

    def situation(self, step: int, *, loss: float = 2.0, change: float = -0.1) -> Situation:
        """A place in a run, with features of its own."""
        features = np.random.default_rng(step).uniform(-1.0, 1.0, len(FEATURE_NAMES))
        return Situation(step, features, "drift", 20.0, loss, change)

    def residual(
        self, backend: Backend, layout: ParamLayout, rank: int, step: int, **more: float
    ) -> Residual:
        """A residual in which jumps promised twice what came, with weights where `rank` asks for them."""
        xp = backend.namespace()
        weights = None
        if rank:
            rng = np.random.default_rng(step % 3)
            values = [rng.standard_normal(n).tolist() for n in layout.bucket_sizes]
            buckets = tuple(xp.asarray(v, dtype=xp.float32) for v in values)
            weights = compress_buckets(buckets, layout, rank, xp, rng)
        place = self.situation(step, **more)
        return Residual(place, 0.5 * place.predicted_change, dict.fromkeys(ParamGroup, (0.5, 1.0)), weights)

    def taught(self, backend: Backend, layout: ParamLayout, count: int = 12) -> Corrector:
        """An instance that has seen some residuals."""
        corrector, store = self.prepared(layout)
        for step in range(count):
            residual = self.residual(backend, layout, getattr(corrector, "rank", 0), step)
            store.add(residual)
            corrector.observe(residual)
        return corrector

    def correction(self, corrector: Corrector, backend: Backend, layout: ParamLayout) -> Correction:
        """Its answer in a place that it has not seen."""
        history, prediction = self.played(backend, layout)
        return corrector.correct(prediction, self.situation(777), history, backend.namespace())

    def played(self, backend: Backend, layout: ParamLayout) -> tuple[History, Prediction]:
        """A history and a prediction from it."""
        xp = backend.namespace()
        path = straight_line(layout.total, 12)
        history = synthetic_history(xp, layout, path, protect=backend.protect)
        return history, Prediction(history.last_update(), 20.0, 1.0, scale=20.0)

    def test_class_keeps_the_protocol(self) -> None:
        """Name, version, methods and their parameters, and Config."""
        check_class("corrector", type(self.make()), "CorrectorContract")

    def test_without_observations_nothing_is_changed(self, backend: Backend, layout: ParamLayout) -> None:
        """The first correction is neutral, and passes the predicted loss change on."""
        found = self.correction(self.prepared(layout)[0], backend, layout)
        assert found.neutral and found.predicted_change == -0.1

    def test_a_correction_is_sound(self, backend: Backend, layout: ParamLayout) -> None:
        """Scales and gains are finite and not negative; a residual fits the layout."""
        found = self.correction(self.taught(backend, layout), backend, layout)
        for factor in (found.scale, *found.gains.values()):
            assert 0.0 <= factor < math.inf
        assert set(found.gains) <= set(ParamGroup)
        assert math.isfinite(found.predicted_change)
        if found.residual is not None:
            xp = backend.namespace()
            layout.check(found.residual)
            assert all(b.dtype == xp.float32 for b in found.residual)
            assert all(np.isfinite(backend.to_numpy(b)).all() for b in found.residual)

    def test_f30_finite_for_losses_of_any_size(self, layout: ParamLayout) -> None:
        """Losses from 1e-3 to 1e3 in any order, changes of either sign, numbers that are not finite."""
        backend = Backend.NUMPY
        corrector, store = self.prepared(layout)
        history, prediction = self.played(backend, layout)
        rng = np.random.default_rng(0)
        bad = (math.nan, math.inf, -math.inf, 0.0)
        for step in range(400):
            loss = float(10.0 ** rng.uniform(-3.0, 3.0))
            place = self.situation(step, loss=loss, change=float(rng.normal() * 10.0 ** rng.uniform(-3, 3)))
            if step % 7 == 0:
                place = attrs.evolve(place, predicted_change=bad[step % 4], loss=bad[(step // 7) % 4])
            realised = float(rng.normal() * 10.0 ** rng.uniform(-3.0, 3.0)) if step % 5 else bad[step % 3]
            square = float(10.0 ** rng.uniform(-12.0, 12.0)) if step % 11 else bad[step % 4]
            groups = {g: (float(rng.normal()) * square, square) for g in ParamGroup}
            residual = Residual(place, realised, groups)
            store.add(residual)
            corrector.observe(residual)
            asked = self.situation(5, loss=loss, change=-0.1 * loss)
            found = corrector.correct(prediction, asked, history, backend.namespace())
            for factor in (found.scale, found.predicted_change, *found.gains.values()):
                assert math.isfinite(factor) and abs(factor) <= max(10.0, 4.0 * loss)

    def test_history_and_prediction_are_not_written_to(self, backend: Backend, layout: ParamLayout) -> None:
        """Every array is after `correct` what it was before."""
        corrector = self.taught(backend, layout)
        history, prediction = self.played(backend, layout)
        seen = [*history.window_means, prediction.deltas]
        before = [_numbers(b, backend) for b in seen]
        corrector.correct(prediction, self.situation(3), history, backend.namespace())
        for old, buckets in zip(before, seen, strict=True):
            np.testing.assert_array_equal(old, _numbers(buckets, backend))

    def test_state_round_trip(self, backend: Backend, layout: ParamLayout) -> None:
        """A new instance with the old one's state and store corrects alike, now and after one more."""
        corrector = self.taught(backend, layout)
        heir, store = self.prepared(layout)
        for step in range(12):
            store.add(self.residual(backend, layout, 0, step))
        heir.load_state_dict(copy.deepcopy(corrector.state_dict()))
        one_more = self.residual(backend, layout, getattr(corrector, "rank", 0), 50)
        for _ in range(2):
            a, b = (self.correction(c, backend, layout) for c in (corrector, heir))
            assert _plain(a, backend) == _plain(b, backend)
            corrector.observe(one_more)
            heir.observe(one_more)

    def test_reset_forgets(self, backend: Backend, layout: ParamLayout) -> None:
        """After `reset`, a used instance changes nothing."""
        corrector = self.taught(backend, layout)
        corrector.reset(layout, ResidualStore(5))
        assert self.correction(corrector, backend, layout).neutral


def _numbers(buckets: Buckets, backend: Backend) -> NDArray[np.float64]:
    return np.concatenate([backend.to_numpy(b) for b in buckets])


def _plain(correction: Correction, backend: Backend) -> tuple[Any, ...]:
    residual = correction.residual
    values = None if residual is None else _numbers(residual, backend).tobytes()
    return correction.scale, dict(correction.gains), values, correction.predicted_change

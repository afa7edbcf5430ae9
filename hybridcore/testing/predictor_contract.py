"""Tests that every predictor passes; subclass `PredictorContract` in a test module of your own."""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from hybridcore.config import HistoryConfig
from hybridcore.history import NEEDS, History
from hybridcore.layout import Buckets, ParamLayout
from hybridcore.plugin_checks import check_class
from hybridcore.protocols import MeasuringPredictor, Prediction, Predictor
from hybridcore.testing.backends import Backend
from hybridcore.testing.trajectories import curve, layout_of_two_buckets, straight_line, synthetic_history

__all__ = ["PredictorContract"]


class PredictorContract:
    """Each sentence of the `Predictor` protocol as a test, on trajectories with a known continuation.

    Subclass it, name the subclass ``Test...``, and write `make`; every test runs on each installed array
    namespace.

    Attributes:
        predicts: Whether the predictor ever becomes ready.
        steps: Real steps after which it must be ready.
        chooses_length: Whether the predictor decides on its own how far to go, so that the horizon it states
            may differ from the one asked for; negative for a change that goes back.
        exact_on_straight_line: Whether a trajectory of constant steps is continued exactly; leave False for
            predictors that average, damp or do not predict.

    Example:
        >>> from hybridcore.predictors.last_update import LastUpdate
        >>> class TestLastUpdate(PredictorContract):
        ...     exact_on_straight_line = True
        ...     def make(self):
        ...         return LastUpdate()
    """

    predicts: ClassVar[bool] = True
    steps: ClassVar[int] = 40
    chooses_length: ClassVar[bool] = False
    exact_on_straight_line: ClassVar[bool] = False

    def make(self) -> Predictor:
        """A new instance of the predictor under test."""
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

    def prepared(self, layout: ParamLayout, seed: int = 3) -> Predictor:
        """A new instance, reset with a seed."""
        predictor = self.make()
        predictor.reset(layout, np.random.default_rng(seed))
        return predictor

    def show(
        self, predictor: Predictor, backend: Backend, layout: ParamLayout, path: list[NDArray[np.float32]]
    ) -> History:
        """Play a trajectory to the predictor; the history that results keeps just what it needs."""
        wanted = max(3, getattr(predictor, "windows", 0))
        return synthetic_history(
            backend.namespace(),
            layout,
            path,
            config=HistoryConfig(window=4, windows=wanted),
            needs=predictor.needs,
            observe=predictor.observe,
            protect=backend.protect,
        )

    def predicted(
        self, backend: Backend, layout: ParamLayout, *, horizon: float = 5.0, straight: bool = False
    ) -> tuple[Predictor, History, Prediction]:
        """A predictor after `steps` real steps, its history and its prediction."""
        if not self.predicts:
            pytest.skip("this predictor never predicts")
        path = (straight_line if straight else curve)(layout.total, self.steps)
        predictor = self.prepared(layout)
        history = self.show(predictor, backend, layout, path)
        return predictor, history, predictor.predict(history, horizon, backend.namespace())

    def change(self, prediction: Prediction, backend: Backend) -> NDArray[np.float64]:
        """The whole proposed change, shape (layout.total,), in float64."""
        return np.concatenate([backend.to_numpy(b) for b in prediction.deltas]) * prediction.scale

    def test_class_keeps_the_protocol(self) -> None:
        """Name, version, methods and their parameters, needs and Config."""
        predictor = self.make()
        check_class("predictor", type(predictor), "PredictorContract")
        assert predictor.needs <= NEEDS

    def test_not_ready_without_history(self, backend: Backend, layout: ParamLayout) -> None:
        """Nothing can be predicted before the first real step."""
        predictor = self.prepared(layout)
        history = self.show(predictor, backend, layout, straight_line(layout.total, 0))
        assert not predictor.ready(history)

    def test_ready_after_enough_steps(self, backend: Backend, layout: ParamLayout) -> None:
        """Ready after `steps` real steps, or never where `predicts` is False."""
        predictor = self.prepared(layout)
        history = self.show(predictor, backend, layout, curve(layout.total, self.steps))
        assert predictor.ready(history) is self.predicts

    def test_deltas_fit_the_layout(self, backend: Backend, layout: ParamLayout) -> None:
        """Float32 buckets of the layout's sizes, finite, of the namespace of the history."""
        _, _, prediction = self.predicted(backend, layout)
        xp = backend.namespace()
        layout.check(prediction.deltas)
        assert all(b.dtype == xp.float32 for b in prediction.deltas)
        expected = type(xp.zeros(1))
        assert all(isinstance(b, expected) for b in prediction.deltas)
        assert math.isfinite(prediction.scale)
        assert np.isfinite(self.change(prediction, backend)).all()

    def test_statement_is_sound(self, backend: Backend, layout: ParamLayout) -> None:
        """Confidence lies in [0, 1], the horizon is sound, a predicted loss is finite."""
        for straight in (False, True):
            _, _, prediction = self.predicted(backend, layout, horizon=7.0, straight=straight)
            assert 0.0 <= prediction.confidence <= 1.0
            assert math.isfinite(prediction.horizon)
            assert self.chooses_length or prediction.horizon == 7.0
            assert prediction.predicted_loss is None or math.isfinite(prediction.predicted_loss)

    def test_history_is_not_written_to(self, backend: Backend, layout: ParamLayout) -> None:
        """All arrays of the history hold the same numbers after `ready` and `predict` as before."""
        if not self.predicts:
            pytest.skip("this predictor never predicts")
        predictor = self.prepared(layout)
        history = self.show(predictor, backend, layout, curve(layout.total, self.steps))
        before = _numbers(history, backend)
        assert before
        predictor.ready(history)
        predictor.predict(history, 5.0, backend.namespace())
        for old, new in zip(before, _numbers(history, backend), strict=True):
            np.testing.assert_array_equal(old, new)

    def test_measuring_leaves_the_history_alone(self, backend: Backend, layout: ParamLayout) -> None:
        """`predict_with` measures changes that fit, writes to nothing, and gives a change that fits."""
        predictor, history, _ = self.predicted(backend, layout)
        if not isinstance(predictor, MeasuringPredictor):
            pytest.skip("this predictor does not measure")
        before = _numbers(history, backend)
        start = np.concatenate([backend.to_numpy(b) for b in history.current()])

        def measure(change: Buckets) -> float:
            layout.check(change)
            moved = start + np.concatenate([backend.to_numpy(b) for b in change])
            return 0.5 * float(moved @ moved)

        prediction = predictor.predict_with(history, 5.0, backend.namespace(), measure)
        layout.check(prediction.deltas)
        assert 0.0 <= prediction.confidence <= 1.0
        moved = start + self.change(prediction, backend)
        assert moved @ moved < start @ start
        for old, new in zip(before, _numbers(history, backend), strict=True):
            np.testing.assert_array_equal(old, new)

    def test_same_seed_gives_the_same_prediction(self, backend: Backend, layout: ParamLayout) -> None:
        """Two instances with the same seed and trajectory agree bit for bit (F72)."""
        first, second = (self.predicted(backend, layout)[2] for _ in range(2))
        np.testing.assert_array_equal(self.change(first, backend), self.change(second, backend))
        assert (first.confidence, first.predicted_loss) == (second.confidence, second.predicted_loss)

    def test_state_round_trip(self, backend: Backend, layout: ParamLayout) -> None:
        """A new instance with the old one's state makes the same next prediction, whatever its seed."""
        predictor, history, _ = self.predicted(backend, layout)
        state = copy.deepcopy(predictor.state_dict())
        heir = self.prepared(layout, seed=99)
        heir.load_state_dict(state)
        xp = backend.namespace()
        assert heir.ready(history)
        expected, got = predictor.predict(history, 5.0, xp), heir.predict(history, 5.0, xp)
        np.testing.assert_array_equal(self.change(got, backend), self.change(expected, backend))
        assert (got.confidence, got.predicted_loss) == (expected.confidence, expected.predicted_loss)

    def test_reset_forgets(self, backend: Backend, layout: ParamLayout) -> None:
        """After `reset`, a used instance predicts what a new one would."""
        used, _, _ = self.predicted(backend, layout, straight=True)
        used.reset(layout, np.random.default_rng(3))
        history = self.show(used, backend, layout, curve(layout.total, self.steps))
        prediction = used.predict(history, 5.0, backend.namespace())
        _, _, expected = self.predicted(backend, layout)
        np.testing.assert_array_equal(self.change(prediction, backend), self.change(expected, backend))
        assert prediction.confidence == expected.confidence

    def test_constant_steps_are_continued(self, backend: Backend, layout: ParamLayout) -> None:
        """On a straight line the change is `horizon` times the constant step."""
        if not self.exact_on_straight_line:
            pytest.skip("exact_on_straight_line is False")
        path = straight_line(layout.total, self.steps)
        step = path[1].astype(np.float64) - path[0]
        for horizon in (1.0, 2.5, 40.0):
            _, _, prediction = self.predicted(backend, layout, horizon=horizon, straight=True)
            np.testing.assert_allclose(self.change(prediction, backend), horizon * step, rtol=1e-5)


def _numbers(history: History, backend: Backend) -> list[NDArray[np.float64]]:
    """Copies of every array that the history lets a predictor see."""
    seen: list[Buckets] = list(history.window_means)
    if history.has_update:
        seen.append(history.last_update())
    state: dict[str, Any] = history.state_dict()
    seen += [value for key in ("sum", "last_end", "displacement") if (value := state[key]) is not None]
    return [backend.to_numpy(b) for buckets in seen for b in buckets]

"""The adapter contract for both solvers, and what is scikit-learn's own."""

from __future__ import annotations

import numpy as np
import pytest
from hybridcore_example_sklearn import SklearnAdapter
from hybridcore_example_sklearn.framework import FRAMEWORK
from sklearn.neural_network import MLPClassifier

from hybridcore.errors import ModelError
from hybridcore.frameworks import detect_framework
from hybridcore.protocols import Framework
from hybridcore.testing import AdapterContract, AdapterFixture


def data(dtype):
    rng = np.random.default_rng(1)
    return [(rng.standard_normal((16, 6)).astype(dtype), rng.integers(0, 3, 16)) for _ in range(4)]


def classifier(dtype=np.float64, width=8, **options):
    model = MLPClassifier((width,), random_state=0, **options)
    return model.partial_fit(*data(dtype)[0], classes=[0, 1, 2])


class Contract(AdapterContract):
    dtype = np.float64
    options: dict[str, object] = {}

    def make(self):
        batches = data(self.dtype)
        adapter = SklearnAdapter(classifier(self.dtype, **self.options))
        x, y = batches[0]

        def weights():
            model = adapter.model
            pairs = (("coefs", model.coefs_), ("intercepts", model.intercepts_))
            return {f"{n}.{i}": np.array(a) for n, arrays in pairs for i, a in enumerate(arrays)}

        return AdapterFixture(
            adapter=adapter,
            batches=batches,
            probe=batches[3],
            nan_batch=(np.full_like(x, np.nan), y),
            bad_batch=(x[:, :2], y),
            n_probe=16,
            weights=weights,
            other=SklearnAdapter(classifier(width=4)),
        )


class TestAdam(Contract):
    options = {"solver": "adam", "learning_rate_init": 0.01}


class TestSgdWithSchedule(Contract):
    dtype = np.float32
    options = {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.1}


def test_a_step_is_the_partial_fit_that_a_loop_of_ones_own_would_make():
    adapter, plain = SklearnAdapter(classifier(solver="sgd")), classifier(solver="sgd")
    for x, y in data(np.float64):
        loss = adapter.train_step((x, y)).loss
        assert loss == plain.partial_fit(x, y).loss_
    for a, b in zip(adapter.model.coefs_, plain.coefs_, strict=True):
        np.testing.assert_array_equal(a, b)


def test_probe_losses_are_those_of_scikit_learn():
    from sklearn.metrics import log_loss

    adapter = SklearnAdapter(classifier())
    x, y = data(np.float64)[2]
    want = log_loss(y, adapter.model.predict_proba(x), labels=[0, 1, 2])
    assert adapter.probe_loss((x, y)).mean() == pytest.approx(want, rel=1e-9)


def test_it_is_a_framework_that_owns_classifiers():
    assert isinstance(FRAMEWORK, Framework)
    assert detect_framework(classifier()) == "sklearn"
    assert not FRAMEWORK.owns(np.zeros(1))


def test_a_classifier_without_weights_is_told():
    with pytest.raises(ModelError, match="partial_fit"):
        SklearnAdapter(MLPClassifier())

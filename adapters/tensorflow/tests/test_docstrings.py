"""The examples in docstrings run."""

from __future__ import annotations

import doctest
import pkgutil
from importlib import import_module

import pytest

import hybridcore_tensorflow

MODULES = [m.name for m in pkgutil.walk_packages(hybridcore_tensorflow.__path__, "hybridcore_tensorflow.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = import_module(name)
    assert module.__doc__
    assert doctest.testmod(module).failed == 0


def test_public_classes_have_examples():
    found = [
        doctest.DocTestFinder().find(getattr(hybridcore_tensorflow, name))
        for name in ("HybridCallback", "TensorFlowAdapter")
    ]
    assert all(any(test.examples for test in tests) for tests in found)

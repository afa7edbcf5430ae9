"""What every test run needs: a plugin that a run dropped is a failure, unless the test expects it (F42)."""

from __future__ import annotations

import gc

import pytest

from hybridcore.containment import Containment


@pytest.fixture(scope="session", autouse=True)
def dropped():
    """What plugins failed, in tests and in fixtures that they share."""
    failed, original = [], Containment.failed

    def note(self, kind, name, method, error, *more):
        if not self._raises and name != "careless":
            failed.append(f"{kind} {name!r} in {method}: {error!r}")
        return original(self, kind, name, method, error, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Containment, "failed", note)
        yield failed


@pytest.fixture(autouse=True)
def no_plugin_is_dropped(request, dropped):
    """Fail a test in which a plugin failed, or in whose fixtures one did.

    ``@pytest.mark.drops_plugins`` expects that; so does the name "careless", for examples in documentation.
    """
    yield
    failed = dropped.copy()
    dropped.clear()
    if request.node.get_closest_marker("drops_plugins") is None:
        assert not failed, "a run dropped plugins"


@pytest.fixture(scope="module", autouse=True)
def imported_once():
    """Set aside what is there when a module of tests begins, so that collecting garbage passes over it.

    Every run begins with a collection, which otherwise walks through all that was ever imported.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def untrained_base(monkeypatch):
    """Fine-tuning tasks start from the first weights of a base, which nobody has trained."""
    from hybridcore.tasks import finetune_gpt, lora_gpt
    from hybridcore.tasks.stdlib_gpt import VOCABULARY, transformer_weights

    def weights(options):
        return transformer_weights(0, VOCABULARY, options.context, options.width, options.depth)

    for module in (finetune_gpt, lora_gpt):
        monkeypatch.setattr(module, "base_weights", weights)

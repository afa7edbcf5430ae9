"""Discovery, registry and framework entry points, on distributions that really lie on ``sys.path``."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from hybridcore import hookspecs
from hybridcore.errors import AdapterNotFoundError, ApiVersionError, PluginError, RecoveryAction
from hybridcore.hookspecs import HOOKS
from hybridcore.plugins import detect_framework, list_frameworks, load_framework, load_registry

Install = Callable[..., Path]

PREDICTOR = """
from hybridcore import hookimpl
from hybridcore.predictors.last_update import LastUpdate

class Mine(LastUpdate):
    name = {name!r}

@hookimpl
def hybridcore_predictors():
    return [Mine]
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution of one module onto ``sys.path``, as pip would lay it out."""
    before = set(sys.modules)

    def put(
        module: str, code: str, *, entry: str | None = None, group: str = "hybridcore", obj: str = ""
    ) -> Path:
        site = tmp_path / module
        info = site / f"dist_{module}-1.5.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(textwrap.dedent(code))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: dist-{module}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{entry or module} = {module}{obj}\n")
        monkeypatch.syspath_prepend(str(site))
        return site

    yield put
    for name in set(sys.modules) - before:
        if name.startswith("plug_"):
            del sys.modules[name]


def test_builtins_come_through_the_same_hooks() -> None:
    registry = load_registry()
    assert {"last-update", "drift", "none", "frozen", "random"} <= set(registry.predictors)
    assert {"threshold", "fixed"} <= set(registry.controllers)
    assert registry.records[0].name == "builtin"
    assert ("predictor", "drift") in registry.records[0].provides
    for kind in ("predictor", "controller", "corrector", "dynamics", "task", "tracker", "kernel"):
        for name in registry.names(kind):
            assert registry.get(kind, name).name == name


def test_every_class_file_of_a_builtin_package_is_registered() -> None:
    registry = load_registry()
    for kind in ("predictor", "controller", "dynamics"):
        package = kind if kind == "dynamics" else f"{kind}s"
        folder = Path(hookspecs.__file__).parent / package
        files = [f for f in folder.glob("*.py") if "api_version: ClassVar" in f.read_text(encoding="utf-8")]
        modules = {f"hybridcore.{package}.{f.stem}" for f in files}
        registered = {registry.get(kind, name).__module__ for name in registry.names(kind)}
        assert modules and modules <= registered


def test_third_party_predictor_is_found_with_its_origin(install: Install) -> None:
    install("plug_good", PREDICTOR.format(name="mine"))
    registry = load_registry()
    assert registry.get("predictor", "mine").__module__ == "plug_good"
    record = next(r for r in registry.records if r.name == "plug_good")
    assert (record.distribution, record.version, record.status) == ("dist-plug_good", "1.5", "loaded")
    assert record.provides == (("predictor", "mine"),)


def test_broken_plugin_warns_and_is_recorded(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    install("plug_broken", "raise RuntimeError('no licence found')")
    with caplog.at_level(logging.WARNING, logger="hybridcore"):
        registry = load_registry()
    record = next(r for r in registry.records if r.name == "plug_broken")
    assert record.status == "broken" and "no licence found" in (record.error or "")
    assert "plug_broken" in caplog.text and "no licence found" in caplog.text
    assert "last-update" in registry.predictors


def test_broken_plugin_is_an_error_if_demanded(install: Install) -> None:
    install("plug_broken", "raise RuntimeError('no licence found')")
    with pytest.raises(PluginError, match="no licence found") as caught:
        load_registry(load=["plug_broken"])
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert "dist-plug_broken 1.5" in str(caught.value)


def test_hook_that_raises_is_broken(install: Install) -> None:
    install(
        "plug_late",
        """
        from hybridcore import hookimpl

        @hookimpl
        def hybridcore_predictors():
            raise OSError("weights file missing")
        """,
    )
    record = next(r for r in load_registry().records if r.name == "plug_late")
    assert record.status == "broken" and "hybridcore_predictors()" in (record.error or "")


def test_duplicate_name_names_both_distributions(install: Install) -> None:
    install("plug_a", PREDICTOR.format(name="same"))
    install("plug_b", PREDICTOR.format(name="same"))
    with pytest.raises(PluginError, match="same predictor 'same'") as caught:
        load_registry()
    assert "dist-plug_a" in str(caught.value) and "dist-plug_b" in str(caught.value)
    assert load_registry(block=["plug_b"]).get("predictor", "same").__module__ == "plug_a"


def test_duplicate_of_a_builtin_is_an_error(install: Install) -> None:
    install("plug_shadow", PREDICTOR.format(name="drift"))
    with pytest.raises(PluginError, match="'drift'") as caught:
        load_registry()
    assert "dist-plug_shadow" in str(caught.value) and "'builtin' of hybridcore" in str(caught.value)


@pytest.mark.parametrize(
    ("mark", "name", "message"),
    [
        ("@hookimpl", "hybridcore_predictor", "did you mean 'hybridcore_predictors'"),
        ("", "hybridcore_predictor", "did you mean 'hybridcore_predictors'"),
        ("", "hybridcore_tasks", "without @hookimpl"),
        ("@hookimpl", "entirely_else", "entirely_else"),
    ],
)
def test_misspelt_hook_is_an_error(install: Install, mark: str, name: str, message: str) -> None:
    install("plug_typo", f"from hybridcore import hookimpl\n{mark}\ndef {name}():\n    return []\n")
    with pytest.raises(PluginError, match=message):
        load_registry()
    assert load_registry(block=["plug_typo"]).names("predictor")


def test_other_api_version_is_rejected_and_explained(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    install("plug_old", PREDICTOR.format(name="old").replace("    name", "    api_version = 0\n    name"))
    registry = load_registry()
    assert "old" not in registry.predictors
    assert next(r for r in registry.records if r.name == "plug_old").status == "rejected"
    for ask in (lambda: registry.get("predictor", "old"), lambda: load_registry(load=["plug_old"])):
        with pytest.raises(ApiVersionError, match="api_version = 0"):
            ask()


def test_missing_methods_are_listed(install: Install) -> None:
    install(
        "plug_thin",
        """
        from hybridcore import hookimpl

        class Thin:
            name, api_version, needs = "thin", 1, frozenset()
            def reset(self, layout, rng): ...
            def observe(self, record): ...

        @hookimpl
        def hybridcore_predictors():
            return [Thin]
        """,
    )
    with pytest.raises(PluginError) as caught:
        load_registry(load=["plug_thin"])
    assert "misses methods: ready, predict, state_dict, load_state_dict" in str(caught.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("name = 'Not Kebab'", "no valid registry name"),
        ("name = None", "no valid registry name"),
        ("name = 'x'; needs = frozenset({'window-meens'})", "did you mean 'window-means'"),
        ("name = 'x'; needs = 'window-means'", "frozenset"),
        ("name = 'x'; needs = 3", "frozenset"),
        ("name = 'x'; Config = dict", "not an attrs class"),
        ("name = 'x'\n    def ready(self): return True", "cannot be called as the protocol says"),
        ("name = 'x'; api_version = '1'", "api_version = '1'"),
    ],
)
def test_ill_formed_class_is_explained(install: Install, body: str, message: str) -> None:
    install("plug_ill", PREDICTOR.replace("name = {name!r}", body))
    with pytest.raises(PluginError, match=message):
        load_registry(load=["plug_ill"])


def test_instance_instead_of_class_is_explained(install: Install) -> None:
    install("plug_inst", PREDICTOR.format(name="mine").replace("[Mine]", "[Mine()]"))
    with pytest.raises(PluginError, match="not a predictor class"):
        load_registry(load=["plug_inst"])


def test_static_and_class_methods_keep_the_protocol(install: Install) -> None:
    body = (
        "name = 'static'\n"
        "    @staticmethod\n    def observe(record): ...\n"
        "    @classmethod\n    def ready(cls, history): return False"
    )
    install("plug_static", PREDICTOR.replace("name = {name!r}", body))
    assert load_registry(load=["plug_static"]).get("predictor", "static").name == "static"


def test_blocked_plugin_is_not_imported(install: Install) -> None:
    install("plug_blocked", "raise RuntimeError('imported')")
    record = next(r for r in load_registry(block=["plug_blocked"]).records if r.name == "plug_blocked")
    assert record.status == "blocked" and "plug_blocked" not in sys.modules
    with pytest.raises(PluginError, match="both demanded and blocked"):
        load_registry(load=["plug_blocked"], block=["plug_blocked"])


def test_demanded_plugin_must_be_installed(install: Install) -> None:
    install("plug_good", PREDICTOR.format(name="mine"))
    with pytest.raises(PluginError, match="did you mean 'plug_good'"):
        load_registry(load=["plug_god"])


def test_unknown_name_suggests_and_lists() -> None:
    with pytest.raises(PluginError) as caught:
        load_registry().get("predictor", "last-updte")
    text = str(caught.value)
    assert "did you mean 'last-update'" in text and "drift" in text and "predictor.name" in text
    assert caught.value.action is RecoveryAction.ABORT
    with pytest.raises(PluginError, match="did you mean 'predictor'"):
        load_registry().get("predictors", "drift")


def test_unknown_name_tells_of_broken_plugins(install: Install) -> None:
    install("plug_broken", "raise RuntimeError('no')")
    with pytest.raises(PluginError, match=r"plug_broken \(broken\)"):
        load_registry().get("predictor", "zzz")


def _fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_import_and_listing_import_no_framework_and_no_plugin(install: Install) -> None:
    site = install("plug_seen", "raise RuntimeError('imported')")
    code = f"""
import sys
sys.path.insert(0, {str(site)!r})
import hybridcore.plugins
names = [e.name for e in hybridcore.plugins.list_frameworks()]
heavy = ("torch", "tensorflow", "jax", "hybridcore_torch", "hybridcore.reference", "plug_seen")
print("numpy" in names, [m for m in heavy if m in sys.modules])
"""
    assert _fresh(code) == "True []"


def test_list_frameworks_names_distribution_and_value() -> None:
    entries = {e.name: e for e in list_frameworks()}
    assert entries["numpy"].value == "hybridcore.reference:FRAMEWORK"
    assert entries["numpy"].distribution == "hybridcore"
    for name in entries.keys() - {"numpy"}:
        assert entries[name].distribution == f"hybridcore-{name}"


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("jax", "pip install hybridcore-jax"),
        ("tensorflow", r"pip install 'hybridcore-tensorflow\[cpu\]'"),
        ("numppy", "did you mean 'numpy'"),
    ],
)
def test_missing_adapter_names_the_command(name: str, fix: str) -> None:
    with pytest.raises(AdapterNotFoundError, match=fix):
        load_framework(name)


FRAMEWORK = """
class _Framework:
    name = {name!r}
    api_version = {version}
    def owns(self, model): return type(model).__name__ == "Net"
    def build(self, problem, device): ...
    def versions(self): return {{}}
    def devices(self): return ()
FRAMEWORK = _Framework()
class Net: ...
"""


def test_framework_is_loaded_and_detected(install: Install) -> None:
    code = FRAMEWORK.format(name="plug_fw", version=1)
    install("plug_fw", code, group="hybridcore.adapters", obj=":FRAMEWORK")
    framework = load_framework("plug_fw")
    import plug_fw

    assert framework is plug_fw.FRAMEWORK
    assert detect_framework(plug_fw.Net()) == "plug_fw"
    with pytest.raises(AdapterNotFoundError, match="model"):
        detect_framework(object())


def test_detection_names_the_adapter_to_install() -> None:
    model = type("Model", (), {"__module__": "flax.nnx"})()
    with pytest.raises(AdapterNotFoundError, match="pip install hybridcore-jax"):
        detect_framework(model)


def test_detection_looks_at_the_model_and_not_at_what_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", ModuleType("jax"))
    with pytest.raises(AdapterNotFoundError, match="no framework"):
        detect_framework(type("Model", (), {"__module__": "mine"})())


def test_faulty_frameworks_are_explained(install: Install) -> None:
    group = "hybridcore.adapters"
    install("plug_v9", FRAMEWORK.format(name="plug_v9", version=9), group=group, obj=":FRAMEWORK")
    install("plug_misnamed", FRAMEWORK.format(name="other", version=1), group=group, obj=":FRAMEWORK")
    install("plug_raises", "raise ImportError('libcuda')", group=group, obj=":FRAMEWORK")
    install("plug_twin", FRAMEWORK.format(name="plug_v9", version=1), entry="plug_raises", group=group)
    with pytest.raises(ApiVersionError, match="pip install --upgrade hybridcore"):
        load_framework("plug_v9")
    with pytest.raises(PluginError, match="Framework protocol"):
        load_framework("plug_misnamed")
    with pytest.raises(PluginError, match=r"dist-plug_raises 1\.5 and dist-plug_twin 1\.5"):
        load_framework("plug_raises")


def test_framework_that_cannot_be_imported_is_explained(install: Install) -> None:
    install("plug_raises", "raise ImportError('libcuda')", group="hybridcore.adapters", obj=":FRAMEWORK")
    with pytest.raises(PluginError, match="libcuda"):
        load_framework("plug_raises")


def test_every_hook_is_specified_and_documented() -> None:
    specified = {n for n, f in vars(hookspecs).items() if n.startswith("hybridcore_") and callable(f)}
    assert specified == set(HOOKS)
    page = (Path(__file__).parents[1] / "docs/reference/plugins.md").read_text()
    for name in specified:
        doc = getattr(hookspecs, name).__doc__
        assert doc and "\n" not in doc.strip() and doc.endswith(".")
        assert f"`{name}()`" in page, f"{name} is not documented"

"""F54: no input makes a reader do anything but succeed or raise a typed error; what fuzzing has found."""

from __future__ import annotations

import hashlib
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridcore.checkpoint.codec import Decoder
from hybridcore.checkpoint.files import Contents, read, verify, write
from hybridcore.configfile import apply_overrides, config_from_dict, load_config
from hybridcore.correction import storefile
from hybridcore.errors import CheckpointError, ConfigError, HybridCoreError, MetricsError, StoreError
from hybridcore.injection import parse_faults
from hybridcore.records import read_run
from hybridcore.state import FEATURE_NAMES

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.fuzz import SHARES, Session
from benchmarks.fuzzing.guard import FindingError, Guard
from benchmarks.fuzzing.targets import TARGETS, sealed


@pytest.fixture(scope="module")
def sessions(tmp_path_factory):
    made = {}
    for name in TARGETS:
        made[name] = Session(name, tmp_path_factory.mktemp(name), runs=10**9)
        made[name].warm_up()
    return made


def test_every_target_has_its_share():
    assert set(TARGETS) <= set(SHARES) and sum(SHARES.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_inputs_give_data_or_a_typed_error(sessions, name):
    session = sessions[name]

    @settings(max_examples=40 if name == "configuration" else 150, deadline=None)
    @given(st.integers(0, 2**64), st.integers(1, 6))
    def check(seed, times):
        rng = random.Random(seed)
        data = rng.choice(session.target.seeds)
        for _ in range(times):
            data = session.target.mutate(data, rng)
        session.once(data)
        assert not session.findings, data

    check()


@pytest.mark.parametrize("name", TARGETS)
def test_random_bytes_give_data_or_a_typed_error(sessions, name):
    session = sessions[name]

    @settings(max_examples=60, deadline=None)
    @given(st.binary(max_size=200))
    def check(data):
        session.once(data)
        assert not session.findings, data

    check()


def touch(path):
    path.write_text("")


@pytest.mark.parametrize(
    "deed",
    [
        lambda folder: touch(folder / "new"),
        lambda folder: (folder.parent / "outside").read_text(),
        lambda folder: (folder / "old").unlink(),
        lambda folder: (folder / "old").rename(folder / "other"),
        lambda folder: (folder / "made").mkdir(),
        lambda folder: __import__("os").system("true"),
        lambda folder: __import__("subprocess").run(["true"]),
        lambda folder: __import__("socket").socket(),
        lambda folder: __import__("pickle").loads(b"cos\nsystem\n."),
        lambda folder: exec("1"),
        lambda folder: __import__("this"),
        lambda folder: 1 / 0,
        lambda folder: [0] * 10**12,
        lambda folder: (lambda f: f(f))(lambda f: f(f)),
    ],
)
def test_the_guard_sees(guard, deed):
    """A guard that finds nothing would make every test above worthless."""
    with pytest.raises(FindingError):
        guard[0].run(lambda: deed(guard[1]))
    assert not (guard[1] / "new").exists() and (guard[1] / "old").exists()


@pytest.fixture
def guard(tmp_path):
    import socket  # noqa: F401
    import subprocess  # noqa: F401

    folder = tmp_path / "inside"
    folder.mkdir()
    touch(folder / "old")
    touch(tmp_path / "outside")
    return Guard(folder), folder


def test_the_guard_sees_endless_work_and_lets_sound_reading_pass(tmp_path):
    touch(tmp_path / "file")
    guard = Guard(tmp_path, seconds=0.05)

    def forever():
        while True:
            pass

    def refuse():
        raise ConfigError([], source="here")

    with pytest.raises(FindingError, match="seconds"):
        guard.run(forever)
    assert guard.run(lambda: (tmp_path / "file").read_text()) is True
    assert guard.run(refuse) is False


# What fuzzing has found, each once.


def one(tmp_path, **entry):
    """A checkpoint whose manifest has a right seal and says this of one file."""
    folder = tmp_path / "one"
    write(Contents(1, 1, {}, {"dict": {}}, {"0": np.zeros(3)}), folder, "0.1.0")
    content = json.loads((folder / "manifest.json").read_bytes())
    content["files"]["state.json"] |= entry
    (folder / "manifest.json").write_bytes(sealed(json.dumps(content).encode()))
    return folder


@pytest.mark.parametrize("checksum", [None, 3, False, [1]])
@pytest.mark.parametrize("reader", [read, verify])
def test_a_checksum_that_is_no_text(tmp_path, checksum, reader):
    with pytest.raises(CheckpointError, match="damaged"):
        reader(one(tmp_path, sha256=checksum))


@pytest.mark.parametrize("nbytes", [2**31, 2**62, 10**30])
def test_a_size_that_no_file_has_asks_for_no_memory(tmp_path, nbytes, monkeypatch):
    asked = []
    folder = one(tmp_path, nbytes=nbytes)
    opened = Path.open

    def watched(path, *arguments, **named):
        file = opened(path, *arguments, **named)

        class Watched:
            fileno = staticmethod(file.fileno)
            __enter__ = staticmethod(lambda: Watched)
            __exit__ = staticmethod(lambda *_: file.close())

            @staticmethod
            def read(size=-1):
                asked.append(size)
                return file.read(size)

        return Watched()

    monkeypatch.setattr(Path, "open", watched)
    with pytest.raises(CheckpointError, match="not what was written"):
        read(folder)
    assert len(asked) == 3 and max(asked) < 10_000


@pytest.mark.parametrize(
    "name", ["2", "f4,f4", "(2,3)f4", "O", "S9", "<f4", "datetime64[ns]", "object", None, [1]]
)
def test_a_dtype_is_one_of_a_list_and_never_parsed(name):
    with pytest.raises(CheckpointError):
        Decoder({}).decode({"scalar": [name, 1]})


def test_a_scalar_beyond_its_dtype_is_infinite_without_a_warning(recwarn):
    assert Decoder({}).decode({"scalar": ["float32", 1e308]}) == np.inf
    assert not recwarn.list


@pytest.mark.parametrize(
    "text",
    ["a = " + "[" * 3000 + "]" * 3000, "a." * 500 + "b = 1", "x = " + "{y = " * 300 + "1" + "}" * 300],
    ids=["arrays", "keys", "tables"],
)
def test_deep_toml_is_a_typed_error(tmp_path, text):
    (tmp_path / "deep.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"nested too deeply"):
        load_config(tmp_path / "deep.toml")


def test_a_number_of_thousands_of_digits_in_toml_is_a_typed_error(tmp_path):
    (tmp_path / "long.toml").write_text("[run]\nsteps = " + "9" * 5000)
    with pytest.raises(ConfigError):
        load_config(tmp_path / "long.toml")


@pytest.mark.parametrize("item", ["a." * 2000 + "b=1", "run.steps=" + "9" * 5000, "run.steps=" + "[" * 5000])
def test_deep_or_long_overrides_are_typed_errors(item):
    with pytest.raises(ConfigError):
        config_from_dict(apply_overrides({}, [item]))


@pytest.mark.parametrize("plan", ["nan@" + "9" * 5000, "nan@5x" + "9" * 5000])
def test_a_fault_at_an_endless_step(plan):
    with pytest.raises(ConfigError, match="no fault"):
        parse_faults(plan)


START = '{"event":"run-start","schema":1,"seed":%s}\n'
EVALUATION = '{"event":"evaluation","step":%s,"cost":1,"elapsed":1.0,"backward_passes":1,"loss":%s}\n'


@pytest.mark.parametrize(
    "text",
    [
        START % '"one"',
        START % "null",
        START % 1 + EVALUATION % ('"3"', 0.5),
        START % 1 + EVALUATION % ("null", 0.5),
        START % 1 + EVALUATION % (3, '{"a":1}'),
        START % 1 + EVALUATION % (3, "1e999"),
        START % 1 + EVALUATION % (3, "9" * 400),
        START % 1 + EVALUATION % (3, "true"),
        START % 1 + '{"a":' * 5000 + "\n" + EVALUATION % (3, 0.5),
        START % 1 + "9" * 5000 + "\n" + EVALUATION % (3, 0.5),
    ],
    ids=range(10),
)
def test_a_damaged_record_names_its_line(tmp_path, text):
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(MetricsError, match="damaged at line"):
        read_run(tmp_path)


@pytest.mark.parametrize("name", ["../secret", "..", "/etc/passwd", "residuals-1.safetensors", 3, None])
def test_a_store_of_residuals_opens_no_file_but_its_own(tmp_path, name):
    folder = tmp_path / "store"
    storefile.write(folder, [])
    content = next(folder.glob("residuals-*.safetensors")).read_bytes()
    (tmp_path / "secret").write_bytes(content)
    header = json.loads((folder / storefile.HEADER).read_text())
    assert storefile.read(folder) == []
    header |= {"arrays": name, "sha256": hashlib.sha256(content).hexdigest()}
    (folder / storefile.HEADER).write_text(json.dumps(header))
    with pytest.raises(StoreError):
        storefile.read(folder)
    assert len(header["features"]) == len(FEATURE_NAMES)


def test_every_refusal_is_one_of_the_project():
    assert issubclass(CheckpointError, HybridCoreError) and issubclass(StoreError, HybridCoreError)

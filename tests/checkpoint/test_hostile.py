"""F54: a damaged or hostile checkpoint is a typed error; nothing is run, nothing is written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from checkpoint_lab import SETUPS, build, feed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hybridcore.checkpoint.codec import Decoder, Encoder
from hybridcore.checkpoint.files import Contents, read, verify, write
from hybridcore.checkpoint.manifest import FORMAT, Manifest
from hybridcore.checkpoint.store import CheckpointStore
from hybridcore.errors import CheckpointError

FILES = ("arrays.safetensors", "state.json", "manifest.json")


def contents(batches=1):
    arrays = {"0": np.arange(40, dtype=np.float32), "1": np.array(3.5)}
    tree = {"dict": {"a": {"array": ["0"]}, "b": {"float": "nan"}, "c": {"tuple": [1, {"array": ["1"]}]}}}
    return Contents(batches, batches, {"arm": "hybrid"}, tree, arrays)


@pytest.fixture
def folder(tmp_path):
    return CheckpointStore(tmp_path / "store").write(contents())


def resealed(folder, **changes):
    """Rewrite the manifest with right checksums, as somebody who knows the format would."""
    text = json.loads((folder / "manifest.json").read_text())
    text.pop("sha256")
    for name in ("arrays.safetensors", "state.json"):
        content = (folder / name).read_bytes()
        text["files"][name] = {"nbytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    text.update(changes)
    seal = hashlib.sha256(json.dumps(text, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps({**text, "sha256": seal}))


def refused(folder, match=None):
    with pytest.raises(CheckpointError, match=match) as caught:
        found = read(folder)
        Decoder(found.arrays).decode(found.tree)
    assert caught.value.where is not None
    return caught.value


def test_a_sound_one_is_read(folder):
    assert verify(folder).batches == 1
    found = read(folder)
    state = Decoder(found.arrays).decode(found.tree)
    assert state["a"].tolist() == list(range(40)) and state["b"] != state["b"] and state["c"] == (1, 3.5)


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_found(folder, name):
    path = folder / name
    whole = path.read_bytes()
    for place in range(0, 8 * len(whole), 7):
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(bytes(changed))
        try:
            found = Manifest.parse(path.read_bytes(), "m") if name == FILES[2] else verify(folder)
        except CheckpointError:
            continue
        path.write_bytes(whole)
        assert name == FILES[2] and found == Manifest.parse(whole, "m"), "only white space may change"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_refused(folder, name, share):
    path = folder / name
    os.truncate(path, int(share * path.stat().st_size))
    refused(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(folder, name):
    (folder / name).unlink()
    refused(folder)


def as_nobody(action):
    """What `action` raises where files may be forbidden: the name of the error, or "none"."""
    hear, say = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.seteuid(65534)  # root may read everything
            action()
            os.write(say, b"none")
        except BaseException as error:
            os.write(say, type(error).__name__.encode() + b" " + str(error).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(say)
    return os.read(hear, 1000).decode()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_files_and_folders_that_may_not_be_read_are_typed_errors():
    with tempfile.TemporaryDirectory() as name:  # where every user may look
        Path(name).chmod(0o755)
        store = CheckpointStore(Path(name) / "store")
        folder = store.write(contents())
        for path in folder.iterdir():
            path.chmod(0o644)
        assert as_nobody(lambda: verify(folder)) == "none"
        (folder / "state.json").chmod(0)
        for reader in (verify, read):
            found = as_nobody(lambda reader=reader: reader(folder))
            assert found.startswith("CheckpointError state.json of a checkpoint cannot be read: Permission")
        store.folder.chmod(0)
        found = as_nobody(store.paths)
        assert found.startswith("CheckpointError the folder of the checkpoints cannot be read: Permission")
        store.folder.chmod(0o755)


def test_a_newer_format_names_the_upgrade(folder):
    resealed(folder, format=FORMAT + 1)
    assert "pip install --upgrade hybridcore" in str(refused(folder, "another format"))


def test_links_are_not_followed(folder, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes((folder / "state.json").read_bytes())
    (folder / "state.json").unlink()
    (folder / "state.json").symlink_to(secret)
    refused(folder, "no plain file")
    (tmp_path / "store" / "batch-000000002").symlink_to(folder)
    assert CheckpointStore(tmp_path / "store").paths() == [folder]


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "state.json/../x", "a\0b"])
def test_names_that_lead_elsewhere_are_refused(folder, name):
    entry = {"nbytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    resealed(folder, files={name: entry, "state.json": entry})
    refused(folder)


@pytest.mark.parametrize(
    "text",
    [
        b"NaN",
        b'{"dict": {"a": Infinity}}',
        b"[" * 100_000 + b"]" * 100_000,
        b'{"tuple": [' * 70 + b"]}" * 70,
        b'{"dict": ' * 5000 + b"1" + b"}" * 5000,
        b"1" * 5000,
        b"\xff\xfe",
        b'{"object": ["Popen", {"args": ["touch", "pwned"]}]}',
        b'{"object": ["Trial", {"__class__": 1}]}',
        b'{"enum": ["Phase", "nonsense"]}',
        b'{"scalar": ["object", 1]}',
        b'{"scalar": ["O", {"float": "nan"}]}',
        b'{"array": ["9"]}',
        b'{"device": ["0", "float32", ""]}',
        b'{"snapshot": [0, {}, null]}',
        b'{"set": [[1]]}',
        b'{"dict": {"a": 1}, "b": 2}',
        b'{"float": "1e400"}',
        b'{"eval": "1"}',
    ],
    ids=range(19),
)
def test_hostile_state_is_refused(folder, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / "state.json").write_bytes(text)
    resealed(folder)
    refused(folder)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "content",
    [
        (2**63).to_bytes(8, "little") + b"{}",
        (10**9).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (0).to_bytes(8, "little"),
        b"",
        b"PK\x03\x04" + b"0" * 60,
        pickle.dumps(print),
    ],
    ids=range(7),
)
def test_hostile_arrays_are_refused(folder, content):
    (folder / "arrays.safetensors").write_bytes(content)
    resealed(folder)
    refused(folder)


def test_pickled_arrays_cannot_be_written():
    with pytest.raises(CheckpointError, match="cannot hold"):
        Encoder().encode({"a": np.array([print], dtype=object)})
    with pytest.raises(CheckpointError, match=r"state.a\[1\]"):
        Encoder().encode({"a": [1, print]})


def test_nothing_on_the_way_reads_pickle():
    sources = Path(__file__).parents[2].glob("hybridcore/checkpoint/*.py")
    text = "".join(path.read_text() for path in sources)
    for word in ("import pickle", "allow_pickle", "eval(", "exec(", "torch.load", "np.load", "__import__"):
        assert word not in text


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_random_bytes_are_refused(folder, content):
    for name in FILES:
        (folder / name).write_bytes(content)
        with pytest.raises(CheckpointError):
            read(folder)
    (folder / "state.json").write_bytes(content)


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=4), inner, max_size=4),
        st.dictionaries(st.integers(), inner, max_size=3),
    ),
    max_leaves=20,
)


@settings(max_examples=120, deadline=None)
@given(TREES)
def test_any_plain_tree_comes_back(value):
    encoder = Encoder()
    text = json.dumps(encoder.encode(value), allow_nan=False)
    back = Decoder(encoder.arrays).decode(json.loads(text))
    assert repr(back) == repr(value)


KEYS = ("float", "tuple", "set", "dict", "pairs", "counter", "deque", "enum", "scalar", "array", "device")
NODES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["0", "Trial", "Phase", "nan", "float32"]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(st.sampled_from([*KEYS, "object", "snapshot"]), inner).map(lambda p: dict([p])),
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(NODES)
def test_random_trees_give_data_or_a_typed_error(node):
    with contextlib.suppress(CheckpointError):
        Decoder({"0": np.zeros(3)}, lambda arrays, data: ("snapshot", data)).decode(node)


@pytest.mark.parametrize("field", ["key", "dtype", "device"])
def test_a_place_of_an_array_is_text_alone(field):
    """Fuzzing found a tensor as a dtype, whose printing in the refusal made PyTorch import modules."""
    node = {"object": ["ArrayRef", {"key": "0", field: {"tuple": [{"array": ["0"]}]}}]}
    with pytest.raises(CheckpointError, match=f"{field} is a tuple, and no text"):
        Decoder({"0": np.zeros(3)}).decode(node)


def test_aliases_stay_aliases_and_arrays_are_copies():
    one = np.arange(3.0)
    encoder = Encoder()
    tree = encoder.encode({"a": one, "b": [one]})
    one += 1
    back = Decoder(encoder.arrays).decode(tree)
    assert back["a"] is back["b"][0] and back["a"].tolist() == [0.0, 1.0, 2.0]
    back["a"] += 1  # writable, and no view of what was read
    assert encoder.arrays["0"].tolist() == [0.0, 1.0, 2.0]


def test_a_checkpoint_holds_no_more_than_its_run(tmp_path):
    setup = SETUPS["jumps"]
    engine, _, batches = build(setup)
    feed(engine, setup, batches, 0, 60)
    encoder = Encoder(engine.adapter.snapshot_state, engine.adapter.xp)
    tree = encoder.encode(engine.state_dict())
    write(Contents(60, 60, {}, tree, encoder.arrays), tmp_path / "one", "0")
    weights = engine.adapter.layout.total
    # Float64 weights and velocity: now, in the trial's snapshot and in two good states; a few windows.
    assert sum(a.nbytes for a in encoder.arrays.values()) < 8 * 2 * 4 * weights + 4 * 12 * weights + 2**15
    assert {p.name for p in (tmp_path / "one").iterdir()} == set(FILES)

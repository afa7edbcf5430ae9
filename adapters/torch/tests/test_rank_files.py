"""Checkpoints of many processes: no pickle is read, and hostile files are a typed error (F54)."""

from __future__ import annotations

import hashlib
import json
import pickle
import sys
from pathlib import Path

import attrs
import pytest
import torch
from rank_lab import Lab, squared_error
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hybridcore.errors import CheckpointError, SnapshotError
from hybridcore.protocols import ArrayRef
from hybridcore_torch import TorchAdapter
from hybridcore_torch.rank_checkpoints import RankCheckpoints, load_weights
from hybridcore_torch.rank_files import read_state, verified

NAME = "shard-00001-model-00001-of-00001.safetensors"
OPENED: list[str] = []
WATCHING: list[bool] = []


def watch(event: str, arguments: tuple[object, ...]) -> None:
    if WATCHING and (event == "open" or event.startswith("pickle.")):
        OPENED.append(f"{event} {arguments[0]}")


sys.addaudithook(watch)


class Bomb:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.fixture
def written(tmp_path: Path) -> tuple[Lab, Path]:
    lab = Lab()
    hybrid = lab.hybrid(lab.model())
    for index in range(5):
        hybrid.step(lab.batch(index))
    assert RankCheckpoints(hybrid, tmp_path / "store").save(5)
    return lab, tmp_path / "store" / "batch-000000005"


def rewrite(folder: Path, change, about=None) -> None:
    """Change the tensors, then give the manifest the right checksums, as one who knows the format would."""
    path = folder / NAME
    with safe_open(path, "pt") as file:
        known = dict(file.metadata())
    tensors = load_file(path)
    change(tensors)
    offsets = json.loads(known["DCP_SHARDING_INFO"])
    (about or (lambda _: None))(offsets)
    save_file(tensors, path, {**known, "DCP_SHARDING_INFO": json.dumps(offsets)})
    content = json.loads((folder / "manifest.json").read_text())
    content.pop("sha256"), content.pop("format")
    data = path.read_bytes()
    content["files"] = {NAME: {"nbytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    (folder / "manifest.json").write_bytes(sealed(content))


def sealed(content: dict[str, object]) -> bytes:
    content = {"format": 1, **content}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return json.dumps({**content, "sha256": hashlib.sha256(canonical.encode()).hexdigest()}).encode()


def test_no_pickle_is_read_not_even_where_the_library_would_look(written, tmp_path):
    lab, folder = written
    for name in (".metadata", ".rank0_metadata", "metadata.pkl", "model.safetensors.index.json"):
        (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "run")))
    (folder / "__0_0.distcp").write_bytes(pickle.dumps(Bomb(tmp_path / "run")))
    hybrid, model = lab.hybrid(lab.model()), lab.model()
    WATCHING.append(True)
    try:
        assert RankCheckpoints(hybrid, folder.parent).resume() == 5
        load_weights(folder, model)
    finally:
        WATCHING.clear()
    inside = {Path(line.split()[1]).name for line in OPENED if str(folder) in line}
    assert inside <= {"manifest.json", NAME} and "manifest.json" in inside
    assert not any(line.startswith("pickle.") for line in OPENED)
    assert not (tmp_path / "run").exists()


def test_a_file_that_the_manifest_does_not_know_is_refused(written):
    lab, folder = written
    save_file({"weights.0.weight": torch.zeros(9, 6)}, folder / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="does not know"):
        load_weights(folder, lab.model())
    with pytest.raises(CheckpointError, match="no checkpoint of this run is left"):
        RankCheckpoints(lab.hybrid(lab.model()), folder.parent).resume()


@pytest.mark.parametrize("name", ["_inductor", "load", "meta", "lazy", "cuda:99", "", "x" * 5000])
@pytest.mark.parametrize("kind", ["dtype", "device"])
def test_names_in_a_snapshot_import_nothing(kind, name):
    """Fuzzing found that an attribute or a device that PyTorch does not have yet makes it import modules."""
    model = torch.nn.Linear(3, 2)
    adapter = TorchAdapter(model, torch.optim.SGD(model.parameters(), lr=0.1), squared_error)
    arrays, data = adapter.snapshot_state(adapter.snapshot())
    known = set(sys.modules)
    first, *rest = data["params"]
    assert isinstance(first, ArrayRef)
    data["params"] = [attrs.evolve(first, **{kind: name}), *rest]
    with pytest.raises(SnapshotError, match="put together"):
        adapter.snapshot_from_state(arrays, data)
    assert set(sys.modules) == known


@pytest.mark.parametrize("offset", [[10**12], [-3], ["x"], None, [2**70], [1, 2, 3]], ids=str)
def test_places_that_lie_ask_for_no_memory(written, offset):
    _, folder = written
    rewrite(folder, lambda tensors: None, lambda places: places["all.tree"].update(saved_offsets=offset))
    verified(folder)
    with pytest.raises(CheckpointError, match="damaged"):
        read_state(folder, 0)


def test_a_tree_that_is_missing_or_of_another_dtype_is_refused(written):
    lab, folder = written
    rewrite(folder, lambda tensors: tensors.pop("all.tree"))
    with pytest.raises(CheckpointError, match="damaged"):
        read_state(folder, 0)
    rewrite(
        folder,
        lambda tensors: tensors.update({"all.tree": torch.zeros(3, dtype=torch.bfloat16)}),
        lambda places: places.update({"all.tree": {"saved_offsets": [0]}}),
    )
    with pytest.raises(CheckpointError, match="damaged"):
        read_state(folder, 0)
    assert RankCheckpoints(lab.hybrid(lab.model()), folder.parent / "other").resume() == 0


def test_weights_of_another_shape_or_name_are_refused(written):
    lab, folder = written
    with pytest.raises(CheckpointError, match="not what is asked for"):
        load_weights(folder, torch.nn.Linear(6, 3))
    with pytest.raises(CheckpointError, match="not what is asked for"):
        load_weights(folder, torch.nn.Sequential(torch.nn.Linear(6, 8)))
    assert lab.rank == 0

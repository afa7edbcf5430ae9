"""A missing TensorFlow, or Keras on another backend, is told with the command that mends it."""

from __future__ import annotations

from importlib.util import find_spec

from hybridcore.errors import AdapterNotFoundError, ModelError

__all__ = ["INSTALL", "require_keras_backend", "require_tensorflow"]

INSTALL = "pip install 'hybridcore-tensorflow[cpu]', or 'hybridcore-tensorflow[gpu]' for NVIDIA GPUs"


def require_tensorflow() -> None:
    """Make sure that TensorFlow is installed, without importing it.

    Raises:
        AdapterNotFoundError: It is not.
    """
    if find_spec("tensorflow") is None:
        raise AdapterNotFoundError(
            "TensorFlow is not installed",
            where="hybridcore_tensorflow",
            got="no package tensorflow",
            expected="tensorflow-cpu or tensorflow, 2.18 or newer",
            fix=INSTALL,
        )


def require_keras_backend() -> None:
    """Make sure that Keras computes with TensorFlow.

    Raises:
        ModelError: It runs on another backend, whose variables this adapter cannot reach.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ModelError(
            "Keras does not run on TensorFlow",
            where="keras.backend",
            got=keras.backend.backend(),
            expected="tensorflow",
            fix="set the environment variable KERAS_BACKEND=tensorflow before keras is imported, or use "
            "hybridcore_torch.integrations.keras or hybridcore_jax.keras_callback",
        )

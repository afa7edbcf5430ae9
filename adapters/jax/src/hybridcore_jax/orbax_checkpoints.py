"""Checkpoints whose sharded arrays are written and read shard by shard, through orbax (F53, F71)."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from hybridcore.checkpoint.codec import Decoder, Encoder
from hybridcore.checkpoint.files import entries, verify
from hybridcore.checkpoint.manifest import Manifest, parse_json
from hybridcore.checkpoint.together import SharedCheckpoints
from hybridcore.errors import CheckpointError
from hybridcore.protocols import ArrayRef
from hybridcore_jax.checkpoints import is_key, rebuild, to_plain
from hybridcore_jax.hybrid import Hybrid
from hybridcore_jax.snapshot import JaxSnapshot

__all__ = ["OrbaxCheckpoints"]

_STATE = "orbax"
_NAMES = re.compile(rf"(state|arrays)-\d{{5}}\.(json|safetensors)|{_STATE}(/\w[\w.-]*){{1,5}}", re.ASCII)
"""No segment of a name begins with a dot, so that none leads elsewhere."""


class OrbaxCheckpoints(SharedCheckpoints):
    """Writes and reads checkpoints of one run on many devices; every process must make every call.

    The train state of each snapshot (parameters, optimizer, random keys) goes through orbax: every process
    writes the shards that it holds, and reads those that it needs, into the shardings of the live state. What
    the engine knows besides is JSON and safetensors, once where it is the same on all processes. A manifest
    with checksums covers all files; nothing is read before they are right, and nothing is a pickle.

    A checkpoint that cannot be written costs the run a warning. Reading passes over damaged ones.

    Args:
        hybrid: The run.
        folder: Where to; all processes must see the same one. Made with the first checkpoint.
        every: Batches between checkpoints.
        keep: Checkpoints kept; the oldest go.

    Attributes:
        extra: What the host gave to `after_batch` beside the run, as `resume` found it.

    Raises:
        CheckpointError: orbax is not installed.

    Example:
        >>> import tempfile, jax.numpy as jnp, optax
        >>> from hybridcore_jax import hybridize
        >>> loss_fn = lambda params, batch: (batch[0] @ params["w"] - batch[1]) ** 2
        >>> hybrid = hybridize({"w": jnp.zeros(2)}, optax.sgd(0.1), loss_fn=loss_fn, learning_rate=0.1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoints = OrbaxCheckpoints(hybrid, folder, every=5)
        ...     for done in range(checkpoints.resume(), 7):
        ...         loss = hybrid.step((jnp.ones((4, 2)), jnp.ones(4)))
        ...         checkpoints.after_batch(done + 1)
        ...     checkpoints.resume()
        5
    """

    failures = (SafetensorError,)

    def __init__(self, hybrid: Hybrid, folder: str | Path, *, every: int = 100, keep: int = 2) -> None:
        self._orbax = _library()
        self._adapter = hybrid.adapter
        self._many = jax.process_count() > 1
        super().__init__(
            hybrid,
            Path(folder).absolute(),
            every=every,
            keep=keep,
            rank=jax.process_index(),
            processes=jax.process_count(),
        )

    def _pack(self, state: dict[str, Any]) -> Callable[[Path], None]:
        leaves = _Leaves(self._many)
        encoder = Encoder(leaves.take_apart, self._adapter.xp)
        tree = encoder.encode(state)
        text = json.dumps({"leaves": leaves.known(), "tree": tree}, separators=(",", ":"), allow_nan=False)
        packed = safetensors.save(encoder.arrays)
        digests = self._of_all(hashlib.sha256(text.encode() + packed).digest())

        def write(folder: Path) -> None:
            for kind, content in (("state", text.encode()), ("arrays", packed)):
                if self._rank == 0 or digests[0] != digests[self._rank]:
                    (folder / _name(kind, self._rank)).write_bytes(content)
            self._checkpointer().save(folder / _STATE, args=self._orbax.args.StandardSave(leaves.arrays))

        return write

    def _verified(self, path: Path) -> Manifest:
        manifest = verify(path, _NAMES)
        strange = sorted(set(entries(path)) - {"manifest.json"} - set(manifest.files))
        if strange:
            raise CheckpointError(
                "a checkpoint holds files that its manifest does not know",
                where=str(path),
                got=strange[:5],
                expected=f"{len(manifest.files)} files",
                fix="remove them, or use an older checkpoint",
            )
        return manifest

    def _read(self, path: Path) -> dict[str, Any]:
        rank = self._rank if (path / _name("state", self._rank)).exists() else 0
        state = parse_json((path / _name("state", rank)).read_bytes(), str(path))
        arrays = safetensors.load((path / _name("arrays", rank)).read_bytes())
        live_state = self._adapter.snapshot().state
        live = jax.tree.leaves(live_state)
        wanted = {}
        for key, (index, shape, dtype) in state["leaves"].items():
            sharding = getattr(live[index], "sharding", None)
            wanted[key] = jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype), sharding=sharding)
        found = self._checkpointer().restore(path / _STATE, args=self._orbax.args.StandardRestore(wanted))

        def build(held: Mapping[str, NDArray[Any]], data: Any) -> JaxSnapshot:
            return rebuild(held, data, self._adapter.layout, live_state, found)

        decoder = Decoder(arrays, build, self._adapter.xp, self._adapter.read_params())
        decoded: dict[str, Any] = decoder.decode(state["tree"])
        return decoded

    def _checkpointer(self) -> Any:
        return self._orbax.Checkpointer(self._orbax.StandardCheckpointHandler())

    def _of_all(self, content: bytes) -> list[bytes]:
        """Equally long bytes of all processes."""
        if not self._many:
            return [content]
        from jax.experimental import multihost_utils

        rows = multihost_utils.process_allgather(np.frombuffer(content, dtype=np.uint8))
        return [bytes(row) for row in np.asarray(rows, dtype=np.uint8)]

    def _from_first(self, value: Any) -> Any:
        if not self._many:
            return value
        text = json.dumps(value).encode()
        longest = max(int.from_bytes(size, "big") for size in self._of_all(len(text).to_bytes(8, "big")))
        return json.loads(self._of_all(text.ljust(longest))[0])

    def _everywhere(self, well: bool) -> bool:
        return all(answer == b"\1" for answer in self._of_all(bytes([well])))


class _Leaves:
    """Collects the arrays of snapshots for orbax, each once, however many snapshots hold it."""

    def __init__(self, many: bool) -> None:
        self._many = many
        self.arrays: dict[str, jax.Array] = {}
        self._seen: dict[int, tuple[str, Any]] = {}
        self._places: dict[str, list[Any]] = {}

    def take_apart(self, snapshot: JaxSnapshot) -> tuple[dict[str, NDArray[Any]], Any]:
        """What of a snapshot does not go through orbax, and where each leaf is."""
        held: dict[str, NDArray[Any]] = {}
        leaves: list[Any] = []
        for index, leaf in enumerate(jax.tree.leaves(snapshot.state)):
            if isinstance(leaf, jax.Array) and not (self._many and leaf.is_fully_addressable):
                leaves.append(["orbax", self._key(index, leaf), str(leaf.dtype)])
            elif isinstance(leaf, jax.Array | np.ndarray):
                key = str(len(held))
                held[key] = to_plain(leaf)
                leaves.append(ArrayRef(key, str(leaf.dtype)))
            else:
                leaves.append(leaf)
        return held, {"leaves": leaves, "updates": snapshot.updates, "factor": snapshot.factor}

    def _key(self, index: int, leaf: jax.Array) -> str:
        if id(leaf) not in self._seen:
            key = f"leaf-{len(self.arrays):06d}"
            plain = jax.random.key_data(leaf) if is_key(leaf) else leaf
            self.arrays[key], self._seen[id(leaf)] = plain, (key, leaf)
            self._places[key] = [index, list(plain.shape), str(plain.dtype)]
        return self._seen[id(leaf)][0]

    def known(self) -> dict[str, list[Any]]:
        """Place in the train state, shape and dtype of each array, by its key."""
        return self._places


def _name(kind: str, rank: int) -> str:
    return f"{kind}-{rank:05d}.{'json' if kind == 'state' else 'safetensors'}"


def _library() -> Any:
    try:
        return importlib.import_module("orbax.checkpoint")
    except ImportError as error:
        raise CheckpointError(
            "sharded checkpoints need orbax",
            where="hybridcore_jax.orbax_checkpoints",
            got=str(error),
            expected="the library orbax-checkpoint",
            fix="pip install 'hybridcore-jax[orbax]'",
        ) from error

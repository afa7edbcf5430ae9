"""Everything that hybridcore reads, one target per format, each with sound inputs to begin with."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from safetensors import numpy as safetensors

from benchmarks.fuzzing import mutations
from hybridcore import reference, sweep
from hybridcore.checkpoint.codec import Decoder, Encoder
from hybridcore.checkpoint.files import Contents, read, verify, write
from hybridcore.checkpoint.manifest import Manifest, parse_json
from hybridcore.configfile import (
    apply_overrides,
    config_from_dict,
    dump_config,
    load_config,
    preset_names,
    preset_text,
)
from hybridcore.correction import storefile
from hybridcore.events import Event
from hybridcore.injection import parse_faults
from hybridcore.metrics import SCHEMA, MetricsWriter
from hybridcore.protocols import OptimizerSpec, Phase, Residual, Situation
from hybridcore.records import AVERAGED, READ_OUT, curve_of, read_run
from hybridcore.state import FEATURE_NAMES

__all__ = ["TARGETS", "Target"]

ARRAYS = {"0": np.arange(40, dtype=np.float32), "1": np.array(3.5)}
TREE = {"dict": {"a": {"array": ["0"]}, "b": {"float": "nan"}, "c": {"tuple": [1, {"array": ["1"]}]}}}
_SPLIT = b"\n--8<--\n"


class Target:
    """A reader.

    Args:
        folder: The only place that it may read.

    Attributes:
        seeds: Sound inputs, each accepted.
        mutate: Makes another input of one.
        longest: Bytes that no input exceeds.
    """

    seeds: list[bytes]
    mutate: mutations.Mutation
    longest: int = 1 << 14

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, data: bytes) -> None:
        """Make the input ready; not watched."""
        self.data = data

    def read(self) -> None:
        """Read it; watched."""
        raise NotImplementedError


class ManifestFile(Target):
    """``manifest.json`` with a right seal, as somebody who knows the format would write it."""

    mutate = staticmethod(mutations.json_bytes)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "one")
        write(Contents(1, 1, {"arm": "hybrid", "config": {"a": [1, 2]}}, TREE, ARRAYS), self.folder, "0.1.0")
        self.seeds = [(self.folder / "manifest.json").read_bytes()]

    def put(self, data: bytes) -> None:
        self.data = data
        (self.folder / "manifest.json").write_bytes(sealed(data))

    def read(self) -> None:
        try:
            Manifest.parse(self.data, "manifest.json")
        finally:
            try:
                verify(self.folder)
            finally:
                read(self.folder)


class StateFile(Target):
    """``state.json``: the tree, decoded with the classes and snapshots of the NumPy adapter."""

    mutate = staticmethod(mutations.json_bytes)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._adapter = self.adapter()
        encoder = Encoder(self._adapter.snapshot_state, self._adapter.xp)
        situation = Situation(3, np.zeros(len(FEATURE_NAMES)), "drift", 4.0, 0.5, -0.1)
        state = {
            "phase": Phase.FULL,
            "residual": Residual(situation, -0.05, {}, None),
            "loss": float("nan"),
            "seen": {1, 2},
            "pairs": {1: "a", 2: ("b",)},
            "scalar": np.float32(1.5),
            "bucket": self._adapter.read_params(),
        }
        tree = encoder.encode(state)
        tree["dict"]["snapshot"] = encoder.snapshot(self._adapter.snapshot())
        self._arrays = encoder.arrays
        self.seeds = [json.dumps(tree).encode(), json.dumps(TREE).encode()]

    def adapter(self) -> Any:
        """Whose snapshots are read."""
        return reference.ReferenceAdapter(
            reference.SoftmaxRegression(),
            {"weight": np.zeros((2, 3)), "bias": np.zeros(2)},
            OptimizerSpec("adam", 0.1),
        )

    def read(self) -> None:
        adapter = self._adapter
        tree = parse_json(self.data, "state.json")
        Decoder(self._arrays, adapter.snapshot_from_state, adapter.xp, adapter.read_params()).decode(tree)


class ArraysFile(Target):
    """``arrays.safetensors`` whose checksum is right."""

    mutate = staticmethod(mutations.safetensors_bytes)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "one")
        write(Contents(1, 1, {}, TREE, ARRAYS), self.folder, "0.1.0")
        self._manifest = json.loads((self.folder / "manifest.json").read_bytes())
        self.seeds = [(self.folder / "arrays.safetensors").read_bytes()]

    def put(self, data: bytes) -> None:
        (self.folder / "arrays.safetensors").write_bytes(data)
        entry = {"nbytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        self._manifest["files"]["arrays.safetensors"] = entry
        (self.folder / "manifest.json").write_bytes(sealed(json.dumps(self._manifest).encode()))

    def read(self) -> None:
        found = read(self.folder)
        Decoder(found.arrays).decode(found.tree)


class Configuration(Target):
    """A TOML file; its reader is written in Python and takes its time over long ones: most are one table."""

    mutate = staticmethod(mutations.toml_bytes)
    longest = 1 << 12

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._file = folder / "hybrid.toml"
        small = (
            b'[run]\nsteps = 30\n[task]\nname = "logistic"\nlearning_rate = 0.5\n[predictor]\nname = "drift"'
        )
        self.seeds = [small, *(preset_text(name).encode() for name in preset_names())]
        whole = dump_config(config_from_dict({}))
        self.seeds += [whole.encode(), *(f"[{table}".encode() for table in f"\n{whole}".split("\n[")[1:])] * 2

    def put(self, data: bytes) -> None:
        self._file.write_bytes(data)

    def read(self) -> None:
        load_config(self._file)


class Overrides(Target):
    """Settings of a command line, one per line."""

    mutate = staticmethod(mutations.plain_bytes)
    seeds = [
        b'run.steps=10\npredictor.name=drift\ntask.a.b=[1, 2]\nphases.predict_mode="jump"',
        b"run.steps = 3",
    ]

    def read(self) -> None:
        config_from_dict(apply_overrides({}, self.data.decode("utf-8", "replace").split("\n")))


class MetricsFile(Target):
    """A record of a run, and what reports compute from it."""

    mutate = staticmethod(mutations.json_lines)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._file = folder / "metrics.jsonl"
        evaluation = {"step": 1, "cost": 1.0, "elapsed": 0.5, "backward_passes": 1, "loss": 0.5}
        with MetricsWriter(self._file) as writer:
            writer(Event.RUN_START, {"schema": SCHEMA, "arm": "hybrid", "seed": 1, "config": {"a": {}}})
            writer(
                Event.EVALUATION,
                {**evaluation, "accuracy": 0.5, "averaged_loss": 0.4, "averaged_elapsed": 1.0},
            )
            writer(Event.REAL_STEP, {"step": 1, "loss": float("nan")})
            writer(Event.EVALUATION, {**evaluation, "step": 2, "cost": 2.0, "loss": 0.3, "accuracy": None})
            writer(Event.RUN_END, {"real_steps": 2, "final_loss": 0.3})
        self.seeds = [self._file.read_bytes()]

    def put(self, data: bytes) -> None:
        self._file.write_bytes(data)

    def read(self) -> None:
        record = read_run(self._file)
        _ = record.arm, record.seed, record.final_loss
        record.time_to_loss(0.4)
        curve_of(record.evaluations, AVERAGED)
        curve_of(record.evaluations, READ_OUT)


class FaultPlan(Target):
    """The plan of ``--inject``."""

    mutate = staticmethod(mutations.plain_bytes)
    seeds = [b"nan@500,poison@900x5:20", b"lr@300x4:50", b"weights@3, predictor@2x3:nan"]

    def read(self) -> None:
        parse_faults(self.data.decode("utf-8", "replace"))


class ResidualStore(Target):
    """A store of residuals: header and arrays, with a right checksum."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        situation = Situation(3, np.zeros(len(FEATURE_NAMES)), "drift", 4.0, 0.5, -0.1)
        header, arrays = storefile.pack([Residual(situation, -0.05, {}, None)] * 2)
        header["arrays"] = "residuals-0123456789abcdef.safetensors"
        self.seeds = [json.dumps(header).encode() + _SPLIT + safetensors.save(arrays)]

    @staticmethod
    def mutate(data: bytes, rng: random.Random) -> bytes:
        header, _, arrays = data.partition(_SPLIT)
        if rng.random() < 0.6:
            header = mutations.json_bytes(header, rng)
        else:
            arrays = mutations.safetensors_bytes(arrays, rng)
        return header + _SPLIT + arrays

    def put(self, data: bytes) -> None:
        header, _, arrays = data.partition(_SPLIT)
        (self.folder / "residuals-0123456789abcdef.safetensors").write_bytes(arrays)
        try:
            content = json.loads(header)
            content["sha256"] = hashlib.sha256(arrays).hexdigest()
            header = json.dumps(content).encode()
        except (ValueError, TypeError, RecursionError):
            pass
        (self.folder / storefile.HEADER).write_bytes(header)

    def read(self) -> None:
        storefile.read(self.folder)


class FinishedRun(Target):
    """What a sweep recorded of a finished run."""

    mutate = staticmethod(mutations.json_bytes)
    seeds = [b'{"final_loss": 0.5, "seconds": 1.0, "cost": null, "counts": {"real_steps": 3}, "error": null}']

    def put(self, data: bytes) -> None:
        place = self.folder / "point" / "seed-0"
        place.mkdir(parents=True, exist_ok=True)
        (place / "sweep-run.json").write_bytes(data)

    def read(self) -> None:
        task: Any = SimpleNamespace(point=SimpleNamespace(settings=(), folder="point"), seed=0)
        sweep._finished(task, self.folder)


class Network(Target):
    """A network of the predictor nowcast, or NiNo's, as safetensors."""

    mutate = staticmethod(mutations.safetensors_bytes)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        shipped = (files("hybridcore_nowcast") / "weights" / "nowcast.safetensors").read_bytes()
        arrays = {
            "layer_embed.weight": np.zeros((15, 2), dtype=np.float32),
            "edge_proj.fc.0.weight": np.zeros((2, 5), dtype=np.float32),
            "edge_proj.fc.0.bias": np.zeros(2, dtype=np.float32),
            "edge_mlp.fc.0.weight": np.zeros((2, 2), dtype=np.float32),
            "edge_mlp.fc.0.bias": np.zeros(2, dtype=np.float32),
            "edge_mlp.fc.2.weight": np.zeros((4, 2), dtype=np.float32),
            "edge_mlp.fc.2.bias": np.zeros(4, dtype=np.float32),
        }
        about = {"model_args": '{"ctx": 5, "seq_len": 4}'}
        self.seeds = [safetensors.save(arrays), safetensors.save(arrays, about), shipped]

    def put(self, data: bytes) -> None:
        (self.folder / "network.safetensors").write_bytes(data)

    def read(self) -> None:
        from hybridcore_nowcast.checkpoints import load_network

        load_network(str(self.folder / "network.safetensors"))


def sealed(text: bytes) -> bytes:
    """A manifest with the checksum that belongs to it; other text as it is."""
    try:
        content = json.loads(text)
        content.pop("sha256", None)
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return json.dumps({**content, "sha256": hashlib.sha256(canonical.encode()).hexdigest()}).encode()
    except (ValueError, AttributeError, TypeError, RecursionError):
        return text


def _ranked(name: str) -> Callable[[Path], Target]:
    def make(folder: Path) -> Target:
        module = import_module("benchmarks.fuzzing.rank_targets")  # it imports this one
        target: Target = getattr(module, name)(folder)
        return target

    return make


TARGETS: dict[str, Callable[[Path], Target]] = {
    "manifest": ManifestFile,
    "state": StateFile,
    "arrays": ArraysFile,
    "configuration": Configuration,
    "overrides": Overrides,
    "metrics": MetricsFile,
    "faults": FaultPlan,
    "residuals": ResidualStore,
    "sweep": FinishedRun,
    **({"network": Network} if find_spec("hybridcore_nowcast") else {}),
    "rank-manifest": _ranked("RankManifest"),
    **(
        {"shards": _ranked("Shards"), "torch-state": _ranked("TorchState")}
        if find_spec("hybridcore_torch")
        else {}
    ),
}

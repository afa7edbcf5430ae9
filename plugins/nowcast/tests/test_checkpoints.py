"""F85: files that hold a network, files that do not, and NiNo's format against an independent forward."""

from __future__ import annotations

import json
import pickle
import sys
from importlib.resources import files
from pathlib import Path

import array_api_compat.numpy as xp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hybridcore.layout import ParamGroup, ParamLayout
from hybridcore_nowcast.checkpoints import load_network
from hybridcore_nowcast.errors import CheckpointError
from hybridcore_nowcast.network import FORMAT
from hybridcore_nowcast.wnn_plus import WnnPlus, edge_type

sys.path.insert(0, str(Path(__file__).parent))
from nino_file import displacement, state

SHIPPED = files("hybridcore_nowcast") / "weights" / "nowcast.safetensors"


def test_the_shipped_network_is_small() -> None:
    assert len(SHIPPED.read_bytes()) < 200_000
    assert load_network().snapshots == 5


def spec(name: str, shape: tuple[int, ...], group: ParamGroup | None = None):
    return ParamLayout.plan([(name, shape, "float32", "cpu", group)]).params[0]


def snapshots(size: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal(size) + 0.1 * np.cumsum(rng.standard_normal((5, size)), axis=0)
    return rows.astype(np.float32)


KINDS = [
    (("layers.0.weight", (6, 4), None), 1),
    (("layers.0.bias", (6,), None), 2),
    (("conv.weight", (4, 3, 3, 3), None), 3),
    (("norm.weight", (6,), None), 4),
    (("token_embedding.weight", (8, 4), ParamGroup.EMBEDDING), 5),
    (("position_embedding.weight", (8, 4), ParamGroup.EMBEDDING), 6),
    (("transformer.wpe.weight", (8, 4), None), 6),
    (("self_attn.q_proj.weight", (4, 4), None), 7),
    (("attention.key.weight", (4, 4), None), 8),
    (("self_attn.v_proj.weight", (4, 4), None), 9),
    (("attention.qkv.weight", (12, 4), None), 1),
]


@pytest.mark.parametrize(("row", "kind"), KINDS, ids=lambda value: str(value))
def test_kinds_of_parameters(row, kind: int) -> None:
    assert edge_type(spec(*row)) == kind


@pytest.mark.parametrize(("windows", "ahead"), [(0.2, 1), (1.0, 1), (12.4, 12), (40.0, 40), (90.0, 40)])
def test_nino_format_equals_an_independent_forward(tmp_path: Path, windows: float, ahead: int) -> None:
    arrays = state()
    save_file(arrays, tmp_path / "nino.safetensors", metadata={"model_args": json.dumps({"gnn": False})})
    network = load_network(str(tmp_path / "nino.safetensors"))
    assert isinstance(network, WnnPlus) and (network.snapshots, network.furthest) == (5, 40.0)
    for (name, shape, group), kind in KINDS:
        one = spec(name, shape, group)
        path = snapshots(one.size)
        moved = network.bind(one, list(path), windows, xp, 5)
        got = np.concatenate([moved(slice(i, min(i + 5, one.size))) for i in range(0, one.size, 5)])
        expected = displacement(arrays, path, kind, ahead)
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5)


def test_nino_format_from_torch_with_its_own_layers(tmp_path: Path) -> None:
    """The file is made by `torch.save` from torch modules, whose own forward is the truth."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    nn, hidden = torch.nn, 32
    embed, project = nn.Embedding(15, hidden), nn.Linear(5, hidden)
    layers = []
    for _ in range(3):
        layers += [nn.Linear(hidden, hidden), nn.SiLU()]
    mlp = nn.Sequential(*layers, nn.Linear(hidden, 40))
    content = {f"layer_embed.{k}": v for k, v in embed.state_dict().items()}
    content |= {f"edge_proj.fc.0.{k}": v for k, v in project.state_dict().items()}
    content |= {f"edge_mlp.fc.{k}": v for k, v in mlp.state_dict().items()}
    torch.save({"state_dict": content, "model_args": {"gnn": False, "hid": hidden}}, tmp_path / "a.pt")
    torch.save(content, tmp_path / "b.pt")
    path = snapshots(24)
    x = torch.from_numpy(path.T.copy())
    x = (x - x.mean()) / (x.std() + 1e-6)
    with torch.no_grad():
        out = mlp(project(x) + embed(torch.tensor(1)))[:, 6] * torch.from_numpy(path).std()
    for name in ("a.pt", "b.pt"):
        moved = load_network(str(tmp_path / name)).bind(spec("w.weight", (6, 4)), list(path), 7.0, xp, 100)
        np.testing.assert_allclose(moved(slice(0, 24)), out.numpy(), rtol=1e-4, atol=1e-6)


class Malicious:
    """Unpickling it would make a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "bad.pt").write_bytes(
        pickle.dumps({"state_dict": Malicious(str(tmp_path / "made"))}, protocol=2)
    )
    with pytest.raises(CheckpointError, match="plain weights"):
        load_network(str(tmp_path / "bad.pt"))
    assert not (tmp_path / "made").exists()


def test_a_pt_file_without_torch_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pt").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(CheckpointError, match="needs PyTorch"):
        load_network(str(tmp_path / "a.pt"))


def test_missing_unknown_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_network(str(tmp_path / "none.safetensors"))
    (tmp_path / "a.npz").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="unknown form"):
        load_network(str(tmp_path / "a.npz"))
    (tmp_path / "a.safetensors").write_bytes(b"not a file")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_network(str(tmp_path / "a.safetensors"))
    save_file({"x": np.zeros(2, np.float32)}, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="no network that nowcast knows"):
        load_network(str(tmp_path / "b.safetensors"))
    save_file(load_file(str(SHIPPED)), tmp_path / "c.safetensors", metadata={"format": FORMAT})
    with pytest.raises(CheckpointError, match="how far"):
        load_network(str(tmp_path / "c.safetensors"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gnn.convs.0.weight": np.zeros((2, 2), np.float32)}, "graph network"),
        ({"edge_mlp.fc.2.weight": np.zeros((12, 11), np.float32)}, "fit together"),
        ({"edge_mlp.fc.6.bias": np.zeros(3, np.float32)}, "lacks linear layers"),
        ({"layer_embed.weight": np.zeros((15, 5), np.float32)}, "fit together"),
    ],
)
def test_wrong_nino_files(tmp_path: Path, change, message: str) -> None:
    save_file(state() | change, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_network(str(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("args", [{"gnn": True}, {"act_name": "relu"}, {"scale_method": "min-max"}])
def test_nino_options_that_are_not_applied_are_refused(tmp_path: Path, args) -> None:
    save_file(state(), tmp_path / "a.safetensors", metadata={"model_args": json.dumps(args)})
    with pytest.raises(CheckpointError, match="does not do") as caught:
        load_network(str(tmp_path / "a.safetensors"))
    assert f"model_args.{next(iter(args))}" in str(caught.value)


@pytest.mark.parametrize("arguments", ["1", "[" * 5000, "null"])
def test_f54_damaged_arguments_are_a_typed_error(tmp_path, arguments):
    from safetensors.numpy import save_file

    save_file({"edge_mlp.fc.0.bias": np.zeros(2)}, tmp_path / "n.safetensors", {"model_args": arguments})
    with pytest.raises(CheckpointError):
        load_network(str(tmp_path / "n.safetensors"))

"""F53: PyTorch runs resume bit for bit; weights are exported as PyTorch's users read them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hybridcore.checkpoint.codec import Decoder, Encoder
from hybridcore.checkpoint.engine_state import Moment
from hybridcore.configfile import config_from_dict
from hybridcore.errors import CheckpointError, SnapshotError
from hybridcore.plugins import load_registry
from hybridcore.runner import run_task
from hybridcore.tasks.building import build_task
from hybridcore.testing import without_clock
from hybridcore_torch import TorchAdapter

REGISTRY = load_registry()
RUNS = {
    "adam, cosine schedule, continuous jumps": {
        "task": {"name": "digits-mlp", "optimizer": "adam", "schedule": "cosine", "schedule_steps": 900},
        "controller": {"name": "credit", "credit": {"least_gain": 0.0}},
        "average": {"enabled": True},
    },
    "momentum, shares": {
        "task": {"name": "digits-mlp", "optimizer": "momentum"},
        "predictor": {"name": "drift"},
        "controller": {"name": "threshold", "threshold": {"confidence_threshold": 0.05}},
        "phases": {"warmup_steps": 5, "full_steps": 5, "predict_mode": "step"},
        "history": {"window": 5, "dtype": "bfloat16"},
        "correction": {"name": "gains", "interval": 2},
    },
    "L-BFGS, full batch": {
        "task": {"name": "poisson-pinn", "optimizer": "lbfgs", "points": 64, "width": 8, "depth": 2},
        "predictor": {"name": "last-update"},
    },
}


def config(name, steps=60):
    run = {"steps": steps, "evaluate_every": 30, "framework": "torch"}
    return config_from_dict(
        {"run": run, "checkpoint": {"every": 13, "asynchronous": False}, **json.loads(json.dumps(RUNS[name]))}
    )


def record(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [without_clock(line) for line in lines]


class Stop(BaseException):
    pass


@pytest.mark.parametrize("name", RUNS)
def test_resumed_run_equals_the_uninterrupted_one(name, tmp_path):
    def stop(event, payload):
        if event.value == "real-step" and payload["step"] == 45:
            raise Stop

    torch.manual_seed(0)
    run_task(config(name), out_dir=tmp_path / "whole", registry=REGISTRY)
    torch.manual_seed(0)
    with pytest.raises(Stop):
        run_task(config(name), out_dir=tmp_path / "run", registry=REGISTRY, progress=stop)
    torch.manual_seed(1)
    torch.rand(7)
    run_task(config(name), out_dir=tmp_path / "run", registry=REGISTRY, resume=True)
    assert record(tmp_path / "run") == record(tmp_path / "whole")
    assert any(line["event"] == "jump" for line in record(tmp_path / "run"))
    one, other = (tmp_path / kind / "checkpoints" / "best.safetensors" for kind in ("run", "whole"))
    assert one.read_bytes() == other.read_bytes()


def test_exported_weights_are_a_state_dict(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    model[1].weight = model[0].weight  # tied
    adapter = TorchAdapter(
        model, torch.optim.SGD(model.parameters(), lr=0.1), lambda m, b: m(b).square().mean(1)
    )
    adapter.train_step(torch.randn(8, 4))
    adapter.export_weights(str(tmp_path / "weights.safetensors"))
    loaded = load_file(tmp_path / "weights.safetensors")
    assert loaded.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(loaded[key], value) and loaded[key].dtype is value.dtype


def tree_of(adapter):
    encoder = Encoder(adapter.snapshot_state, adapter.xp)
    return encoder.encode(Moment(adapter.snapshot())), encoder.arrays


def test_bfloat16_weights_and_state_survive():
    torch.manual_seed(0)
    model = nn.Linear(5, 3).to(torch.bfloat16)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    adapter = TorchAdapter(model, optimizer, lambda m, b: m(b).float().square().mean(1))
    for _ in range(3):
        adapter.train_step(torch.randn(8, 5).bfloat16())
    tree, arrays = tree_of(adapter)
    snapshot = Decoder(arrays, adapter.snapshot_from_state).decode(tree).snapshot
    state = optimizer.state[model.weight]
    assert state["exp_avg"].dtype is torch.bfloat16
    assert snapshot.params[0].dtype is torch.bfloat16
    assert torch.equal(snapshot.params[0], model.weight.detach())
    assert torch.equal(snapshot.state[0]["exp_avg"], state["exp_avg"])
    assert snapshot.state[0]["step"].item() == 3.0


def test_every_scheduler_of_pytorch_goes_on():
    lr = torch.optim.lr_scheduler
    kinds = {
        "multi-step": lambda o: lr.MultiStepLR(o, [2, 4], 0.5),
        "lambda": lambda o: lr.LambdaLR(o, lambda step: 1.0 / (1 + step)),
        "one-cycle": lambda o: lr.OneCycleLR(o, 0.5, total_steps=20),
        "sequential": lambda o: lr.SequentialLR(o, [lr.ConstantLR(o), lr.ExponentialLR(o, 0.9)], [3]),
    }
    for name, make in kinds.items():

        def built(make=make):
            torch.manual_seed(0)
            model = nn.Linear(3, 1)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            scheduler = make(optimizer)
            loss = lambda m, b: m(b).square().mean(1)  # noqa: E731
            return TorchAdapter(model, optimizer, loss, scheduler=scheduler), scheduler

        (adapter, schedule), (other, later) = built(), built()
        for _ in range(3):
            adapter.train_step(torch.ones(2, 3))
            schedule.step()
        tree, arrays = tree_of(adapter)
        decoder = Decoder(arrays, other.snapshot_from_state)
        other.restore(decoder.decode(json.loads(json.dumps(tree))).snapshot)
        for _ in range(4):
            for one, steps in ((adapter, schedule), (other, later)):
                one.train_step(torch.ones(2, 3))
                steps.step()
            assert adapter.learning_rate == other.learning_rate, name
        assert torch.equal(adapter.model.weight, other.model.weight), name


@pytest.mark.parametrize("dtype", ["Tensor", "nn", "load", "float31"])
def test_a_hostile_dtype_is_refused(dtype):
    model = nn.Linear(2, 1)
    adapter = TorchAdapter(model, torch.optim.SGD(model.parameters(), lr=0.1), lambda m, b: m(b).mean(1))
    tree, arrays = tree_of(adapter)
    text = json.dumps(tree).replace('"float32"', json.dumps(dtype), 1)
    with pytest.raises((SnapshotError, CheckpointError)):
        Decoder(arrays, adapter.snapshot_from_state).decode(json.loads(text))


def test_streams_of_built_in_tasks_skip_without_making_batches(monkeypatch):
    one, other = (build_task(config("momentum, shares"), REGISTRY).batches for _ in range(2))
    for _ in range(40):
        next(one)
    made = []
    monkeypatch.setattr(other, "_convert", lambda batch: made.append(batch))
    other.skip(40)
    assert not made
    next(other)
    assert torch.equal(torch.as_tensor(made[0][0]), next(one)[0])


def test_a_gradient_scaler_keeps_its_scale():
    def built():
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
        return TorchAdapter(model, optimizer, lambda m, b: m(b).square().mean(1), scaler=scaler), scaler

    (adapter, scaler), (other, later) = built(), built()
    for _ in range(4):
        adapter.train_step(torch.ones(2, 3))
    assert scaler.get_scale() == 2048.0
    tree, arrays = tree_of(adapter)
    other.restore(Decoder(arrays, other.snapshot_from_state).decode(tree).snapshot)
    for one in (adapter, other):
        one.train_step(torch.ones(2, 3))
        one.train_step(torch.ones(2, 3))
    assert scaler.get_scale() == later.get_scale() == 4096.0
    assert torch.equal(adapter.model.weight, other.model.weight)

"""Base models: made once, told apart by what they depend on, never taken over damaged."""

from types import SimpleNamespace

import numpy as np
import pytest

from hybridcore.errors import AdapterNotFoundError, TaskError
from hybridcore.tasks import pretrained
from hybridcore.tasks.corpus import load_corpus, load_manual
from hybridcore.tasks.finetune_gpt import FinetuneGpt
from hybridcore.tasks.lora_gpt import LoraGpt
from hybridcore.tasks.pretrained import base_weights, checksum

SMALL = {"depth": 1, "width": 16, "heads": 2, "max_bytes": 500_000, "pretrain_steps": 3}
OPTIONS = LoraGpt.Config(**SMALL)


@pytest.fixture
def trained(monkeypatch):
    """Counts how often a base is trained, without training it."""
    calls = []

    def train(options, corpus, device):
        calls.append(device)
        return {"a": np.full(4, len(calls), np.float32)}

    monkeypatch.setattr(pretrained, "pretrain", train)
    return calls


def test_a_base_is_trained_once_and_read_back(tmp_path, trained):
    first = base_weights(OPTIONS, "cpu", tmp_path)
    second = base_weights(OPTIONS, "cpu", tmp_path)
    assert trained == ["cpu"]
    assert np.array_equal(first["a"], second["a"])


@pytest.mark.parametrize(
    ("change", "count"),
    [({"pretrain_steps": 4}, 2), ({"width": 32}, 2), ({"learning_rate": 0.5}, 1), ({"rank": 2}, 1)],
)
def test_another_base_is_another_file(tmp_path, trained, change, count):
    base_weights(OPTIONS, "cpu", tmp_path)
    base_weights(LoraGpt.Config(**{**SMALL, **change}), "cpu", tmp_path)
    assert len(trained) == len(list(tmp_path.iterdir())) == count


def test_damaged_weights_are_made_anew(tmp_path, trained, caplog):
    base_weights(OPTIONS, "cpu", tmp_path)
    (path,) = tmp_path.iterdir()
    with np.load(path) as file:
        kept = dict(file)
    kept["a"][0] += 1
    np.savez(path, **kept)
    assert base_weights(OPTIONS, "cpu", tmp_path)["a"][0] == 2
    assert "checksum" in caplog.text
    path.write_bytes(b"PK\x03\x04 cut short")
    assert base_weights(OPTIONS, "cpu", tmp_path)["a"][0] == 3
    assert checksum(base_weights(OPTIONS, "cpu", tmp_path)) == checksum({"a": np.full(4, 3, np.float32)})


def test_the_base_knows_nothing_of_the_manual():
    base = load_corpus(8_000_000, exclude=("pydoc_data",))
    names = [name for part in base.files.values() for name in part]
    assert names
    assert not any("pydoc_data" in name for name in names)
    assert any("pydoc_data" in name for part in load_corpus(80_000_000).files.values() for name in part)


def test_the_manual_is_dealt_by_topic():
    corpus = load_manual({f"t{i:02d}": f"text {i:02d}" for i in range(30)})
    assert corpus.files["probes"] == ("t07", "t17", "t27")
    assert corpus.files["validation"] == ("t05", "t15", "t25")
    assert bytes(corpus.probes) == b"text 07\ntext 17\ntext 27"
    shared = load_manual({f"t{i:02d}": f"own {i:02d}\n\nshared" for i in range(10)})
    assert bytes(shared.validation) == b"own 05\n\nshared"
    assert b"shared" not in bytes(shared.training) + bytes(shared.probes)
    with pytest.raises(TaskError, match="manual"):
        load_manual({"one": "topic"})


def test_the_manual_is_long_and_its_splits_are_disjoint():
    corpus = load_manual()
    assert corpus.training.size > 200_000
    assert min(corpus.probes.size, corpus.validation.size) > 10_000
    names = [set(names) for names in corpus.files.values()]
    texts = [
        {p for p in bytes(part).split(b"\n\n") if len(p) > 40}
        for part in (corpus.training, corpus.probes, corpus.validation)
    ]
    for parts in (names, texts):
        for one, two in ((0, 1), (0, 2), (1, 2)):
            assert not parts[one] & parts[two]


def test_tasks_start_from_the_base(tmp_path, monkeypatch):
    base = {"head.weight": np.ones((256, 16), np.float32)}
    for module in ("finetune_gpt", "lora_gpt"):
        monkeypatch.setattr(f"hybridcore.tasks.{module}.base_weights", lambda options: base)
    full = FinetuneGpt(FinetuneGpt.Config(**SMALL)).problem(seed=1)
    assert full.weights is base
    problems = [LoraGpt(LoraGpt.Config(**SMALL, rank=2)).problem(seed) for seed in (1, 1, 2)]
    first, again, other = (p.weights["blocks.0.mlp.down.lora_a"] for p in problems)
    assert first.shape == (2, 64)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert all(not w.any() for name, w in problems[0].weights.items() if name.endswith("lora_b"))
    assert sum(name.endswith(("lora_a", "lora_b")) for name in problems[0].weights) == 8


def test_the_base_is_the_weights_after_the_last_step(monkeypatch):
    """The recipe asks the framework for so many steps, and takes what the adapter then holds."""
    steps = []

    class Adapter:
        xp = np
        layout = SimpleNamespace(unpack=lambda buckets, xp: {"w": buckets[0]})

        def train_step(self, batch):
            steps.append(batch[0].shape)

        def read_params(self):
            return (np.full(2, len(steps), np.float64),)

    class Framework:
        def build(self, problem, device):
            assert (problem.optimizer.total_steps, device) == (3, "cpu")
            return SimpleNamespace(
                adapter=Adapter(), batches=problem.batches(), schedule_step=None, evaluate=lambda: {"loss": 1}
            )

    monkeypatch.setattr("hybridcore.plugins.load_framework", {"torch": Framework()}.__getitem__)
    config = LoraGpt.Config(**SMALL, batch_size=5)
    weights = pretrained.pretrain(config, load_corpus(500_000), "cpu")
    assert steps == [(16, 64)] * 3
    assert weights["w"].dtype == np.float32
    assert weights["w"].tolist() == [3.0, 3.0]


def test_the_first_framework_installed_trains_the_base(monkeypatch):
    """Without PyTorch another one does; without any the error names one to install."""
    asked = []

    def installed(*names):
        def load(name):
            asked.append(name)
            if name not in names:
                raise AdapterNotFoundError("no adapter", where=name)
            return name

        return load

    for names, found in ((("torch", "jax"), "torch"), (("jax", "tensorflow"), "jax")):
        monkeypatch.setattr("hybridcore.plugins.load_framework", installed(*names))
        assert pretrained._trainer() == found
    monkeypatch.setattr("hybridcore.plugins.load_framework", installed())
    asked.clear()
    with pytest.raises(AdapterNotFoundError):
        pretrained._trainer()
    assert asked == ["torch", "jax", "tensorflow"]

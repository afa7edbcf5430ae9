"""The large language models of the prediction benchmark: sizes, shared models, rows; at a tiny size."""

from __future__ import annotations

import importlib
import time
from pathlib import Path

import attrs
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("hybridcore_torch")


@pytest.fixture
def load(monkeypatch):
    """Function that imports a module of the benchmarks."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def large(load, monkeypatch, tmp_path):
    module = load("large_gpt")
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path)
    module.base_of.cache_clear()
    yield module
    module.base_of.cache_clear()
    module._models.clear()


def test_the_models_have_as_many_weights_as_they_are_called_after(large):
    from hybridcore_torch.models.transformer import Transformer

    for name, millions in (("10m", 10.9), ("124m", 126.2)):
        options = large.SIZES[name].options("scratch")
        with torch.device("meta"):
            model = Transformer(**options.shape)
        width, depth, context = options.width, options.depth, options.context
        blocks = depth * (12 * width**2 + 13 * width)
        assert sum(p.numel() for p in model.parameters()) == blocks + (512 + context) * width + 2 * width
        assert blocks / 1e6 == pytest.approx(millions, rel=0.03)


def test_fine_tuning_starts_from_the_base_and_a_text_is_cut_without_overlap(large, tmp_path):
    base = large.base_of("tiny", "cpu")
    assert len(list(tmp_path.glob("*.safetensors"))) == 1, "the base is cached"
    large.base_of.cache_clear()
    again = large.base_of("tiny", "cpu")
    assert base.keys() == again.keys()
    assert all((base[name] == again[name]).all() for name in base)
    text = tmp_path / "text.txt"
    text.write_bytes(bytes(i * i % 251 for i in range(40_000)))
    losses = {}
    for kind in ("lora", "finetune"):
        run = large.large_gpt("torch", 3, "cpu", size="tiny", kind=kind, learning_rate=1e-2, text=str(text))
        losses[kind] = run.evaluate()["loss"]
        run.adapter.train_step(next(run.batches))
        assert run.evaluate()["loss"] != losses[kind]
        names = run.adapter.layout.names
        assert all("lora_" in name for name in names) == (kind == "lora")
    assert losses["lora"] == pytest.approx(losses["finetune"], rel=1e-6), "corrections start at zero"
    corpus = large._fine(str(text))
    assert b"".join(part.tobytes() for part in (corpus.training, corpus.probes, corpus.validation)) == (
        text.read_bytes()
    )


def test_runs_share_a_model_but_no_weights(large):
    def begin(seed):
        return large.large_gpt("torch", seed, "cpu", size="tiny", kind="scratch", learning_rate=1e-2)

    first = begin(0)
    start = [bucket.clone() for bucket in first.adapter.read_params()]
    for _ in range(3):
        first.adapter.train_step(next(first.batches))
    second = begin(0)
    assert second.adapter.model is first.adapter.model
    assert all(map(torch.equal, start, second.adapter.read_params()))
    assert not torch.equal(start[0], begin(1).adapter.read_params()[0])


def test_rows_of_large_models(load, tmp_path):
    predict, settings = load("predict"), load("settings")
    options = predict.read_options(["--large", "124m"])
    wanted = predict.wanted_settings(options)
    assert {s.model for s in wanted} == {"scratch-124m", "lora-124m", "finetune-124m"}
    for model in {s.model for s in settings.LARGE}:
        rates = sorted(s.rate for s in settings.LARGE if s.model == model and s.schedule == "constant")
        shown = sorted(s.rate for s in settings.LARGE if s.model == model and s.shown and not s.above)
        assert 9.999 <= shown[-1] / shown[0] <= 30.001
        assert min(rates) < shown[-1] < max(rates), "the best rate does not lie at the edge"
    (tmp_path / "tinyshakespeare.txt").write_text("x" * 10)
    plan = predict.Plan(
        {s.model: 40 for s in wanted}, 4, 9, (0, 1), predict.arms_of(options), "credit", "cpu",
        tmp_path / "fashion_mnist.npz",
    )  # fmt: skip
    assert plan.arms == ("hybrid", "random", "frozen", "lr-x4")
    by_model = {s.model: plan.configuration(s) for s in wanted if s.shown}
    assert by_model["scratch-124m"].task.options["lr_warmup_steps"] == 2
    assert by_model["lora-124m"].task.options["text"] == str(tmp_path / "tinyshakespeare.txt")
    assert by_model["lora-124m"].history.memory_budget_mib == settings.LARGE_HISTORY["124m"]
    jobs = predict.jobs_of(plan, wanted, once=False)
    assert [seed for _, seed, _ in jobs] == sorted(seed for _, seed, _ in jobs)
    assert sum(seed == 1 for _, seed, _ in jobs) == 7, "rates that only help are run once"
    late = attrs.evolve(plan, deadline=time.time() - 1.0)
    assert not late.run(wanted[0], 0, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_tuned_baseline_is_set_against_the_target_on_the_seeds_that_it_has(load):
    from hybridcore.compare import summarise
    from hybridcore.records import Evaluation, RunRecord

    predict = load("predict")

    def runs(losses, seeds):
        ended = {"backward_passes": 2, "predicted_steps": 0.0, "speedup_bound": 1.0, "interrupted": False}
        curve = tuple(Evaluation(10 * i, 10.0 * i, float(i), 10 * i, loss) for i, loss in enumerate(losses))
        return summarise(
            [
                RunRecord(Path("x"), {"arm": arm, "seed": seed}, (), curve, (), (), (), (), (), ended)
                for arm in ("baseline", "hybrid")
                for seed in seeds
            ],
            "x",
        )

    slow, best = (
        predict.Setting("lora-10m", "adamw", 1e-4),
        predict.Setting("lora-10m", "adamw", 3e-3, shown=False),
    )
    (row,) = predict.rows({slow: runs([3.0, 2.5, 2.0], (0, 1)), best: runs([3.0, 1.0, 0.5], (0,))})
    assert row.tuned_cost == pytest.approx(20.0 / 5.0)
    assert "| 4.00x |" in predict.markdown([row]).splitlines()[-1]

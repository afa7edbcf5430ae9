"""The benchmark of published recipes: its parts against independent truths, and a round of tiny runs."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import sys
from pathlib import Path

import attrs
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("hybridcore_torch")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[1]


@pytest.fixture
def load(monkeypatch):
    """Function that imports a module of the benchmark."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.recipes.{name}")


def test_published_settings_are_those_of_the_sources(load):
    """The numbers that a sceptic would look up; everything else about a recipe is in its own words."""
    found = {
        r.name: (r.optimizer, r.learning_rate, r.batch_size, r.epochs, r.steps, r.schedule)
        for r in load("catalogue").RECIPES
    }
    assert found["torch-quickstart"] == ("sgd", 1e-3, 64, 5, None, "constant")
    assert found["torch-mnist"] == ("adadelta", 1.0, 64, 14, None, "step")
    assert found["nanogpt"] == ("adamw", 1e-3, 12, None, 2000, "cosine")
    assert found["keras-mnist"] == ("adam", 1e-3, 128, 15, None, "constant")
    assert found["hf-trainer"] == found["hf-trainer-lora"] == ("adamw", 5e-5, 8, 3, None, "linear")
    assert found["peft-lora"] == ("adamw", 3e-4, 32, 20, None, "linear")
    assert found["deepxde-burgers"] == ("adam", 1e-3, 0, None, 15_000, "constant")
    assert found["sklearn-mlp"] == ("adam", 1e-3, 200, 200, None, "constant")
    assert len(found) >= 10
    assert all(r.source.startswith("https://") and r.published for r in load("catalogue").RECIPES)


def test_schedules_are_pytorchs_and_nanogpts_own(load):
    named, factor = load("catalogue").named, load("optimizers").factor
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adadelta([weight], lr=1.0)
    theirs = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    ours = factor(named("torch-mnist"), "step", 40, 10)
    for epoch in range(4):
        assert [ours(10 * epoch + i) for i in (0, 9)] == pytest.approx([optimizer.param_groups[0]["lr"]] * 2)
        optimizer.step()
        theirs.step()

    def nanogpt(step, rate=1e-3, low=1e-4, warmup=100, decay=2000):
        if step < warmup:
            return rate * (step + 1) / (warmup + 1)
        share = (step - warmup) / (decay - warmup)
        return low + 0.5 * (1.0 + math.cos(math.pi * share)) * (rate - low)

    ours = factor(named("nanogpt"), "cosine", 2000, 1)
    steps = (0, 50, 99, 100, 700, 1999)
    assert [1e-3 * ours(step) for step in steps] == pytest.approx([nanogpt(step) for step in steps])


def test_nanogpt_decays_matrices_only_and_ties_its_head(load):
    recipe = load("catalogue").named("nanogpt")
    model = load("models").build(recipe, 0).model
    assert model.head.weight is model.token_embedding.weight
    assert not any(name.endswith("bias") for name, _ in model.named_parameters())
    spec = importlib.import_module("hybridcore.protocols").OptimizerSpec("adamw", 1e-3, 0.9, 0.1)
    groups = load("optimizers").make_optimizer(recipe, list(model.parameters()), spec).param_groups
    assert [(group["weight_decay"], group["betas"]) for group in groups] == [
        (0.1, (0.9, 0.99)),
        (0.0, (0.9, 0.99)),
    ]
    assert {p.ndim for p in groups[0]["params"]} == {2}
    assert {p.ndim for p in groups[1]["params"]} == {1}


def test_burgers_residual_is_that_of_nested_autograd(load):
    models, recipe = load("models"), load("catalogue").named("deepxde-burgers")
    built = models.build(recipe, 3)
    model = built.model.double()
    rng = torch.Generator().manual_seed(0)
    points = torch.rand(7, 2, generator=rng, dtype=torch.float64, requires_grad=True)
    wall, start = torch.rand(3, 2, dtype=torch.float64), torch.rand(4, 2, dtype=torch.float64)
    value = model(points)
    (first,) = torch.autograd.grad(value.sum(), points, create_graph=True)
    (second,) = torch.autograd.grad(first[:, 0].sum(), points)
    residual = first[:, 1] + value * first[:, 0] - 0.01 / math.pi * second[:, 0]
    initial = model(start) + torch.sin(math.pi * start[:, 0])
    expected = residual.square().mean() + model(wall).square().mean() + initial.square().mean()
    losses = built.loss_fn(model, (points.detach(), wall, start))
    assert losses.mean().item() == pytest.approx(expected.item(), rel=1e-9)


def test_splits_share_no_example(load):
    data, named = load("data"), load("catalogue").named
    recipe = attrs.evolve(named("tf-quickstart"), batch_size=872)
    split = data.load(recipe, None)
    stream = split.batches(0)
    training = {row.tobytes() for _ in range(4) for row in next(stream)[0]}
    probes = {row.tobytes() for batch in split.probes for row in batch[0]}
    validation = {row.tobytes() for batch in split.validation for row in batch[0]}
    assert (len(training), len(validation)) == (split.count, 1000)
    assert not training & probes
    assert not training & validation
    assert not probes & validation


def test_another_order_has_the_same_examples(load):
    data, named = load("data"), load("catalogue").named
    recipe = attrs.evolve(named("sklearn-mlp"), batch_size=1237)
    split = data.load(recipe, None)
    published, other = next(split.batches(0)), next(data.reshuffled(split, recipe, 7))
    assert not np.array_equal(published[0], other[0])
    assert {row.tobytes() for row in published[0]} == {row.tobytes() for row in other[0]}

    recipe = named("torch-polynomial")
    split = data.load(recipe, None)
    published, other = next(split.batches(0)), next(data.reshuffled(split, recipe, 7))
    assert not np.array_equal(published[0], other[0])
    pairs = [set(zip(x.ravel().tolist(), y.ravel().tolist(), strict=True)) for x, y in (published, other)]
    assert pairs[0] == pairs[1], "rows stay together"


def test_made_rows_have_the_noise_that_they_claim(load):
    x, y = load("data")._friedman_rows()
    u = x.astype(float) / math.sqrt(12.0) + 0.5
    clean = 10 * np.sin(math.pi * u[:, 0] * u[:, 1]) + 20 * (u[:, 2] - 0.5) ** 2 + 10 * u[:, 3] + 5 * u[:, 4]
    noise = y - clean
    assert len(y) == 300_000
    assert abs(noise.mean()) < 0.01
    assert noise.std() == pytest.approx(1.0, abs=0.01)


def test_rungs_of_the_ladder(load):
    ladder = load("ladder")
    assert [ladder.times(factor, 1) for factor in (0.3, 1.0, 3.0, 10.0)] == [1.0, 3.0, 10.0, 30.0]
    assert [ladder.times(factor, -1) for factor in (0.3, 1.0, 30.0)] == [0.1, 0.3, 10.0]
    assert ladder.beyond({1.0: 2.0, 3.0: 1.0}) == 10.0
    assert ladder.beyond({1.0: 1.0, 3.0: 2.0}) == 0.3
    assert ladder.beyond({1.0: 2.0, 3.0: 1.0, 10.0: math.inf}) is None


def test_tuning_finds_the_best_rate_away_from_the_edge_and_is_kept(load, tmp_path, monkeypatch):
    plans, recipe = load("plan"), load("catalogue").named("sklearn-mlp")
    tried = []

    def loss(self, recipe, tuned, place, registry):
        tried.append((tuned.schedule, tuned.factor))
        gap = abs(math.log10(tuned.factor) - (1.5 if tuned.schedule == "cosine" else 1.0))
        return gap - 0.1 * (tuned.schedule == "cosine")

    monkeypatch.setattr(plans.Plan, "_candidate", loss)
    plan = plans.Plan((0,), ())
    assert plan.tune(recipe, tmp_path)
    assert tried == [
        ("constant", 1.0), ("constant", 3.0), ("constant", 10.0), ("constant", 30.0),
        ("cosine", 10.0), ("cosine", 30.0), ("cosine", 100.0),
    ]  # fmt: skip
    assert plan.tuned(tmp_path) == plans.Tuned(30.0, "cosine")
    assert plan.tune(recipe, tmp_path)
    assert len(tried) == 7, "what was tuned is not tuned again"


@pytest.fixture(scope="module")
def round_folder(tmp_path_factory):
    """A round of one recipe with two seeds and few steps, begun, cut short, and gone on with."""
    sys.path.insert(0, str(ROOT))
    try:
        main = importlib.import_module("benchmarks.recipes.__main__")
        folder = tmp_path_factory.mktemp("round")
        words = ["--only", "sklearn-mlp", "--seeds", "2", "--scale", "0.05", "--rivals", "ema,muon"]
        options = main.read_options([*words, "--out", str(folder)])
        plan, (recipe,) = main.plan_of(options), main.chosen(options)
        own = folder / recipe.name
        plan.claim(own)
        late = attrs.evolve(plan, deadline=0.0)
        cut_short = (late.tune(recipe, own), late.run(recipe, 0, own))
        assert plan.tune(recipe, own)
        for seed in plan.seeds:
            assert plan.run(recipe, seed, own)
        yield folder, plan, recipe, cut_short, main
    finally:
        sys.path.remove(str(ROOT))


def test_a_late_round_begins_nothing_and_a_finished_one_is_kept(round_folder):
    folder, plan, recipe, cut_short, _ = round_folder
    assert cut_short == (False, False)
    own = folder / recipe.name
    before = {path: path.stat().st_mtime_ns for path in own.rglob("summary.json")}
    arms = set(plan.arms_of(recipe))
    assert {path.parents[1].name for path in before} - {"candidates"} == arms
    assert arms >= {
        "baseline",
        "hybrid",
        "tuned",
        "hybrid-tuned",
        "random",
        "frozen",
        "lr-x10",
        "reshuffled",
        "ema",
        "muon",
    }
    assert "lbfgs" not in arms
    assert plan.run(recipe, 0, own)
    assert {path: path.stat().st_mtime_ns for path in own.rglob("summary.json")} == before
    with pytest.raises(SystemExit, match="another plan"):
        attrs.evolve(plan, scale=1.0).claim(own)


def test_tuned_arms_have_the_tuned_settings_and_the_others_the_published_ones(round_folder):
    folder, plan, recipe, *_ = round_folder
    own = folder / recipe.name
    tuned = plan.tuned(own)
    for arm, factor in {
        "baseline": 1.0,
        "hybrid": 1.0,
        "lr-x4": 4.0,
        "ema": 1.0,
        "tuned": tuned.factor,
    }.items():
        start = json.loads((own / arm / "seed-1" / "metrics.jsonl").read_text().splitlines()[0])
        task = start["config"]["task"]
        assert task["learning_rate"] == pytest.approx(factor * recipe.learning_rate), arm
        assert task["schedule"] == (tuned.schedule if arm == "tuned" else recipe.schedule)
        assert (start["seed"], start["arm"]) == (1, arm)


def test_the_reshuffled_arm_is_the_published_loop_in_another_order(round_folder):
    from hybridcore.records import read_run

    folder, _, recipe, *_ = round_folder
    base, again = (
        read_run(folder / recipe.name / arm / "seed-1").evaluations for arm in ("baseline", "reshuffled")
    )
    assert again[0].loss == base[0].loss, "the same initial weights"
    assert [e.cost for e in again] == [e.cost for e in base], "no engine"
    assert again[-1].loss != base[-1].loss


def test_the_report_is_what_the_runs_say(round_folder, capsys):
    from hybridcore.records import read_run, speedup

    folder, _, recipe, _, main = round_folder
    assert main.main(["--read", "--out", str(folder)]) == 0
    assert "Aims" in capsys.readouterr().out
    data = json.loads((folder / "recipes.json").read_text())
    (row,) = data["recipes"]
    arms = {arm["arm"]: arm for arm in row["arms"]}
    gains = []
    for seed in (0, 1):
        base, run = (
            read_run(folder / recipe.name / a / f"seed-{seed}").evaluations for a in ("baseline", "hybrid")
        )
        gains.append(speedup(run, base).cost)
    assert arms["hybrid"]["speedup_cost"] == pytest.approx(2.0 / sum(1.0 / gain for gain in gains))
    assert arms["hybrid"]["speedup_cost_low"] == pytest.approx(min(gains))
    assert (row["scale"], row["device"], row["steps_run"]) == (0.05, "cpu", 62)
    text = (folder / "table.md").read_text()
    assert "62 (published x 0.05)" in text
    assert "| sklearn-mlp |" in text
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    for name in ("speedups", "rates", "profiles", "overhead"):
        assert (folder / f"{name}.png").stat().st_size > 10_000


def test_a_time_that_is_drawn_and_not_measured_is_marked_in_every_table(load, round_folder):
    folder, plan, recipe, *_ = round_folder
    row = load("rows").read_row(recipe, plan, folder / recipe.name)

    def words(seeds):
        arms = tuple(attrs.evolve(arm, unresolved=seeds, speedup_cost=7.0) for arm in row.comparison.rows)
        made = attrs.evolve(row, comparison=attrs.evolve(row.comparison, rows=arms))
        return [cell for table in load("table").tables([made])[1:4] for cell in table.cells[0]]

    plain, marked = words(0), words(1)
    assert sum("7.00x" in cell for cell in plain) >= 8
    for before, after in zip(plain, marked, strict=True):
        assert after == (f"~{before}" if before.startswith("7.00x") else after)
    assert not any("~" in cell for cell in plain)
    assert sum("~7.00x" in cell for cell in marked) == sum("7.00x" in cell for cell in plain)


def test_aims_are_counted_from_the_rows(load, round_folder):
    rows_module = load("rows")
    folder, plan, recipe, *_ = round_folder
    row = rows_module.read_row(recipe, plan, folder / recipe.name)

    def like(name, **costs):
        arms = []
        for arm in row.comparison.rows:
            cost = costs.get(arm.arm.replace("-", "_"), 1.0)
            arms.append(
                attrs.evolve(
                    arm,
                    speedup_cost=cost,
                    speedup_wall=cost,
                    speedup_cost_low=cost,
                    speedup_cost_interval=(0.97 * cost, cost),
                )
            )
        return attrs.evolve(
            row,
            recipe=attrs.evolve(recipe, name=name),
            comparison=attrs.evolve(row.comparison, rows=tuple(arms)),
        )

    rows = [
        like("a", hybrid=6.0, tuned=6.5, reshuffled=1.02),
        like("b", **{"hybrid": 5.0, "hybrid, read out": 8.5, "tuned": 9.0}),
        like("c", hybrid=1.0, ema=2.0),
    ]
    fast, slow, often, near = rows_module.aims(rows)
    assert not fast.met
    assert "on 2 of 3 (a, b)" in fast.got
    assert not slow.met
    assert "read out, in cost on 1 (b)" in fast.got
    assert "not on c" in slow.got, "its lower bound is 0.97"
    assert "by the baseline itself, reshuffled, on 1 of 3, not on b, c" in slow.got
    assert often.met
    assert "hybrid 67%" in often.got
    assert "ema 33%" in often.got
    assert "hybrid, read out 67%" in often.got
    assert (near.met, near.got) == (False, "2 of 3; read out 2")
    assert rows_module.aims([*rows, like("d", hybrid=7.0)])[0].met


def test_muon_orthogonalises_matrices_and_leaves_the_rest_to_adamw(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this PyTorch has no Muon")
    from benchmarks.muon import RATE, MuonWithAdamW

    generator = torch.Generator().manual_seed(0)
    matrix, bias, table = (torch.nn.Parameter(torch.zeros(*s)) for s in ((6, 6), (6,), (4, 6)))
    table.is_embedding = True
    optimizer = MuonWithAdamW([matrix, bias, table], 1e-3, 0.0)
    for parameter in (matrix, bias, table):
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    sizes = torch.linalg.svdvals(matrix.detach()) / RATE
    assert 0.5 < float(sizes.min()) <= float(sizes.max()) < 1.5, (
        "near orthogonal after five Newton-Schulz steps"
    )
    for parameter in (bias, table):
        assert torch.allclose(parameter, -1e-3 * parameter.grad.sign(), rtol=1e-4), "Adam's first step"
    optimizer.param_groups[0]["lr"] = 0.0
    before = matrix.detach().clone()
    optimizer.step()
    assert torch.equal(matrix, before), "schedules reach Muon through the groups"

"""Adam handing over to L-BFGS, against a plain PyTorch script; and the order in which arms run apart."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path

import attrs
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("hybridcore_torch")

SCALE = 0.002
"""30 steps of Adam, 30 iterations of L-BFGS."""


@pytest.fixture
def load(monkeypatch):
    """Function that imports a module of the benchmark."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    return lambda name: importlib.import_module(f"benchmarks.recipes.{name}")


@pytest.fixture
def plan(load):
    return load("plan").Plan((0,), ("hybrid", "ema", "tuned"), scale=SCALE, apart=True)


def by_hand(load, recipe, steps, iterations):
    """Weights, closures and validation loss of a script that a user would write."""
    data, built = load("data").load(recipe, None), load("models").build(recipe, 0)
    model, (batch,), closures = built.model, data.probes, 0
    batch = [torch.as_tensor(part) for part in batch]
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)

    def closure():
        nonlocal closures
        closures += 1
        model.zero_grad()
        loss = built.loss_fn(model, batch).mean()
        loss.backward()
        return loss

    for _ in range(steps):
        closure()
        adam.step()
    model, batch = model.double(), [part.double() for part in batch]
    options = {"tolerance_grad": 1e-8, "tolerance_change": 0.0, "line_search_fn": "strong_wolfe"}
    lbfgs = torch.optim.LBFGS(model.parameters(), max_iter=10, max_eval=1000, history_size=100, **options)
    for _ in range(iterations // 10):
        lbfgs.step(closure)
    model.float()
    return built.evaluate(model, data.validation)["loss"], closures


def test_both_phases_are_those_of_a_plain_script_and_every_closure_counts(load, plan, tmp_path):
    recipe = load("catalogue").named("deepxde-burgers")
    assert plan.run(recipe, 0, tmp_path, ("baseline",))
    folder = tmp_path / "baseline" / "seed-0"
    summary = json.loads((folder / "summary.json").read_text())
    loss, closures = by_hand(load, recipe, 30, 30)
    assert summary["lbfgs_iterations"] == 30
    assert summary["cost"] == summary["backward_passes"] == closures
    assert summary["final_loss"] == pytest.approx(loss, rel=1e-3), "line searches amplify rounding"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: line for line in lines if line["event"] == "evaluation"}
    adam_loss, _ = by_hand(load, recipe, 30, 0)
    assert found[30]["loss"] == pytest.approx(adam_loss, rel=1e-5), "an evaluation lies at the hand-over"
    assert found[30]["cost"] == 30


def test_the_engine_ends_where_lbfgs_begins_and_a_mean_is_what_it_goes_on_from(load, plan, tmp_path):
    recipe = load("catalogue").named("deepxde-burgers")
    for arm in ("baseline", "hybrid", "ema"):
        assert plan.run(recipe, 0, tmp_path, (arm,))
    summary = json.loads((tmp_path / "hybrid/seed-0/summary.json").read_text())
    assert summary["history_bytes"] > 0
    assert summary["lbfgs_iterations"] > 0
    lines = [json.loads(x) for x in (tmp_path / "hybrid/seed-0/metrics.jsonl").read_text().splitlines()]
    jumps = [line["step"] for line in lines if line["event"] in ("jump", "jump-refused", "verdict")]
    assert all(step <= 30 for step in jumps)
    whole, before = load("rows").read_rows(recipe, attrs.evolve(plan, data=None), claimed(plan, tmp_path))
    assert (whole.name, before.name) == ("deepxde-burgers", "deepxde-burgers, before L-BFGS")
    assert whole.comparison.targets[0] < before.comparison.targets[0]
    assert [len(load("rows").aims(rows)) for rows in ([whole], [whole, before])] == [4, 4]
    assert "of 1" in load("rows").aims([whole, before])[0].got


def claimed(plan, folder):
    plan.claim(folder)
    return folder


def test_candidates_that_run_at_once_are_those_that_tuning_asks_for(load, plan, tmp_path, monkeypatch):
    plans, recipe = load("plan"), load("catalogue").named("sklearn-mlp")
    monkeypatch.setattr(plans, "finished", lambda place: place.is_dir())
    losses = {0.3: 3.0, 1.0: 2.0, 3.0: 1.0, 10.0: 1.5, 30.0: 9.0}

    def loss(place):
        schedule, factor = place.name.split("-x")
        return losses[float(factor)] + 0.5 * (schedule == "cosine")

    monkeypatch.setattr(plans, "_final_loss", loss)
    first = plan.missing(recipe, tmp_path)
    assert {(t.schedule, t.factor) for t in first} == {("constant", f) for f in losses}
    waves = [first]
    while waves[-1]:
        for tuned in waves[-1]:
            plans._place(tmp_path, tuned.schedule, tuned.factor).mkdir(parents=True)
        waves.append(plan.missing(recipe, tmp_path))
    assert {(t.schedule, t.factor) for t in waves[1]} == {("cosine", f) for f in (3.0, 10.0, 30.0)}
    assert len(waves) == 3
    monkeypatch.setattr(plans.Plan, "_candidate", lambda *a: loss(a[3]))
    assert plan.tune(recipe, tmp_path)
    assert plan.tuned(tmp_path) == plans.Tuned(3.0, "constant")


def test_apart_baseline_and_hybrid_share_a_process_and_seeds_come_in_order(load, plan, tmp_path, monkeypatch):
    plans, pool, recipe = load("plan"), load("pool"), load("catalogue").named("sklearn-mlp")
    assert plans.groups(plan, recipe, False) == [("baseline", "hybrid"), ("ema",)]
    assert plans.groups(plan, recipe, True) == [("tuned",)]
    assert plans.groups(attrs.evolve(plan, apart=False), recipe, False) == [("baseline", "hybrid", "ema")]
    ran = []

    class Now:
        """A pool of no processes."""

        def submit(self, call):
            from concurrent.futures import Future

            future = Future()
            future.set_result(call())
            return future

    def run(self, recipe, seed, folder, only):
        ran.append((seed, only))
        return True

    def candidate(self, recipe, tuned, folder):
        ran.append((-1, f"{tuned.schedule}-x{tuned.factor:g}"))
        place = plans._place(folder, tuned.schedule, tuned.factor)
        place.mkdir(parents=True)
        loss = abs(math.log10(tuned.factor) + 1.0) + (tuned.schedule == "cosine")
        (place / "summary.json").write_text(json.dumps({"interrupted": False, "final_loss": loss}))
        return True

    monkeypatch.setattr(plans.Plan, "run", run)
    monkeypatch.setattr(plans.Plan, "candidate", candidate)
    two = attrs.evolve(plan, seeds=(0, 1))
    assert pool._Queue(two, [recipe], tmp_path, Now(), 1).drain()
    seeds = [seed for seed, _ in ran]
    assert seeds == sorted(seeds)
    assert ran.count((1, ("tuned",))) == 1
    assert two.tuned(tmp_path / recipe.name) == plans.Tuned(0.1, "constant"), "the ladder went on down"


class Valley(torch.nn.Module):
    """A loss of 0.0034 where the gradient is along a curvature of 3,400 and little is left along one of 1."""

    def __init__(self):
        super().__init__()
        self.place = torch.nn.Parameter(torch.tensor([1.6e-5, 5e-4]))

    def forward(self):
        across, along = self.place
        return 0.0034 + 1700.0 * across**2 + 0.5 * along**2


def test_lbfgs_goes_on_where_single_precision_cannot_tell_a_step_from_none(load):
    handover, model = load("handover"), Valley()
    adapter = handover.lbfgs_of(model, lambda model, batch: model().reshape(1))
    assert adapter.model.place.dtype == torch.float64
    single = torch.optim.LBFGS(
        model.parameters(), **{k: v for k, v in adapter.optimizer.defaults.items() if k != "lr"}
    )

    def closure():
        single.zero_grad()
        loss = model()
        loss.backward()
        return loss

    before = model.place.detach().clone()
    for _ in range(3):
        adapter.train_step(None)
    assert torch.equal(model.place, before), "the model itself is left as it is"
    for _ in range(3):
        single.step(closure)
    assert abs(adapter.model.place[1]) < 1e-8
    assert abs(model.place[1]) > 4e-4, "or else double precision is not needed"

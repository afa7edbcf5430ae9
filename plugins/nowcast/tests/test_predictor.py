"""F85: the predictor in a run: decay, options, and whether it foretells trainings it has not seen."""

from __future__ import annotations

import logging
import sys
from itertools import islice
from pathlib import Path

import array_api_compat.numpy as xp
import attrs
import numpy as np
import pytest
from safetensors.numpy import save_file

from hybridcore import HybridConfig
from hybridcore.config import BudgetConfig, HistoryConfig, PredictorConfig, RunConfig, TaskConfig
from hybridcore.config import ControllerConfig as Controller
from hybridcore.errors import PredictionError
from hybridcore.history import History
from hybridcore.plugins import load_registry
from hybridcore.predictors.drift import Drift
from hybridcore.protocols import Phase, StepRecord
from hybridcore.runner import run_task
from hybridcore.tasks.logistic import LogisticTask
from hybridcore.testing import synthetic_history
from hybridcore.testing.trajectories import curve, layout_of_two_buckets
from hybridcore_nowcast import predictor as module
from hybridcore_nowcast.predictor import Nowcast, NowcastConfig

sys.path.insert(0, str(Path(__file__).parent))
from nino_file import state

LAYOUT = layout_of_two_buckets()
ROOT = Path(__file__).parents[3]


def history(steps: int = 40, windows: int = 5) -> History:
    config = HistoryConfig(window=4, windows=windows)
    return synthetic_history(xp, LAYOUT, curve(LAYOUT.total, steps), config=config, needs=Nowcast.needs)


def at_step(step: int, **options) -> Nowcast:
    predictor = Nowcast(NowcastConfig(**options))
    predictor.reset(LAYOUT, np.random.default_rng(0))
    predictor.observe(StepRecord(step, Phase.FULL, 1.0, 1.0, 0.1, 0.01))
    return predictor


def test_decay_is_the_schedule_of_nino() -> None:
    """NiNo looks 40, ... 1 spacings ahead: squares of equal steps from sqrt(40) to 1, ten jumps."""
    schedule = np.linspace(np.sqrt(40), 1, 10) ** 2
    shares = [at_step(1000 * i, decay_steps=9000, decay_final=1 / 40).share() for i in range(10)]
    np.testing.assert_allclose(40 * np.array(shares), schedule, rtol=1e-12)


def test_jumps_shorten_and_say_so() -> None:
    seen = history()
    lengths, horizons = [], []
    for step in (0, 5000, 10_000, 20_000):
        prediction = at_step(step).predict(seen, 20.0, xp)
        horizons.append(prediction.horizon)
        lengths.append(np.linalg.norm(np.concatenate(prediction.deltas)))
    assert horizons[0] == 20.0 and horizons[2] == horizons[3] == pytest.approx(0.5)
    assert lengths[0] > lengths[1] > lengths[2] == lengths[3] > 0.0


@pytest.mark.parametrize(
    "options",
    [{"decay_steps": 200}, {"decay_steps": 0}, {"decay_final": 0.9}, {"decay_power": 1.0}],
    ids=str,
)
def test_each_decay_option_changes_the_jump(options) -> None:
    default = at_step(100, decay_steps=400).predict(history(), 20.0, xp)
    other = at_step(100, **({"decay_steps": 400} | options)).predict(history(), 20.0, xp)
    assert other.horizon != default.horizon


def test_no_decay_without_decay_steps() -> None:
    assert at_step(10**9, decay_steps=0).share() == 1.0


def test_it_never_looks_further_than_it_was_trained_for() -> None:
    predictor = at_step(0)
    prediction = predictor.predict(history(), 1e6, xp)
    assert prediction.horizon == predictor.network.furthest * 4
    with pytest.raises(PredictionError, match="ahead only"):
        predictor.predict(history(), -5.0, xp)


def test_chunk_bounds_the_work_space(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = at_step(0).predict(history(), 8.0, xp)
    sizes = []

    def spy(size: int, chunk: int):
        for part in chunks(size, chunk):
            sizes.append(part.stop - part.start)
            yield part

    chunks = module.chunks
    monkeypatch.setattr(module, "chunks", spy)
    small = at_step(0, chunk=5).predict(history(), 8.0, xp)
    assert max(sizes) == 5 and sum(sizes) >= 2 * LAYOUT.total
    for a, b in zip(whole.deltas, small.deltas, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


def test_another_checkpoint_is_another_predictor(tmp_path: Path) -> None:
    network = at_step(0).network
    halved = {k: v * (0.5 if k.startswith("weight.2") else 1.0) for k, v in network._arrays.items()}
    metadata = {"format": "hybridcore-nowcast-1", "furthest": "20"}
    save_file(halved, tmp_path / "a.safetensors", metadata=metadata)
    other = at_step(0, checkpoint=str(tmp_path / "a.safetensors")).predict(history(), 8.0, xp)
    assert not np.array_equal(other.deltas[1], at_step(0).predict(history(), 8.0, xp).deltas[1])


@pytest.mark.parametrize("least", [2, 3, 5])
def test_least_windows_decides_when_it_is_ready(least: int) -> None:
    predictor = at_step(0, least_windows=least)
    ready = [predictor.ready(history(steps)) for steps in range(4, 24, 4)]
    assert ready.index(True) + 1 == least


def test_missing_windows_are_filled_in_straight(tmp_path: Path) -> None:
    """Three means, and five of which the first three lie on a line, are the same to a network of NiNo's form.

    The shipped network is also told how many it knows, and trusts made-up ones less.
    """
    few = history(12)
    rows = [np.concatenate(mean) for mean in few.window_means]
    rows = [3 * rows[0] - 2 * rows[1], 2 * rows[0] - rows[1], *rows]
    path = [rows[0], *(row for row in rows for _ in range(4))]
    config = HistoryConfig(window=4, windows=5)
    five = synthetic_history(xp, LAYOUT, path, config=config, needs=Nowcast.needs)
    save_file(state(), tmp_path / "wnn.safetensors")
    for checkpoint, same in ((str(tmp_path / "wnn.safetensors"), True), ("", False)):
        predictor = at_step(0, checkpoint=checkpoint)
        expected, got = (np.concatenate(predictor.predict(h, 8.0, xp).deltas) for h in (five, few))
        assert np.allclose(expected, got, rtol=2e-3, atol=1e-5) is same


def test_too_few_windows_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    predictor, seen = at_step(0, least_windows=4), history(windows=3)
    with caplog.at_level(logging.WARNING, logger="hybridcore"):
        assert not predictor.ready(seen) and not predictor.ready(seen)
    assert caplog.text.count("memory_budget_mib") == 1


def errors_of(optimizer: str, rate: float, seed: int, horizon: int = 30) -> dict[str, float]:
    """Relative errors on softmax regression, a task that the network was not trained on."""
    config = LogisticTask.Config(optimizer=optimizer, learning_rate=rate)
    task = LogisticTask(config).build("numpy", seed)
    adapter = task.adapter
    seen = History(adapter.layout, adapter.xp, HistoryConfig(windows=5), Nowcast.needs)
    batches = iter(task.batches)

    def window(count: int) -> np.ndarray:
        weights = []
        for batch in islice(batches, count):
            seen.before_step(adapter)
            adapter.train_step(batch)
            seen.after_step(adapter)
            weights.append(np.array(adapter.read_params()[0], dtype=np.float64))
        return np.mean(weights[-10:], axis=0)

    before = window(100)
    guesses = {}
    for name, predictor in (("nowcast", at_step(0)), ("drift", Drift())):
        prediction = predictor.predict(seen, float(horizon), adapter.xp)
        guesses[name] = prediction.scale * np.asarray(prediction.deltas[0], dtype=np.float64)
    true = window(horizon) - before
    return {n: float(np.linalg.norm(g - true) / np.linalg.norm(true)) for n, g in guesses.items()}


@pytest.mark.parametrize(("optimizer", "rate", "limit"), [("sgd", 0.3, 0.6), ("adam", 0.01, 0.6)])
def test_it_foretells_a_held_out_training(optimizer: str, rate: float, limit: float) -> None:
    """Standing still has a relative error of 1; the network stays far below, and below the plain drift."""
    errors = [errors_of(optimizer, rate, seed) for seed in (7, 8)]
    assert max(e["nowcast"] for e in errors) < limit
    assert all(e["nowcast"] < e["drift"] for e in errors)


def test_a_run_names_it_and_jumps(tmp_path: Path) -> None:
    config = HybridConfig(
        run=RunConfig(framework="numpy", steps=160, evaluate_every=40),
        task=TaskConfig(name="logistic", options={"learning_rate": 0.01}),
        controller=Controller(name="fixed"),
        predictor=PredictorConfig(name="nowcast", options={"nowcast": {"decay_steps": 160}}),
        budget=BudgetConfig(share=1.0, grace_steps=1e4, count_seconds=False),
    )
    result = run_task(config, out_dir=tmp_path / "run", registry=load_registry(load=("nowcast",)))
    assert result.summary["jumps"] > 0
    assert result.final_loss < result.evaluations[0].loss


def test_its_card_names_each_setting() -> None:
    card = (ROOT / "docs" / "reference" / "predictors" / "nowcast.md").read_text(encoding="utf-8")
    assert card.startswith("# nowcast\n")
    for field in attrs.fields(NowcastConfig):
        default = f'"{field.default}"' if isinstance(field.default, str) else str(field.default)
        assert f"| `{field.name}` | `{default}` |" in card, field.name

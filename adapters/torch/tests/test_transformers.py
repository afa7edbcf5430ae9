"""The callback inside the real ``transformers.Trainer`` (F87), on a model made from its configuration."""

from __future__ import annotations

import inspect
import logging
import math
import statistics as library

import pytest
import torch
from torch.nn.functional import cross_entropy

from hybridcore.config import (
    BudgetConfig,
    ControllerConfig,
    HybridConfig,
    PhasesConfig,
    ProbeConfig,
    VerdictConfig,
)
from hybridcore.errors import CheckpointError, ConfigError, ModelError, ProbeError
from hybridcore.events import Event

transformers = pytest.importorskip("transformers")

from hybridcore_torch.integrations.example_losses import TrainerLosses  # noqa: E402
from hybridcore_torch.integrations.transformers import HybridCallback  # noqa: E402

TOKENS = 16
TEXT = inspect.getsource(library).encode("ascii", "replace")[: 640 * TOKENS]
ROWS = [list(TEXT[i : i + TOKENS]) for i in range(0, len(TEXT), TOKENS)]
EXAMPLES = [{"input_ids": row, "labels": row} for row in ROWS]
PROBE, TRAIN = EXAMPLES[:32], EXAMPLES[32:]
QUIET = HybridConfig(phases=PhasesConfig(warmup_steps=1000))


def jumping(horizon=6.0, **tables):
    fixed = {"horizon": horizon, "full_steps": 6, "correct_steps": 5}
    return HybridConfig(
        phases=PhasesConfig(warmup_steps=8, full_steps=6),
        budget=BudgetConfig(share=1.0, grace_steps=1000.0, backoff_steps=5, count_seconds=False),
        controller=ControllerConfig(name="fixed", options={"fixed": fixed}),
        **{"probe": ProbeConfig(batches=2), **tables},
    )


def gpt(**options):
    torch.manual_seed(0)
    sizes = {"vocab_size": 128, "n_positions": TOKENS, "n_embd": 16, "n_layer": 1, "n_head": 2}
    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **tokens, **options))


def trainer(folder, model=None, cls=transformers.Trainer, **arguments):
    settings = {
        "output_dir": str(folder),
        "max_steps": 40,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 16,
        "learning_rate": 1e-3,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "data_seed": 0,
    }
    more = {k: arguments.pop(k) for k in ("compute_loss_func", "optimizers") if k in arguments}
    return cls(
        model=model if model is not None else gpt(),
        args=transformers.TrainingArguments(**{**settings, **arguments}),
        train_dataset=TRAIN,
        data_collator=transformers.default_data_collator,
        **more,
    )


def hybrid_trainer(folder, config, events=(), callback=None, **arguments):
    host = trainer(folder, **arguments)
    callback = HybridCallback(host, config, probe=PROBE, events=events, **(callback or {}))
    host.add_callback(callback)
    return host, callback


def weights(host):
    return [p.detach().clone() for p in host.model.parameters()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_it_jumps_keeps_and_the_loss_falls(tmp_path, bf16):
    heard = []
    host, callback = hybrid_trainer(
        tmp_path, jumping(), [lambda *record: heard.append(record)], bf16=bf16, max_steps=60
    )
    start = weights(host)
    moved = []
    callback._events.append(lambda event, payload: event is Event.JUMP and moved.append(weights(host)))
    result = host.train()
    events = [event for event, _ in heard]
    assert events.count(Event.REAL_STEP) == 60 == host.state.global_step
    assert events.count(Event.JUMP) == callback.summary["jumps"] > 0
    assert callback.summary["verdicts_kept"] > 0
    assert not same(start, weights(host))
    rows = [row for row in host.state.log_history if "loss" in row]
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.2
    # Both logs tell of the same losses; the Trainer rounds nothing.
    losses = [payload["loss"] for event, payload in heard if event is Event.REAL_STEP]
    for index, row in enumerate(rows):
        assert row["loss"] == pytest.approx(sum(losses[10 * index : 10 * index + 10]) / 10, rel=1e-5)
    assert rows[-1]["hybrid_jumps"] == callback.summary["jumps"] == result.metrics["hybrid_jumps"]


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_without_a_jump_training_is_the_very_same(tmp_path, bf16):
    """F84, with everything that draws random numbers: shuffling, dropout, and a probe loader beside them."""
    settings = {"bf16": bf16, "max_steps": 12, "gradient_accumulation_steps": 2, "max_grad_norm": 0.3}
    plain = trainer(tmp_path / "plain", **settings)
    plain.train()
    host, callback = hybrid_trainer(tmp_path / "hybrid", QUIET, **settings)
    host.train()
    assert callback.summary["real_steps"] == 12
    assert callback.summary["jumps"] == 0
    assert same(weights(plain), weights(host))
    logged = [[row["loss"] for row in h.state.log_history if "loss" in row] for h in (plain, host)]
    assert logged[0] == logged[1]


def test_a_failed_verdict_puts_the_trainer_back_and_it_goes_on(tmp_path):
    """F82: weights and schedule of the rolled-back step; the Trainer's own count of steps goes on."""
    before, rolled, heard = {}, [], []
    verdict, probe = VerdictConfig(guard_factor=1.0, guard_z=1.0), ProbeConfig(batches=2, tentative=False)
    host, callback = hybrid_trainer(
        tmp_path, jumping(600.0, probe=probe, verdict=verdict), learning_rate=3e-2, lr_scheduler_type="cosine"
    )

    def listen(event, payload):
        heard.append(event)
        if event is Event.ROLLBACK:
            now = (weights(host), host.lr_scheduler.last_epoch)
            assert same(now[0], before[payload["to_step"]][0])
            assert now[1] == before[payload["to_step"]][1]
            rolled.append(payload["step"])

    callback._events.append(listen)

    class Watch(transformers.TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            original = callback.adapter.snapshot

            def snapshot():
                step = callback.engine.counts.real_steps
                before.setdefault(step, (weights(host), host.lr_scheduler.last_epoch))
                return original()

            callback.adapter.snapshot = snapshot

    host.add_callback(Watch())
    host.train()
    assert rolled and max(rolled) < 40
    assert callback.summary["rollbacks"] == len(rolled)
    assert host.state.global_step == 40 == heard.count(Event.REAL_STEP)
    assert host.lr_scheduler.last_epoch < 40


def test_accumulation_and_clipping_are_the_trainers(tmp_path):
    """One engine step per update; its loss is of all micro-batches, its norm of clipped gradients."""
    heard = []
    host, callback = hybrid_trainer(
        tmp_path,
        jumping(),
        [lambda *record: heard.append(record)],
        max_steps=30,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        max_grad_norm=0.25,
        logging_steps=1,
    )
    host.train()
    real = [payload for event, payload in heard if event is Event.REAL_STEP]
    assert len(real) == 30
    assert callback.summary["jumps"] > 0
    assert all(r["grad_norm"] <= 0.25 * (1 + 1e-4) for r in real)
    logged = [row["loss"] for row in host.state.log_history if "loss" in row]
    # The Trainer keeps its sum in float32 and takes differences of it.
    assert [r["loss"] for r in real] == pytest.approx(logged, rel=1e-5)


def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path):
    """F53: also in the middle of a trial; bit for bit, with jumps on both sides of the checkpoint."""
    whole, callback = hybrid_trainer(tmp_path / "whole", jumping(), save_strategy="steps", save_steps=25)
    jumps = []
    callback._events.append(lambda e, p: e is Event.JUMP and jumps.append(p["step"]))
    whole.train()
    assert min(jumps) < 25 < max(jumps)
    again, resumed = hybrid_trainer(tmp_path / "whole", jumping(), model=gpt())
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-25"))
    assert same(weights(whole), weights(again))
    for key in ("real_steps", "jumps", "verdicts_kept", "rollbacks", "predicted_steps"):
        assert resumed.summary[key] == callback.summary[key]
    other, _ = hybrid_trainer(tmp_path / "whole", jumping(7.0))
    with pytest.raises(CheckpointError, match="another run"):
        other.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-25"))


def test_a_checkpoint_without_the_engine_is_said_to_be_one(tmp_path, caplog):
    plain = trainer(tmp_path, save_strategy="steps", save_steps=5, max_steps=5)
    plain.train()
    host, callback = hybrid_trainer(tmp_path, QUIET, max_steps=8)
    with caplog.at_level(logging.WARNING, logger="hybridcore"):
        host.train(resume_from_checkpoint=True)
    assert "without the engine's state" in caplog.text
    assert callback.summary["real_steps"] == 3


def test_losses_of_examples_have_the_models_own_mean(tmp_path):
    """Against the Trainer's loss of the whole batch, where examples differ in length, and one by one."""
    host = trainer(tmp_path)
    model = host.model.eval()
    labels = torch.tensor([e["labels"] for e in PROBE[:6]])
    labels[1, 5:], labels[4, 9:] = -100, -100
    batch = {"input_ids": torch.tensor([e["input_ids"] for e in PROBE[:6]]), "labels": labels}
    with torch.no_grad():
        losses = TrainerLosses(host)(model, batch)
        assert losses.mean() == pytest.approx(float(host.compute_loss(model, dict(batch))), rel=1e-6)
        logits = model(batch["input_ids"])["logits"]
        for i, row in enumerate(labels):
            alone = cross_entropy(logits[i, :-1].double(), row[1:], reduction="sum")
            assert losses[i] == pytest.approx(float(alone * 6 / (labels[:, 1:] != -100).sum()), rel=1e-5)


class Doubled(transformers.Trainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        return 2.0 * super().compute_loss(model, inputs, *args, **kwargs)


@pytest.mark.parametrize("how", ["smoothing", "function", "override"])
def test_a_loss_of_the_trainers_own_is_asked_example_by_example(tmp_path, how):
    def mean_of_squares(outputs, labels, num_items_in_batch=None):
        return outputs["logits"].square().mean()

    more = {
        "smoothing": {"label_smoothing_factor": 0.2},
        "function": {"compute_loss_func": mean_of_squares},
        "override": {"cls": Doubled},
    }[how]
    host = trainer(tmp_path, **more)
    batch = {name: torch.tensor([e[name] for e in PROBE[:5]]) for name in ("input_ids", "labels")}
    with torch.no_grad():
        losses_of = TrainerLosses(host)
        losses = losses_of(host.model.eval(), batch)
        assert losses_of.shift is None
        assert losses.shape == (5,)
        # Rows have the same number of tokens, so the mean of their losses is the batch's.
        assert losses.mean() == pytest.approx(float(host.compute_loss(host.model, dict(batch))), rel=1e-5)
    assert not math.isclose(losses[0], losses[1], rel_tol=1e-4)


def test_what_is_not_served_is_refused(tmp_path, monkeypatch):
    from accelerate.utils import DistributedType

    with pytest.raises(ConfigError, match="predict_mode"):
        hybrid_trainer(tmp_path, HybridConfig(phases=PhasesConfig(predict_mode="step")))
    host = trainer(tmp_path)
    host.add_callback(HybridCallback(host, QUIET, probe=[]))
    with pytest.raises((ProbeError, ValueError)):
        host.train()
    host, _ = hybrid_trainer(tmp_path, QUIET)
    monkeypatch.setattr(
        type(host.accelerator), "distributed_type", property(lambda self: DistributedType.MULTI_CPU)
    )
    with pytest.raises(ModelError, match="one process"):
        host.callback_handler.callbacks[-1].on_train_begin(host.args, host.state, host.control)
    with pytest.raises(ModelError, match="training has not begun"):
        HybridCallback(host, QUIET, probe=PROBE).on_step_end(host.args, host.state, host.control)

"""The callback inside the real ``lightning.Trainer`` (F87)."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
from torch import nn

from hybridcore.config import BudgetConfig, ControllerConfig, HybridConfig, PhasesConfig, ProbeConfig
from hybridcore.errors import CheckpointError, ConfigError, ModelError, ProbeError
from hybridcore.events import Event

lightning = pytest.importorskip("lightning.pytorch")

from hybridcore_torch.integrations.lightning import HybridCallback  # noqa: E402

Checkpoint = lightning.callbacks.ModelCheckpoint
QUIET = HybridConfig(phases=PhasesConfig(warmup_steps=1000))
GENERATOR = torch.Generator().manual_seed(1)
X = torch.randn(1024, 6, generator=GENERATOR)
Y = torch.tanh(X @ torch.randn(6, 2, generator=GENERATOR))
PROBE = [(X[:64], Y[:64])]
TRAIN = torch.utils.data.TensorDataset(X[64:], Y[64:])


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def jumping(horizon=8.0):
    fixed = {"horizon": horizon, "full_steps": 5, "correct_steps": 5}
    return HybridConfig(
        phases=PhasesConfig(warmup_steps=5, full_steps=5),
        budget=BudgetConfig(share=1.0, grace_steps=1000.0, backoff_steps=5, count_seconds=False),
        controller=ControllerConfig(name="fixed", options={"fixed": fixed}),
        probe=ProbeConfig(batches=1),
    )


class Module(lightning.LightningModule):
    def __init__(self, rate=0.003, optimizer=torch.optim.SGD, **options):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 2))
        self.make = lambda: optimizer(self.parameters(), lr=rate, **options)
        self.losses = []

    def training_step(self, batch, index):
        loss = (self.net(batch[0]) - batch[1]).square().mean()
        self.losses.append(float(loss))
        return loss

    def configure_optimizers(self):
        optimizer = self.make()
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def losses(module, batch):
    return (module.net(batch[0]) - batch[1]).square().mean(1)


def sgd(**options):
    return Module(momentum=0.5, **options)


def fit(folder, module, callbacks=(), ckpt_path=None, batch_size=16, **options):
    trainer = lightning.Trainer(
        **{
            "default_root_dir": folder,
            "max_epochs": 1,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": any(
                isinstance(c, lightning.callbacks.ModelCheckpoint) for c in callbacks
            ),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": list(callbacks),
            **options,
        }
    )
    torch.manual_seed(5)
    # A loader draws a seed whenever it begins; not from the generator that dropout uses.
    loader = torch.utils.data.DataLoader(TRAIN, batch_size=batch_size, generator=torch.Generator())
    trainer.fit(module, loader, ckpt_path=ckpt_path)
    return trainer


def weights(module):
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


def hybrid(config, heard=None):
    events = [lambda *record: heard.append(record)] if heard is not None else []
    return HybridCallback(config, loss_fn=losses, probe=PROBE, events=events)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_it_jumps_keeps_and_trains_better_than_without(tmp_path, precision):
    plain, module, heard = sgd(), sgd(), []
    fit(tmp_path, plain, precision=precision)
    callback = hybrid(jumping(), heard)
    trainer = fit(tmp_path, module, [callback], precision=precision)
    events = [event for event, _ in heard]
    assert events.count(Event.REAL_STEP) == 60 == trainer.global_step
    assert events.count(Event.JUMP) == callback.summary["jumps"] > 0
    assert callback.summary["verdicts_kept"] > 0
    real = [payload["loss"] for event, payload in heard if event is Event.REAL_STEP]
    assert real == pytest.approx(module.losses, rel=1e-6)
    held_out = [float(losses(m.eval(), PROBE[0]).mean()) for m in (plain, module)]
    assert held_out[1] < held_out[0]
    logged = trainer.callback_metrics
    assert logged["hybrid/jumps"] == callback.summary["jumps"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_without_a_jump_training_is_the_very_same(tmp_path, precision, optimizer):
    """F84, with dropout, accumulation and clipping."""
    settings = {"precision": precision, "accumulate_grad_batches": 2, "gradient_clip_val": 0.1}
    plain, module = Module(optimizer=optimizer), Module(optimizer=optimizer)
    fit(tmp_path, plain, **settings)
    callback = hybrid(QUIET)
    fit(tmp_path, module, [callback], **settings)
    assert callback.summary["real_steps"] == 30
    assert callback.summary["jumps"] == 0
    assert torch.equal(weights(plain), weights(module))
    assert plain.losses == module.losses


def test_losses_and_gradients_of_accumulated_batches(tmp_path):
    """The engine hears the mean of the micro-batches and the norm of their unclipped gradient."""
    heard, norms = [], []

    class Watch(lightning.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            norms.append(float(torch.cat([p.grad.flatten() for p in module.parameters()]).norm()))

    module = sgd()
    callback = hybrid(jumping(), heard)
    fit(tmp_path, module, [Watch(), callback], accumulate_grad_batches=4, gradient_clip_val=0.05)
    real = [payload for event, payload in heard if event is Event.REAL_STEP]
    assert len(real) == 15 == len(norms)
    assert callback.summary["jumps"] > 0
    means = torch.tensor(module.losses).reshape(15, 4).mean(1).tolist()
    assert [r["loss"] for r in real] == pytest.approx(means, rel=1e-5)
    assert [r["grad_norm"] for r in real] == pytest.approx(norms, rel=1e-5)
    assert max(norms) > 0.05


def test_velocity_meets_the_gradient_of_the_next_batch(tmp_path):
    """F59: Lightning computes gradients inside the optimizer's step, and the factor is the cosine."""
    rows, jumped = [], []

    def listen(event, payload):
        if event is Event.JUMP:
            jumped.append(True)

    class Watch(lightning.Callback):
        """Before and after the engine's own hook."""

        def __init__(self, first):
            self.first = first

        def on_before_optimizer_step(self, trainer, module, optimizer):
            raw = trainer.optimizers[0]
            velocity = torch.cat(
                [
                    raw.state[p].get("momentum_buffer", torch.zeros_like(p)).flatten()
                    for p in module.parameters()
                ]
            )
            gradient = torch.cat([p.grad.flatten() for p in module.parameters()])
            if self.first:
                rows.append([bool(jumped), velocity.clone().double(), gradient.double()])
                jumped.clear()
            else:
                rows[-1].append(velocity.double())

    callback = HybridCallback(jumping(), loss_fn=losses, probe=PROBE, events=[listen])
    fit(tmp_path, sgd(), [Watch(True), callback, Watch(False)])
    after = [row for row in rows if row[0]]
    assert after
    for jump, before, gradient, now in rows:
        cosine = max(0.0, float(before @ gradient / (before.norm() * gradient.norm()))) if jump else 1.0
        torch.testing.assert_close(now, cosine * before, rtol=1e-5, atol=1e-9)


def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path):
    """F53: through Lightning's own checkpoint, read without pickled code, with jumps on both sides of it."""
    checkpoint = Checkpoint(dirpath=tmp_path, every_n_epochs=1, save_top_k=-1, filename="{step}")
    heard, plain = [], sgd()
    whole = hybrid(jumping(), heard)
    fit(tmp_path, plain, [whole, checkpoint], batch_size=32, max_epochs=2)
    jumps = [payload["step"] for event, payload in heard if event is Event.JUMP]
    assert min(jumps) < 30 < max(jumps)
    path = tmp_path / "step=30.ckpt"
    saved = torch.load(path, weights_only=True)
    assert saved["callbacks"]["HybridCallback"]["step"] == 30
    again = hybrid(jumping())
    module = sgd()
    # Lightning brings no generator back; dropout goes on with the one of the engine's state.
    fit(tmp_path, module, [again], ckpt_path=path, batch_size=32, max_epochs=2)
    assert torch.equal(weights(plain), weights(module))
    for key in ("real_steps", "jumps", "verdicts_kept", "rollbacks", "predicted_steps"):
        assert again.summary[key] == whole.summary[key]
    with pytest.raises(CheckpointError, match="another run"):
        fit(tmp_path, sgd(), [hybrid(jumping(9.0))], ckpt_path=path, batch_size=32, max_epochs=2)


class Manual(Module):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class Twice(Module):
    def configure_optimizers(self):
        optimizer = self.make()
        return [optimizer], [
            torch.optim.lr_scheduler.StepLR(optimizer, 1),
            torch.optim.lr_scheduler.StepLR(optimizer, 2),
        ]


def test_what_is_not_served_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="predict_mode"):
        hybrid(HybridConfig(phases=PhasesConfig(predict_mode="step")))
    with pytest.raises(ProbeError, match="held-out"):
        HybridCallback(QUIET, loss_fn=losses, probe=[])
    with pytest.raises(ModelError, match="manual optimization"):
        fit(tmp_path, Manual(), [hybrid(QUIET)])
    with pytest.raises(ModelError, match="one learning-rate scheduler"):
        fit(tmp_path, Twice(), [hybrid(QUIET)])
    with pytest.raises(ModelError, match="several looks"):
        fit(tmp_path, Module(optimizer=torch.optim.LBFGS), [hybrid(QUIET)])
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, strategy="ddp", devices=1, default_root_dir=tmp_path
    )
    with pytest.raises(ModelError, match="one device"):
        hybrid(QUIET).on_train_start(trainer, Module())
    with pytest.raises(ModelError, match="training has not begun"):
        hybrid(QUIET).on_train_end(trainer, Module())

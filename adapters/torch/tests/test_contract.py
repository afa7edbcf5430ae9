"""The adapter contract on the kinds of models and optimizers that people train."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hybridcore.layout import ParamGroup
from hybridcore.testing import AdapterContract, AdapterFixture
from hybridcore_torch import TorchAdapter
from hybridcore_torch.parameters import plain_name, unwrap


def cross_entropy(model, batch):
    logits = model(batch[0])
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(wide), batch[1], reduction="none")


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def data(shape=(6,), n=16, count=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(n, *shape, generator=generator).to(dtype),
            torch.randint(0, 3, (n,), generator=generator),
        )
        for _ in range(count)
    ]


def fixture(model, optimizer, batches, loss_fn=cross_entropy, random_steps=False, **options):
    held = {id(p) for g in optimizer.param_groups for p in g["params"]}
    named = [(plain_name(n), p) for n, p in unwrap(model).named_parameters()]

    def weights():
        return {
            n: p.detach().double().cpu().numpy().copy() for n, p in named if p.requires_grad and id(p) in held
        }

    inputs, labels = batches[0]
    other = mlp()[0]
    return AdapterFixture(
        adapter=TorchAdapter(model, optimizer, loss_fn, **options),
        batches=batches,
        probe=batches[3],
        nan_batch=(torch.full_like(inputs, float("nan")), labels) if inputs.is_floating_point() else None,
        bad_batch=(inputs[..., :2] if inputs.is_floating_point() else inputs.float(), labels),
        n_probe=labels.shape[0],
        random_steps=random_steps,
        weights=weights,
        other=TorchAdapter(other, torch.optim.SGD(other.parameters(), lr=0.1), loss_fn),
    )


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Base(AdapterContract):
    def model(self):
        torch.manual_seed(0)
        return mlp()


class TestSgd(Base):
    def make(self):
        model = self.model()
        return fixture(model, torch.optim.SGD(model.parameters(), lr=0.1), data())


class TestMomentum(Base):
    def make(self):
        model = self.model()
        return fixture(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), data())


class TestFusedAdamW(Base):
    def make(self):
        model = self.model()
        return fixture(model, torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True), data())


class TestForeachAdam(Base):
    def make(self):
        model = self.model()
        return fixture(model, torch.optim.Adam(model.parameters(), lr=1e-2, foreach=True), data())


class TestAccumulationClippingAndAutocast(Base):
    def make(self):
        model = self.model()
        return fixture(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            data(),
            accumulate=3,
            max_grad_norm=0.1,
            autocast=torch.bfloat16,
        )


class TestBatchNormAndDropout(AdapterContract):
    def make(self):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Flatten(),
            nn.Linear(64, 3),
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        return fixture(model, optimizer, data((1, 4, 4)), random_steps=True)


class TestBatchNorm(AdapterContract):
    def make(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        return fixture(model, torch.optim.Adam(model.parameters(), lr=1e-2), data())


class Tied(nn.Module):
    """Input and output embeddings are one tensor; the norm is frozen."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 3, bias=False)
        self.embed = nn.Embedding(3, 8)
        self.head.weight = self.embed.weight
        self.norm = nn.LayerNorm(8)
        self.norm.requires_grad_(False)
        self.body = nn.Linear(8, 8)

    def forward(self, tokens):
        return self.head(self.norm(torch.tanh(self.body(self.embed(tokens)))))


class TestTiedFrozenTwoGroups(AdapterContract):
    def make(self):
        torch.manual_seed(0)
        model = Tied()
        optimizer = torch.optim.AdamW(
            [{"params": [model.embed.weight], "lr": 1e-2}, {"params": model.body.parameters()}], lr=1e-3
        )
        generator = torch.Generator().manual_seed(1)
        batches = [tuple(torch.randint(0, 3, (16,), generator=generator) for _ in range(2)) for _ in range(4)]
        return fixture(model, optimizer, batches)

    def test_tied_once_frozen_absent_embedding_recognised(self):
        layout = self.make().adapter.layout
        groups = {p.name: p.group for p in layout.params}
        assert groups == {
            "head.weight": ParamGroup.EMBEDDING,
            "body.weight": ParamGroup.MATRIX,
            "body.bias": ParamGroup.BIAS,
        }


class TestBfloat16(Base):
    def make(self):
        model = self.model().to(torch.bfloat16)
        return fixture(model, torch.optim.SGD(model.parameters(), lr=0.5), data(dtype=torch.bfloat16))


class TestFloat64(Base):
    """F62: buckets, and all that is done with them, have the precision of the weights."""

    def make(self):
        model = self.model().double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        return fixture(model, optimizer, data(dtype=torch.float64), max_grad_norm=1.0)

    def test_buckets_are_float64(self):
        layout = self.make().adapter.layout
        assert (layout.bucket_dtype, layout.nbytes) == ("float64", 8 * layout.total)


class TestMixedDtypes(AdapterContract):
    """Float64 body, float32 head, transposed (non-contiguous) weight: two buckets."""

    def make(self):
        torch.manual_seed(0)

        class Mixed(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = nn.Linear(6, 8, dtype=torch.float64)
                self.body.weight = nn.Parameter(torch.randn(6, 8, dtype=torch.float64).t())
                self.head = nn.Linear(8, 3)

            def forward(self, x):
                return self.head(torch.tanh(self.body(x.double())).float())

        model = Mixed()
        assert not model.body.weight.is_contiguous()
        return fixture(model, torch.optim.Adam(model.parameters(), lr=1e-2), data())

    def test_two_buckets(self):
        layout = self.make().adapter.layout
        assert layout.bucket_sizes == (27, 56)
        assert {p.dtype for p in layout.params} == {"float32", "float64"}
        assert layout.bucket_dtype == "float32"


class TestCompiled(Base):
    def make(self):
        model = torch.compile(self.model(), backend="eager")
        return fixture(model, torch.optim.AdamW(model.parameters(), lr=1e-2), data())

    def test_names_are_the_users_own(self):
        assert set(self.make().adapter.layout.names) == {n for n, _ in mlp().named_parameters()}


class TestLBFGS(Base):
    def make(self):
        model = self.model()
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4, line_search_fn="strong_wolfe")
        return fixture(model, optimizer, data())


def on_cuda(batches):
    return [tuple(t.cuda() for t in batch) for batch in batches]


if torch.cuda.is_available():

    class TestCudaFusedAdamW(Base):
        def make(self):
            model = self.model().cuda()
            return fixture(model, torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True), on_cuda(data()))

    class TestCudaCapturableFloat16Scaled(Base):
        """Autocast and scaler; the learning rate and the step counts are tensors on the device."""

        def make(self):
            model = self.model().cuda()
            rate = torch.tensor(1e-2, device="cuda")
            optimizer = torch.optim.Adam(model.parameters(), lr=rate, capturable=True)
            scaler = torch.amp.GradScaler("cuda", init_scale=128.0)
            return fixture(
                model, optimizer, on_cuda(data()), scaler=scaler, autocast=torch.float16, max_grad_norm=1.0
            )

    class TestCudaBatchNormAndDropout(AdapterContract):
        def make(self):
            torch.manual_seed(0)
            model = nn.Sequential(
                nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
            ).cuda()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, foreach=True)
            return fixture(model, optimizer, on_cuda(data()), random_steps=True)


def test_layout_groups_follow_module_types():
    class Custom(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Embedding(5, 4)
            self.norm = nn.LayerNorm(4)
            self.rms = nn.RMSNorm(4)
            self.linear = nn.Linear(4, 4)
            self.batch = nn.BatchNorm1d(4)

    model = Custom()
    adapter = TorchAdapter(model, torch.optim.SGD(model.parameters(), lr=0.1), cross_entropy)
    groups = {p.name: p.group.value for p in adapter.layout.params}
    assert groups == {
        "token.weight": "embedding",
        "norm.weight": "norm",
        "norm.bias": "norm",
        "rms.weight": "norm",
        "linear.weight": "matrix",
        "linear.bias": "bias",
        "batch.weight": "norm",
        "batch.bias": "norm",
    }
    assert adapter.layout.total == sum(p.numel() for p in model.parameters())
    assert np.isclose(adapter.layout.nbytes, 4 * adapter.layout.total)


@pytest.mark.parametrize("large", [1, 1 << 18])
def test_an_update_has_the_same_bits_in_one_pass_and_in_two(monkeypatch, large):
    """Many tensors are subtracted one by one where they are large, and by two passes over all where not."""
    from hybridcore_torch import buckets

    monkeypatch.setattr(buckets, "LARGE", large)
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(5, 5) for _ in range(40)])
    adapter = TorchAdapter(model, torch.optim.SGD(model.parameters(), lr=0.1), cross_entropy)
    assert adapter._store._calls_are_cheap is (large == 1)
    before = adapter.read_params()
    expected = before[0].clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    update = adapter.add_params(before, 1.0, -1.0)
    assert update[0] is before[0] and torch.equal(update[0], adapter.read_params()[0] - expected)

"""On a real GPU: the same operations through CuPy, PyTorch's stream and the trial; skipped without one."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

if not torch.cuda.is_available():
    pytest.skip("no CUDA device: the kernels are not run on a GPU", allow_module_level=True)
cupy = pytest.importorskip("cupy", reason="CuPy is not installed: the kernels are not run on a GPU")

import array_api_compat.torch as xp  # noqa: E402

from hybridcore.kernels.trial import Sample  # noqa: E402
from hybridcore_cupy import CupyKernels  # noqa: E402


@pytest.mark.parametrize("count", [8, 100_003])
def test_f70_every_operation_equals_float64_on_the_gpu(count):
    generator = torch.Generator("cuda").manual_seed(0)
    a, b = (torch.randn(count, device="cuda", generator=generator)[1:] for _ in range(2))
    x, y = a.double(), b.double()
    kernels = CupyKernels()
    expected = (float(x @ x), float(y @ y), float(x @ y))
    assert kernels.products((a,), (b,), xp) == pytest.approx(expected, abs=1e-6 * max(expected))
    mixed = kernels.combine([(a,), (b,)], [0.5, -2.0], xp)[0]
    assert float((mixed.double() - (0.5 * x - 2.0 * y)).abs().max()) < 1e-5


def test_f70_every_operation_runs_on_the_gpu():
    from hybridcore.kernels.trial import same

    sample = Sample.make(xp, torch.zeros(1, device="cuda"), 10_001)
    for name, call in sample.calls.items():
        assert same(sample, name, call(CupyKernels())), name

"""Two data-parallel ranks on the CPU: agreement without gradient traffic (F71, F61)."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from hybridcore_torch import TorchAdapter

WORKER = """
import json, sys
import torch
from torch import distributed, nn
from hybridcore_torch import TorchAdapter

rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
torch.manual_seed(0)
model = nn.parallel.DistributedDataParallel(nn.Linear(4, 2).double())
exchanges = []

def exchange(state, bucket):
    exchanges.append(1)
    work = distributed.all_reduce(bucket.buffer().div_(2), async_op=True).get_future()
    return work.then(lambda future: future.value()[0])

model.register_comm_hook(None, exchange)
adapter = TorchAdapter(
    model,
    torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    lambda m, b: (m(b[0]) - b[1]).square().mean(1),
    accumulate=2,
)
generator = torch.Generator().manual_seed(1)
x, y = (torch.randn(12, k, generator=generator, dtype=torch.float64)[rank::2] for k in (4, 2))
for _ in range(3):
    adapter.train_step((x, y))
trained = len(exchanges)
weights = [p.tolist() for p in model.module.parameters()]
adapter.apply_delta(tuple(torch.ones_like(b) for b in adapter.read_params()), 0.5)
adapter.probe_loss((x, y))
jumped = len(exchanges) - trained
adapter.train_step((x, y))
print(json.dumps({
    "names": adapter.layout.names,
    "mean": adapter.mean_scalar(float(1 + 2 * rank)),
    "trained": trained,
    "jumped": jumped,
    "weights": weights,
    "end": [p.tolist() for p in model.module.parameters()],
}))
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_ranks_agree_and_equal_one_process_on_the_whole_batch(tmp_path):
    command = [sys.executable, "-c", WORKER]
    workers = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    first, second = (json.loads(w.communicate(timeout=120)[0].splitlines()[-1]) for w in workers)
    assert first == second
    assert set(first["names"]) == {"weight", "bias"}
    assert first["mean"] == 2.0
    assert first["trained"] == 3  # one exchange per step, not per micro-batch
    assert first["jumped"] == 0
    torch.manual_seed(0)
    model = nn.Linear(4, 2).double()
    adapter = TorchAdapter(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        lambda m, b: (m(b[0]) - b[1]).square().mean(1),
    )
    generator = torch.Generator().manual_seed(1)
    batch = tuple(torch.randn(12, k, generator=generator, dtype=torch.float64) for k in (4, 2))
    for _ in range(3):
        adapter.train_step(batch)
    for got, want in zip(first["weights"], model.parameters(), strict=True):
        np.testing.assert_allclose(got, want.detach().numpy(), rtol=1e-10)

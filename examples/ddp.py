"""Classify handwritten digits with PyTorch on several processes; stop it at any moment and start it again.

    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1   # torchrun's restarts hang with gloo without it
    torchrun --standalone --nproc-per-node 2 --max-restarts 3 examples/ddp.py --folder runs/ddp

Each process reads its share of every batch, in an order that only the seed and the batch's number decide. A
run that was killed goes on from its last checkpoint and ends with the loss of the run that was never stopped.
"""

import argparse
import gc
import os
from datetime import timedelta

import torch
from sklearn.datasets import load_digits
from torch import distributed, nn

from hybridcore_torch import hybridize
from hybridcore_torch.rank_checkpoints import RankCheckpoints

parser = argparse.ArgumentParser()
parser.add_argument("--folder", default="runs/ddp", help="where the checkpoints are")
parser.add_argument("--steps", type=int, default=400)
parser.add_argument("--every", type=int, default=50, help="steps between checkpoints")
options = parser.parse_args()


def train():
    cuda = torch.cuda.is_available()
    distributed.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(minutes=2))
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    torch.set_num_threads(1)

    images, classes = load_digits(return_X_y=True)
    inputs = torch.tensor(images, dtype=torch.float32, device=device) / 16
    targets = torch.tensor(classes, device=device)
    probe = slice(1237 + rank, 1437, ranks)
    validation = slice(1437, None)

    def batch(number, size=64):
        """This process's share of a batch of the whole run."""
        rows = torch.randint(0, 1237, (size,), generator=torch.Generator().manual_seed(number))
        mine = rows[rank::ranks].to(device)
        return inputs[mine], targets[mine]

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 10)).to(device)
    model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    criterion = nn.CrossEntropyLoss(reduction="none")
    hybrid = hybridize(
        model,
        optimizer,
        loss_fn=lambda m, b: criterion(m(b[0]), b[1]),
        probe=[(inputs[probe], targets[probe])],
    )
    checkpoints = RankCheckpoints(hybrid, options.folder, every=options.every)

    start = checkpoints.resume()
    if rank == 0:
        print(f"start at batch {start}", flush=True)
    for number in range(start, options.steps):
        hybrid.step(batch(number))
        checkpoints.after_batch(number + 1)
        if rank == 0 and (number + 1) % 50 == 0:
            print(f"batch {number + 1}", flush=True)
    summary = hybrid.finish()
    if rank == 0:
        with torch.no_grad():
            loss = criterion(model.module(inputs[validation]), targets[validation]).mean().item()
        print(f"{summary['jumps']} jumps, {summary['verdicts_kept']} of the verdicts kept")
        print(f"validation loss {loss:.9f}")


train()
# gloo's threads end with the group, and they must end before Python does: one that still holds a tensor then
# aborts the process. So nothing may use the group any more when it is destroyed.
gc.collect()
distributed.destroy_process_group()

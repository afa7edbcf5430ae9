"""Checkpoints through orbax of the training in `many_devices.py`; a program of its own.

python orbax_devices.py devices FOLDER            four devices of this process
python orbax_devices.py process RANK PORT FOLDER  one of two processes with two devices each
python orbax_devices.py mortal RANK PORT FOLDER LIFE  the same; LIFE tells where it is killed
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from many_devices import BATCHES, PLAIN, attach, listened

from hybridcore.errors import CheckpointError
from hybridcore_jax.orbax_checkpoints import OrbaxCheckpoints

STOP = 24
"""In a trial that is going to fail: the checkpoint holds the snapshot to go back to."""


def spread(specs):
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "model"))
    placed = {n: jax.device_put(w, NamedSharding(mesh, specs[n])) for n, w in PLAIN.items()}
    return placed, mesh


def train(params, place, folder):
    """The whole training, which a fresh engine repeats to the last bit from the checkpoint within."""
    hybrid, losses = attach(params, place(BATCHES[0])), []
    decisions = listened(hybrid)
    extra = {"draw": 0.1 + jax.process_index()}
    for number, batch in enumerate(BATCHES):
        if number == STOP:
            assert OrbaxCheckpoints(hybrid, folder).save(STOP, extra)
            known = len(decisions)
        losses.append(hybrid.step(place(batch)))

    wrong = {n: jax.device_put(np.zeros_like(PLAIN[n]), w.sharding) for n, w in params.items()}
    fresh = attach(wrong, place(BATCHES[0]))
    again = listened(fresh)
    checkpoints = OrbaxCheckpoints(fresh, folder)
    assert checkpoints.resume() == STOP
    assert checkpoints.extra == extra
    for name, leaf in fresh.params.items():
        assert leaf.sharding == params[name].sharding, (name, leaf.sharding)
    assert [fresh.step(place(batch)) for batch in BATCHES[STOP:]] == losses[STOP:]
    assert again == decisions[known:]
    assert [row[2] for row in again if row[0] == "verdict"][:1] == [False]  # to a snapshot that was on disk
    weights = {n: np.asarray(w) for n, w in fresh.params.items()}
    assert all(np.array_equal(w, weights[n]) for n, w in hybrid.params.items())
    return decisions, losses, weights


def refusal(hybrid, folder):
    try:
        OrbaxCheckpoints(hybrid, folder).resume()
    except CheckpointError as error:
        return str(error.got)


def devices(folder):
    specs = {"up": P(None, "model"), "bias": P(), "down": P("model", "data"), "free": P("data")}
    params, mesh = spread(specs)

    def dealt(batch):
        return jax.device_put(batch, NamedSharding(mesh, P(("data", "model"))))

    train(params, dealt, folder)

    # An older checkpoint is used where a file of the newer one is changed, missing or new.
    hybrid = attach(params, dealt(BATCHES[0]))
    checkpoints = OrbaxCheckpoints(hybrid, folder / "damaged", every=4, keep=9)
    for number in range(16):
        hybrid.step(dealt(BATCHES[number]))
        checkpoints.after_batch(number + 1)
    newest = {n: checkpoints.store.folder / f"batch-{n:09d}" for n in (8, 12, 16)}
    files = sorted(path.name for path in newest[16].iterdir())
    data = max((newest[16] / "orbax").rglob("d/*"), key=lambda path: path.stat().st_size)
    data.write_bytes(data.read_bytes()[:-1] + b"!")
    max((newest[12] / "orbax").rglob("*manifest.ocdbt")).unlink()
    (newest[8] / "orbax" / "more").write_bytes(b"")
    fresh = attach(params, dealt(BATCHES[0]))
    assert OrbaxCheckpoints(fresh, folder / "damaged").resume() == 4
    assert fresh.engine.real_steps == 4

    # A link is no folder, and the checkpoint of another run is refused.
    place = folder / "damaged" / "batch-000000004" / "orbax"
    place.rename(folder / "elsewhere")
    place.symlink_to(folder / "elsewhere")
    refused = [
        refusal(attach(params, dealt(BATCHES[0])), folder / "damaged"),
        refusal(attach(PLAIN, BATCHES[0]), folder),
    ]
    blocked = folder / "file"
    blocked.write_text("a file where a folder should be")
    written = OrbaxCheckpoints(hybrid, blocked, every=1).save(1)
    print(json.dumps({"devices": jax.device_count(), "refused": refused, "written": written, "files": files}))


def joined(rank, port, **options):
    """Parameters over the devices of two processes, and how each of them hands in its half of a batch."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank, **options)
    params, mesh = spread({"up": P(None, "model"), "bias": P(), "down": P("model"), "free": P()})
    dealt = NamedSharding(mesh, P("data"))

    def place(batch):
        return tuple(jax.make_array_from_process_local_data(dealt, x[4 * rank : 4 * rank + 4]) for x in batch)

    return params, place


def process(rank, port, folder):
    whole = train(*joined(rank, port), folder)
    checkpoint = folder / f"batch-{STOP:09d}"
    run = [whole[0], whole[1], {n: w.tolist() for n, w in whole[2].items()}]
    print(json.dumps({"run": run, "files": sorted(path.name for path in checkpoint.iterdir())}))
    jax.distributed.shutdown()


def mortal(rank, port, folder, life):
    """Go on from the newest checkpoint until this process is killed, or to the end of a long life."""
    params, place = joined(rank, port, **({} if life == "long" else {"heartbeat_timeout_seconds": 10}))

    def kill(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def before(number):
        if (life, number, rank) == ("step", STOP + 3, 1):
            kill()

    def pack(checkpoints, state, whole=OrbaxCheckpoints._pack):
        write = whole(checkpoints, state)
        return kill if (life, state["batches"], rank) == ("writing", STOP, 0) else write

    OrbaxCheckpoints._pack = pack
    found = {"killed": through(params, place, folder / "killed", before)}
    if life == "long":
        found["calm"] = through(params, place, folder / "calm")
    print(json.dumps(found))
    jax.distributed.shutdown()


def through(params, place, folder, before=lambda number: None):
    """The training from the newest checkpoint to the end."""
    hybrid, losses = attach(params, place(BATCHES[0])), []
    decisions = listened(hybrid)
    checkpoints = OrbaxCheckpoints(hybrid, folder, every=STOP // 2)
    start = checkpoints.resume()
    print(f"start at batch {start}", flush=True)
    for number in range(start, len(BATCHES)):
        before(number)
        losses.append(hybrid.step(place(BATCHES[number])))
        checkpoints.after_batch(number + 1)
    weights = {n: np.asarray(w).tolist() for n, w in hybrid.params.items()}
    return {"start": start, "losses": losses, "decisions": decisions, "weights": weights}


if __name__ == "__main__":
    if sys.argv[1] == "devices":
        devices(Path(sys.argv[2]))
    elif sys.argv[1] == "process":
        process(int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
    else:
        mortal(int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), sys.argv[5])

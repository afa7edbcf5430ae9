"""`examples/ddp.py` under torchrun: a rank is killed, all start again, the end is the same (F53, F71)."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")
if not torch.distributed.is_available():
    pytest.skip("this PyTorch was built without torch.distributed", allow_module_level=True)

OWN = {
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    # A restart in the store of the attempt before finds the addresses of dead processes, and hangs.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}
EXAMPLE = Path(__file__).parents[3] / "examples" / "ddp.py"
STEPS, EVERY = 160, 40
ALONE = """
import runpy, sys
from pathlib import Path

sys.argv = sys.argv[1:]
module = runpy.run_path(sys.argv[0], run_name="__main__")
names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
print("left:", *[name for name in names if "gloo" in name])
"""
in_proc = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="looks into Linux's /proc")


def start(folder: Path, restarts: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += ["--max-restarts", str(restarts), "--monitor-interval", "0.2", str(EXAMPLE)]
    return subprocess.Popen(
        [*words, "--folder", str(folder), "--steps", str(STEPS), "--every", str(EVERY)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **OWN},
        start_new_session=True,
    )


def end(run: subprocess.Popen[str]) -> str:
    try:
        out, err = run.communicate(timeout=150)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)  # the session that was started here
    assert run.returncode == 0, err[-3000:]
    return out


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`, from Linux's own table."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
        except OSError:
            continue  # it has just ended
        if re.search(rf"^PPid:\t{pid}$", text, re.M):
            found.append(int(status.parent.name))
    return found


def kill_a_rank(run: subprocess.Popen[str], folder: Path) -> None:
    """Kill the youngest of torchrun's children once a checkpoint is on disk."""
    until = time.monotonic() + 120.0
    while not list(folder.glob("batch-*")) and time.monotonic() < until and run.poll() is None:
        time.sleep(0.02)
    ranks = children(run.pid)
    if ranks:
        os.kill(max(ranks), signal.SIGKILL)


def last_loss(out: str) -> str:
    return re.findall(r"validation loss ([\d.]+)", out)[-1]


@pytest.mark.slow
@in_proc
def test_a_rank_is_killed_and_the_run_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    calm = start(tmp_path / "calm", 0)
    out = end(calm)
    assert re.findall(r"start at batch (\d+)", out) == ["0"]
    killed = start(tmp_path / "killed", 2)
    killer = threading.Thread(target=kill_a_rank, args=(killed, tmp_path / "killed"))
    killer.start()
    again = end(killed)
    killer.join()
    first, *others = [int(n) for n in re.findall(r"start at batch (\d+)", again)]
    assert first == 0
    assert others, "the rank was killed, and nothing was started again"
    assert set(others) <= set(range(EVERY, STEPS + 1, EVERY))  # where checkpoints are written
    assert others == sorted(others)
    assert last_loss(again) == last_loss(out)


@pytest.mark.slow
@in_proc
def test_the_threads_of_gloo_end_with_the_group(tmp_path: Path) -> None:
    """One that still holds a tensor when Python ends aborts a rank whose work is done."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    words = [sys.executable, "-c", ALONE, str(EXAMPLE), "--folder", str(tmp_path)]
    run = subprocess.run(
        [*words, "--steps", "4", "--every", "2"],
        capture_output=True,
        text=True,
        timeout=150,
        env={**os.environ, **OWN, **alone, "MASTER_PORT": str(port)},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.splitlines()[-1] == "left:"

"""Does any input make a reader do anything but succeed, or raise a `HybridCoreError`? (F54)

    python -m benchmarks.fuzz --runs 1000000             all targets, in two processes
    python -m benchmarks.fuzz --runs 50000 --target state

Inputs are mutations that know their format. Where atheris is installed (`pip install 'hybridcore[fuzz]'`),
they are guided by the coverage that they reach; otherwise they are random, and the seed decides.
Findings: another error, a file written, a file read outside the one folder, a module imported, code run, a
process or socket opened, more than 3 seconds of processor time, more than a gibibyte of memory, a crash.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SHARES = {
    "manifest": 0.10, "state": 0.17, "arrays": 0.08, "configuration": 0.18, "overrides": 0.07,
    "metrics": 0.12, "faults": 0.06, "residuals": 0.06, "sweep": 0.04, "network": 0.05,
    "rank-manifest": 0.03, "shards": 0.01, "torch-state": 0.03,
}  # fmt: skip
"""How many of all inputs each target gets."""
NEEDS = {"network": "hybridcore_nowcast", "shards": "hybridcore_torch", "torch-state": "hybridcore_torch"}
"""Targets that are left out where a package is not installed."""


class Session:
    """Inputs for one target, and what was found.

    Args:
        name: The target.
        folder: For its files.
        runs: Inputs to try; the last one ends the process where `log` is given.
        log: File for what was found.
    """

    def __init__(self, name: str, folder: Path, runs: int, log: Path | None = None) -> None:
        from benchmarks.fuzzing.guard import Guard
        from benchmarks.fuzzing.targets import TARGETS

        self.target = TARGETS[name](folder)
        self.guard = Guard(self.target.folder)
        self.name, self.runs, self._log = name, runs, log
        self.tried = self.accepted = 0
        self.findings: dict[str, bytes] = {}
        self._started = time.process_time()

    def warm_up(self) -> None:
        """Let everything that is imported or compiled once be so; sound inputs must be accepted."""
        rng = random.Random(0)
        for seed in self.target.seeds:
            self.target.put(seed)
            self.target.read()
            for _ in range(max(10, 200 // len(self.target.seeds))):
                self.target.put(self.target.mutate(seed, rng))
                with contextlib.suppress(Exception):
                    self.target.read()

    def once(self, data: bytes) -> None:
        """Try one input."""
        from benchmarks.fuzzing.guard import FindingError

        self.target.put(data)
        try:
            self.accepted += self.guard.run(self.target.read)
        except FindingError as error:
            self.findings.setdefault(str(error).partition(": ")[0], data)
            if self._log is not None:
                sys.stderr.write(f"{self.name}: {error}\n")
        self.tried += 1
        if self.tried >= self.runs and self._log is not None:
            self._log.write_text(json.dumps(self.report()))
            sys.stderr.flush()
            os._exit(0)

    def report(self) -> dict[str, Any]:
        """Counts and findings."""
        return {
            "target": self.name,
            "inputs": self.tried,
            "accepted": self.accepted,
            "seconds": round(time.process_time() - self._started, 1),
            "findings": {
                what: base64.b64encode(data[:4000]).decode() for what, data in self.findings.items()
            },
        }

    def random(self, seed: int) -> None:
        """Random mutations, several on top of each other."""
        rng = random.Random(seed)
        while self.tried < self.runs:
            data = rng.choice(self.target.seeds)
            for _ in range(rng.choice((1, 1, 2, 3, 6))):
                data = self.target.mutate(data, rng)[: self.target.longest]
            self.once(data)

    def guided(self, atheris: Any, folder: Path, seed: int) -> None:
        """Mutations of inputs that reached something new; does not return."""
        corpus = folder.with_name("corpus")
        corpus.mkdir()
        for number, data in enumerate(self.target.seeds):
            (corpus / str(number)).write_bytes(data)

        def mutate(data: bytes, longest: int, number: int) -> bytes:
            rng = random.Random(number)
            if rng.random() < 0.1:
                return bytes(atheris.Mutate(data, longest))
            for _ in range(rng.choice((1, 1, 2, 4))):
                data = self.target.mutate(data, rng)
            return data[:longest]

        options = [
            f"-seed={seed + 1}",
            f"-max_len={self.target.longest}",
            "-rss_limit_mb=0",
            "-verbosity=0",
            "-timeout=60",
        ]
        atheris.Setup([sys.argv[0], *options, str(corpus)], self.once, custom_mutator=mutate)
        gc.freeze()
        atheris.Fuzz()


def child(name: str, runs: int, seed: int, log: Path, guided: bool) -> None:
    """Fuzz one target in this process, and end it."""
    atheris: Any = None
    if guided:
        import atheris

        packages = [
            "hybridcore",
            "hybridcore_nowcast",
            "hybridcore_torch",
            "tomllib",
            "json",
            "cattrs",
            "safetensors",
        ]
        with atheris.instrument_imports(include=packages):
            import benchmarks.fuzzing.rank_targets  # noqa: F401
    from benchmarks.fuzzing.guard import limit_memory

    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as place:
        folder = Path(place) / "inputs"
        folder.mkdir()
        session = Session(name, folder, runs, log)
        session.warm_up()
        limit_memory()
        if guided:
            session.guided(atheris, folder, seed)
        session.random(seed)


def fuzz(name: str, runs: int, seed: int, guided: bool) -> dict[str, Any]:
    """Fuzz one target in a process of its own; its death is a finding."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.json"
        command = [sys.executable, "-m", "benchmarks.fuzz", "--child", str(log), "--target", name]
        command += ["--runs", str(runs), "--seed", str(seed), "--engine", "guided" if guided else "random"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if log.exists():
            return dict(json.loads(log.read_text()))
        return {"target": name, "inputs": 0, "findings": {f"crash: {done.stderr[-3000:]}": ""}}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs, over all targets")
    parser.add_argument("--target", choices=sorted(SHARES), default=None, help="this one alone")
    parser.add_argument("--engine", choices=["guided", "random"], default=None)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="a line for each target")
    parser.add_argument("--child", type=Path, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    guided = find_spec("atheris") is not None if given.engine is None else given.engine == "guided"
    if given.child is not None:
        child(given.target, given.runs, given.seed, given.child, guided)
    names = [given.target] if given.target else [n for n in SHARES if find_spec(NEEDS.get(n, "hybridcore"))]
    whole = sum(SHARES[name] for name in names)
    jobs = [(name, max(1, round(given.runs * SHARES[name] / whole))) for name in names]
    with ThreadPoolExecutor(given.workers) as pool:
        results = []
        for result in pool.map(lambda job: fuzz(*job, given.seed, guided), jobs):
            results.append(result)
            for what, data in result["findings"].items():
                sys.stderr.write(f"{result['target']}: {what}\n  {data}\n")
            if given.verbose:
                sys.stdout.write(json.dumps({**result, "findings": sorted(result["findings"])}) + "\n")
                sys.stdout.flush()
    total = sum(result["inputs"] for result in results)
    found = sum(len(result["findings"]) for result in results)
    engine = "guided by coverage" if guided else "random"
    accepted = sum(result.get("accepted", 0) for result in results)
    sys.stdout.write(
        f"fuzzing, {engine}: {total} inputs to {len(results)} readers, {accepted} accepted, "
        f"{total - accepted} refused by a typed error: {found} findings, "
        f"{sum(result.get('seconds', 0.0) for result in results):.0f} s of one core\n"
    )
    if found:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

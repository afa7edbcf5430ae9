"""What the engine's bookkeeping costs: a plain loop against a run in which every jump is refused.

Both arms train the same model from the same weights on the same batches with the same optimizer, in turns
of a few steps in the order A B B A, so that drifts of the machine's speed cancel. Each turn of four gives
one ratio; the median and the quartiles of these ratios are shown.

    OMP_NUM_THREADS=1 python benchmarks/overhead.py [--quick] [--framework NAME] [--task NAME] [--json FILE]
"""

from __future__ import annotations

import argparse
import inspect
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from hybridcore.config import HybridConfig, PredictorConfig
from hybridcore.engine import Engine
from hybridcore.plugins import load_framework, load_registry
from hybridcore.protocols import Problem

TURN_STEPS = {"digits-mlp": 100, "mnist-mlp": 40, "mnist-cnn": 10, "stdlib-gpt": 3}
"""Steps of one turn: a few tens to hundreds of milliseconds."""

DEFAULT_TASKS = ("digits-mlp", "mnist-cnn", "stdlib-gpt")


@attrs.frozen
class Overhead:
    """Ratio of the engine's time to the plain loop's on one task.

    Attributes:
        task: Registry name.
        steps: Steps that each arm took while measured.
        plain_ms: Median milliseconds of a plain step.
        ratio: Median ratio of paired turns.
        low: First quartile of the ratios.
        high: Third quartile.
    """

    task: str
    steps: int
    plain_ms: float
    ratio: float
    low: float
    high: float


@attrs.frozen
class PlainLoop:
    """A training loop as one would write it without hybridcore.

    Attributes:
        step: Learns from one batch, and looks at its loss as every training loop does.
        place: A NumPy batch as the framework's own arrays.
        wait: Waits until the device has finished.
        weights: The weights now, by name.
    """

    step: Callable[[Any], None]
    place: Callable[[Any], Any]
    wait: Callable[[], None]
    weights: Callable[[], dict[str, Any]]


def torch_loop(problem: Problem, device: str) -> PlainLoop:
    """PyTorch, with the built-in task's own optimizer (fused on GPUs)."""
    import torch

    from hybridcore_torch.models import build_model
    from hybridcore_torch.optimizers import build_optimizer

    built, place = build_model(problem, device), torch.device(device)
    optimizer = build_optimizer(built.model.parameters(), problem.optimizer)

    def step(batch: Any) -> None:
        optimizer.zero_grad()
        loss = built.loss_fn(built.model, batch).mean()
        loss.backward()
        loss.item()
        optimizer.step()

    return PlainLoop(
        step,
        lambda batch: tuple(torch.as_tensor(array, device=place) for array in batch),
        lambda: torch.cuda.synchronize(place) if place.type == "cuda" else None,
        lambda: {n: v.detach().cpu().numpy() for n, v in built.model.named_parameters()},
    )


def jax_loop(problem: Problem, device: str) -> PlainLoop:
    """JAX: one jitted step around an optax optimizer."""
    import jax
    import optax

    from hybridcore_jax.models import build_model
    from hybridcore_jax.optimizers import build_optimizer

    place = jax.local_devices(backend=device.partition(":")[0])[0]
    built, optimizer = build_model(problem, place), build_optimizer(problem.optimizer)

    def losses(params: Any, state: Any, batch: Any) -> tuple[Any, Any]:
        if state is None:
            return built.loss_fn(params, batch).mean(), None
        found, state = built.loss_fn(params, batch, state=state, training=True, batch_statistics=True)
        return found.mean(), state

    @jax.jit
    def update(params: Any, state: Any, moments: Any, batch: Any) -> Any:
        (loss, state), gradients = jax.value_and_grad(losses, has_aux=True)(params, state, batch)
        changes, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, changes), state, moments, loss

    held = [built.params, built.state, optimizer.init(built.params)]

    def step(batch: Any) -> None:
        *held[:], loss = update(*held, batch)
        float(loss)

    return PlainLoop(
        step,
        lambda batch: jax.device_put(tuple(batch), place),
        lambda: jax.block_until_ready(held),
        lambda: dict(held[0]),
    )


def tensorflow_loop(problem: Problem, device: str) -> PlainLoop:
    """TensorFlow: one `tf.function` around a Keras optimizer."""
    import tensorflow as tf

    from hybridcore_tensorflow.models import build_model
    from hybridcore_tensorflow.optimizers import build_optimizer
    from hybridcore_tensorflow.variables import trainable

    where = "/CPU:0" if device == "cpu" else device
    with tf.device(where):
        built, optimizer = build_model(problem), build_optimizer(problem.optimizer)
        named = trainable(built.model)
        variables = list(named.values())
        optimizer.build(variables)
    told = {"training": True} if "training" in inspect.signature(built.loss_fn).parameters else {}

    @tf.function(autograph=False)
    def update(batch: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(built.loss_fn(built.model, batch, **told))
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    def place(batch: Any) -> Any:
        with tf.device(where):
            return tuple(tf.convert_to_tensor(array) for array in batch)

    return PlainLoop(
        lambda batch: float(update(batch)),
        place,
        lambda: None if device == "cpu" else tf.test.experimental.sync_devices(),
        lambda: {name: variable.numpy() for name, variable in named.items()},
    )


LOOPS = {"torch": torch_loop, "jax": jax_loop, "tensorflow": tensorflow_loop}


def engine_arm(problem: Problem, framework: str, device: str) -> tuple[Callable[[Any], None], Engine]:
    """The same training under the engine, whose predictor refuses every jump."""
    run = load_framework(framework).build(problem, device)
    config = HybridConfig(predictor=PredictorConfig(name="none"))
    engine = Engine.from_config(run.adapter, config, probes=run.probes)

    def step(batch: Any) -> None:
        engine.step(batch)

    return step, engine


def measure(name: str, rounds: int, device: str, framework: str = "torch") -> Overhead:
    """Paired, interleaved measurement on one task."""
    cls = load_registry().get("task", name)
    problem = cls(cls.Config()).problem(seed=0)
    plain = LOOPS[framework](problem, device)
    hybrid, engine = engine_arm(problem, framework, device)
    steps = TURN_STEPS.get(name, 10)
    stream = problem.batches()

    def turn(step: Callable[[Any], None], batches: list[Any]) -> float:
        started = time.perf_counter()
        for batch in batches:
            step(batch)
        plain.wait()
        return time.perf_counter() - started

    def batches() -> list[Any]:
        return [plain.place(next(stream)) for _ in range(steps)]

    warm = batches()
    turn(plain.step, warm), turn(hybrid, warm)
    plain_seconds, ratios = [], []
    for _ in range(rounds):
        first, second = batches(), batches()
        a = turn(plain.step, first)
        b = turn(hybrid, first) + turn(hybrid, second)
        a += turn(plain.step, second)
        plain_seconds.append(a / (2 * steps))
        ratios.append(b / a)
    if engine.counts.jumps:
        raise AssertionError(f"{engine.counts.jumps} jumps were applied, none should be")
    low, ratio, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    return Overhead(
        name,
        2 * steps * rounds,
        1e3 * float(np.median(plain_seconds)),
        float(ratio),
        float(low),
        float(high),
    )


def start_times(repeats: int) -> dict[str, float]:
    """Median seconds of a fresh interpreter, of importing hybridcore in one, and of ``hybridcore --help``."""
    commands = {
        "python": [sys.executable, "-c", "pass"],
        "import hybridcore": [sys.executable, "-c", "import hybridcore"],
        "hybridcore --help": [sys.executable, "-m", "hybridcore", "--help"],
    }
    times: dict[str, float] = {}
    for name, command in commands.items():
        taken = []
        for _ in range(repeats):
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            taken.append(time.perf_counter() - started)
        times[name] = float(np.median(taken))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--task", action="append", help=f"default: {', '.join(DEFAULT_TASKS)}")
    parser.add_argument("--rounds", type=int, default=40, help="turns A B B A per task")
    parser.add_argument("--quick", action="store_true", help="8 turns")
    parser.add_argument("--framework", default="torch", choices=sorted(LOOPS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    if options.framework == "torch":
        import torch

        torch.set_num_threads(options.threads)
    rounds = 8 if options.quick else options.rounds
    print(f"{'task':<14}{'plain step':>12}{'engine/plain':>14}   quartiles")
    results = []
    for name in options.task or DEFAULT_TASKS:
        result = measure(name, rounds, options.device, options.framework)
        results.append(result)
        print(
            f"{result.task:<14}{result.plain_ms:>9.2f} ms{result.ratio:>14.3f}   "
            f"{result.low:.3f} to {result.high:.3f}",
            flush=True,
        )
    starts = start_times(3 if options.quick else 9)
    for name, seconds in starts.items():
        print(f"{name:<20}{1e3 * seconds:>6.0f} ms")
    if options.json is not None:
        report = {
            "overhead": [attrs.asdict(result) for result in results],
            "start_seconds": starts,
            "rounds": rounds,
            "threads": options.threads,
            "device": options.device,
            "framework": options.framework,
            "machine": {
                "processor": platform.machine(),
                "python": platform.python_version(),
                **load_framework(options.framework).versions(),
            },
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

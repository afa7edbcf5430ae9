"""A byte-level GPT in bfloat16 compute: the engine's cost per real step, and a short run with jumps."""

from __future__ import annotations

import itertools
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.gpu_jax_lab import look, traces
from hybridcore.configfile import config_from_dict
from hybridcore.engine import Engine
from hybridcore.kernels import ChosenKernels
from hybridcore.plugins import load_registry
from hybridcore_cupy import CupyKernels
from hybridcore_jax import JaxAdapter
from hybridcore_jax.models.transformer import transformer_logits, transformer_shapes

SHAPES = {
    False: {"width": 384, "depth": 6, "heads": 6, "context": 256, "vocabulary": 256, "rows": 128},
    True: {"width": 32, "depth": 1, "heads": 2, "context": 16, "vocabulary": 256, "rows": 8},
}
RATE = 1e-4
"""Lower than the best, and one for all parts: what is compiled once serves all."""

KERNELS = ("products", "distance", "gram", "combine", "displace", "run_norms")
"""What `kernels.name = "auto"` takes for JAX on an H100."""

AHEAD = 1000
"""Steps that an engine is put ahead by between its first 200 steps and the settled state."""

Step = Callable[[Any], Any]


class Lab:
    """Model and data of one size."""

    def __init__(self, quick: bool) -> None:
        self.shape = dict(SHAPES[quick])
        self.rows = self.shape.pop("rows")
        text = b"".join(
            f.read_bytes() for f in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:120]
        )
        self.text = np.frombuffer(text, np.uint8).astype(np.int32)
        self.batches = self.drawn(16, 0)

    def drawn(self, count: int, seed: int) -> list[tuple[jax.Array, jax.Array]]:
        """Batches of bytes of the standard library's sources, on the device."""
        context, rng = self.shape["context"], np.random.default_rng(seed)
        found = []
        for _ in range(count):
            starts = rng.integers(0, len(self.text) - context - 1, self.rows)
            block = np.stack([self.text[s : s + context + 1] for s in starts])
            found.append((jnp.asarray(block[:, :-1]), jnp.asarray(block[:, 1:])))
        return found

    def params(self) -> dict[str, jax.Array]:
        """Weights from the same seed, in float32."""
        rng, weights = np.random.default_rng(1), {}
        for name, shape in transformer_shapes(self.shape).items():
            value = np.ones(shape) if "norm" in name and name.endswith("weight") else np.zeros(shape)
            weights[name] = jnp.asarray(
                value if len(shape) == 1 else 0.02 * rng.standard_normal(shape), jnp.float32
            )
        return weights

    def losses(self, params: Any, batch: Any) -> jax.Array:
        """Mean cross-entropy of each sequence, computed in bfloat16 up to the logits."""
        narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
        logits = transformer_logits(narrow, batch[0], self.shape["depth"], self.shape["heads"])
        rows = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), batch[1])
        return rows.mean(axis=1)

    def adapter(self, rate: float) -> JaxAdapter:
        return JaxAdapter(self.params(), optax.adamw(rate), self.losses, learning_rate=rate)


def plain_loop(lab: Lab, rate: float) -> Step:
    """The compiled loop that people write: donated state, and the loss read after each step."""
    rule = optax.adamw(rate)
    params = lab.params()
    held = [params, rule.init(params)]

    def update(params: Any, state: Any, batch: Any) -> tuple[Any, Any, Any]:
        loss, gradients = jax.value_and_grad(lambda p: lab.losses(p, batch).mean())(params)
        updates, state = rule.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    compiled = jax.jit(update, donate_argnums=(0, 1))

    def step(batch: Any) -> float:
        held[0], held[1], loss = compiled(held[0], held[1], batch)
        return float(loss)

    return step


def refusing(adapter: JaxAdapter, kernels: ChosenKernels) -> Engine:
    """An engine with the default controller and phases, whose predictor `none` refuses every jump."""
    config = config_from_dict({"history": {"memory_budget_mib": 20_000.0}, "predictor": {"name": "none"}})
    registry = load_registry()
    controller = registry.get("controller", config.controller.name)
    predictors = {"none": registry.get("predictor", "none")()}
    return Engine(adapter, config, controller(controller.Config()), predictors, kernels=kernels)


def go_ahead(engine: Engine) -> None:
    """Put an engine where it is after 1,000 steps more; 25 steps on it takes a good state."""
    engine.counts.real_steps += AHEAD
    assert engine.reach is not None
    engine.reach.load_state_dict({**engine.reach.state_dict(), "counted": engine.counts.real_steps})
    engine.recovery.states.next_at = engine.counts.real_steps + 25


def rounds(
    steps: dict[str, Step], source: Iterator[Any], count: int, turns: int, deadline: float
) -> dict[str, list[float]]:
    """Seconds per step of each arm, in turns of `count` steps, there and back (ABBA)."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(turns):
        if time.monotonic() > deadline and index > 1:
            break
        for name in list(steps) if index % 2 == 0 else list(steps)[::-1]:
            started = time.perf_counter()
            for _ in range(count):
                steps[name](next(source))
            taken[name].append((time.perf_counter() - started) / count)
    return taken


def show(title: str, taken: dict[str, list[float]], rows: Any) -> dict[str, Any]:
    """Time over the plain loop's, of all turns together and the quartiles of pairs of turns."""
    arms: dict[str, Any] = {}
    for name, seconds in taken.items():
        ratios = np.asarray(seconds) / np.asarray(taken["plain"])
        low, middle, high = (float(q) for q in np.quantile(ratios, (0.25, 0.5, 0.75)))
        whole = sum(seconds) / sum(taken["plain"])
        arms[name] = {"ms": 1e3 * float(np.mean(seconds)), "ratio": whole, "quartiles": [low, middle, high]}
        text = f"{arms[name]['ms']:.2f} ms, {whole:.4f} (turns {low:.4f} {middle:.4f} {high:.4f})"
        print(f"  {title:<16}{name:<20}{text}", flush=True)
        if name != "plain":
            rows.append((f"{title}, {name}", text, True))
    return arms


def bookkeeping(
    lab: Lab, quick: bool, deadline: float, rows: Any, result: dict[str, Any]
) -> tuple[str, bool]:
    plain, adapter = plain_loop(lab, RATE), lab.adapter(RATE)
    source = itertools.cycle(lab.batches)
    started = time.monotonic()
    for _ in range(4):
        plain(next(source)), adapter.train_step(next(source))
    print(
        f"  {adapter.layout.total / 1e6:.1f} M parameters, {time.monotonic() - started:.0f} s to compile",
        flush=True,
    )
    sets = {"reference": ChosenKernels({})}
    if CupyKernels().supports(jnp, adapter.device, "float32"):
        sets["kernels"] = ChosenKernels(dict.fromkeys(KERNELS, CupyKernels()))
    # One engine after the other compiles what it needs before anything is timed.
    for kernels in sets.values():
        engine = refusing(adapter, kernels)
        for _ in range(55):
            engine.step(next(source))
    engines = {f"engine, {name}": refusing(adapter, kernels) for name, kernels in sets.items()}
    steps: dict[str, Step] = {"plain": plain, "adapter only": adapter.train_step}
    steps |= {name: engine.step for name, engine in engines.items()}
    first = rounds(steps, source, 5, 4 if quick else 10, deadline)
    result["steps 1 to 50"] = show("steps 1 to 50", first, rows)
    with traces() as traced:
        then = rounds(steps, source, 10, 2 if quick else 15, deadline)
        result["steps 51 to 200"] = show("steps 51 to 200", then, rows)
        for engine in engines.values():
            go_ahead(engine)
        settled = rounds(steps, source, 50, 2 if quick else 4, deadline)
    result["settled"] = show("settled", settled, rows)
    jumps = sum(e.counts.jumps for e in engines.values())
    return f"{len(traced)} traced again, {jumps} jumps", jumps == 0 and not traced


def race(lab: Lab, steps: int, deadline: float, result: dict[str, Any]) -> tuple[str, bool]:
    """Held-out loss over cost and seconds at a low rate: the user's own steps, then the engine's."""
    held_out, probes = lab.drawn(2, 7), lab.drawn(2, 8)
    curves: dict[str, list[tuple[float, float, float]]] = {}
    engine = None
    for name in ("baseline", "hybrid"):
        adapter = lab.adapter(RATE)
        if name == "hybrid":
            engine = Engine.from_config(adapter, config_from_dict({}), probes=probes)
        step: Step = engine.step if engine is not None else adapter.train_step
        source, curve, taken, cost = itertools.cycle(lab.batches), [], 0.0, 0.0
        while cost < steps and time.monotonic() < deadline:
            started = time.perf_counter()
            step(next(source))
            taken += time.perf_counter() - started
            cost = engine.counts.cost if engine is not None else cost + 1.0
            if len(curve) <= cost // 5:
                loss = float(np.mean([adapter.probe_loss(b).mean() for b in held_out]))
                curve.append((cost, taken, loss))
        curves[name] = curve
    result["race"] = curves
    assert engine is not None
    target = curves["baseline"][-1]
    reached = next((point for point in curves["hybrid"] if point[2] <= target[2]), None)
    end = curves["hybrid"][-1][2]
    text = f"loss {target[2]:.4f} after {target[0]:.0f} steps; hybrid {end:.4f} at the same cost"
    if reached is not None:
        text += (
            f", there {target[0] / reached[0]:.2f}x sooner in cost, {target[1] / reached[1]:.2f}x in seconds"
        )
    counts = engine.counts
    text += f"; {counts.jumps} jumps, {counts.failed} undone"
    return text, target[2] < curves["baseline"][0][2]


def run(deadline: float, quick: bool, rows: Any, failures: list[Any]) -> dict[str, Any]:
    lab, result = Lab(quick), {}
    checks = {
        "bookkeeping": lambda: bookkeeping(lab, quick, deadline, rows, result),
        "a short run": lambda: race(lab, 60 if quick else 400, deadline, result),
    }
    result["seconds"] = look(checks, deadline, rows, failures)
    return result

"""A byte-level GPT in bfloat16 compute: a short run with jumps, and the engine's cost per real step."""

from __future__ import annotations

import itertools
import math
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
from hybridcore.events import Event, EventBus
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

TURN = 5
"""Steps of an arm before the next one's turn: few, so that a change of the machine's pace meets all alike."""

RACE_SHARE = 0.45
"""Share of the time left that the short run may take; the rest belongs to the bookkeeping."""

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
    steps: dict[str, Step],
    source: Iterator[Any],
    count: int,
    turns: int,
    deadline: float,
    wait: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds per step of each arm, in turns of `count` steps, there and back (ABBA).

    Args:
        steps: Arms.
        source: Batches.
        count: Steps of a turn.
        turns: Turns of each arm, an even number.
        deadline: When to begin no further turns there and back; the first are always made.
        wait: Waits for the device, so that each turn pays for what it has queued.
    """
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(turns):
        if time.monotonic() > deadline and index and index % 2 == 0:
            break
        for name in list(steps) if index % 2 == 0 else list(steps)[::-1]:
            wait()
            started = time.perf_counter()
            for _ in range(count):
                steps[name](next(source))
            wait()
            taken[name].append((time.perf_counter() - started) / count)
    return taken


def show(title: str, taken: dict[str, list[float]], rows: Any) -> dict[str, Any]:
    """Time over the plain loop's: quartiles over turns there and back, and of all turns together.

    What comes once in many steps (a good state) is in the latter alone; the former know nothing of a machine
    that is slower for some seconds.
    """
    arms: dict[str, Any] = {}
    plain = np.asarray(taken["plain"]).reshape(-1, 2).mean(axis=1)
    for name, seconds in taken.items():
        ratios = np.asarray(seconds).reshape(-1, 2).mean(axis=1) / plain
        low, middle, high = (float(q) for q in np.quantile(ratios, (0.25, 0.5, 0.75)))
        whole = sum(seconds) / sum(taken["plain"])
        arms[name] = {"ms": 1e3 * float(np.mean(seconds)), "ratio": whole, "quartiles": [low, middle, high]}
        arms[name]["turns"] = [float(ratio) for ratio in ratios]
        text = f"{1e3 * float(np.median(seconds)):.2f} ms, {middle:.4f} ({low:.4f} to {high:.4f}"
        text += f" in {len(ratios)} turns there and back; all together {whole:.4f})"
        print(f"  {title:<20}{name:<20}{text}", flush=True)
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
    begun, tick = time.monotonic(), jnp.zeros(())

    def wait() -> None:
        """Until the device has done what is queued so far."""
        jax.block_until_ready(tick + 1.0)

    def turns(count: int, share: float) -> dict[str, list[float]]:
        """Turns until a share of the time left at `begun` is over."""
        until = begun + share * (deadline - begun)
        return rounds(steps, source, TURN, count, until, wait)

    def ended(taken: dict[str, list[float]]) -> int:
        return TURN * len(taken["plain"])

    first = turns(4 if quick else 10, 0.25)
    watched = ended(first)
    result["first"] = show(f"steps 1 to {watched}", first, rows)
    with traces() as traced:
        then = turns(4 if quick else 30, 0.65)
        result["then"] = show(f"steps {watched + 1} to {watched + ended(then)}", then, rows)
        for engine in engines.values():
            go_ahead(engine)
        settled = turns(10 if quick else 20, 1.0)
    result["settled"] = show(f"settled, {ended(settled)} steps", settled, rows)
    jumps = sum(e.counts.jumps for e in engines.values())
    return f"{len(traced)} traced again, {jumps} jumps", jumps == 0 and not traced


class Racer:
    """One arm of the short run.

    Attributes:
        curve: Cost in steps of the user's own, seconds without steps that compile, held-out loss.
        compiling: Seconds of steps that compile.
        story: Jumps, verdicts and what was done about faults, with their numbers.
    """

    def __init__(self, lab: Lab, batches: list[Any], held_out: list[Any], probes: list[Any] | None) -> None:
        self.adapter = lab.adapter(RATE)
        self.engine = None
        self.story: list[dict[str, Any]] = []
        if probes is not None:
            events = EventBus()
            events.listen(self._note)
            self.engine = Engine.from_config(self.adapter, config_from_dict({}), probes=probes, events=events)
        self._step: Step = self.adapter.train_step if self.engine is None else self.engine.step
        self._source, self._held_out = iter(batches), held_out
        self._cost = self._seconds = self.compiling = 0.0
        self.curve: list[tuple[float, float, float]] = []

    def _note(self, event: Event, payload: Any) -> None:
        if event in (Event.JUMP, Event.VERDICT, Event.ROLLBACK, Event.RECOVERY, Event.SIGNAL):
            self.story.append({"event": str(event), **payload})

    def advance(self, cost: float) -> None:
        """Train up to a cost, and look at the held-out loss there."""
        while self._cost < cost:
            with traces() as traced:
                started = time.perf_counter()
                self._step(next(self._source))
                self.adapter.synchronize()
                taken = time.perf_counter() - started
            self.compiling += taken if traced else 0.0
            self._seconds += 0.0 if traced else taken
            self._cost = self.engine.counts.cost if self.engine is not None else self._cost + 1.0
        loss = float(np.mean([self.adapter.probe_loss(b).mean() for b in self._held_out]))
        self.curve.append((self._cost, self._seconds, loss))


def race(lab: Lab, steps: int, deadline: float, result: dict[str, Any]) -> tuple[str, bool]:
    """Held-out loss over cost and seconds at a low rate: the user's own steps beside the engine's.

    The arms take turns of `TURN` steps and end at the same cost, after two turns at least. Once both have
    begun, they may take `RACE_SHARE` of the time that is left.
    """
    # No batch comes twice: on a few that are repeated, whoever learns faster overfits sooner.
    batches, held_out, probes = lab.drawn(steps + 1, 9), lab.drawn(2, 7), lab.drawn(2, 8)
    arms = {
        "baseline": Racer(lab, batches, held_out, None),
        "hybrid": Racer(lab, batches, held_out, probes),
    }
    for arm in arms.values():
        arm.advance(1.0)
    until = time.monotonic() + RACE_SHARE * (deadline - time.monotonic())
    names = list(arms)
    for cost in range(TURN, steps + TURN, TURN):
        if time.monotonic() > until and cost > 2 * TURN:
            break
        for name in names:
            arms[name].advance(min(cost, steps))
        names.reverse()
    curves = {name: arm.curve for name, arm in arms.items()}
    result["race"], result["story"] = curves, arms["hybrid"].story
    engine = arms["hybrid"].engine
    assert engine is not None
    target = curves["baseline"][-1]
    reached = next((point for point in curves["hybrid"] if point[2] <= target[2]), None)
    end = curves["hybrid"][-1][2]
    text = f"loss {target[2]:.4f} after {target[0]:.0f} steps; hybrid {end:.4f} at the same cost"
    if reached is not None:
        sooner = target[0] / reached[0], target[1] / max(reached[1], 1e-9)
        text += f", there {sooner[0]:.2f}x sooner in cost, {sooner[1]:.2f}x in seconds"
    counts = engine.counts
    text += f"; {counts.jumps} jumps, {counts.failed} undone; steps that compile left out, "
    text += " and ".join(f"{arm.compiling:.0f} s" for arm in arms.values())
    return text, target[2] < curves["baseline"][0][2]


def run(deadline: float, quick: bool, rows: Any, failures: list[Any]) -> dict[str, Any]:
    lab, result = Lab(quick), {}
    # The short run is made in any case, if need be of few steps.
    short = {"a short run": lambda: race(lab, 60 if quick else 400, deadline, result)}
    taken = look(short, math.inf, rows, failures)
    longer = {"bookkeeping": lambda: bookkeeping(lab, quick, deadline, rows, result)}
    result["seconds"] = taken | look(longer, deadline, rows, failures)
    return result

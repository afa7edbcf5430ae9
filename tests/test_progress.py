from __future__ import annotations

import io

from rich.console import Console

from hybridcore.cli.progress import Progress
from hybridcore.events import Event


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def step(number, predicted=0.0, phase="full"):
    return {"step": number, "phase": phase, "loss": 0.5, "predicted_steps": predicted}


def test_off_a_terminal_lines_come_every_few_seconds_with_all_that_matters():
    clock, file = Clock(), io.StringIO()
    with Progress(Console(file=file, width=200), every=10.0, clock=clock) as progress:
        progress(Event.RUN_START, {"arm": "hybrid", "seed": 4, "config": {"run": {"steps": 100}}})
        progress(Event.VERDICT, {"kept": True, "credit_steps": 7.0})
        progress(Event.VERDICT, {"kept": False, "credit_steps": 99.0})
        for number in range(1, 51):
            clock.now = float(number)
            progress(Event.REAL_STEP, step(number, predicted=20.0, phase="correct"))
    lines = file.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[-1] == (
        "hybrid seed 4 · step 50/100 · correct · loss 0.5 · validation nan · predicted 20 steps"
        " without a backward pass · credit 7 steps · 50 s left"
    )


def test_each_run_starts_afresh_and_ends_with_a_line():
    clock, file = Clock(), io.StringIO()
    progress = Progress(Console(file=file, width=200), clock=clock)
    for arm in ("baseline", "hybrid"):
        progress(Event.RUN_START, {"arm": arm, "seed": 0, "config": {"run": {"steps": 7200}}})
        progress(Event.EVALUATION, {"loss": 0.25})
        progress(Event.REAL_STEP, step(7200))
        clock.now += 7260.0
        progress(Event.RUN_END, {})
    first, second = file.getvalue().splitlines()
    assert first.startswith("baseline seed 0 · step 7200/7200 · full · loss 0.5 · validation 0.25")
    assert first.endswith("2 h 1 min passed")
    assert second.startswith("hybrid seed 0 · step 7200/7200 · full · loss 0.5")


def test_on_a_terminal_one_live_line_is_rewritten():
    clock, file = Clock(), io.StringIO()
    console = Console(file=file, width=120, force_terminal=True)
    with Progress(console, clock=clock) as progress:
        progress(Event.RUN_START, {"arm": "hybrid", "seed": 0, "config": {"run": {"steps": 10}}})
        for number in range(1, 6):
            clock.now += 1.0
            progress(Event.REAL_STEP, step(number))
    shown = file.getvalue()
    assert "step 5/10" in shown
    assert "\x1b[2K" in shown

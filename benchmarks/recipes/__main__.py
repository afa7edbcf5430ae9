"""Published recipes with their controls, a tuned baseline and rivals: one folder of runs, tables, figures.

    python -m benchmarks.recipes [--quick] [--only NAME] [--data DIR] [--workers N] [--minutes M] --out DIR

For each recipe: the baseline as published, the same with its examples in another order, the hybrid run with
the engine's defaults on the published settings, controls, the tuned baseline, the hybrid run on the tuned
settings, and rivals. What is finished in the folder is kept, so that a call that was cut short, or that
named some recipes only, is completed by the next one.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks.recipes.catalogue import RECIPES, Recipe
from benchmarks.recipes.plan import (
    CONTROLS,
    EVALUATIONS,
    OWN_RATE,
    PREDICTION,
    PUBLISHED_RIVALS,
    RESHUFFLED,
    TUNED,
    Plan,
)
from hybridcore.runfiles import write_json

RIVALS_ALL = tuple(dict.fromkeys((*PUBLISHED_RIVALS, *OWN_RATE, *PREDICTION)))
QUICK = ("torch-quickstart", "torch-polynomial", "sklearn-mlp")


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recipes", description=(__doc__ or "").split("\n", 1)[0]
    )
    add = parser.add_argument
    add(
        "--quick",
        action="store_true",
        help="three recipes, two seeds, two rivals; a quarter of an hour on two cores",
    )
    add("--only", action="append", help="recipes whose name contains this; may be repeated")
    add("--seeds", type=int, help="number of seeds; 5")
    add("--scale", type=float, default=1.0, help="steps over the published ones; shown in the table")
    add("--rivals", help=f"all, none, or some with commas: {', '.join(RIVALS_ALL)}")
    add("--no-tuned", action="store_true", help="leave tuning, the tuned baseline and the hybrid on it out")
    add("--data", type=Path, help="folder of fashion_mnist.npz and tinyshakespeare.txt; ../shared/data")
    add("--device", default="cpu")
    add("--workers", type=int, default=2, help="processes of one thread each")
    add("--apart", action="store_true", help="a process for every arm, one for baseline and hybrid together")
    add("--evaluations", type=int, default=EVALUATIONS, help=f"evaluations in a run; {EVALUATIONS}")
    add("--minutes", type=float, default=math.inf, help="begin no run that would end later than this")
    add("--set", action="append", default=[], help="dotted.key=value of every configuration")
    add("--out", type=Path, help="folder for runs, tables and figures; finished runs stay")
    add("--read", action="store_true", help="only write tables and figures of what is in --out")
    add("--list", action="store_true", help="name the recipes, and about how long one run takes")
    return parser.parse_args(arguments)


def plan_of(options: argparse.Namespace) -> Plan:
    """How to run what the options ask for."""
    quick = ("fast-forward", "schedule-free") if options.quick else RIVALS_ALL
    words = quick if options.rivals in (None, "all") else tuple(options.rivals.split(","))
    rivals = () if options.rivals == "none" else words
    if unknown := [word for word in rivals if word not in RIVALS_ALL]:
        sys.exit(f"unknown rival {', '.join(unknown)}; there are {', '.join(RIVALS_ALL)}")
    again = () if options.quick else (RESHUFFLED,)
    folder = options.data or Path(os.environ.get("HYBRIDCORE_DATA", "../shared/data"))
    return Plan(
        seeds=tuple(range(options.seeds or (2 if options.quick else 5))),
        arms=("hybrid", *again, *CONTROLS, *(() if options.no_tuned else TUNED), *rivals),
        scale=options.scale,
        device=options.device,
        data=folder.resolve() if folder.is_dir() else None,
        overrides=tuple(options.set),
        deadline=time.time() + 60.0 * options.minutes,
        evaluations=options.evaluations,
        apart=options.apart,
    )


def chosen(options: argparse.Namespace) -> list[Recipe]:
    """Recipes that the options ask for."""
    wanted = [r for r in RECIPES if not options.quick or r.name in QUICK]
    if options.only:
        wanted = [r for r in RECIPES if any(word in r.name for word in options.only)]
    if not wanted:
        sys.exit(f"no recipe has this name; there are {', '.join(r.name for r in RECIPES)}")
    return wanted


def write_report(plan: Plan, folder: Path) -> int:
    """Tables and figures of all recipes that a folder has runs of; how many those are."""
    from benchmarks.recipes.rows import read_rows
    from benchmarks.recipes.table import markdown, plain

    rows = [row for r in RECIPES for row in read_rows(r, plan, folder / r.name)]
    if not rows:
        return 0
    start = rows[0].comparison.records[0].start
    versions = ", ".join(f"{name} {version}" for name, version in start.get("versions", {}).items())
    origin = f"{platform.machine()}, {versions}; {start.get('time', '')[:10]}"
    text = markdown(rows, origin)
    (folder / "table.md").write_text(text, encoding="utf-8")
    write_json(folder / "recipes.json", {"origin": origin, **plain(rows)})
    if find_spec("matplotlib") is None:
        print(f"no figures: pip install 'hybridcore[report]', then --read --out {folder}", file=sys.stderr)
    else:
        from benchmarks.recipes.figures import draw_all
        from benchmarks.recipes.page import save_page

        save_page(rows, draw_all(rows, folder), origin, folder / "report.html")
    print(text)
    print(f"runs, tables and figures in {folder}")
    return len(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    options = read_options(arguments)
    plan, wanted = plan_of(options), chosen(options)
    if options.list:
        for recipe in wanted:
            steps, seconds = plan.steps(recipe), plan.guess(recipe)
            arms = len(plan.arms_of(recipe))
            whole = seconds * (arms * len(plan.seeds) + (0 if options.no_tuned else 7))
            print(
                f"{recipe.name:18} {steps:6d} steps, a run about {seconds:4.0f} s, {arms} arms and tuning "
                f"{whole:6.0f} s: {recipe.published}"
            )
        return 0
    folder = options.out or Path("runs") / time.strftime("recipes-%Y%m%d-%H%M%S")
    complete, interrupted = True, False
    if not options.read:
        from benchmarks.recipes.pool import run_all

        for recipe in wanted:
            plan.claim(folder / recipe.name)
        try:
            complete = run_all(plan, wanted, folder, options.workers)
        except KeyboardInterrupt:
            complete, interrupted = False, True
    if not write_report(plan, folder):
        print("no recipe has both its baseline and its hybrid run finished: no tables", file=sys.stderr)
    if not complete:
        print(f"not all runs are finished: the same command with --out {folder} goes on", file=sys.stderr)
    return 130 if interrupted else 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())

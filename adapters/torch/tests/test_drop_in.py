"""The README's drop-in change turns `examples/plain_loop.py` into `examples/drop_in.py` (F58)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("sklearn")

ROOT = Path(__file__).parents[3]
PLAIN, DROP_IN = ROOT / "examples" / "plain_loop.py", ROOT / "examples" / "drop_in.py"


def diff():
    return re.search(r"```diff\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)[1]


def applied(change, text):
    """`text` after a unified diff; each hunk's old lines must be found exactly once."""
    for hunk in re.split(r"^@@.*@@\n", change, flags=re.M)[1:]:
        lines = hunk.splitlines(keepends=True)
        old, new = ("".join(line[1:] for line in lines if line[0] in keep) for keep in (" -", " +"))
        assert text.count(old) == 1, f"not found once in the plain loop:\n{old}"
        text = text.replace(old, new)
    return text


def run(code, capsys):
    names = {"__name__": "example"}
    exec(compile(code, "example", "exec"), names)
    printed = capsys.readouterr().out
    return names, float(re.search(r"test loss ([\d.]+)", printed)[1])


def test_f58_at_most_five_lines_change():
    lines = [line for line in diff().splitlines() if not line.startswith("@@")]
    assert 1 <= sum(line.startswith("+") for line in lines) <= 5
    assert not any(line.startswith("-") for line in lines)


def test_f58_the_change_gives_the_example():
    assert applied(diff(), PLAIN.read_text(encoding="utf-8")) == DROP_IN.read_text(encoding="utf-8")


def test_f58_the_changed_loop_jumps_and_is_no_worse(capsys):
    _, plain = run(PLAIN.read_text(encoding="utf-8"), capsys)
    names, changed = run(applied(diff(), PLAIN.read_text(encoding="utf-8")), capsys)
    engine = names["hybrid"].engine
    assert engine.counts.real_steps == 10 * len(names["loader"])
    assert engine.counts.jumps > 0
    assert engine.counts.predicted_steps > 0
    assert changed <= 1.02 * plain

"""The README's blocks run as they are printed, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_blocks_run_as_printed(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    names = {}
    exec(blocks[0], names)
    assert names["hybrid"].summary["real_steps"] == 180
    jumps = names["hybrid"].summary["jumps"]
    assert jumps > 0
    assert f"{jumps} jumps" in capsys.readouterr().out
    exec(blocks[1], names)
    assert names["hybrid"].engine.counts.real_steps == 60
    exec(blocks[2], names)
    assert names["hybrid"].engine.counts.real_steps == 60
    assert len(blocks) == 3

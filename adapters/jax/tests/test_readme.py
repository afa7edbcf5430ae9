"""The README's two loops run as they are printed, and train."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_both_loops_run_as_printed():
    first, second = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    names: dict[str, object] = {}
    exec(first, names)
    start = names["loss_fn"](names["hybrid"].params, names["batches"][0]).mean()
    assert names["hybrid"].engine.real_steps == 38
    exec(second, names)
    assert names["hybrid"].engine.real_steps == 38
    assert names["loss_fn"](names["params"], names["batches"][0]).mean() < start

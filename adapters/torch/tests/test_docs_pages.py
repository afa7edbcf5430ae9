"""The documentation's pages that use PyTorch run; all other pages run in the suite of the core."""

from __future__ import annotations

import pytest
from documentation import PAGES, name, needs_torch, run_blocks


@pytest.mark.parametrize("page", [p for p in PAGES if needs_torch(p)], ids=name)
def test_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks(page)

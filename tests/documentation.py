"""The code blocks of the documentation, for the tests that run them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NO_RUN = re.compile(r"no-run: \S.+")
_TORCH = re.compile(r"^\s*(?:from|import) (?:hybridcore_)?torch\b", re.MULTILINE)


def blocks(page: Path, language: str = "python") -> list[tuple[int, str, str]]:
    """Line number, words after the language, and code of each block in that language."""
    pattern = re.compile(rf"^```{language}([^\n]*)\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start()) + 1, m[1].strip(), m[2]) for m in pattern.finditer(text)]


def needs_torch(page: Path) -> bool:
    """Whether a block of the page imports PyTorch; such pages run in the suite of hybridcore-torch."""
    return any(_TORCH.search(code) for _, words, code in blocks(page) if not words)


def name(page: Path) -> str:
    """The page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def run_blocks(page: Path) -> None:
    """Run every Python block of a page, in one namespace."""
    namespace: dict[str, object] = {"__name__": "documentation"}
    for line, words, code in blocks(page):
        if words:
            assert NO_RUN.fullmatch(words), f"{page}:{line}: write `python` or `python no-run: reason`"
            continue
        exec(compile("\n" * line + code, str(page), "exec"), namespace)

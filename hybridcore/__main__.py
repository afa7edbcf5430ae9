"""``python -m hybridcore``: the command line."""

from __future__ import annotations

from hybridcore.cli import main

if __name__ == "__main__":
    main()

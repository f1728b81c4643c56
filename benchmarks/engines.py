"""What does each concurrency model cost? The same echo handler on every engine, five rounds."""

from __future__ import annotations

import sys
from pathlib import Path

from asyncnet.cli import main

RESULTS = Path(__file__).parent / "results"

if __name__ == "__main__":
    RESULTS.mkdir(exist_ok=True)
    sys.exit(main(["compare", "--json", str(RESULTS / "engines.json")]))

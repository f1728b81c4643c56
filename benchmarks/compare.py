"""What does each concurrency model cost? The same handler on every engine, under every workload."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Final

import attrs

from asyncnet.cli.compare import DEFAULTS, QUICK, available_engines, terminal_progress
from asyncnet.lab import Comparison, compare, format_html, format_table
from benchmarks._report import publish

SAVED: Final = Path(__file__).parent / "results" / "compare.json"


def main() -> int:
    """Measure, print the tables, and put them into README.md; return 1 when an engine failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--quick", action="store_true", help="a minute; print only: neither README.md nor results/ change"
    )
    either.add_argument("--tables", action="store_true", help="measure nothing: make table and page of the saved run")
    chosen = parser.parse_args()
    if chosen.tables:
        result = Comparison.from_json(SAVED.read_text())
    else:
        engines, missing = available_engines()
        print("".join(f"{line}\n" for line in missing), end="", file=sys.stderr)
        settings = attrs.evolve(QUICK if chosen.quick else DEFAULTS, engines=engines)
        result = compare(settings, progress=terminal_progress())
    if chosen.quick:
        print(text(result))
    else:
        SAVED.write_text(json.dumps(json.loads(result.to_json())) + "\n")
        SAVED.with_suffix(".html").write_text(format_html(result))
        publish("compare", text(result))
    return 0 if result.ok else 1


def text(result: Comparison) -> str:
    """Return the tables as they stand in README.md."""
    return f"```\n{format_table(result)}\n```"


if __name__ == "__main__":
    sys.exit(main())

"""What does each concurrency model cost? The same handler on every engine, under every workload."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Final

import attrs

from asyncnet.cli.compare import DEFAULTS, QUICK, available_engines, terminal_progress
from asyncnet.lab import compare, format_html, format_table
from benchmarks._report import publish

RESULTS: Final = Path(__file__).parent / "results"


def main() -> int:
    """Measure, print the tables, and put them into README.md; return 1 when an engine failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a minute; print only: neither README.md nor results/ change"
    )
    chosen = parser.parse_args()
    engines, missing = available_engines()
    settings = attrs.evolve(QUICK if chosen.quick else DEFAULTS, engines=engines)
    result = compare(settings, progress=terminal_progress())
    text = "\n".join(["```", format_table(result), *missing, "```"])
    if chosen.quick:
        print(text)
    else:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "compare.json").write_text(json.dumps(json.loads(result.to_json())) + "\n")
        (RESULTS / "compare.html").write_text(format_html(result))
        publish("compare", text)
    return 0 if result.ok else 1


if __name__ == "__main__":
    sys.exit(main())

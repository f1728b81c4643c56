"""``asyncnet compare``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import attrs

from asyncnet import compat
from asyncnet.cli.common import Subparsers, positive_float, positive_int
from asyncnet.errors import EngineError
from asyncnet.lab import Settings, compare, format_table

__all__ = ["QUICK", "add_parser", "available_engines", "terminal_progress"]

DEFAULTS = Settings(engines=())
QUICK = Settings(engines=(), clients=50, seconds=0.7, rounds=3, warm_up=0.2)
"""What ``--quick`` measures."""


def add_parser(subparsers: Subparsers) -> None:
    """Add the runner to the command line."""
    parser = subparsers.add_parser(
        "compare",
        help="measure one echo handler on every engine",
        description="Measure one echo handler on every engine.",
    )
    parser.add_argument("--engines", metavar="A,B", help="names, separated by commas (default: every one available)")
    parser.add_argument("--clients", type=positive_int, metavar="N",
                        help=f"connections at once (default: {DEFAULTS.clients})")  # fmt: skip
    parser.add_argument("--size", type=positive_int, metavar="N",
                        help=f"bytes of a message (default: {DEFAULTS.size})")  # fmt: skip
    parser.add_argument("--seconds", type=positive_float, metavar="S",
                        help=f"length of one measurement (default: {DEFAULTS.seconds:g})")  # fmt: skip
    parser.add_argument("--rounds", type=positive_int, metavar="R",
                        help=f"times that every engine is measured (default: {DEFAULTS.rounds})")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run to FILE")
    parser.add_argument("--quick", action="store_true",
                        help="under a minute: 3 rounds of 0.7 s with 50 connections")  # fmt: skip
    parser.set_defaults(run=_compare)


def available_engines() -> tuple[tuple[str, ...], list[str]]:
    """Return the engines that run here, and a line for each that does not."""
    reasons = {name: engine.unavailable() for name, engine in compat.ENGINES.items()}
    missing = [f"{name} is left out: {reason}" for name, reason in reasons.items() if reason]
    return tuple(name for name, reason in reasons.items() if not reason), missing


def _compare(arguments: argparse.Namespace) -> int:
    engines, missing = available_engines()
    if arguments.engines is not None:
        engines, missing = tuple(dict.fromkeys(arguments.engines.split(","))), []
        for name in engines:
            if name not in compat.ENGINES:
                raise EngineError(f"there is no engine {name!r}; the engines are {', '.join(compat.ENGINES)}")
    given = {name: getattr(arguments, name) for name in ("clients", "size", "seconds", "rounds")}
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = attrs.evolve(QUICK if arguments.quick else DEFAULTS, engines=engines, **chosen)
    if arguments.json is not None:
        arguments.json.touch()  # an unwritable file is known before the measurement, not after
    result = compare(settings, progress=terminal_progress())
    print(format_table(result))
    print(*missing, sep="\n" if missing else "", end="\n" if missing else "")
    if arguments.json is not None:
        arguments.json.write_text(result.to_json() + "\n")
    return 0 if result.ok else 1


def terminal_progress() -> Callable[[int, int, str], None] | None:
    """Return a callback that shows what runs and the time left, or None where standard error is no terminal."""
    if not sys.stderr.isatty():
        return None
    began = time.monotonic()

    def show(done: int, total: int, what: str) -> None:
        left = f", {(time.monotonic() - began) / done * (total - done):.0f} s left" if done else ""
        print(f"\r\x1b[K{what}{left}", end="" if done < total - 1 else "\r", file=sys.stderr, flush=True)

    return show

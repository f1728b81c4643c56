"""``asyncnet compare``."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs

from asyncnet import compat
from asyncnet.cli.common import Subparsers, positive_float, positive_int
from asyncnet.errors import EngineError
from asyncnet.lab import (
    Progress,
    Settings,
    agreement,
    compare,
    compare_with_baseline,
    format_agreement,
    format_changes,
    format_html,
    format_table,
    read_baseline,
    workloads_of,
)

__all__ = ["QUICK", "add_parser", "available_engines", "terminal_progress"]

DEFAULTS: Final = Settings(engines=())
QUICK: Final = Settings(engines=(), clients=50, seconds=0.4, rounds=3, warm_up=0.15, workloads=("echo",), within=50.0,
                        attempts=1, idle=500)  # fmt: skip
"""What ``--quick`` measures."""
_QUICK_WORKLOADS: Final = {"tcp": ("echo",), "udp": ("echo",), "tftp": ("transfer",)}


def add_parser(subparsers: Subparsers) -> None:
    """Add the runner to the command line."""
    parser = subparsers.add_parser(
        "compare",
        help="measure one handler on every engine",
        description="Measure one handler on every engine: CPU per request, latency, memory, with intervals. Everything "
        "takes about an hour over TCP, half an hour over UDP, and ten minutes over TFTP; --quick takes one. "
        "A terminal shows the time left.",
    )
    parser.add_argument("--engines", metavar="A,B", help="names, separated by commas (default: every one available)")
    parser.add_argument("--protocol", choices=("tcp", "udp", "tftp"), default="tcp", metavar="NAME",
                        help="tcp, udp or tftp (default: tcp)")  # fmt: skip
    parser.add_argument("--workloads", metavar="A,B", help="names, separated by commas (default: all of the protocol)")
    parser.add_argument(
        "--against", metavar="ENGINE", help="what the others are held against (default: asyncio; over TFTP asyncnet)"
    )
    parser.add_argument("--clients", type=positive_int, metavar="N",
                        help=f"connections at once (default: {DEFAULTS.clients})")  # fmt: skip
    parser.add_argument("--size", type=positive_int, metavar="N",
                        help=f"bytes of a message (default: {DEFAULTS.size})")  # fmt: skip
    parser.add_argument("--seconds", type=positive_float, metavar="S",
                        help=f"length of one measurement (default: {DEFAULTS.seconds:g})")  # fmt: skip
    parser.add_argument("--rounds", type=positive_int, metavar="R",
                        help=f"times that every engine is measured (default: {DEFAULTS.rounds})")  # fmt: skip
    parser.add_argument("--idle", type=positive_int, metavar="N",
                        help=f"connections that the idle workload holds open (default: {DEFAULTS.idle})")  # fmt: skip
    parser.add_argument("--attempts", type=positive_int, metavar="N",
                        help=f"times that an INVALID run is made (default: {DEFAULTS.attempts})")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run, with the environment, to FILE")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with charts to FILE")
    parser.add_argument("--baseline", type=Path, metavar="FILE",
                        help="compare with the JSON of an earlier run; exit with 1 on a regression")  # fmt: skip
    parser.add_argument("--python-load", action="store_true",
                        help="use the load generator in Python, although there is a C compiler")  # fmt: skip
    parser.add_argument("--quick", action="store_true",
                        help="under a minute: the main workload, 3 short rounds, 50 connections")  # fmt: skip
    parser.set_defaults(run=_compare)


def available_engines() -> tuple[tuple[str, ...], list[str]]:
    """Return the engines that run here, and a line for each that does not."""
    reasons = {name: engine.unavailable() for name, engine in compat.ENGINES.items()}
    missing = [f"{name} is left out: {reason}" for name, reason in reasons.items() if reason]
    return tuple(name for name, reason in reasons.items() if not reason), missing


def _settings(arguments: argparse.Namespace) -> tuple[Settings, list[str]]:
    engines, missing = available_engines()
    if arguments.engines is not None:
        engines, missing = tuple(dict.fromkeys(name.strip() for name in arguments.engines.split(","))), []
    for name in (*engines, *([arguments.against] if arguments.against else [])):
        compat.find_engine(name)
    if arguments.against and arguments.against not in engines:
        raise EngineError(f"--against {arguments.against}: it is not among the engines {', '.join(engines)}")
    settings = QUICK if arguments.quick else DEFAULTS
    if arguments.quick:
        settings = attrs.evolve(settings, workloads=_QUICK_WORKLOADS[arguments.protocol])
    if arguments.workloads is not None:
        settings = attrs.evolve(settings, workloads=tuple(dict.fromkeys(arguments.workloads.split(","))))
    names = ("clients", "size", "seconds", "rounds", "idle", "attempts", "protocol", "against", "python_load")
    given = {name: value for name in names if (value := getattr(arguments, name)) not in (None, False)}
    settings = attrs.evolve(settings, engines=engines, **given)
    settings = attrs.evolve(settings, warm_up=min(settings.warm_up, settings.seconds))
    if settings.protocol != "tftp" and settings.size > (65507 if settings.protocol == "udp" else 1 << 20):
        raise ValueError(f"--size {settings.size}: at most 65507 bytes over UDP, and 1048576 over TCP")
    workloads_of(settings)
    return settings, missing


def _compare(arguments: argparse.Namespace) -> int:
    settings, missing = _settings(arguments)
    then = None if arguments.baseline is None else read_baseline(arguments.baseline, settings)
    for path in (arguments.json, arguments.html):
        if path is not None:
            with path.open("a"):  # an unwritable file is known before the measurement, not after
                pass
    with _ended_by_sigterm(terminal_progress()) as progress:
        result = compare(settings, progress=progress)
    print(format_table(result, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ))
    print(*missing, sep="\n" if missing else "", end="\n" if missing else "")
    if arguments.json is not None:
        arguments.json.write_text(result.to_json() + "\n")
    if arguments.html is not None:
        arguments.html.write_text(format_html(result))
    worse = False
    if then is not None:
        changes = compare_with_baseline(result, then)
        worse = not changes or any(change.is_regression for change in changes)
        print("\n" + format_changes(changes, arguments.baseline))
        print(format_agreement(*agreement(result, then)))
    return 0 if result.ok and not worse else 1


@contextmanager
def _ended_by_sigterm(show: Callable[[Progress], None]) -> Iterator[Callable[[Progress], None]]:
    """Yield a callback that ends the comparison after SIGTERM, between two measurements: no server is left behind."""
    told: list[int] = []

    def progress(progress: Progress) -> None:
        if told:
            raise SystemExit(128 + told[0])
        show(progress)

    before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    try:
        yield progress
    finally:
        signal.signal(signal.SIGTERM, before)


def terminal_progress() -> Callable[[Progress], None]:
    """Return a callback that shows what runs and the time left, where standard error is a terminal."""
    if not sys.stderr.isatty():
        return lambda progress: None

    def show(progress: Progress) -> None:
        share = progress.done / max(1, progress.total)
        left = "" if progress.left is None else f", {_time(progress.left)} left"
        text = f"{share:4.0%} {progress.what}{left}"
        text = text[: shutil.get_terminal_size().columns - 1]
        last = progress.done >= progress.total
        print(f"\r\x1b[K{'' if last else text}", end="", file=sys.stderr, flush=True)

    return show


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"

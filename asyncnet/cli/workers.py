"""``asyncnet workers status | reload | stop``."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from asyncnet.cli.common import Subparsers, human_bytes, positive_float
from asyncnet.workers.pidfile import control_path, read_pid

__all__ = ["add_parser"]

_LOOK_EVERY = 0.05


def add_parser(subparsers: Subparsers) -> None:
    """Add the runners to the command line."""
    commands = subparsers.add_parser("workers", help="look after servers that run with --workers").add_subparsers(
        dest="command", required=True, metavar="COMMAND"
    )
    status = commands.add_parser("status", help="show the master and its workers; exit with 1 when none serves")
    status.add_argument("--json", action="store_true", help="print everything as JSON")
    status.set_defaults(run=_status)
    reload_ = commands.add_parser("reload", help="replace all workers, and wait until the new ones serve")
    reload_.set_defaults(run=_reload)
    stop = commands.add_parser("stop", help="drain all workers, and wait until the master has ended")
    stop.set_defaults(run=_stop)
    for command in (status, reload_, stop):
        command.add_argument("--pid-file", required=True, metavar="FILE", help="what the server was given")
    for command in (reload_, stop):
        command.add_argument("--timeout", type=positive_float, default=60.0, metavar="SECONDS",
                             help="how long to wait (default: 60)")  # fmt: skip


def _ask(pid_file: str) -> dict[str, Any]:
    """Return the master's report."""
    answer = b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(5)
        try:
            sock.connect(control_path(pid_file))
            sock.sendall(b"GET /status HTTP/1.1\r\n\r\n")
            while data := sock.recv(65536):
                answer += data
        except OSError as exc:
            reason = exc.strerror or str(exc)
            raise OSError(f"the master does not answer on {control_path(pid_file)}: {reason}") from exc
    try:
        report: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
    except ValueError:
        raise OSError(f"the master has broken off its answer on {control_path(pid_file)}: ask again") from None
    return report


def _status(arguments: argparse.Namespace) -> int:
    pid = read_pid(arguments.pid_file)
    report = _ask(arguments.pid_file)
    if arguments.json:
        print(json.dumps({"pid": pid, **report}, indent=2))
    else:
        for line in _lines(pid, report):
            print(line)
    return 0 if report["serving"] else 1


def _lines(pid: int, report: dict[str, Any]) -> Iterator[str]:
    yield f"master {pid}: {report['status']}, {report['serving']} of {report['wanted']} workers serve"
    if report["addresses"]:
        yield f"listens on {', '.join(report['addresses'])}"
    yield (
        f"{report['reloads']} reloads, {report['failed_reloads']} given up; "
        f"{report['crashes']} crashes, {report['hung']} hung; {report['started']} workers started in all"
    )
    if report["last_error"]:
        yield f"last error: {report['last_error']}"
    names = [name for name in report["totals"] if report["totals"][name]][:6] or list(report["totals"])[:2]
    rows = [["seat", "pid", "generation", "state", "age", "silent", "memory", *names]]
    rows += [
        [str(each["seat"]), str(each["pid"]), str(each["generation"]), each["state"], _span(each["age"]),
         f"{each['silence']:.1f} s", human_bytes(each["memory"]), *(str(each["counters"].get(n, 0)) for n in names)]
        for each in report["workers"]
    ]  # fmt: skip
    rows.append(["all", "", "", "", "", "", "", *(str(report["totals"][name]) for name in names)])
    yield ""
    yield from _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.ljust(w) if i == 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _reload(arguments: argparse.Namespace) -> int:
    pid = read_pid(arguments.pid_file)
    before = _ask(arguments.pid_file)
    os.kill(pid, signal.SIGHUP)
    # A reload, or the first start, that runs already is another one: this one begins when it has ended.
    is_another = before["generation"] != before["settled"]
    is_unanswered = False
    deadline = time.monotonic() + arguments.timeout
    while time.monotonic() < deadline:
        try:
            report = _ask(arguments.pid_file)
        except OSError:
            if is_unanswered:
                raise
            is_unanswered = True  # once, as when it becomes a new program
            time.sleep(_LOOK_EVERY)
            continue
        is_unanswered = False
        if report["settled"] > before["generation"]:
            print(f"generation {report['settled']}: {report['serving']} workers serve", file=sys.stderr)
            return 0
        failed = report["failed_reloads"] - before["failed_reloads"]
        if failed > (is_another and report["settled"] == before["settled"]):
            raise OSError(f"the reload is given up, the workers before it serve on: {report['last_error']}")
        time.sleep(_LOOK_EVERY)
    raise TimeoutError(f"the new workers do not serve within {arguments.timeout:g} s; they are still awaited")


def _stop(arguments: argparse.Namespace) -> int:
    pid = read_pid(arguments.pid_file)
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + arguments.timeout
    while time.monotonic() < deadline:
        try:
            if read_pid(arguments.pid_file) != pid:
                return 0
        except (OSError, ValueError):
            return 0
        time.sleep(_LOOK_EVERY)
    raise TimeoutError(
        f"the master {pid} has not ended within {arguments.timeout:g} s; "
        f"'kill {pid}' once more hurries it, 'kill -QUIT {pid}' ends it at once"
    )

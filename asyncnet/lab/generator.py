"""The load generator in a process of its own: in C where there is a compiler, in Python elsewhere."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import attrs

from asyncnet.lab.native import native_tool
from asyncnet.lab.processes import pin

__all__ = ["Load", "echo_server", "generator_command", "loading", "run_load", "why_no_compiler"]

_GRACE: Final = 30.0
"""Seconds beyond its own time after which a generator is given up."""


@cache
def why_no_compiler() -> str | None:
    """Return why the tools in C are not to be had here; None when they are."""
    try:
        native_tool("load")
        native_tool("echo")
    except (OSError, RuntimeError) as exc:
        return " ".join(str(exc).split())
    return None


def generator_command(python: bool) -> list[str]:
    """Return how the generator is started.

    Args:
        python: whether to use the one in Python although there is a compiler.
    """
    if python or why_no_compiler() is not None:
        return [sys.executable, "-m", "asyncnet.lab.load"]
    return [str(native_tool("load"))]


def echo_server(protocol: str) -> list[str] | None:
    """Return how the echo server in C is started; None where there is no compiler."""
    if why_no_compiler() is not None:
        return None
    return [str(native_tool("echo")), "tcp" if protocol == "tcp" else "udp-many", "0"]


@attrs.define
class Load:
    """A generator that runs."""

    process: subprocess.Popen[bytes]
    _received: bytes = b""

    def wait_until_measuring(self, within: float) -> None:
        """Wait for the end of the warm-up.

        Raises:
            RuntimeError: the generator failed; the message is its own.
        """
        self._line(within)

    def result(self, within: float) -> dict[str, Any]:
        """Wait for the result.

        Raises:
            RuntimeError: the generator failed; the message is its own.
        """
        if self.process.stdin is not None:
            self.process.stdin.close()
        found: dict[str, Any] = json.loads(self._line(within))
        return found

    def _line(self, within: float) -> bytes:
        assert self.process.stdout is not None
        deadline = time.monotonic() + within
        while b"\n" not in self._received:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise RuntimeError(f"the load generator said nothing for {within:g} s")
            piece = self.process.stdout.read1(1 << 20)  # type: ignore[attr-defined]
            if not piece:
                self.process.wait()
                assert self.process.stderr is not None
                said = self.process.stderr.read().decode(errors="replace").strip().splitlines()
                raise RuntimeError(said[-1] if said else "the load generator ended without a result")
            self._received += piece
        line, _, self._received = self._received.partition(b"\n")
        return line


@contextlib.contextmanager
def loading(arguments: Sequence[object], *, python: bool = False) -> Iterator[Load]:
    """Run a generator on the second core; at the end of the block it is gone.

    Args:
        arguments: as at the top of ``native/load.c``.
        python: whether to use the one in Python although there is a compiler.
    """
    command = [*generator_command(python), *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        pin(process.pid, 1)
        yield Load(process)
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def run_load(
    arguments: Sequence[object],
    *,
    warm_up: float,
    seconds: float,
    python: bool = False,
    on_measuring: Callable[[], object] = lambda: None,
    on_end: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Run a generator to its end and return its result.

    Args:
        arguments: as at the top of ``native/load.c``.
        warm_up, seconds: how long it takes.
        python: whether to use the one in Python although there is a compiler.
        on_measuring, on_end: called when the measurement begins, and when it is over.

    Raises:
        RuntimeError: it failed.
    """
    with loading(arguments, python=python) as load:
        load.wait_until_measuring(warm_up + _GRACE)
        on_measuring()
        found = load.result(seconds + _GRACE)
        on_end()
    return found


def write_file(folder: Path, size: int) -> Path:
    """Make the file that TFTP clients download."""
    path = folder / "file"
    path.write_bytes(bytes(range(251)) * (size // 251) + bytes(size % 251))
    return path

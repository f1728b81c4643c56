"""What the runners share: how a server runs until a signal, how errors and progress look."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias, TypeVar

from asyncnet.addresses import Address, format_address, parse_address
from asyncnet.errors import AddressError
from asyncnet.opening import Opening

__all__ = [
    "ProgressCallback",
    "Runner",
    "Subparsers",
    "address_argument",
    "announce",
    "describe",
    "engine_argument",
    "human_bytes",
    "non_negative_float",
    "positive_float",
    "positive_int",
    "progress_bars",
    "serve_until_signal",
]

Runner: TypeAlias = Callable[[argparse.Namespace], int]
Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
ProgressCallback: TypeAlias = Callable[[int, int | None], None]


class Servable(Protocol):
    """A server of this package."""

    @property
    def address(self) -> Address: ...

    async def aclose(self) -> object: ...


ServerT = TypeVar("ServerT", bound=Servable)


def announce(address: Address | tuple[Any, ...]) -> None:
    """Print the line that says a server is ready, with its real port."""
    print(f"listening on {format_address(address)}", file=sys.stderr, flush=True)


async def serve_until_signal(opening: Opening[ServerT]) -> ServerT:
    """Open a server, announce it, and close it, draining, at the first SIGINT or SIGTERM; return it closed.

    A second signal ends the drain.
    """
    told: asyncio.Queue[None] = asyncio.Queue()
    async with opening as server:
        with _signals(lambda: told.put_nowait(None)):
            for address in getattr(server, "addresses", [server.address]):
                announce(address)
            await told.get()
            closing = asyncio.create_task(server.aclose())
            again = asyncio.create_task(told.get())
            await asyncio.wait({closing, again}, return_when=asyncio.FIRST_COMPLETED)
            again.cancel()
            closing.cancel()  # a server that is cancelled while it closes ends at once
            await asyncio.wait({closing, again})
    return server


@contextmanager
def _signals(stop: Callable[[], object]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    try:
        for number in numbers:
            loop.add_signal_handler(number, stop)
    except NotImplementedError:  # Windows: a signal interrupts the loop as KeyboardInterrupt
        yield
        return
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def describe(exc: BaseException) -> str:
    """Return an exception as one line for a person."""
    if isinstance(exc, OSError) and exc.strerror:
        text = f"{exc.filename}: {exc.strerror}" if exc.filename is not None else exc.strerror
    else:
        text = str(exc) or type(exc).__name__
    return " ".join(text.split())


def address_argument(
    default_host: str | None = None, default_port: int | None = None, *, any_port: bool = True
) -> Callable[[str], tuple[str, int]]:
    """Return a converter of argparse for HOST:PORT; without `any_port`, port 0 is none to send to."""

    def convert(text: str) -> tuple[str, int]:
        try:
            host, port = parse_address(text, default_host=default_host, default_port=default_port)
        except AddressError as exc:
            raise argparse.ArgumentTypeError(str(exc)) from None
        if not port and not any_port:
            raise argparse.ArgumentTypeError(f"{text!r}: nobody listens on port 0")
        return host, port

    return convert


def engine_argument(parser: argparse.ArgumentParser | argparse._ArgumentGroup, what: str) -> None:
    """Add ``--engine NAME``, the concurrency model that a runner runs on.

    Args:
        parser: of the runner.
        what: what runs there, for the help.
    """
    parser.add_argument("--engine", type=_engine_name, default="asyncnet", metavar="NAME",
                        help=f"the concurrency model of {what}; see asyncnet info (default: asyncnet)")  # fmt: skip


def _engine_name(text: str) -> str:
    if text != "asyncnet":  # which needs none of the others, nor the time to import them
        from asyncnet.compat import ENGINES

        if text not in ENGINES:
            raise argparse.ArgumentTypeError(f"there is no engine {text!r}; the engines are {', '.join(ENGINES)}")
    return text


def positive_int(text: str) -> int:
    """Convert for argparse: a whole number from 1 up."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 up")
    return value


def positive_float(text: str) -> float:
    """Convert for argparse: a number above 0."""
    value = non_negative_float(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def non_negative_float(text: str) -> float:
    """Convert for argparse: a number from 0 up."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 up")
    return value


def human_bytes(count: float) -> str:
    """Return a number of bytes for a person: ``64.0 MiB``."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"


@contextmanager
def progress_bars() -> Iterator[Callable[[str], ProgressCallback | None]]:
    """Yield a function that begins a bar with a label.

    It returns the callback that shows how far that transfer is, or None where standard error is no terminal. The bars
    are rich's where it is installed, and a line with the percentage elsewhere.
    """
    if not sys.stderr.isatty():
        yield lambda label: None
        return
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
    except ImportError:
        with _plain_progress() as begin_line:
            yield begin_line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as progress:

        def begin_bar(label: str) -> ProgressCallback:
            task = progress.add_task(label, total=None)
            return _throttled(0.05, lambda done, total: progress.update(task, completed=done, total=total))

        yield begin_bar


def _throttled(seconds: float, show: ProgressCallback) -> ProgressCallback:
    """Return a callback that calls `show` at most once in so many seconds, and at the end."""
    last = 0.0

    def update(done: int, total: int | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > seconds or done == total:
            last = now
            show(done, total)

    return update


@contextmanager
def _plain_progress() -> Iterator[Callable[[str], ProgressCallback]]:
    def begin_line(label: str) -> ProgressCallback:
        begin = time.monotonic()

        def show(done: int, total: int | None) -> None:
            rate = done / max(time.monotonic() - begin, 1e-6)
            share = f" {done * 100 // total:3d} %" if total else ""
            left = f", {max(total - done, 0) / rate:.0f} s left" if total and rate else ""
            line = f"{label} {human_bytes(done)}{share}, {human_bytes(rate)}/s{left}"
            print(f"\r{line}  ", end="", file=sys.stderr, flush=True)

        return _throttled(0.2, show)

    try:
        yield begin_line
    finally:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns if sys.stderr.isatty() else 0
        print("\r" + " " * max(0, columns - 1) + "\r", end="", file=sys.stderr, flush=True)

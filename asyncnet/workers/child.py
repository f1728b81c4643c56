"""What a worker process does: it boots, says that it is ready, keeps its heartbeat, and drains when it is told.

The heartbeat is written by the event loop itself: a thread would go on while the loop hangs. The stacks of a hung loop
are dumped by faulthandler, which needs no turn of the interpreter.
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import importlib
import json
import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, NoReturn, TypeAlias, TypeVar

import attrs

from asyncnet.forks import flush_streams
from asyncnet.loops import run
from asyncnet.opening import AsyncClosable, Opening
from asyncnet.workers.board import Board, Row
from asyncnet.workers.fleet import BOOT_FAILED
from asyncnet.workers.handover import Inbox, Steerable, take_over

__all__ = [
    "DUMP_SIGNAL",
    "Main",
    "Worker",
    "become_worker",
    "die_with_parent",
    "do_nothing",
    "live",
    "load",
    "reap_all",
    "send_signal",
]

logger = logging.getLogger("asyncnet.workers")

DUMP_SIGNAL: Final = signal.SIGUSR1 if hasattr(signal, "SIGUSR1") else None
_PR_SET_PDEATHSIG: Final = 1
_CANCEL_WAIT: Final = 1.0
"""Seconds that a cancelled main has to end."""

_LONGEST_REASON: Final = 2000
"""Characters; the master hangs up on somebody who talks for longer than a message may be."""

_libc: Final = ctypes.CDLL(None) if sys.platform == "linux" else None

ServerT = TypeVar("ServerT", bound=AsyncClosable)


@attrs.define(eq=False)
class Worker:
    """What a worker knows of itself; the argument of `main`.

    Attributes:
        seat: its number, from 0; a replacement takes the seat of the worker that it replaces.
        generation: how often everything was started; a reload begins the next one.
        sockets: all sockets that it inherited, in the order of `bind`; the worker owns them.
        grace: seconds that it has to drain.
        stopping: set when it is told to drain; `main` then ends when its work is done.
        hurried: set when there is no time left for that.
    """

    seat: int
    generation: int
    sockets: list[socket.socket]
    grace: float
    stopping: asyncio.Event = attrs.field(factory=asyncio.Event)
    hurried: asyncio.Event = attrs.field(factory=asyncio.Event)
    _board: Board = attrs.field(kw_only=True)
    _row: Row = attrs.field(kw_only=True)
    _control: socket.socket = attrs.field(kw_only=True)
    _interval: float = attrs.field(kw_only=True)
    _secret: bytes = attrs.field(kw_only=True)
    _predecessor: int = attrs.field(kw_only=True)
    _parent: int = attrs.field(kw_only=True)
    _is_ready: bool = False
    _is_mute: bool = False
    _counts: dict[str, int] = attrs.field(factory=dict)
    _watched: list[Any] = attrs.field(factory=list)
    _timer: asyncio.TimerHandle | None = None

    @property
    def tcp(self) -> list[socket.socket]:
        """The listening sockets: TCP and Unix."""
        return [sock for sock in self.sockets if sock.type == socket.SOCK_STREAM]

    @property
    def udp(self) -> list[socket.socket]:
        """The UDP sockets."""
        return [sock for sock in self.sockets if sock.type == socket.SOCK_DGRAM]

    @property
    def is_ready(self) -> bool:
        """Whether it counts as serving."""
        return self._is_ready

    def ready(self) -> None:
        """Tell the master that this worker serves; what it replaces may be drained then."""
        if not self._is_ready:
            self._is_ready = True
            self._tell({"ready": True})

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter that was named to `run`; the master shows it."""
        if name not in self._board.counters:
            raise ValueError(f"{name!r} is no counter: name it in run(..., counters=[{name!r}])")
        self._counts[name] = self._counts.get(name, 0) + by

    def watch(self, server: Any) -> None:
        """Show the counters of a server: the attributes of its ``stats`` that were named to `run`."""
        self._watched.append(server)

    def stay_with_master(self) -> None:
        """Have the kernel end this worker with its master, anew: it forgets that when a process changes its user."""
        die_with_parent(self._parent)

    async def serve(self, opening: Opening[ServerT]) -> ServerT:
        """Open a server, be ready, and when told to stop close it, draining; return it closed.

        The master's grace should not be shorter than the server's own. A TFTP server on a single port takes the
        socket over from the worker that it replaces, and hands it on to the one that replaces it.
        """
        async with opening as server:
            self.watch(server)
            listeners: list[Steerable] = [
                each for each in getattr(server, "listeners", ()) if getattr(each, "single_port", False)
            ]
            if listeners:
                with Inbox(listeners, self._board, self.seat, self._secret) as inbox:
                    self.ready()
                    await take_over(inbox, self._predecessor, self.stopping)
                    await self.stopping.wait()
                    inbox.hand_over()
                    await self._close(server)
            else:
                self.ready()
                await self.stopping.wait()
                await self._close(server)
        return server

    async def _close(self, server: AsyncClosable) -> None:
        closing = asyncio.ensure_future(server.aclose())
        hurried = asyncio.create_task(self.hurried.wait())
        try:
            await asyncio.wait({closing, hurried}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurried.cancel()
            if not closing.done():
                closing.cancel()  # a server that is cancelled while it closes ends at once
            await asyncio.wait({closing, hurried}, timeout=_CANCEL_WAIT)
        if closing.done() and not closing.cancelled():
            closing.result()

    # What `live` uses.

    def _tell(self, message: dict[str, Any]) -> None:
        try:
            self._control.send(json.dumps(message).encode() + b"\n")
        except OSError:  # the master is gone, and this worker soon too
            pass

    def _tick(self) -> None:
        self._row.write_beat(time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._tick)
        self._show_counters()

    def _end_ticking(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._show_counters()

    def _show_counters(self) -> None:
        try:
            self._publish()
        except Exception:  # of a server's own stats: a heartbeat must not end for that
            if not self._is_mute:
                logger.exception("the counters of a worker cannot be shown")
            self._is_mute = True

    def _publish(self) -> None:
        if not self._watched and not self._counts:
            return
        totals = dict(self._counts)
        for server in self._watched:
            stats = server.stats
            for name in self._board.counters:
                totals[name] = totals.get(name, 0) + int(getattr(stats, name, 0))
        self._row.write_counters(totals)

    def _on_stop(self) -> None:
        """Drain; the signal may come from the master and from who ends the whole group: a second one says no more."""
        self.stopping.set()

    def _on_control(self) -> None:
        """What the master says on this socket is to hurry, whatever the byte; its end is that it is gone."""
        try:
            data = self._control.recv(64)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        self.stopping.set()
        if data:
            self.hurried.set()
        else:
            asyncio.get_running_loop().remove_reader(self._control.fileno())


Main: TypeAlias = Callable[[Worker], Coroutine[Any, Any, object]]
"""What each worker runs."""


def load(main: Main | str) -> Main:
    """Return the function that ``"module:function"`` names; it is imported in the worker, so a reload reads it anew.

    Raises:
        ValueError: there is no such function.
        Exception: what its module raises.
    """
    if not isinstance(main, str):
        return main
    name, _, attribute = main.partition(":")
    found: Any = importlib.import_module(name)
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ValueError(f"{main!r}: the module {name!r} has no function {attribute!r}")
    return found  # type: ignore[no-any-return]  # mypy sees Any


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process with its parent; call it again after a change of user, which forgets it."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel was told
        os._exit(1)


def do_nothing(number: int, frame: Any) -> None:
    """Let a signal be heard through a socket alone, or not at all."""


def send_signal(pid: int, number: int) -> None:
    """Send a signal to a child that is not reaped yet: its number cannot belong to another process."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def reap_all() -> dict[int, int]:
    """Reap every child that has ended; return the raw status of each."""
    reaped: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return reaped
        if not pid:
            return reaped
        reaped[pid] = status


def become_worker(
    made: Callable[[], Worker],
    main: Main | str,
    loop: str,
    *,
    control: socket.socket,
    parent: int,
    signals: Iterable[signal.Signals],
) -> NoReturn:
    """Turn this process, a fork of the master, into a worker, and end with it.

    Args:
        made: leaves behind what is the master's, lets signals in, and returns the worker.
        main, loop: as in `run`.
        control: the socket to the master.
        parent: the master's process.
        signals: those that the master handles; all are blocked.
    """
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in signals:
            # A worker hears its master alone: what a terminal sends goes to all processes at once. A handler that
            # does nothing is forgotten by programs that a worker starts; SIG_IGN would be inherited.
            signal.signal(number, do_nothing)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        die_with_parent(parent)
        status = live(main, made(), loop)
    except OSError as exc:
        control.send(json.dumps({"error": _reason(exc)}).encode() + b"\n")
        status = BOOT_FAILED
    except BaseException:
        logger.exception("a worker failed")
    finally:
        flush_streams()
        os._exit(status)


def live(main: Main | str, worker: Worker, loop: str) -> int:
    """Run a worker to its end and return the exit status; called in the new process."""
    try:
        if DUMP_SIGNAL is not None:
            faulthandler.register(DUMP_SIGNAL, file=sys.__stderr__ or 2, all_threads=True)
        function = load(main)
        run(_life(worker, function), loop=loop)
    except KeyboardInterrupt:
        return 0
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    except BaseException as exc:
        if worker.is_ready:
            logger.exception("a worker failed")
            return 1
        worker._tell({"error": _reason(exc)})
        return BOOT_FAILED
    return 0


def _reason(exc: BaseException) -> str:
    """Say in one line why a worker cannot start, and where, unless the system says it."""
    text = " ".join(str(getattr(exc, "strerror", None) or exc).split())[:_LONGEST_REASON]
    if isinstance(exc, OSError):
        return text
    frames = traceback.extract_tb(exc.__traceback__)
    if isinstance(exc, SyntaxError):
        return f"{type(exc).__name__}: {text}"
    return f"{type(exc).__name__}: {text}" + (f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else "")


async def _life(worker: Worker, main: Main) -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, worker._on_stop)
    loop.add_reader(worker._control.fileno(), worker._on_control)
    worker._tick()
    try:
        task: asyncio.Future[Any] = asyncio.ensure_future(main(worker))
        await _until_done(worker, task)
    finally:
        worker._end_ticking()
        loop.remove_reader(worker._control.fileno())


async def _until_done(worker: Worker, task: asyncio.Future[Any]) -> None:
    """Wait for main; once it is told to stop, for its grace; then cancel it."""
    stopping, hurried = (asyncio.create_task(event.wait()) for event in (worker.stopping, worker.hurried))
    waiters = (stopping, hurried)
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            await asyncio.wait({task, hurried}, timeout=worker.grace + 0.5, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            await asyncio.sleep(0)
            if worker.hurried.is_set():  # `serve` closes its server by itself
                await asyncio.wait({task}, timeout=_CANCEL_WAIT / 2)
            task.cancel()
            await asyncio.wait({task}, timeout=_CANCEL_WAIT)
        if task.done() and not task.cancelled():
            task.result()
    finally:
        for waiter in waiters:
            waiter.cancel()
        await asyncio.gather(*waiters, return_exceptions=True)

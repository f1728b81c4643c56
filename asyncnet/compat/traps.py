"""What a handler waits for, told to whatever drives it.

A coroutine does nothing by itself: somebody calls ``send``, and it runs until something inside says ``yield``. Here
only one function does, `trap`, and what it yields is a `Trap`: "this socket, readable", "this socket, writable", "so
many seconds", "until that task has ended". The kernel answers a trap by watching a descriptor, a thread by blocking. So
one handler runs on every engine, and an engine is nothing but a way to answer four kinds of traps.

An engine without an event loop puts a stand-in where asyncio looks for the running one. It names the driver, so that
`sleep`, `timeout` and `spawn` know where they are; and a handler that awaits ``asyncio.sleep`` there by mistake is told
so at that line, not by an error about a loop that nobody mentioned.
"""

from __future__ import annotations

import asyncio
import inspect
import types
from asyncio import events
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any, Final, Protocol

import attrs

from asyncnet.errors import ForeignAwaitError

__all__ = [
    "ASYNCIO_ENGINES",
    "JOIN",
    "SLEEP",
    "TRAP_ENGINES",
    "YIELD",
    "HasFileno",
    "Trap",
    "current_driver",
    "foreign",
    "sleep",
    "trap",
    "wait_readable",
    "wait_writable",
    "without_asyncio",
]

SLEEP: Final = 0
"""The kind of a trap that waits for time alone; those of sockets are ``selectors.EVENT_READ`` and ``EVENT_WRITE``."""
JOIN: Final = 4
"""The kind of a trap that waits until a task has ended."""

ASYNCIO_ENGINES: Final = ("asyncio", "uvloop", "asyncnet")
"""The engines that run on an event loop of asyncio."""
TRAP_ENGINES: Final = (
    "polling", "select", "poll", "epoll", "epoll-et", "thread", "thread-pool", "process", "prefork", "gevent",
)  # fmt: skip
"""The engines that run on traps."""


class HasFileno(Protocol):
    """A socket, or anything that stands for a descriptor; -1 when it is closed."""

    def fileno(self) -> int: ...


@attrs.frozen(eq=False)
class Trap:
    """What a coroutine waits for. It may be made once and used for every wait of its kind."""

    kind: int
    """``EVENT_READ``, ``EVENT_WRITE``, `SLEEP` or `JOIN`."""
    source: Any
    """The socket, or the task; None for `SLEEP`."""
    timeout: float | None = None
    """Seconds: how long to sleep, or how long to wait for the socket until `TimeoutError` is raised; None for ever."""
    drained: bool = False
    """The socket has just said that it would block, so it is enough to hear of what changes from now on."""


YIELD: Final = Trap(SLEEP, None, 0)
"""Lets the others run."""


@types.coroutine
def trap(request: Trap) -> Generator[Trap, BaseException | None, None]:
    """Hand `request` to the driver, and return when it is met.

    The driver sends None, or an exception to raise here.
    """
    outcome = yield request
    if outcome is not None:
        raise outcome


async def wait_readable(sock: HasFileno) -> None:
    """Wait until `sock` is readable, has ended, or has failed; on any engine, for any socket of your own.

    As with every socket that does not block, a read may still find nothing: then wait again. On the engine ``polling``
    it often does, since there nobody asks the system.

    Raises:
        OSError: `sock` is closed.
        RuntimeError: another task of the kernel waits for the same.
    """
    await _wait(EVENT_READ, sock)


async def wait_writable(sock: HasFileno) -> None:
    """Wait until `sock` takes bytes, or has failed; otherwise as `wait_readable`."""
    await _wait(EVENT_WRITE, sock)


async def sleep(seconds: float) -> None:
    """Wait for `seconds` on any engine; 0 lets others run."""
    if current_driver() is None:
        await asyncio.sleep(seconds)
    else:
        await trap(Trap(SLEEP, None, seconds) if seconds > 0 else YIELD)


async def _wait(kind: int, sock: HasFileno) -> None:
    if sock.fileno() < 0:
        raise OSError("cannot wait for a closed socket")
    if current_driver() is not None:
        await trap(Trap(kind, sock))
        return
    loop = asyncio.get_running_loop()
    read = kind == EVENT_READ
    met = loop.create_future()
    (loop.add_reader if read else loop.add_writer)(sock.fileno(), _resolve, met)
    try:
        await met
    finally:
        (loop.remove_reader if read else loop.remove_writer)(sock.fileno())


def _resolve(met: asyncio.Future[None]) -> None:
    if not met.done():
        met.set_result(None)


def foreign(awaited: object) -> ForeignAwaitError:
    """Return the error for a coroutine that yielded `awaited`, which is no `Trap`."""
    kind = type(awaited)
    return _foreign(
        "a bare yield, such as asyncio.sleep(0)" if awaited is None else f"{kind.__module__}.{kind.__qualname__}"
    )


def _foreign(what: str) -> ForeignAwaitError:
    return ForeignAwaitError(
        f"the handler awaited {what}, which its engine cannot run: "
        f"await its reader, its writer and asyncnet.compat, or use one of the engines {', '.join(ASYNCIO_ENGINES)}"
    )


class _NoLoop:
    """Stands where asyncio looks for its loop, and refuses every use with an error that names who asked."""

    def __init__(self, driver: object) -> None:
        self.compat_driver = driver

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by introspection, not by somebody who wants a loop
            raise AttributeError(name)
        raise _foreign(_part_of_asyncio() or f"asyncio's event loop ({name})")

    def __hash__(self) -> int:
        # asyncio.current_task() looks its loop up in a table. Others, such as logging, may ask, and find that there is
        # no task; asyncio itself, as in TaskGroup and timeout, would complain of a task that nobody mentioned.
        asked = _part_of_asyncio()
        if asked not in (None, "asyncio.tasks.current_task"):
            raise _foreign(str(asked))
        return super().__hash__()


def _part_of_asyncio() -> str | None:
    """Return the outermost function of asyncio on the way to the method that calls this; None when there is none."""
    frame, found = inspect.currentframe(), None
    for _ in range(2):  # this function, and the method
        frame = frame and frame.f_back
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        if module.partition(".")[0] != "asyncio":
            break
        found, frame = f"{module}.{frame.f_code.co_qualname}", frame.f_back
    return found


def current_driver() -> Any:
    """Return what runs the calling coroutine, a `Driver`; None on an event loop of asyncio.

    Raises:
        RuntimeError: nothing does.
    """
    loop: Any = asyncio.get_running_loop()
    return loop.compat_driver if type(loop) is _NoLoop else None


@contextmanager
def without_asyncio(driver: object) -> Iterator[None]:
    """Let `driver` run what runs in this thread, and nothing take it for asyncio, until the block ends.

    Raises:
        RuntimeError: an event loop runs in this thread; whatever blocks here would stop it.
    """
    before: Any = events._get_running_loop()
    if before is not None and not isinstance(before, _NoLoop):
        raise RuntimeError("this blocks, and an event loop runs in this thread: call it in a thread of its own")
    stand_in: Any = _NoLoop(driver)
    events._set_running_loop(stand_in)
    try:
        yield
    finally:
        stand_in = before
        events._set_running_loop(stand_in)

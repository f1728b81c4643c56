"""Calls that block, made where they hold up nobody: for a disk, or for a resolver of names.

Where one thread serves all, such a call is made in another one, and its task waits for it by a trap, as for everything
else: the thread says by a pair of sockets that it is done. Where a handler has a thread or a process of its own, the
call is made in place.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Final, TypeVar

from asyncnet.compat.serving import FULL_PAUSE
from asyncnet.compat.tasks import Driver
from asyncnet.compat.traps import current_driver, sleep, wait_readable

__all__ = ["MAX_CALLS", "call_elsewhere", "holds_up_others"]

MAX_CALLS: Final = 32
"""Threads at a time in this process; further calls wait for one of them to end."""

T = TypeVar("T")

_room = threading.Semaphore(MAX_CALLS)


def _make_room() -> None:
    global _room
    _room = threading.Semaphore(MAX_CALLS)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_make_room)  # the threads stay with the parent


def holds_up_others() -> bool:
    """Tell whether others are served by the thread of the caller, so that it must not block."""
    driver: Driver | None = current_driver()
    return driver is None or driver.shares_thread


async def call_elsewhere(work: Callable[[], T]) -> T:
    """Call `work`, which may block, without holding up anybody else, and return its result.

    Who is cancelled, or times out, goes on at once; the call cannot be interrupted, and goes on to its end. When the
    system has no thread or no descriptor for it, it is made in place.

    Raises:
        BaseException: whatever `work` raises.
    """
    driver: Driver | None = current_driver()
    if driver is None:
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, work))
    if not driver.shares_thread:
        return work()
    while not _room.acquire(blocking=False):
        await sleep(FULL_PAUSE)
    try:
        call, end = _begin(work)
    except (OSError, RuntimeError):
        _room.release()
    else:
        with end:
            try:
                while not call.done():
                    await wait_readable(end)
            except OSError:  # select() cannot watch such a descriptor
                pass
            finally:
                driver.forget(end)
            return call.result()
    return work()


def _begin(work: Callable[[], T]) -> tuple[Future[T], socket.socket]:
    """Start a thread that calls `work`; return its result, and a socket that is readable when that is there."""
    call: Future[T] = Future()
    end, bell = socket.socketpair()
    try:
        threading.Thread(target=_run, args=(work, call, bell), daemon=True).start()
    except BaseException:
        end.close()
        bell.close()
        raise
    return call, end


def _run(work: Callable[[], T], call: Future[T], bell: socket.socket) -> None:
    try:
        call.set_result(work())
    except BaseException as exc:
        call.set_exception(exc)
    _room.release()
    with bell, suppress(OSError):  # nobody waits any more
        bell.send(b"\0")

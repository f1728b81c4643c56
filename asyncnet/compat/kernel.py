"""A scheduler of coroutines: the loop behind every engine that asks the system which sockets are ready.

The principle is the generator. A task runs until it yields a trap; the kernel files it under what it waits for, asks
the selector, and sends the task on when its socket is ready or its time has come. Everything else here is about doing
that with few system calls, and about descriptors, whose numbers the system gives away again the moment they are
closed:

- A descriptor stays registered between the waits of a task, since the next wait is nearly always the same: for a
  request and its answer nothing is registered, modified or removed. It is modified when the kind of the wait changes,
  and removed when it is ready and nobody waits, because it would be ready again at once and for ever.
- An entry goes before its descriptor is closed (`Kernel.forget`), so that the next connection with that number finds
  none. An event names the entry and not the number, so one that is late finds an entry without waiters. An entry of
  somebody else's socket, closed without a word, is found out by the identity of the socket.
- One task may wait to read from a socket and one to write to it. A second one of a kind is an error: one of the two
  would never wake up.
- A turn sends on each ready task once, then asks the selector again. A task that need not wait yields by itself after
  some operations (see `streams`), so the busiest peer gets one share of each turn.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from heapq import heappop, heappush
from inspect import CORO_CREATED, getcoroutinestate
from itertools import count
from math import inf
from selectors import EVENT_READ, EVENT_WRITE, BaseSelector
from time import monotonic
from typing import Any, Final

import attrs

from asyncnet.addresses import Address
from asyncnet.compat.serving import CANCEL_WAIT, Handler, Server, accept, converse
from asyncnet.compat.traps import YIELD, HasFileno, Trap, foreign, without_asyncio

__all__ = ["Kernel", "KernelServer", "Task"]

logger = logging.getLogger("asyncnet.compat")

LONGEST: Final = 86400.0
"""Seconds that a selector is asked to wait at most; some take no more than 24 days."""


@attrs.define(eq=False)
class Entry:
    """A registered socket and who waits for it."""

    sock: HasFileno
    fd: int
    mask: int = 0
    """What the selector watches it for; 0 once the entry is dropped."""
    reader: Task | None = None
    writer: Task | None = None


@attrs.define(eq=False)
class Task:
    """A coroutine in the kernel."""

    coro: Coroutine[Any, Any, object]
    entry: Entry | None = None
    """What it waited for last; the next wait is nearly always for the same."""
    timer: int = 0
    """The number of its entry in the heap that counts; 0 for none."""
    queued: bool = False
    """Whether it is in the queue of ready tasks; then it waits for nothing."""
    outcome: BaseException | None = None
    """What is raised where it waits when its turn comes."""


class Kernel:
    """Runs coroutines that wait by the traps of `asyncnet.compat`, in one thread.

    Args:
        selector: who tells which sockets are ready; the kernel closes it.
    """

    def __init__(self, selector: BaseSelector) -> None:
        self._selector = selector
        self._entries: dict[int, Entry] = {}
        self._tasks: set[Task] = set()
        self._ready: deque[Task] = deque()
        self._timers: list[tuple[float, int, Task]] = []
        self._numbers = count(1)

    def spawn(self, coro: Coroutine[Any, Any, object]) -> Task:
        """Start a task. What it raises is logged and ends nothing else."""
        task = Task(coro)
        self._tasks.add(task)
        self._queue(task)
        return task

    def cancel(self, task: Task) -> None:
        """Raise `asyncio.CancelledError` where `task` waits, in the next turn; a task cannot cancel itself."""
        if task in self._tasks:
            self._detach(task)
            if not task.queued:
                self._queue(task)
            task.outcome = asyncio.CancelledError()

    def cancel_all(self) -> None:
        """Cancel every task."""
        for task in list(self._tasks):
            self.cancel(task)

    def forget(self, sock: HasFileno) -> None:
        """Forget a socket that is about to be closed, and wake who waits for it."""
        if entry := self._entries.get(sock.fileno()):
            self._drop(entry)

    def run(self, until: Task | None = None, timeout: float = inf) -> None:
        """Run until no task is left, or `until` has ended, or `timeout` seconds have passed.

        Raises:
            RuntimeError: an event loop runs in this thread.
        """
        deadline = monotonic() + timeout
        with without_asyncio():
            while (self._tasks if until is None else until in self._tasks) and monotonic() < deadline:
                self._turn(deadline)

    def close(self) -> None:
        """End every task by `GeneratorExit` where it waits, then close the selector."""
        for task in list(self._tasks):
            try:
                task.coro.close()
            except Exception:
                logger.exception("a task did not end when it was closed")
        self._tasks.clear()
        self._selector.close()

    def _turn(self, deadline: float) -> None:
        timers, ready = self._timers, self._ready
        timeout: float | None = 0
        if not ready:
            wake_up = min(deadline, timers[0][0]) if timers else deadline
            timeout = None if wake_up == inf else min(max(0, wake_up - monotonic()), LONGEST)
        try:
            events = self._selector.select(timeout)
        except OSError:  # select() fails when somebody closed a socket of theirs without a word
            closed = [entry for entry in self._entries.values() if entry.sock.fileno() < 0]
            if not closed:
                raise
            for entry in closed:
                self._drop(entry)
            return
        for key, mask in events:
            entry = key.data
            reader, writer = entry.reader, entry.writer
            if reader is not None and mask & EVENT_READ:
                entry.reader = None
                reader.timer = 0
                self._step(reader, None)
            elif writer is None or not mask & EVENT_WRITE:
                self._watch(entry)
            if writer is not None and mask & EVENT_WRITE and entry.writer is writer:
                entry.writer = None
                writer.timer = 0
                self._step(writer, None)
        if timers:
            now = monotonic()
            while timers and timers[0][0] <= now:
                _, number, task = heappop(timers)
                if task.timer == number:
                    task.timer = 0
                    self._step(task, TimeoutError("timed out") if self._detach(task) else None)
        for _ in range(len(ready)):
            task = ready.popleft()
            outcome, task.outcome, task.queued = task.outcome, None, False
            if outcome is not None and getcoroutinestate(task.coro) == CORO_CREATED:
                self._step(task, None)  # it must begin, or it cannot clean up
                self.cancel(task)
            else:
                self._step(task, outcome)

    def _queue(self, task: Task, outcome: BaseException | None = None) -> None:
        task.timer, task.queued, task.outcome = 0, True, outcome
        self._ready.append(task)

    def _step(self, task: Task, outcome: BaseException | None) -> None:
        """Let `task` run until it waits again."""
        try:
            request = task.coro.send(outcome)
            while type(request) is not Trap:
                request = task.coro.throw(foreign(request))
        except (StopIteration, asyncio.CancelledError):
            self._tasks.discard(task)
        except Exception:
            self._tasks.discard(task)
            logger.exception("a task failed")
        else:
            if request is YIELD:
                self._queue(task)
                return
            if request.timeout is not None:
                task.timer = next(self._numbers)
                heappush(self._timers, (monotonic() + request.timeout, task.timer, task))
            kind, entry = request.kind, task.entry
            if entry and entry.sock is request.source and entry.mask == kind == EVENT_READ and entry.reader is None:
                entry.reader = task  # the same wait as the last time, which is the rule
            elif kind:
                self._wait(task, kind, request.source)

    def _wait(self, task: Task, kind: int, sock: HasFileno) -> None:
        entry = task.entry
        if entry is None or entry.sock is not sock or not entry.mask:
            fd = sock.fileno()
            if fd < 0:  # closed: whatever the task wanted fails by itself
                self._queue(task)
                return
            entry = self._entries.get(fd)
            if entry is None or entry.sock is not sock:
                if entry is not None:
                    self._drop(entry)
                entry = Entry(sock, fd)
            task.entry = entry
        if (entry.reader if kind == EVENT_READ else entry.writer) is not None:
            self._queue(task, RuntimeError(f"another task waits for the same on descriptor {entry.fd}"))
            return
        if kind == EVENT_READ:
            entry.reader = task
        else:
            entry.writer = task
        try:
            self._watch(entry)
        except (OSError, ValueError) as exc:  # the selector cannot watch this descriptor
            self._detach(task)
            self._queue(task, exc)

    def _watch(self, entry: Entry) -> None:
        """Make the selector watch for what is waited for; for nothing at all, drop the entry."""
        mask = (EVENT_READ if entry.reader is not None else 0) | (EVENT_WRITE if entry.writer is not None else 0)
        if mask == entry.mask:
            return
        if not mask:
            self._drop(entry)
            return
        if entry.mask:
            self._selector.modify(entry.fd, mask, entry)
        else:
            self._selector.register(entry.fd, mask, entry)
            self._entries[entry.fd] = entry
        entry.mask = mask

    def _drop(self, entry: Entry) -> None:
        entry.mask = 0
        if self._entries.get(entry.fd) is entry:
            del self._entries[entry.fd]
            with suppress(KeyError):  # a failed modify() removes it
                self._selector.unregister(entry.fd)
        for task in (entry.reader, entry.writer):
            if task is not None:
                self._queue(task)
        entry.reader = entry.writer = None

    def _detach(self, task: Task) -> bool:
        """Take `task` away from where it waits; return whether that is a socket."""
        entry, task.timer = task.entry, 0
        if entry is None or task not in (entry.reader, entry.writer):
            return False
        if entry.reader is task:
            entry.reader = None
        else:
            entry.writer = None
        return True


class KernelServer(Server):
    """A server whose handlers are tasks of a `Kernel`.

    Args:
        selector: makes the selector; called when the server runs, since some do not survive a fork.
    """

    def __init__(self, selector: Callable[[], BaseSelector], handler: Handler, address: Address, **limits: Any) -> None:
        super().__init__(handler, address, **limits)
        self._new_selector = selector

    def _serve(self) -> None:
        kernel = Kernel(self._new_selector())

        def admit(sock: Any, peer: Any) -> None:
            sock.setblocking(False)
            kernel.spawn(converse(self._handler, sock, peer, self._stats, kernel.forget))

        try:
            acceptor = kernel.spawn(accept(self._listener, admit, self._stats))
            kernel.run(until=kernel.spawn(self._wait_stopped()))
            kernel.cancel(acceptor)
            kernel.run(timeout=self._grace)
            kernel.cancel_all()
            kernel.run(timeout=CANCEL_WAIT)
        finally:
            kernel.close()

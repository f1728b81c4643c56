"""A scheduler of coroutines: the loop behind every engine that asks the system which sockets are ready.

The principle is the generator. A task runs until it yields a trap; the kernel files it under what it waits for, asks
the selector, and sends the task on when its socket is ready, its time has come, or the task that it waits for has
ended. So a switch from one task to another is a call of ``send``: no stack is swapped and no system call made. That,
and nothing else, is why coroutines are cheaper than threads.

What makes it a bit longer than the twenty lines that this takes is what a server meets in its life:

- Descriptors come and go under the same numbers: `descriptors` sees to that, and to few system calls.
- A turn sends on each ready task once, then asks the selector again. A task that need not wait yields by itself after
  some operations (see `streams`), so the busiest peer gets one share of each turn.
- Nobody can interrupt a task but where it waits. What ends a wait early is sent to it and raised there: a timeout, a
  cancellation. A task that has not begun is begun first, or it could not clean up.
- A timer is not removed from the heap when its wait ends: the task forgets its number, and it is passed over. When the
  heap has doubled, those that count are sorted out, or a server would remember every request until its time.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from heapq import heapify, heappop, heappush
from inspect import CORO_CREATED, getcoroutinestate
from itertools import count
from math import inf
from selectors import EVENT_READ, EVENT_WRITE, BaseSelector
from time import monotonic
from typing import Any, Final

from asyncnet.compat.descriptors import Descriptors, Entry
from asyncnet.compat.tasks import Scope, Spawned, earliest
from asyncnet.compat.traps import JOIN, SLEEP, YIELD, HasFileno, Trap, foreign, without_asyncio

__all__ = ["Kernel", "Task"]

logger = logging.getLogger("asyncnet.compat")

LONGEST: Final = 86400.0
"""Seconds that a selector is asked to wait at most; some take no more than 24 days."""
_FEW_TIMERS: Final = 64


class Task(Spawned):
    """A coroutine in the kernel."""

    entry: Entry[Task] | None = None
    """What it waited for last; the next wait is nearly always for the same."""
    timer = 0
    """The number of its entry in the heap that counts; 0 for none."""
    due: Scope | None = None
    """The open timeout that this timer belongs to; None when it belongs to the wait."""
    queued = False
    """Whether it is in the queue of ready tasks; then it waits for nothing."""
    outcome: BaseException | None = None
    """What is raised where it waits when its turn comes."""
    joins: Task | None = None
    """The task whose end it waits for."""

    def __init__(self, kernel: Kernel, coro: Coroutine[Any, Any, object]) -> None:
        self.coro = coro
        self.send = coro.send
        self.scopes: list[Scope] = []
        self.joiners: list[Task] = []
        self._kernel = kernel

    def cancel(self) -> None:
        """Raise `asyncio.CancelledError` where it waits, in the next turn."""
        self._kernel.cancel(self)


class Kernel:
    """Runs coroutines that wait by the traps of `asyncnet.compat`, in one thread.

    Args:
        selector: who tells which sockets are ready; the kernel closes it. When it has a true attribute
            ``edge_triggered``, it tells only what changes.
    """

    blocking = False
    shares_thread = True

    def __init__(self, selector: BaseSelector) -> None:
        self._descriptors: Descriptors[Task] = Descriptors(selector, self._queue)
        self._tasks: set[Task] = set()
        self._ready: deque[Task] = deque()
        self._timers: list[tuple[float, int, Task]] = []
        self._numbers = count(1)
        self._room = _FEW_TIMERS  # timers, passed over or not, until those that count are sorted out
        self._running: Task | None = None

    def spawn(self, coro: Coroutine[Any, Any, object]) -> Task:
        """Start a task. What it raises is logged, unless somebody waits for it, and ends nothing else."""
        task = Task(self, coro)
        self._tasks.add(task)
        self._queue(task)
        return task

    @property
    def scopes(self) -> list[Scope]:
        """The open timeouts of the task that runs now."""
        assert self._running is not None
        return self._running.scopes

    def adopt(self, sock: Any) -> Any:
        """Make a socket one that does not block, and return it."""
        sock.setblocking(False)
        return sock

    def forget(self, sock: HasFileno) -> None:
        """Forget a socket that is about to be closed, and wake who waits for it."""
        self._descriptors.forget(sock)

    def check(self) -> None:
        """No call blocks, so nothing can have happened meanwhile."""

    def cancel(self, task: Task) -> None:
        """Raise `asyncio.CancelledError` where `task` waits, in the next turn; itself, at its next wait."""
        if task in self._tasks:
            self._detach(task)
            if not task.queued:
                self._queue(task)
            task.outcome = asyncio.CancelledError()

    def cancel_all(self) -> None:
        """Cancel every task."""
        for task in list(self._tasks):
            self.cancel(task)

    def run(self, until: Task | None = None, timeout: float = inf, *, alone: bool = False) -> None:
        """Run until no task is left, or `until` has ended, or `timeout` seconds have passed.

        Args:
            until: the task that counts; without it, all do.
            timeout: seconds.
            alone: end, too, when `until` is the only one left.

        Raises:
            RuntimeError: an event loop runs in this thread.
        """
        deadline = monotonic() + timeout
        with without_asyncio(self):
            while (self._tasks if until is None else until in self._tasks) and monotonic() < deadline:
                if alone and len(self._tasks) == 1:
                    break
                self._turn(deadline)

    def close(self) -> None:
        """End every task by `GeneratorExit` where it waits, then close the selector."""
        for task in list(self._tasks):
            try:
                task.coro.close()
            except Exception:
                logger.exception("a task did not end when it was closed")
        self._tasks.clear()
        self._descriptors.close()

    def _turn(self, deadline: float) -> None:
        ready, descriptors = self._ready, self._descriptors
        timeout: float | None = 0
        if not ready:
            wake_up = min(deadline, self._timers[0][0]) if self._timers else deadline
            timeout = None if wake_up == inf else min(max(0, wake_up - monotonic()), LONGEST)
        for key, mask in descriptors.select(timeout):
            entry = key.data
            reader, writer = entry.reader, entry.writer
            if reader is not None and mask & EVENT_READ:
                entry.reader = None
                reader.timer = 0
                self._running = reader
                try:  # a step, spelled out: most are of this kind
                    request = reader.send(None)
                except BaseException as exc:
                    self._end(reader, exc)
                else:
                    if request is entry.usual and entry.reader is None and not (reader.scopes or reader.queued):
                        entry.reader = reader  # the same wait as the last time, which is the rule
                    else:
                        self._file(reader, request)
            elif writer is None or not mask & EVENT_WRITE:
                descriptors.watch(entry)
            if writer is not None and mask & EVENT_WRITE and entry.writer is writer:
                entry.writer = None
                writer.timer = 0
                self._step(writer, None)
        if self._timers:
            now = monotonic()
            while self._timers and self._timers[0][0] <= now:
                _, number, task = heappop(self._timers)
                if task.timer == number:
                    due, missed = task.due, TimeoutError("timed out") if self._detach(task) else None
                    self._step(task, missed if due is None else due.expire())
        for _ in range(len(ready)):
            task = ready.popleft()
            outcome, task.outcome, task.queued = task.outcome, None, False
            if task.finished:  # it cancelled itself, and ended
                continue
            if outcome is not None and getcoroutinestate(task.coro) == CORO_CREATED:
                self._step(task, None)  # it must begin, or it cannot clean up
                self.cancel(task)
            else:
                self._step(task, outcome)
        self._running = None

    def _queue(self, task: Task, outcome: BaseException | None = None) -> None:
        task.timer, task.queued, task.outcome = 0, True, outcome
        self._ready.append(task)

    def _step(self, task: Task, outcome: BaseException | None) -> None:
        """Let `task` run until it waits again."""
        self._running = task
        try:
            request = task.send(outcome)
        except BaseException as exc:
            self._end(task, exc)
        else:
            self._file(task, request)

    def _file(self, task: Task, request: Any) -> None:
        """Put `task` where it belongs for what it waits for."""
        while type(request) is not Trap:
            try:
                request = task.coro.throw(foreign(request))
            except BaseException as exc:
                self._end(task, exc)
                return
        if task.queued:  # it cancelled itself
            return
        if request is YIELD and not task.scopes:
            self._queue(task)
            return
        if request.timeout is not None or task.scopes:
            self._set_timer(task, request)
        if request.kind == JOIN:
            self._join(task, request.source)
        elif request.kind != SLEEP:
            self._descriptors.wait(task, request)

    def _set_timer(self, task: Task, request: Trap) -> None:
        at = inf if request.timeout is None else monotonic() + request.timeout
        due = earliest(task.scopes) if task.scopes else None
        if due is None or due.deadline > at:
            due = None
        else:
            at = due.deadline
        if request is YIELD:
            self._queue(task, due.expire() if due is not None else None)
        elif at < inf or request.kind == SLEEP:
            task.due, task.timer = due, next(self._numbers)
            heappush(self._timers, (at, task.timer, task))
            if len(self._timers) > self._room:
                self._timers = [entry for entry in self._timers if entry[2].timer == entry[1]]
                heapify(self._timers)
                self._room = 2 * len(self._timers) + _FEW_TIMERS

    def _join(self, task: Task, other: Task) -> None:
        if other is task:
            self._queue(task, RuntimeError("a task cannot wait for itself"))
        elif other.finished:
            self._queue(task)
        else:
            task.joins = other
            other.joiners.append(task)

    def _end(self, task: Task, end: BaseException) -> None:
        """Note that `task` has ended by an exception; that of a coroutine that returns is `StopIteration`."""
        self._tasks.discard(task)
        if isinstance(end, StopIteration):
            task.finish(end.value)
        else:
            task.finish(error=end)
        joiners, task.joiners = task.joiners, []
        for joiner in joiners:
            joiner.joins = None
            self._queue(joiner)
        if not isinstance(end, Exception | asyncio.CancelledError):
            raise end  # such as KeyboardInterrupt: it is for whoever runs the kernel

    def _detach(self, task: Task) -> bool:
        """Take `task` away from where it waits; return whether that is a socket."""
        task.timer = 0
        if task.joins is not None:
            task.joins.joiners.remove(task)
            task.joins = None
        return self._descriptors.detach(task)

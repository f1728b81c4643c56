"""Which task waits for which descriptor, told to a selector by few calls.

The system gives the number of a closed descriptor away again at once, and each call of a selector costs what a small
read costs. Hence:

- A descriptor stays registered between the waits of a task, since the next wait is nearly always the same: for a
  request and its answer nothing is registered, modified or removed. It is modified when the kind of the wait changes,
  and removed when it is ready and nobody waits, because it would be ready again at once and for ever.
- An entry goes before its descriptor is closed (`forget`), so that the next connection with that number finds none. An
  event names the entry and not the number, so one that is late finds an entry without waiters. An entry of somebody
  else's socket, closed without a word, is found out by the identity of the socket.
- One task may wait to read from a socket and one to write to it. A second one of a kind is an error: one of the two
  would never wake up.
- A selector that tells only what changes (edge-triggered) is asked anew about a descriptor, unless the waiter knows
  that nothing is left there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from selectors import EVENT_READ, EVENT_WRITE, BaseSelector
from typing import Any, Generic, Protocol, TypeVar

import attrs

from asyncnet.compat.traps import HasFileno, Trap

__all__ = ["Descriptors", "Entry", "Waiter"]


class Waiter(Protocol):
    """A task, as far as its waits go."""

    entry: Any
    """The `Entry` of what it waited for last; the next wait is nearly always for the same."""


TaskT = TypeVar("TaskT", bound=Waiter)


@attrs.define(eq=False)
class Entry(Generic[TaskT]):
    """A registered socket and who waits for it."""

    sock: HasFileno
    fd: int
    mask: int = 0
    """What the selector watches it for; 0 once the entry is dropped."""
    reader: TaskT | None = None
    writer: TaskT | None = None
    usual: Trap | None = None
    """What was waited for last, if it needs nothing of the selector when it is waited for again."""


class Descriptors(Generic[TaskT]):
    """The waits of a kernel's tasks.

    Args:
        selector: who tells which sockets are ready. When it has a true attribute ``edge_triggered``, it tells only
            what changes.
        wake: called with a task that has to look again, and with the exception that is to be raised there.
    """

    def __init__(self, selector: BaseSelector, wake: Callable[[TaskT, BaseException | None], None]) -> None:
        self.edge_triggered: bool = getattr(selector, "edge_triggered", False)
        self._selector = selector
        self._wake = wake
        self._entries: dict[int, Entry[TaskT]] = {}

    def select(self, timeout: float | None) -> list[tuple[Any, int]]:
        """Return what is ready: keys whose ``data`` is an entry, with masks."""
        try:
            return self._selector.select(timeout)
        except OSError:  # select() fails when somebody closed a socket of theirs without a word
            closed = [entry for entry in self._entries.values() if entry.sock.fileno() < 0]
            if not closed:
                raise
            for entry in closed:
                self.drop(entry)
            return []

    def wait(self, task: TaskT, request: Trap) -> None:
        """File a task under what it waits for."""
        kind, sock = request.kind, request.source
        entry: Entry[TaskT] | None = task.entry
        if entry is None or entry.sock is not sock or not entry.mask:
            fd = sock.fileno()
            if fd < 0:  # closed: whatever the task wanted fails by itself
                self._wake(task, None)
                return
            entry = self._entries.get(fd)
            if entry is None or entry.sock is not sock:
                if entry is not None:
                    self.drop(entry)
                entry = Entry(sock, fd)
            task.entry = entry
        if (entry.reader if kind == EVENT_READ else entry.writer) is not None:
            self._wake(task, RuntimeError(f"another task waits for the same on descriptor {entry.fd}"))
            return
        if kind == EVENT_READ:
            entry.reader = task
        else:
            entry.writer = task
        try:
            if not self.watch(entry) and self.edge_triggered and not request.drained:
                self._selector.modify(entry.fd, entry.mask, entry)
            if entry.mask == EVENT_READ and request.timeout is None and (request.drained or not self.edge_triggered):
                entry.usual = request
        except (OSError, ValueError) as exc:  # the selector cannot watch this descriptor
            self.detach(task)
            self._wake(task, exc)

    def watch(self, entry: Entry[TaskT]) -> bool:
        """Make the selector watch for what is waited for; for nothing at all, drop the entry.

        Returns:
            Whether that changed anything.
        """
        mask = (EVENT_READ if entry.reader is not None else 0) | (EVENT_WRITE if entry.writer is not None else 0)
        if mask == entry.mask:
            return False
        if not mask:
            self.drop(entry)
            return True
        if entry.mask:
            self._selector.modify(entry.fd, mask, entry)
        else:
            self._selector.register(entry.fd, mask, entry)
            self._entries[entry.fd] = entry
        entry.mask = mask
        entry.usual = None
        return True

    def forget(self, sock: HasFileno) -> None:
        """Forget a socket that is about to be closed, and wake who waits for it."""
        if entry := self._entries.get(sock.fileno()):
            self.drop(entry)

    def drop(self, entry: Entry[TaskT]) -> None:
        """Forget an entry, and wake who waits for it."""
        entry.mask = 0
        entry.usual = None
        if self._entries.get(entry.fd) is entry:
            del self._entries[entry.fd]
            with suppress(KeyError):  # a failed modify() removes it
                self._selector.unregister(entry.fd)
        waiters = [task for task in (entry.reader, entry.writer) if task is not None]
        entry.reader = entry.writer = None
        for task in waiters:
            self._wake(task, None)

    def detach(self, task: TaskT) -> bool:
        """Take a task away from the socket that it waits for; return whether there is one."""
        entry: Entry[TaskT] | None = task.entry
        if entry is None or task not in (entry.reader, entry.writer):
            return False
        if entry.reader is task:
            entry.reader = None
        else:
            entry.writer = None
        return True

    def close(self) -> None:
        """Close the selector."""
        self._selector.close()

"""Watches many descriptors for an event loop: one epoll instance, which is itself watched by one `add_reader`.

The loops' own `add_reader` is not enough for sockets. uvloop stops to watch a descriptor after the first event that
comes with an error, such as a reset or an ICMP message, even when the callback has read only what came before it: the
socket is deaf from then on. And a callback costs either loop more than the few lines here, which run once for all
descriptors that are ready.

Where there is no epoll, the loop's methods do it.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import sys
import time
from collections.abc import Callable
from contextvars import Context
from typing import Final, Protocol
from weakref import ref

from asyncnet.perloop import PerLoop

__all__ = ["Poller", "poller_of"]

_EVENTS_PER_TURN: Final = 128
"""Descriptors that are served before the event loop turns to others, at most."""
_SECONDS_PER_TURN: Final = 0.01
"""Longer turns are followed by smaller ones: timers must fire when many sockets are flooded at once. epoll puts those
that are served behind the others, so each has its turn."""

Callback = Callable[[], object]


class Poller(Protocol):
    """Calls back when descriptors are ready. A callback may come without need: it must not block.

    A descriptor is taken out before it is closed.
    """

    def add_reader(self, fd: int, callback: Callback) -> None:
        """Call when there is something to read, or an error; again and again."""

    def remove_reader(self, fd: int) -> None:
        """Do so no more; nothing happens when it is not watched."""

    def add_writer(self, fd: int, callback: Callback) -> None:
        """Call when there is room to write, or an error; again and again."""

    def remove_writer(self, fd: int) -> None:
        """Do so no more; nothing happens when it is not watched."""


if sys.platform == "linux":
    _READ: Final = select.EPOLLIN | select.EPOLLRDHUP
    _READ_EVENTS: Final = ~select.EPOLLOUT
    _WRITE_EVENTS: Final = select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP

    class _EpollPoller:
        def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
            self._loop = ref(loop)  # the poller must not keep it alive
            self._epoll = select.epoll()
            self._readers: dict[int, Callback] = {}
            self._writers: dict[int, Callback] = {}
            self._most = _EVENTS_PER_TURN

        def _begin(self) -> None:
            loop = self._loop()
            if loop is not None and not self._readers and not self._writers:
                # In a context of its own, not in that of whoever happens to be the first.
                Context().run(loop.add_reader, self._epoll.fileno(), self._run)

        def _end(self) -> None:
            loop = self._loop()
            if loop is not None and not loop.is_closed() and not self._readers and not self._writers:
                loop.remove_reader(self._epoll.fileno())

        def add_reader(self, fd: int, callback: Callback) -> None:
            self._watch(fd, _READ | select.EPOLLOUT if fd in self._writers else _READ)
            self._readers[fd] = callback

        def remove_reader(self, fd: int) -> None:
            if self._readers.pop(fd, None) is None:
                return
            if fd in self._writers:
                with contextlib.suppress(OSError):  # as in `_unregister`
                    self._epoll.modify(fd, select.EPOLLOUT)
            else:
                self._unregister(fd)

        def add_writer(self, fd: int, callback: Callback) -> None:
            self._watch(fd, _READ | select.EPOLLOUT if fd in self._readers else select.EPOLLOUT)
            self._writers[fd] = callback

        def _watch(self, fd: int, events: int) -> None:
            if fd in self._readers or fd in self._writers:
                with contextlib.suppress(FileNotFoundError):
                    self._epoll.modify(fd, events)
                    return
                # Closed behind its owner's back, and the number is another's now. The owner finds that out by trying.
                for callbacks in (self._readers, self._writers):
                    stale = callbacks.pop(fd, None)
                    if stale is not None:
                        self._call(stale, fd)
            self._epoll.register(fd, events)
            self._begin()

        def _call(self, callback: Callback, fd: int) -> None:
            try:
                callback()
            except Exception as exc:
                self._report(exc, fd)

        def remove_writer(self, fd: int) -> None:
            if self._writers.pop(fd, None) is None:
                return
            if fd in self._readers:
                with contextlib.suppress(OSError):  # as in `_unregister`
                    self._epoll.modify(fd, _READ)
            else:
                self._unregister(fd)

        def _unregister(self, fd: int) -> None:
            with contextlib.suppress(OSError):  # somebody has closed it, and it is gone already
                self._epoll.unregister(fd)
            self._end()

        def _run(self) -> None:
            readers, writers = self._readers, self._writers
            orphans = False
            begun = time.monotonic()
            ready = self._epoll.poll(0, self._most)
            for fd, events in ready:
                reader = readers.get(fd)
                if reader is None and fd not in writers:
                    orphans = True
                    continue
                try:
                    if reader is not None and events & _READ_EVENTS:
                        reader()
                    if events & _WRITE_EVENTS and fd in writers:
                        writers[fd]()
                except Exception as exc:
                    self._report(exc, fd)
            took = time.monotonic() - begun
            if took > _SECONDS_PER_TURN:
                self._most = max(1, int(len(ready) * _SECONDS_PER_TURN / took))
            elif self._most < _EVENTS_PER_TURN:
                self._most = min(2 * self._most, _EVENTS_PER_TURN)
            if orphans and any(
                fd not in readers and fd not in writers for fd, _ in self._epoll.poll(0, _EVENTS_PER_TURN)
            ):
                self._renew()

        def _renew(self) -> None:
            """Take another epoll instance: this one reports what it cannot be told to forget.

            That is a socket which was closed behind its owner's back, while a copy of its descriptor is open elsewhere.
            """
            loop = self._loop()
            if loop is None or loop.is_closed():
                return
            old, self._epoll = self._epoll, select.epoll()
            loop.remove_reader(old.fileno())
            for fd in {*self._readers, *self._writers}:
                events = (_READ if fd in self._readers else 0) | (select.EPOLLOUT if fd in self._writers else 0)
                with contextlib.suppress(OSError):  # closed as well
                    self._epoll.register(fd, events)
            if self._readers or self._writers:
                Context().run(loop.add_reader, self._epoll.fileno(), self._run)
            old.close()

        def _report(self, exc: Exception, fd: int) -> None:
            loop = self._loop()
            if loop is not None:
                message = f"the callback of descriptor {fd} failed"
                loop.call_exception_handler({"message": message, "exception": exc})


class _LoopPoller:
    """The methods of the loop itself."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = ref(loop)

    def _alive(self) -> asyncio.AbstractEventLoop:
        loop = self._loop()
        assert loop is not None
        return loop

    def add_reader(self, fd: int, callback: Callback) -> None:
        self._alive().add_reader(fd, callback)

    def remove_reader(self, fd: int) -> None:
        self._alive().remove_reader(fd)

    def add_writer(self, fd: int, callback: Callback) -> None:
        self._alive().add_writer(fd, callback)

    def remove_writer(self, fd: int) -> None:
        self._alive().remove_writer(fd)


def _make_poller(loop: asyncio.AbstractEventLoop) -> Poller:
    if sys.platform == "linux":
        return _EpollPoller(loop)
    return _LoopPoller(loop)


poller_of: Final = PerLoop(_make_poller)
"""Returns the poller that all sockets of a loop share."""

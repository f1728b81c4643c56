"""Ways to learn which sockets are ready, and the server whose handlers are tasks of a `Kernel` over one of them.

Each selector is the notes' model of the same name. They differ in what a turn costs:

- `PollingSelector` asks nobody: every watched socket is tried, again and again. A turn costs a failing system call for
  each connection, and the processor never rests.
- ``select`` and ``poll`` hand the system the whole list each time: a turn costs the more, the more connections
  there are, active or not. ``select`` has room for descriptors below 1024 only.
- `LevelSelector` is epoll, which keeps the list in the system: a turn costs what is active.
- `EdgeSelector` is told only what changes, so whoever is told has to read until nothing is left.
"""

from __future__ import annotations

import errno
import logging
import select
import selectors
import sys
import time
from collections.abc import Callable, Mapping
from selectors import EVENT_READ, EVENT_WRITE, BaseSelector, SelectorKey
from typing import Any, Final

from asyncnet.compat.kernel import Kernel
from asyncnet.compat.serving import CANCEL_WAIT, Job, Server, Service

__all__ = ["SELECT_LIMIT", "EdgeSelector", "KernelServer", "LevelSelector", "LimitedSelector", "PollingSelector"]

logger: Final = logging.getLogger("asyncnet.compat")

SELECT_LIMIT: Final = 512 if sys.platform == "win32" else 1024
"""FD_SETSIZE: select() takes smaller descriptors only (on Windows, so many of any number)."""

_COMPLAIN_EVERY: Final = 1.0
"""Seconds between two lines in the log about connections that were refused."""


class _Registry(BaseSelector):
    """What a selector of our own keeps of its registrations."""

    def __init__(self) -> None:
        self._keys: dict[int, SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        """See `selectors.BaseSelector`."""
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        key = self._keys[fd] = SelectorKey(fileobj, fd, events, data)
        return key

    def unregister(self, fileobj: Any) -> SelectorKey:
        """See `selectors.BaseSelector`."""
        return self._keys.pop(fileobj if isinstance(fileobj, int) else fileobj.fileno())

    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        """See `selectors.BaseSelector`."""
        return _Registry.register(self, fileobj, events, data)

    def get_map(self) -> Mapping[Any, SelectorKey]:
        """See `selectors.BaseSelector`."""
        return self._keys


class PollingSelector(_Registry):
    """Says that every watched socket is ready, always: whoever waits for it tries, and waits again if it was not so."""

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """Return all; `timeout` is of no interest to somebody who never waits."""
        time.sleep(0)  # other threads want to run, too
        return [(key, key.events) for key in self._keys.values()]


class LimitedSelector(selectors.SelectSelector):
    """``select``, refusing a descriptor that is beyond its limit when it is registered, not at every turn after."""

    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        """See `selectors.BaseSelector`.

        Raises:
            OSError: the descriptor is too large for select(); the number is that of "too many open files".
        """
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        if not self.has_room(fd):
            raise OSError(errno.EMFILE, f"select() cannot watch descriptor {fd}: its limit is {SELECT_LIMIT - 1}")
        return super().register(fileobj, events, data)

    def has_room(self, fd: int) -> bool:
        """Tell whether the descriptor can be watched."""
        return (len(self.get_map()) if sys.platform == "win32" else fd) < SELECT_LIMIT


if hasattr(select, "epoll"):
    _READABLE: Final = select.EPOLLIN

    class LevelSelector(_Registry):
        """``epoll`` as it comes: it tells of a descriptor as long as something is there."""

        edge_triggered = False
        _always = 0

        def __init__(self) -> None:
            super().__init__()
            self._epoll = select.epoll()
            self._poll = self._epoll.poll

        def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
            """See `selectors.BaseSelector`."""
            key = super().register(fileobj, events, data)
            try:
                self._epoll.register(key.fd, self._flags(events))
            except BaseException:
                del self._keys[key.fd]
                raise
            return key

        def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
            """See `selectors.BaseSelector`; edge-triggered, it asks anew, whether anything has changed or not."""
            key = super().modify(fileobj, events, data)
            self._epoll.modify(key.fd, self._flags(events))
            return key

        def unregister(self, fileobj: Any) -> SelectorKey:
            """See `selectors.BaseSelector`."""
            key = super().unregister(fileobj)
            try:
                self._epoll.unregister(key.fd)
            except OSError:  # closed already
                pass
            return key

        def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
            """See `selectors.BaseSelector`."""
            keys = self._keys
            return [
                (keys[fd], EVENT_READ if flags == _READABLE else _mask(flags) & keys[fd].events)
                for fd, flags in self._poll(timeout)
                if fd in keys
            ]

        def close(self) -> None:
            """See `selectors.BaseSelector`."""
            self._epoll.close()

        def _flags(self, events: int) -> int:
            reads, writes = events & EVENT_READ, events & EVENT_WRITE
            return self._always | (select.EPOLLIN if reads else 0) | (select.EPOLLOUT if writes else 0)

    class EdgeSelector(LevelSelector):
        """``epoll`` with EPOLLET: it tells once that something has arrived, and no more while it is still there."""

        edge_triggered = True
        _always = select.EPOLLET

    def _mask(flags: int) -> int:
        # An error or the end of the connection concerns both directions.
        reads, writes = flags & ~select.EPOLLOUT, flags & ~select.EPOLLIN
        return (EVENT_READ if reads else 0) | (EVENT_WRITE if writes else 0)


class KernelServer(Server):
    """A server whose handlers are tasks of a `Kernel`.

    Args:
        selector: makes the selector; called when the server runs, since some do not survive a fork.
        service: what is served.
        grace: see `Server`.
    """

    def __init__(self, selector: Callable[[], BaseSelector], service: Service, *, grace: float) -> None:
        super().__init__(service, grace=grace)
        self._new_selector = selector
        self._complained = float("-inf")

    def _serve(self) -> None:
        selector = self._new_selector()
        kernel = Kernel(selector)
        has_room = getattr(selector, "has_room", None)
        drains = getattr(selector, "edge_triggered", False)

        def admit(job: Job) -> None:
            if has_room is not None and job.sock is not None and not has_room(job.sock.fileno()):
                self._refuse(job)
            else:
                kernel.spawn(job.run(kernel, self._stats, drains=drains))

        try:
            front = kernel.spawn(self._service.front(admit, self._stats))
            kernel.run(until=kernel.spawn(self._wait_stopped()))
            kernel.cancel(front)
            kernel.run(until=kernel.spawn(self._wait_stopped()), timeout=self._grace, alone=True)
            kernel.cancel_all()
            kernel.run(timeout=CANCEL_WAIT)
        finally:
            kernel.close()

    def _refuse(self, job: Job) -> None:
        self._stats.count(refused=1)
        job.close()
        if time.monotonic() - self._complained >= _COMPLAIN_EVERY:
            self._complained = time.monotonic()
            logger.warning(
                "select() cannot watch descriptor %d or above: %d connections refused so far; "
                "epoll and poll have no such limit", SELECT_LIMIT, self._stats.refused,
            )  # fmt: skip

"""Tells when this host's interfaces or their addresses change."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from asyncnet.addresses import Interface, interfaces
from asyncnet.netlink import open_monitor
from asyncnet.poller import poller_of

__all__ = ["InterfaceWatch"]

_SETTLE: Final = 0.03
"""Seconds to wait for more: an interface comes up in several steps."""
_LOOK_EVERY: Final = 2.0
"""Seconds between looks where the system does not tell."""
_LOOK_ANYHOW: Final = 15.0
"""Seconds between looks where it does: a message may have been lost, or the neighbour's cable was pulled."""


class InterfaceWatch:
    """Reads the interfaces again when something has changed, and from time to time.

    Args:
        loop: the event loop.
        on_change: called with the interfaces as they are, when they are not as they were.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_change: Callable[[list[Interface]], object]) -> None:
        self._loop = loop
        self._on_change = on_change
        self._known: list[Interface] | None = None
        self._poller = poller_of(loop)
        self._sock: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._settling = False
        try:
            self._sock = open_monitor()
        except OSError:
            self._every = _LOOK_EVERY
        else:
            self._every = _LOOK_ANYHOW
            self._poller.add_reader(self._sock.fileno(), self._on_readable)
        try:
            self._known = interfaces()
        except OSError:
            pass  # the next look may do better
        self._timer = loop.call_later(self._every, self._look)

    def _on_readable(self) -> None:
        assert self._sock is not None
        for _ in range(64):
            try:
                self._sock.recv(65536)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:  # so many changes that the kernel has dropped some
                continue
        if not self._settling:
            self._settling = True
            self._look_in(_SETTLE)

    def _look_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        self._settling = False
        self._look_in(self._every)
        try:
            found = interfaces()
        except OSError:
            return
        if found != self._known:
            self._known = found
            self._on_change(found)

    def close(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sock is not None:
            self._poller.remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None

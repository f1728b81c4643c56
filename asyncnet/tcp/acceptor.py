"""Takes connections from listening sockets, as many as are wanted and no more than the system can give.

Whether the listeners are read at all is decided in one place: not while there is no room, not during a pause after an
exhausted resource, not after `close`. Meanwhile connections wait in the kernel's backlog.

Out of descriptors, waiting helps nobody: those who wait would only learn it by their timeout. So one descriptor is kept
in reserve. It is given up to accept a connection, which is closed at once, and taken back.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from asyncnet.addresses import Address, format_address
from asyncnet.poller import poller_of
from asyncnet.tcp.connections import ServerStats
from asyncnet.tcp.listeners import PEER_ERRORS

__all__ = ["Acceptor", "listening_on"]

logger = logging.getLogger("asyncnet.tcp")

ACCEPTS_PER_TURN: Final = 64
"""Connections accepted from all listeners of a server before the event loop turns to others; of more listeners than
this, one from each."""
ACCEPTS_AT_ONCE: Final = 16
"""Connections accepted from one listener in a turn, at most."""
BACK_OFF: Final = (0.05, 1.0)
"""The first and the longest pause, in seconds, while the system lacks descriptors or memory; it doubles."""
EPISODE_GAP: Final = 5.0
"""Seconds without an exhausted resource after which the next one is logged again."""
_NO_DESCRIPTOR: Final = frozenset((errno.EMFILE, errno.ENFILE))


def listening_on(listener: socket.socket) -> Address | str:
    """Return the address of a listener; of a Unix socket, its path."""
    address: Address | str | bytes = listener.getsockname()
    if isinstance(address, bytes):  # a name in the abstract namespace
        return "@" + address[1:].decode("utf-8", "backslashreplace")
    return address


class Acceptor:
    """The listeners of a server.

    Args:
        listeners: listening and non-blocking; the acceptor owns them.
        admit: takes each connection with the address of its peer; it must not raise.
        has_room: tells whether another connection may be accepted now.
        stats: counts errors and what is shed.
        path: of the Unix socket to remove in the end; those of sockets that somebody has handed over stay.
    """

    def __init__(
        self,
        listeners: list[socket.socket],
        admit: Callable[[socket.socket, Any], object],
        has_room: Callable[[], bool],
        stats: ServerStats,
        path: str | None = None,
    ) -> None:
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._poller = poller_of(self._loop)
        self._listeners = listeners
        # Equal shares: a crowd at one door must not keep those at another one waiting.
        self._share = max(1, min(ACCEPTS_AT_ONCE, ACCEPTS_PER_TURN // len(listeners)))
        self.addresses = tuple(map(listening_on, listeners))
        self._admit = admit
        self._has_room = has_room
        self._stats = stats
        self._reading = False
        self._closed = False
        self._pause: asyncio.TimerHandle | None = None
        self._pause_length = 0.0
        self._exhausted_at = -math.inf
        self._spare = _open_spare()

    def update(self) -> None:
        """Begin or stop to accept, as there is room."""
        wanted = not self._closed and self._pause is None and self._has_room()
        if wanted == self._reading:
            return
        self._reading = wanted
        for listener in self._listeners:
            if wanted:
                self._poller.add_reader(listener.fileno(), partial(self._accept, listener))
            else:
                self._poller.remove_reader(listener.fileno())

    def _accept(self, listener: socket.socket) -> None:
        self._accept_some(listener, self._share)
        self.update()

    def _accept_some(self, listener: socket.socket, count: int) -> None:
        for _ in range(count):
            if self._closed or self._pause is not None or not self._has_room():
                return
            try:
                sock, peer = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                shed = self._shed(listener) if exc.errno in _NO_DESCRIPTOR else 0
                if shed is None:
                    return
                self._stats.accept_errors += 1
                if exc.errno not in PEER_ERRORS:
                    self._warn(exc)
                    if not shed:
                        self._back_off()
                continue
            self._pause_length = 0.0
            sock.setblocking(False)
            self._admit(sock, peer)

    def _warn(self, exc: OSError) -> None:
        now = self._loop.time()
        if now - self._exhausted_at > EPISODE_GAP:
            logger.warning(
                "cannot accept on %s: %s, with %d connections open; until there is room again, new ones are closed "
                "or wait (raise the limit of open files with 'ulimit -n', or set max_connections below it)",
                format_address(self.addresses[0]),
                exc.strerror,
                self._stats.active,
            )
        self._exhausted_at = now

    def _shed(self, listener: socket.socket) -> int | None:
        """Close a connection that waits, by the descriptor in reserve; return how many, None when nobody waits.

        Linux looks for a free descriptor before it looks whether somebody waits.
        """
        if self._spare is None:
            self._spare = _open_spare()
            if self._spare is None:
                return 0
        os.close(self._spare)
        self._spare = None
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            return None
        except OSError:
            return 0
        else:
            sock.close()
            self._stats.shed += 1
            return 1
        finally:
            self._spare = _open_spare()

    def _back_off(self) -> None:
        """Pause: the listener stays readable, so reading on would only spin."""
        shortest, longest = BACK_OFF
        self._pause_length = min(max(2 * self._pause_length, shortest), longest)
        self._pause = self._loop.call_later(self._pause_length, self._end_pause)

    def _end_pause(self) -> None:
        self._pause = None
        self.update()

    def _cancel_pause(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def close(self) -> None:
        """Accept what has connected already, as far as there is room, and listen no more."""
        if self._closed:
            return
        self._cancel_pause()
        while self._listeners:
            listener = self._listeners.pop()
            if self._reading:
                self._poller.remove_reader(listener.fileno())
                self._accept_some(listener, 1 << 16)
            listener.close()  # right after the last accept: who connects in between is reset
        self._reading = False
        self._closed = True
        self._cancel_pause()
        if self._path is not None and not self._path.startswith("@"):
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None


def _open_spare() -> int | None:
    try:
        return os.open(os.devnull, os.O_RDONLY)
    except OSError:
        return None

"""One port, two workers: how running transfers reach the old worker when a new one has taken its socket.

Where each transfer has a socket of its own, a reload needs nothing: the old worker keeps these sockets until they end.
On a single port both workers have the same socket, and only one may read it. When the new one is ready, the old one
stops reading, tells the new one which peers it still serves, and from then on gets their datagrams through a Unix
socket; its answers leave by the shared socket as before. What is not its peer's any more goes back the same way, so
the new worker forgets peers whose transfers have ended. A message carries a secret that only the workers of one
master know, because anybody on the host may write to such a socket.

The order makes it safe: nobody reads between the old worker's last read and the message, and what arrives in between
waits in the kernel's buffer, which both share.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from enum import IntEnum
from types import TracebackType
from typing import Final, Protocol, Self

from asyncnet.addresses import Address, format_address
from asyncnet.workers.board import Board

__all__ = ["Inbox", "Steerable", "inbox_name", "take_over"]

logger = logging.getLogger("asyncnet.workers")

SECRET_SIZE: Final = 16
_LARGEST: Final = 1 << 17
_PER_TURN: Final = 256
_CHECK: Final = 0.05
"""Seconds between looks whether the old worker still lives."""
_PEERS_A_MESSAGE: Final = 500
_MAX_WAITING: Final = 4096
"""Messages that wait for room in the inboxes of others."""
_RETRY: Final = 0.001


class _Kind(IntEnum):
    PEERS = 1
    """Peers that the sender still serves."""
    END = 2
    """All peers are told: read the socket now."""
    DATAGRAM = 3
    """From a peer that the receiver serves."""
    RETURNED = 4
    """From a peer that the sender serves no more."""


class Steerable(Protocol):
    """A listener on which transfers with many peers run."""

    steer: Callable[[bytes, Address], bool] | None

    @property
    def peers(self) -> Collection[Address]: ...

    def serves(self, data: bytes, peer: Address) -> bool: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def inject(self, data: bytes, peer: Address) -> None: ...


def inbox_name(secret: bytes, pid: int) -> str:
    """Return the address of a worker's inbox, in the abstract namespace."""
    return f"\0asyncnet-{hmac.new(secret, b'name', 'sha256').hexdigest()[:16]}-{pid}"


class Inbox:
    """Receives what other workers of the seat pass on.

    Args:
        listeners: those of this worker's server, in the order of the seat's sockets.
        board: says who serves the seat.
        seat: of this worker.
        secret: of all workers of the master.

    Raises:
        OSError: this system has no abstract names of Unix sockets.
    """

    def __init__(self, listeners: Sequence[Steerable], board: Board, seat: int, secret: bytes) -> None:
        if sys.platform != "linux":  # where a socket could be found only by a path that somebody must remove
            raise OSError("a single port by workers needs Linux: give each transfer its own port, or leave workers out")
        self._pid = os.getpid()
        self._listeners = listeners
        self._board = board
        self._seat = seat
        self._secret = secret
        self._elsewhere: list[dict[Address, int]] = [{} for _ in listeners]
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._flushing: asyncio.TimerHandle | None = None
        self.complete = asyncio.Event()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._sock.setblocking(False)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            self._sock.bind(inbox_name(secret, self._pid))
        except BaseException:
            self._sock.close()
            raise

    def __enter__(self) -> Self:
        self._loop.add_reader(self._sock.fileno(), self._on_readable)
        for number, listener in enumerate(self._listeners):
            listener.steer = lambda data, peer, number=number: self._steer(number, data, peer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for listener in self._listeners:
            listener.steer = None
        if self._flushing is not None:
            self._flushing.cancel()
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()

    def hand_over(self) -> None:
        """Stop reading the socket, when another worker has taken the seat, and say whose transfers run here."""
        successor = self._board.owner(self._seat)
        if successor in (0, self._pid):
            return
        for number, listener in enumerate(self._listeners):
            listener.pause()
            rows = [[list(peer), self._pid] for peer in listener.peers]
            rows += [[list(peer), pid] for peer, pid in self._alive(self._elsewhere[number].items())]
            for start in range(0, len(rows), _PEERS_A_MESSAGE):
                body = json.dumps([number, rows[start : start + _PEERS_A_MESSAGE]]).encode()
                self._send(successor, _Kind.PEERS, body)
        if not self._send(successor, _Kind.END, b""):
            logger.warning("the worker %d that takes over is gone; its replacement reads the socket", successor)

    def lives(self, pid: int) -> bool:
        """Whether a worker has not ended."""
        return self._board.row_of(pid) is not None

    def _alive(self, rows: Iterable[tuple[Address, int]]) -> Iterator[tuple[Address, int]]:
        """Leave out the peers of workers that have ended: they would be told on from worker to worker for ever."""
        known: dict[int, bool] = {}
        for peer, pid in rows:
            if pid not in known:
                known[pid] = self.lives(pid)
            if known[pid]:
                yield peer, pid

    def resume(self) -> None:
        """Read the socket."""
        for listener in self._listeners:
            listener.resume()

    # Datagrams.

    def _steer(self, number: int, data: bytes, peer: Address) -> bool:
        """Pass a datagram on to the worker that serves its peer; False when that is this one."""
        pid = self._elsewhere[number].get(peer)
        if pid is None:
            return False
        if self._send(pid, _Kind.DATAGRAM, _pack(number, peer, data)):
            return True
        del self._elsewhere[number][peer]  # that worker has ended
        return False

    def _send(self, pid: int, kind: _Kind, body: bytes) -> bool:
        """Send a message, now or when there is room; False when nobody is there to take it."""
        message = self._secret + bytes([kind]) + self._pid.to_bytes(4, "big") + body
        if self._waiting:  # the order is kept
            return self._wait(pid, message)
        try:
            self._sock.sendto(message, inbox_name(self._secret, pid))
        except BlockingIOError:
            return self._wait(pid, message)
        except OSError:
            return False
        return True

    def _wait(self, pid: int, message: bytes) -> bool:
        if len(self._waiting) < _MAX_WAITING:  # else the protocol's repetition makes up for it
            self._waiting.append((pid, message))
            if self._flushing is None:
                self._flushing = self._loop.call_later(_RETRY, self._flush)
        return True

    def _flush(self) -> None:
        self._flushing = None
        while self._waiting:
            pid, message = self._waiting[0]
            try:
                self._sock.sendto(message, inbox_name(self._secret, pid))
            except BlockingIOError:
                self._flushing = self._loop.call_later(_RETRY, self._flush)
                return
            except OSError:
                pass
            self._waiting.popleft()

    def _on_readable(self) -> None:
        for _ in range(_PER_TURN):
            try:
                message = self._sock.recv(_LARGEST)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                logger.debug("the inbox cannot be read: %s", exc)
                return
            if len(message) < SECRET_SIZE + 5 or not hmac.compare_digest(message[:SECRET_SIZE], self._secret):
                continue
            sender = int.from_bytes(message[SECRET_SIZE + 1 : SECRET_SIZE + 5], "big")
            try:
                self._take(_Kind(message[SECRET_SIZE]), sender, message[SECRET_SIZE + 5 :])
            except Exception:
                logger.exception("a message of the worker %d could not be handled", sender)

    def _take(self, kind: _Kind, sender: int, body: bytes) -> None:
        if kind is _Kind.END:
            self.complete.set()
        elif kind is _Kind.PEERS:
            number, rows = json.loads(body)
            self._elsewhere[number].update(self._alive((_address(peer), pid) for peer, pid in rows))
        else:
            number, peer, data = _unpack(body)
            if kind is _Kind.RETURNED:
                self._elsewhere[number].pop(peer, None)
                self._listeners[number].inject(data, peer)
            elif self._listeners[number].serves(data, peer):
                self._listeners[number].inject(data, peer)
            elif not self._send(sender, _Kind.RETURNED, body):
                logger.debug("a datagram of %s belongs to nobody", format_address(peer))


def _pack(number: int, peer: Address, data: bytes) -> bytes:
    head = json.dumps([number, list(peer)]).encode()
    return len(head).to_bytes(2, "big") + head + data


def _unpack(body: bytes) -> tuple[int, Address, bytes]:
    length = int.from_bytes(body[:2], "big")
    number, peer = json.loads(body[2 : 2 + length])
    return number, _address(peer), body[2 + length :]


def _address(items: list[object]) -> Address:
    return tuple(items)  # type: ignore[return-value]  # it was one before it was JSON


async def take_over(inbox: Inbox, predecessor: int, stopping: asyncio.Event) -> None:
    """Begin to read, when the worker before this one has stopped, has died, or there is none."""
    while predecessor and not inbox.complete.is_set() and not stopping.is_set():
        if not inbox.lives(predecessor):
            break
        try:
            async with asyncio.timeout(_CHECK):
                await inbox.complete.wait()
        except TimeoutError:
            pass
    if not stopping.is_set():
        inbox.resume()

"""The TFTP server: what happens to a request, and what is known of running transfers.

Sockets are in `ports`, files in `storage`, limits in `guard`. A request meets the cheapest check first: whether the
client is admitted, whether it repeats itself, whether there is room; only then is a file opened, and only then does
the client hear of options. What is refused for want of room or by address gets no answer: clients ask
again, and nothing is reflected to an address that may be forged.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import logging
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Literal, Self

import attrs

from asyncnet.addresses import Address, format_address
from asyncnet.descriptors import EXHAUSTED
from asyncnet.errors import LocalError, PacketError, RemoteError
from asyncnet.tftp.answering import discard, open_for, session_for
from asyncnet.tftp.guard import Guard
from asyncnet.tftp.journal import Hooks, Outcome, ServerStats, TransferRecord, outcome_of
from asyncnet.tftp.options import DEFAULT_LIMITS, Limits
from asyncnet.tftp.packets import (
    DEFAULT_BLOCK_SIZE,
    Error,
    ErrorCode,
    ReadRequest,
    Rollover,
    WriteRequest,
    decode_packet,
    encode_packet,
)
from asyncnet.tftp.ports import Arrival, Listener, transfer_socket
from asyncnet.tftp.receiving import ReceiveSession
from asyncnet.tftp.retransmit import DEFAULT_TIMING, Timing
from asyncnet.tftp.sending import Outbox
from asyncnet.tftp.session import Report, Session, printable
from asyncnet.tftp.storage import Request, Storage, error_packet_fields
from asyncnet.udp.create import attach

__all__ = ["Server", "Settings"]

logger: Final = logging.getLogger("asyncnet.tftp")

_REQUESTS: Final = (b"\0\1", b"\0\2")
_CROWD: Final = 4
"""Transfers at once from which on blocks of a turn leave together."""
_MAX_DALLYING: Final = 256
"""Sockets at most that are kept for nothing but the repetition of a last ACK."""
_MOST_ANSWERS: Final = 4
"""First packets in a row to an address that answers none of them: its requests may be forged."""
_UNHEARD_SECONDS: Final = 15.0
"""Seconds after the last of them until it is sent some more; as long as a transfer waits that is not answered."""
_MAX_UNHEARD: Final = 4096
"""Addresses that are remembered for it; beyond it the one sent to longest ago is forgotten."""


@attrs.frozen
class Settings:
    """How a server runs; `serve` explains them."""

    limits: Limits = DEFAULT_LIMITS
    timing: Timing = DEFAULT_TIMING
    rollover: Rollover | None = None
    grace: float = 5.0
    ports: range | None = None
    log_format: Literal["text", "json"] = "text"
    hooks: Hooks = attrs.field(factory=Hooks)


@attrs.define(eq=False)
class _Transfer:
    """A request and what became of it."""

    request: Request
    arrival: Arrival
    memory: int = 0
    """Bytes of its window, as the guard knows them."""
    opening: asyncio.Future[Any] | None = None
    """What a storage opens in its own time."""
    session: Session | None = None


def _within(limits: Limits, memory: int) -> Limits:
    """Return limits under which no single transfer takes more than all may together: it would never be admitted."""
    block_size = min(limits.block_size, max(DEFAULT_BLOCK_SIZE, memory))
    return attrs.evolve(limits, block_size=block_size, window_bytes=min(limits.window_bytes, memory))


class Server:
    """A running TFTP server; made by `serve`."""

    def __init__(self, storage: Storage, guard: Guard, settings: Settings) -> None:
        self.listeners: list[Listener] = []
        self._stats = ServerStats()
        self._storage = storage
        self._guard = guard
        self._settings = settings
        self._limits = _within(settings.limits, guard.max_memory)
        self._transfers: dict[tuple[Listener, Address], _Transfer] = {}
        # First packets that were not answered: how many, and when the last one left.
        self._unheard: dict[tuple[Listener, Address], tuple[int, float]] = {}
        self._sessions: set[Session] = set()  # with those that dally
        self._dallying: deque[Session] = deque()  # the oldest first; some are closed already
        ports = max(1, len(settings.ports) // 2) if settings.ports else _MAX_DALLYING
        self._max_dallying = min(_MAX_DALLYING, guard.max_sessions, ports)
        self._tasks: set[asyncio.Task[None]] = set()
        self._outbox = Outbox()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = asyncio.Event()
        self._ended = False  # closed, and the grace is over: nothing begins any more

    @property
    def address(self) -> Address:
        """The first address that the server listens on, with the real port."""
        return self.listeners[0].address

    @property
    def addresses(self) -> list[Address]:
        """Every address that the server listens on."""
        return [listener.address for listener in self.listeners]

    @property
    def stats(self) -> ServerStats:
        """What the server has counted so far."""
        self._stats.unsent = sum(listener.unsent for listener in self.listeners)
        return self._stats

    # A request.

    def arrived(self, arrival: Arrival) -> None:
        """Handle a datagram on a listening socket that belongs to no transfer."""
        try:
            packet = decode_packet(arrival.data)
        except PacketError as exc:
            self._stats.malformed += 1
            logger.debug("%s sent no request: %s", format_address(arrival.peer), exc)
            if arrival.data[:2] in _REQUESTS and self._guard.admits(str(arrival.peer[0])):
                self._send_error(arrival, ErrorCode.ILLEGAL_OPERATION, str(exc))
            return
        if not isinstance(packet, ReadRequest | WriteRequest):
            self._stats.malformed += 1
            return
        host = str(arrival.peer[0])
        if not self._guard.admits(host):
            self._stats.denied += 1
        elif self._was_answered_enough(arrival):
            self._stats.dropped += 1
        elif self._is_repeated(arrival):
            self._stats.duplicates += 1
        elif self._closing.is_set() or not self._guard.has_room(host, 0):
            self._stats.dropped += 1
        else:
            self._begin(packet, arrival)

    def _was_answered_enough(self, arrival: Arrival) -> bool:
        count, since = self._unheard.get(arrival.key, (0, 0.0))
        if count < _MOST_ANSWERS:
            return False
        if time.monotonic() - since > _UNHEARD_SECONDS:
            del self._unheard[arrival.key]
            return False
        known = self._transfers.get(arrival.key)
        return known is None or known.session is None or known.session.is_new

    def _count_answer(self, arrival: Arrival) -> None:
        count, _ = self._unheard.pop(arrival.key, (0, 0.0))
        self._unheard[arrival.key] = count + 1, time.monotonic()
        if len(self._unheard) > _MAX_UNHEARD:
            del self._unheard[next(iter(self._unheard))]

    def _is_repeated(self, arrival: Arrival) -> bool:
        """Boot ROMs repeat a request from the same port; another request from it means a new transfer."""
        known = self._transfers.get(arrival.key)
        if known is None:
            return False
        session = known.session
        if known.arrival.data == arrival.data and (session is None or session.repeats()):
            if session is not None and session.is_new and session.has_begun:
                self._count_answer(arrival)
            return True
        if known.opening is not None:
            known.opening.cancel()
        if session is not None:  # silently: the client would take an ERROR for the answer to its new request
            session.abandon(LocalError(ErrorCode.UNDEFINED, "replaced by a new request"))
        self._forget(known)
        return False

    def _begin(self, packet: ReadRequest | WriteRequest, arrival: Arrival) -> None:
        request = Request(
            peer=arrival.peer,
            name=packet.filename,
            is_write=isinstance(packet, WriteRequest),
            mode=packet.mode,
            options=packet.options,
            local_addr=arrival.local_addr,
            interface=arrival.interface,
        )
        transfer = _Transfer(request, arrival)
        self._stats.requests += 1
        self._guard.enter(str(arrival.peer[0]), 0)
        self._transfers[arrival.key] = transfer
        self._count_active()
        self._idle.clear()
        try:
            opened: Any = open_for(request, self._storage)
            if not inspect.isawaitable(opened):
                self._start(transfer, opened)
                return
        except Exception as exc:
            self._refuse(transfer, exc)
            return
        transfer.opening = asyncio.ensure_future(opened)
        transfer.opening.add_done_callback(lambda done: self._opened(transfer, done))

    def _opened(self, transfer: _Transfer, done: asyncio.Future[Any]) -> None:
        transfer.opening = None
        if done.cancelled():
            self._forget(transfer)  # the client has asked for something else meanwhile, or the server closes
        elif self._ended or self._transfers.get(transfer.arrival.key) is not transfer:
            self._forget(transfer)
            if done.exception() is None:  # it was ready just when nobody waited for it any more
                discard(done.result())
        else:
            try:
                self._start(transfer, done.result())
            except Exception as exc:
                self._refuse(transfer, exc)

    def _start(self, transfer: _Transfer, opened: Any) -> None:
        request, arrival = transfer.request, transfer.arrival
        try:
            session = session_for(
                request,
                opened,
                limits=self._limits,
                timing=self._settings.timing,
                rollover=self._settings.rollover,
                progress=self._progress_of(request),
                outbox=self._outbox,
                stays=True,
            )
        except BaseException:
            discard(opened)
            raise
        host, memory = str(arrival.peer[0]), session.options.block_size * session.options.window_size
        self._guard.leave(host, 0)
        if not self._guard.has_room(host, memory):
            self._guard.enter(host, 0)
            self._stats.dropped += 1
            self._stats.requests -= 1
            self._forget(transfer)
            discard(opened)
            return
        self._guard.enter(host, memory)
        transfer.memory = memory
        transfer.session = session
        session.on_over = lambda session: self._over(session, transfer)
        self._sessions.add(session)
        self._call(self._settings.hooks.on_start, request)
        if arrival.listener.single_port:
            arrival.listener.enter(session, arrival)
            self._count_answer(arrival)
        else:
            self._run(self._open_socket(session, arrival))

    def _progress_of(self, request: Request) -> Callable[[int, int | None], object] | None:
        hook = self._settings.hooks.on_progress
        return None if hook is None else lambda done, total: self._call(hook, request, done, total)

    async def _open_socket(self, session: Session, arrival: Arrival) -> None:
        try:
            trains = isinstance(session, ReceiveSession) and session.options.window_size > 1
            await attach(session, await self._socket_for(arrival), trains=trains)
            self._count_answer(arrival)
        except BaseException as exc:
            session.fail(exc)
            if not session.has_begun:  # there is no socket whose end it could wait for
                self._sessions.discard(session)
            if not isinstance(exc, Exception):
                raise

    async def _socket_for(self, arrival: Arrival) -> socket.socket:
        while True:
            try:
                return transfer_socket(arrival, self._settings.ports)
            except OSError as exc:
                if exc.errno not in (errno.EADDRINUSE, *EXHAUSTED) or not self._dallying:
                    raise
            oldest = self._dallying.popleft()  # a transfer that begins needs the port more
            oldest.close()
            await oldest.wait_closed()

    def _refuse(self, transfer: _Transfer, exc: Exception) -> None:
        request, arrival = transfer.request, transfer.arrival
        if self._transfers.get(arrival.key) is not transfer:
            return
        self._forget(transfer)
        if isinstance(exc, OSError) and exc.errno in EXHAUSTED:  # the client asks again, and does not give up
            self._stats.dropped += 1
            self._stats.requests -= 1
            logger.warning("%s %r: no answer: %s", format_address(arrival.peer), request.name, exc.strerror)
            while self._dallying:
                self._dallying.popleft().close()
            return
        code, text = error_packet_fields(exc)
        if not self._send_error(arrival, code, text):  # the log is not for whoever sends most
            return
        self._stats.refused += 1
        if not isinstance(exc, LocalError | OSError):
            logger.error("%s %r: the storage failed", format_address(arrival.peer), request.name, exc_info=exc)
        self._tell(request, Outcome.REFUSED, error=text)

    def _send_error(self, arrival: Arrival, code: int, text: str) -> bool:
        """Answer a request by an ERROR, unless its source has caused too many; tell whether it was answered."""
        if not self._guard.may_send_error(str(arrival.peer[0]), time.monotonic()):
            self._stats.silenced += 1
            return False
        answer = encode_packet(Error(code, printable(text)))
        try:
            if arrival.listener.single_port:
                arrival.listener.send(answer, arrival.peer, arrival.reply_addr)
            else:
                with transfer_socket(arrival, self._settings.ports) as sock:
                    sock.send(answer)
        except OSError as failure:
            logger.debug("cannot tell %s: %s", format_address(arrival.peer), failure)
        return True

    # The end of a transfer.

    def _count_active(self) -> None:
        self._stats.active = len(self._transfers)
        self._outbox.is_open = len(self._transfers) >= _CROWD and not self.listeners[0].single_port

    def _forget(self, transfer: _Transfer) -> None:
        if self._transfers.get(transfer.arrival.key) is transfer:
            del self._transfers[transfer.arrival.key]
            self._guard.leave(str(transfer.arrival.peer[0]), transfer.memory)
            self._count_active()
            if not self._transfers:
                self._idle.set()

    def _over(self, session: Session, transfer: _Transfer) -> None:
        self._forget(transfer)
        if not session.is_new or isinstance(session.error, RemoteError):  # the client has answered
            self._unheard.pop(transfer.arrival.key, None)
        if len(self._sessions) > 2 * len(self._transfers) + len(self._dallying) + 16:
            self._sessions = {each for each in self._sessions if not each.closed}
        if session.dallies:
            self._dallying.append(session)
            while self._dallying and (self._dallying[0].closed or len(self._dallying) > self._max_dallying):
                self._dallying.popleft().close()
        request, report, stats = transfer.request, session.report, self._stats
        stats.retransmitted += report.retransmitted
        stats.rejected += report.rejected
        if request.is_write:
            stats.received_bytes += report.bytes
        else:
            stats.sent_bytes += report.bytes
        outcome = outcome_of(session)
        stats.completed += session.error is None
        stats.unconfirmed += outcome is Outcome.UNCONFIRMED
        stats.probes += outcome is Outcome.PROBE
        stats.failed += outcome is Outcome.FAILED
        self._tell(request, outcome, report, str(session.error) if outcome is Outcome.FAILED else None)

    def _tell(self, request: Request, outcome: Outcome, report: Report | None = None, error: str | None = None) -> None:
        hooks = self._settings.hooks
        if hooks.on_end is None and not logger.isEnabledFor(logging.INFO):
            return
        record = TransferRecord.of(request, outcome, report, error)
        logger.info("%s", record.json() if self._settings.log_format == "json" else record.line())
        self._call(hooks.on_end, record)

    def _call(self, hook: Callable[..., object] | None, *arguments: object) -> None:
        if hook is not None:
            try:
                hook(*arguments)
            except Exception:
                logger.exception("a hook failed")

    def _run(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # The end of the server.

    async def serve_forever(self) -> None:
        """Serve until the server is closed, or this call is cancelled; then finish running transfers and close."""
        try:
            await self._closing.wait()
        finally:
            await self.aclose()

    def close(self) -> None:
        """Accept no more requests; running transfers go on."""
        self._closing.set()
        for listener in self.listeners:
            if not listener.single_port:
                listener.close()

    async def aclose(self, grace: float | None = None) -> None:
        """Accept no more requests, wait for running transfers, then end those that are left.

        Args:
            grace: seconds to wait; None for what `serve` was given.
        """
        self.close()
        try:
            async with asyncio.timeout(self._settings.grace if grace is None else grace):
                await self._idle.wait()
        except TimeoutError:
            pass
        finally:
            self._ended = True
            for session in list(self._sessions):
                session.close()
            openings = [each.opening for each in self._transfers.values() if each.opening is not None]
            for task in (*self._tasks, *openings):
                task.cancel()
            for listener in self.listeners:
                listener.close()
        for session in list(self._sessions):
            await session.wait_closed()
        self._sessions.clear()
        await asyncio.gather(*self._tasks, *openings, return_exceptions=True)
        for listener in self.listeners:
            await listener.closed.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

"""TFTP on every engine: the sessions of `asyncnet.tftp`, driven by an endpoint that is awaited.

What is sent and when, the sans-IO machines decide; files and packets are the sessions' business. What is left is the
rhythm: wait for a datagram or for the timer, and tell the session. On an engine of threads, each transfer is a thread
that blocks; on one of processes, a process: then `TftpService` does what inetd and in.tftpd do.
"""

from __future__ import annotations

import inspect
import logging
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Literal, TypeAlias

import attrs

from asyncnet import tftp
from asyncnet.addresses import Address, format_address
from asyncnet.compat.datagrams import Endpoint, on_this_engine
from asyncnet.compat.elsewhere import call_elsewhere, holds_up_others
from asyncnet.compat.tasks import timeout
from asyncnet.compat.traps import current_driver
from asyncnet.errors import ClosedError, LocalError, PacketError
from asyncnet.resolver import resolve
from asyncnet.tftp.answering import discard, open_for, session_for
from asyncnet.tftp.journal import Outcome, TransferRecord, outcome_of
from asyncnet.tftp.options import DEFAULT_LIMITS, Limits
from asyncnet.tftp.packets import (
    Error,
    ErrorCode,
    ReadRequest,
    Rollover,
    WriteRequest,
    decode_packet,
    encode_packet,
)
from asyncnet.tftp.retransmit import DEFAULT_TIMING, Timing
from asyncnet.tftp.session import Report, Session, prepare_socket
from asyncnet.tftp.storage import Request, Storage, error_packet_fields
from asyncnet.udp.sockets import refused_addresses

__all__ = ["Client", "TftpService", "drive"]

logger: Final = logging.getLogger("asyncnet.tftp")

_WILDCARDS: Final = ("0.0.0.0", "::")
_REQUESTS: Final = (b"\0\1", b"\0\2")
_MAX_UNSENT: Final = 256
"""Datagrams that may wait for room in the socket; retransmission makes up for those beyond it."""

_Call: TypeAlias = tuple[Callable[[], None], Callable[[BaseException | None], None]]
"""What may block, and what is told of its end."""


class _Timer:
    """The one timer of a session."""

    def __init__(self) -> None:
        self.due: float | None = None
        self._callback: Callable[[], None] | None = None

    def set(self, delay: float, callback: Callable[[], None]) -> _Timer:
        """Set it, as ``call_later`` of an event loop does."""
        self.due, self._callback = time.monotonic() + delay, callback
        return self

    def cancel(self) -> None:
        """Stop it."""
        self.due = self._callback = None

    def left(self) -> float | None:
        """Return the seconds until it is due; None when it is not set."""
        return None if self.due is None else max(0.0, self.due - time.monotonic())

    def fire(self) -> None:
        """Call back, if it is due."""
        if self.due is not None and time.monotonic() >= self.due and self._callback is not None:
            callback = self._callback
            self.cancel()
            callback()


class _Wire:
    """What a session sends by."""

    def __init__(self, endpoint: Any) -> None:
        self._endpoint = endpoint
        self._waiting: list[tuple[bytes, Address | None]] = []
        self._error: OSError | None = None
        self.closing = False

    def sendto(self, data: bytes | memoryview, addr: Address | None = None) -> None:
        """Send a datagram now, or as soon as there is room."""
        if not self._waiting:
            try:
                self._endpoint.send_nowait(data, addr)
                return
            except BlockingIOError:
                pass
            except OSError as exc:  # perhaps of an earlier datagram; a receive does not say it again
                self._error = exc
                return
        if len(self._waiting) < _MAX_UNSENT:
            self._waiting.append((bytes(data), addr))

    def send_segments(self, data: memoryview, segment_size: int, addr: Address | None = None) -> None:
        """Send a train, one datagram after the other."""
        for start in range(0, len(data), segment_size):
            self.sendto(data[start : start + segment_size], addr)

    async def flush(self) -> None:
        """Wait until what had no room is sent."""
        waiting, self._waiting = self._waiting, []
        for data, addr in waiting:
            try:
                await self._endpoint.send(data, addr)
            except OSError as exc:
                self._error = exc

    def take_error(self) -> OSError | None:
        """Return what went wrong since the last time this was asked."""
        error, self._error = self._error, None
        return error

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return ``peername``, and `default` for anything else."""
        return getattr(self._endpoint, "remote_addr", default) or default if name == "peername" else default

    def close(self) -> None:
        """End the transfer, once what waits is sent."""
        self.closing = True


async def drive(session: Session, endpoint: Any, *, until_over: bool = False) -> None:
    """Run a session to its end on an endpoint, which is closed then.

    Args:
        session: has not begun.
        endpoint: of `asyncnet.compat` or `asyncnet.udp`.
        until_over: end when all has arrived, without staying to repeat the last acknowledgement.
    """
    timer, wire = _Timer(), _Wire(endpoint)
    calls: list[_Call] = []
    try:
        session.begin(wire, timer.set, (lambda *call: calls.append(call)) if holds_up_others() else None)
        while not wire.closing and not (until_over and session.over):
            await wire.flush()
            if (error := wire.take_error()) is not None:
                logger.debug("%s", error)
                session.error_received(error)
                continue
            try:
                async with timeout(timer.left()):
                    data, addr = await endpoint.recv()
            except TimeoutError:
                pass
            except ClosedError:
                break
            except OSError as exc:
                session.error_received(exc)
            else:
                session.datagram_received(data, addr)
            timer.fire()
            while calls:
                await _make(*calls.pop())
        await wire.flush()
    finally:
        session.close()  # when it is over, this does nothing
        endpoint.close()
        session.connection_lost(None)


async def _make(work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
    """Make a call that a session wants, and tell it how that went; what arrives meanwhile waits in the socket."""
    try:
        await call_elsewhere(work)
    except Exception as exc:
        done(exc)
    else:
        done(None)


@attrs.define(eq=False)
class TftpService:
    """A TFTP server for `serve_datagram`: its `handle` is the handler.

    Each transfer has a socket of its own. A request that repeats one whose transfer runs is left out, except on
    engines of processes, where nobody knows of the others.

    Args:
        storage: what is served.
        limits: what the options may be at most.
        timing: how long to wait for acknowledgements.
        rollover: the block number that follows 65535; see `asyncnet.tftp.serve`.
        admits: tells whether requests of an address are heard.
        log_format: how the line about each transfer looks.
    """

    storage: Storage
    limits: Limits = DEFAULT_LIMITS
    timing: Timing = DEFAULT_TIMING
    rollover: Rollover | None = None
    admits: Callable[[str], bool] = lambda host: True
    log_format: Literal["text", "json"] = "text"
    _running: dict[Address, tuple[bytes]] = attrs.field(factory=dict, init=False)

    async def handle(self, data: bytes, addr: Address, endpoint: Any) -> None:
        """Answer a request, and run its transfer."""
        try:
            packet = decode_packet(data)
        except PacketError as exc:
            logger.debug("%s sent no request: %s", format_address(addr), exc)
            if data[:2] in _REQUESTS and self.admits(str(addr[0])):
                await endpoint.send(encode_packet(Error(ErrorCode.ILLEGAL_OPERATION, str(exc))), addr)
            return
        if not isinstance(packet, ReadRequest | WriteRequest) or not self.admits(str(addr[0])):
            return
        mine = (data,)
        known = self._running.setdefault(addr, mine)  # in one step: this may be one of many threads
        if known is not mine and known == mine:
            return
        self._running[addr] = mine
        try:
            await self._transfer(packet, addr, endpoint.local_addr)
        finally:
            if self._running.get(addr) is mine:
                del self._running[addr]

    async def _transfer(self, packet: ReadRequest | WriteRequest, peer: Address, local: Address) -> None:
        request = Request(
            peer=peer,
            name=packet.filename,
            is_write=isinstance(packet, WriteRequest),
            mode=packet.mode,
            options=packet.options,
            local_addr=None if local[0] in _WILDCARDS else str(local[0]),
        )
        endpoint = await on_this_engine(_transfer_socket(local, peer))
        try:
            opened: Any = open_for(request, self.storage)
            if inspect.isawaitable(opened):
                opened = await opened
            try:
                session = session_for(request, opened, limits=self.limits, timing=self.timing, rollover=self.rollover)
            except BaseException:
                discard(opened)
                raise
        except Exception as exc:
            await self._refuse(request, exc, endpoint)
            return
        except BaseException:
            endpoint.close()
            raise
        await drive(session, endpoint)
        outcome = outcome_of(session)
        self._tell(request, outcome, session.report, str(session.error) if outcome is Outcome.FAILED else None)

    async def _refuse(self, request: Request, exc: Exception, endpoint: Any) -> None:
        code, text = error_packet_fields(exc)
        if not isinstance(exc, LocalError | OSError):
            logger.error("%s %r: the storage failed", format_address(request.peer), request.name, exc_info=exc)
        self._tell(request, Outcome.REFUSED, error=text)
        try:
            await endpoint.send(encode_packet(Error(ErrorCode(code), text)))
        except OSError as failure:
            logger.debug("cannot tell %s: %s", format_address(request.peer), failure)
        finally:
            endpoint.close()

    def _tell(self, request: Request, outcome: Outcome, report: Report | None = None, error: str | None = None) -> None:
        record = TransferRecord.of(request, outcome, report, error)
        logger.info("%s", record.json() if self.log_format == "json" else record.line())


def _transfer_socket(local: Address, peer: Address) -> socket.socket:
    """Return a socket for one transfer, from the address that was asked if there is only one."""
    sock = socket.socket(socket.AF_INET6 if ":" in str(peer[0]) else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        prepare_socket(sock)
        if local[0] not in _WILDCARDS:
            sock.bind((local[0], 0, *local[2:]))
        sock.connect(peer)
    except BaseException:
        sock.close()
        raise
    return sock


class Client(tftp.Client):
    """`asyncnet.tftp.Client`, which also runs where there is no event loop: by `asyncnet.compat.run`."""

    async def _resolve(self) -> list[tuple[int, Address]]:
        if current_driver() is None:
            return await super()._resolve()
        return await resolve(self.host, self.port, action="reach", kind=socket.SOCK_DGRAM, call=call_elsewhere)

    async def _run(self, session: Session, sock: socket.socket, *, trains: bool) -> Report:
        driver = current_driver()
        if driver is None:
            return await super()._run(session, sock, trains=trains)
        try:
            sock = driver.adopt(sock)
            endpoint = Endpoint(sock, driver)
        except BaseException:
            sock.close()
            raise
        session.refused = partial(refused_addresses, sock)
        await drive(session, endpoint, until_over=True)
        if session.error is not None:
            raise session.error
        return session.report

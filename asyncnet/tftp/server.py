"""The TFTP server: one listening socket, and a connected socket for each transfer.

The listening socket hears requests and nothing else: an ERROR, DATA or ACK that arrives there gets no answer, so two
servers can never be made to answer each other (CVE-2024-2169). A connected socket leaves it to the kernel to keep
strangers out of a transfer, and reports at once when the client is gone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import Final, Self, cast

import attrs

from asyncnet.addresses import Address, format_address
from asyncnet.errors import LocalError, PacketError, RemoteError
from asyncnet.opening import Opening
from asyncnet.tftp.files import NetasciiSink, NetasciiSource
from asyncnet.tftp.options import DEFAULT_LIMITS, Limits, negotiate
from asyncnet.tftp.packets import (
    Ack,
    Error,
    ErrorCode,
    OptionAck,
    ReadRequest,
    WriteRequest,
    decode_packet,
    encode_packet,
)
from asyncnet.tftp.receiving import ReceiveSession
from asyncnet.tftp.retransmit import DEFAULT_TIMING, Timing
from asyncnet.tftp.sending import SendSession
from asyncnet.tftp.session import Session, prepare_socket
from asyncnet.tftp.storage import Directory, WritePolicy, error_packet_fields
from asyncnet.tftp.transfer import Receiver, Sender
from asyncnet.udp.create import attach
from asyncnet.udp.sockets import open_socket

__all__ = ["Server", "ServerStats", "serve"]

logger: Final = logging.getLogger("asyncnet.tftp")


@attrs.define
class ServerStats:
    """What a server has counted since it was opened."""

    requests: int = 0
    """Requests that began a transfer or were refused with an ERROR."""
    active: int = 0
    """Transfers that run now."""
    completed: int = 0
    unconfirmed: int = 0
    """Completed, except that the client never sent the last acknowledgement."""
    failed: int = 0
    """Ended early, by either side."""
    probes: int = 0
    """Ended by the client before the first block: it wanted the size, or only to see whether the file exists."""
    refused: int = 0
    """Requests answered with an ERROR."""
    duplicates: int = 0
    """Requests that repeated one whose transfer had begun."""
    dropped: int = 0
    """Requests that got no answer because `max_sessions` transfers were running."""
    malformed: int = 0
    """Datagrams on the listening socket that are no request."""
    sent_bytes: int = 0
    received_bytes: int = 0
    retransmitted: int = 0


class Server(asyncio.DatagramProtocol):
    """A running TFTP server; made by `serve`."""

    def __init__(self, source: Directory, *, limits: Limits, max_sessions: int, grace: float, timing: Timing) -> None:
        self.stats = ServerStats()
        self._source = source
        self._limits = limits
        self._max_sessions = max_sessions
        self._grace = grace
        self._timing = timing
        self._transport: asyncio.DatagramTransport | None = None
        self._address: Address = ("", 0)
        self._running: dict[Address, tuple[bytes, Session]] = {}  # by the client's address
        self._sessions: set[Session] = set()  # with those that dally
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = asyncio.Event()

    @property
    def address(self) -> Address:
        """The address that the server listens on, with the real port."""
        return self._address

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)
        self._address = transport.get_extra_info("sockname")

    def datagram_received(self, data: bytes, addr: Address) -> None:
        try:
            request = decode_packet(data)
        except PacketError as exc:
            self.stats.malformed += 1
            logger.debug("%s sent no request: %s", format_address(addr), exc)
            return
        if not isinstance(request, ReadRequest | WriteRequest):
            self.stats.malformed += 1
            return
        if self._is_repeated(data, addr):
            self.stats.duplicates += 1
            return
        if len(self._running) >= self._max_sessions:  # a client that gets no answer tries again later
            self.stats.dropped += 1
            return
        self.stats.requests += 1
        try:
            session = self._new_session(request)
        except Exception as exc:
            self._refuse(request, addr, exc)
            return
        session.on_over = lambda session: self._over(session, request, addr)
        self._running[addr] = (data, session)
        self._sessions.add(session)
        self.stats.active = len(self._running)
        self._idle.clear()
        task = asyncio.get_running_loop().create_task(self._open(session, addr))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def error_received(self, exc: Exception) -> None:
        logger.debug("error on the listening socket: %s", exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._closed.set()

    # A request.

    def _is_repeated(self, data: bytes, addr: Address) -> bool:
        """Boot ROMs repeat a request from the same port; another request from it means a new transfer."""
        known = self._running.get(addr)
        if known is None:
            return False
        request, session = known
        if request == data and (session.resend_opening() or session.is_new):
            return True
        session.fail(LocalError(ErrorCode.UNDEFINED, "replaced by a new request"))
        return False

    def _new_session(self, request: ReadRequest | WriteRequest) -> Session:
        if request.mode not in ("octet", "netascii"):
            raise LocalError(ErrorCode.ILLEGAL_OPERATION, "the mode must be octet or netascii")
        is_text = request.mode == "netascii"
        if isinstance(request, ReadRequest):
            file = self._source.open_read(request.filename)
            source = NetasciiSource(file) if is_text else file
            options, accepted = negotiate(request.options, limits=self._limits, size=source.size)
            sender = Sender(opening=bool(accepted), timing=self._timing.capped_by(options.timeout))
            opening = encode_packet(OptionAck(accepted)) if accepted else b""
            return SendSession(source, sender, opening=opening, options=options)
        target = self._source.open_write(request.filename)
        sink = NetasciiSink(target) if is_text else target
        options, accepted = negotiate(request.options, limits=self._limits, is_write=True)
        receiver = Receiver(keep_beyond_gap=sink.random_access, timing=self._timing.capped_by(options.timeout))
        opening = encode_packet(OptionAck(accepted) if accepted else Ack(0))
        return ReceiveSession(sink, receiver, opening=opening, options=options)

    def _refuse(self, request: ReadRequest | WriteRequest, addr: Address, exc: Exception) -> None:
        self.stats.refused += 1
        code, text = error_packet_fields(exc)
        unexpected = not isinstance(exc, LocalError | OSError)
        logger.log(
            logging.ERROR if unexpected else logging.INFO,
            "%s %s %r refused: %s",
            format_address(addr),
            _verb(request),
            request.filename,
            text,
            exc_info=exc if unexpected else None,
        )
        try:
            with self._new_socket(addr) as sock:
                sock.send(encode_packet(Error(code, text)))
        except OSError as exc:
            logger.debug("cannot tell %s: %s", format_address(addr), exc)

    def _new_socket(self, addr: Address) -> socket.socket:
        """Return a socket on the address that this server listens on and a free port, connected to `addr`."""
        sock = socket.socket(socket.AF_INET6 if ":" in addr[0] else socket.AF_INET, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            prepare_socket(sock)
            sock.bind((self._address[0], 0, *self._address[2:]))
            sock.connect(addr)
        except BaseException:
            sock.close()
            raise
        return sock

    async def _open(self, session: Session, addr: Address) -> None:
        try:
            trains = isinstance(session, ReceiveSession) and session.options.window_size > 1
            await attach(session, self._new_socket(addr), trains=trains)
        except Exception as exc:
            session.fail(exc)
        except BaseException as exc:
            session.fail(exc)
            raise

    def _over(self, session: Session, request: ReadRequest | WriteRequest, addr: Address) -> None:
        known = self._running.get(addr)
        if known is not None and known[1] is session:
            del self._running[addr]
        self._sessions = {s for s in self._sessions if not s.closed}
        report, stats = session.report, self.stats
        stats.active = len(self._running)
        stats.retransmitted += report.retransmitted
        if isinstance(request, ReadRequest):
            stats.sent_bytes += report.bytes
        else:
            stats.received_bytes += report.bytes
        stats.completed += session.error is None
        stats.unconfirmed += not report.confirmed
        probe = isinstance(session.error, RemoteError) and session.error.code in (0, 8) and session.is_new
        stats.probes += probe
        stats.failed += session.error is not None and not probe
        if not self._running:
            self._idle.set()
        rate = report.bytes / report.seconds / 1e6 if report.seconds else 0.0
        end = "probe" if probe else session.error or ("complete" if report.confirmed else "sent, unconfirmed")
        logger.info(
            "%s %s %r: %d bytes in %.3f s, %.1f MB/s, %d retransmitted: %s",
            *(format_address(addr), _verb(request), request.filename, report.bytes, report.seconds, rate),
            *(report.retransmitted, end),
        )

    # The end.

    async def serve_forever(self) -> None:
        """Serve until the server is closed, or this call is cancelled; then finish running transfers and close."""
        try:
            await self._closed.wait()
        finally:
            await self.aclose()

    def close(self) -> None:
        """Accept no more requests; running transfers go on."""
        if self._transport is not None:
            self._transport.close()

    async def aclose(self, grace: float | None = None) -> None:
        """Accept no more requests, wait for running transfers, then end those that are left.

        Args:
            grace: seconds to wait; None for what `serve` was given.
        """
        self.close()
        try:
            async with asyncio.timeout(self._grace if grace is None else grace):
                await self._idle.wait()
        except TimeoutError:
            pass
        finally:
            for session in list(self._sessions):
                session.close()
            for task in list(self._tasks):
                task.cancel()
        for session in list(self._sessions):
            await session.wait_closed()
        self._sessions.clear()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._closed.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _verb(request: ReadRequest | WriteRequest) -> str:
    return "read" if isinstance(request, ReadRequest) else "write"


def serve(
    source: str | os.PathLike[str] | Directory,
    host: str = "127.0.0.1",
    port: int = 69,
    *,
    write: str | WritePolicy = WritePolicy.NONE,
    max_sessions: int = 1000,
    limits: Limits = DEFAULT_LIMITS,
    grace: float = 5.0,
    timing: Timing = DEFAULT_TIMING,
) -> Opening[Server]:
    """Serve a directory: ``async with serve(...) as server: await server.serve_forever()``.

    Args:
        source: the directory; clients reach regular files below it, and nothing outside.
        host: an address of this host; ``"0.0.0.0"`` for every IPv4 address.
        port: 0 takes any free one.
        write: ``"none"``, ``"create"`` for new files only, or ``"overwrite"``.
        max_sessions: transfers that may run at once; further requests get no answer, which makes clients try again.
        limits: what the options may be at most.
        grace: seconds that running transfers get when the server closes.
        timing: how long to wait for acknowledgements.

    Raises:
        ValueError: `write` is no such policy, or `max_sessions` is below 1.
        OSError: the directory cannot be read, or the address cannot be used.
    """
    policy = WritePolicy(write)
    if max_sessions < 1:
        raise ValueError(f"max_sessions must be at least 1, not {max_sessions}")

    async def open_() -> Server:
        directory = source if isinstance(source, Directory) else Directory(source, write=policy)
        server = Server(directory, limits=limits, max_sessions=max_sessions, grace=grace, timing=timing)
        sock = await open_socket(local=(host or "0.0.0.0", port))
        await attach(server, sock)
        return server

    return Opening(open_)

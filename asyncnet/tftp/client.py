"""The TFTP client: several transfers at once with one server, each on a socket of its own."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Literal, Self, TypedDict

from asyncnet.addresses import Address, explain
from asyncnet.errors import RemoteError
from asyncnet.resolver import resolve
from asyncnet.tftp.files import (
    BytesSink,
    BytesSource,
    CheckedSink,
    FileSink,
    FileSource,
    NetasciiSink,
    NetasciiSource,
    Sink,
    Source,
)
from asyncnet.tftp.options import MAX_BLOCK_SIZE, accept, request_options
from asyncnet.tftp.packets import ErrorCode, ReadRequest, Rollover, WriteRequest, encode_packet
from asyncnet.tftp.receiving import ReceiveSession
from asyncnet.tftp.retransmit import DEFAULT_TIMING, Timing
from asyncnet.tftp.sending import SendSession
from asyncnet.tftp.session import Progress, Report, Session, prepare_socket
from asyncnet.tftp.transfer import Receiver, Sender
from asyncnet.udp.create import attach
from asyncnet.udp.sockets import refused_addresses, route_mtu

__all__ = ["DEFAULT_PORT", "Client", "ClientOptions"]

DEFAULT_PORT: Final = 69

_IP_RECVERR: Final = 11  # linux/in.h
_IPV6_RECVERR: Final = 25  # linux/in6.h

_USUAL_BLOCK_SIZE: Final = 1428
"""Bytes; what fits an Ethernet frame with room for a tunnel, where the route's MTU is not known."""
_HEADERS: Final = {socket.AF_INET: 20 + 8 + 4, socket.AF_INET6: 40 + 8 + 4}
"""Bytes in front of a block: IP, UDP, TFTP."""


class ClientOptions(TypedDict, total=False):
    """The keyword arguments of `Client`."""

    block_size: int | None
    window_size: int
    timeout: int | None
    mode: Literal["octet", "netascii"]
    use_options: bool
    local_addr: tuple[str, int] | None
    rollover: Rollover | None
    timing: Timing


class Client:
    """Transfers files from and to one TFTP server.

    ``async with Client(host) as client`` closes what is open at the end. Transfers may run at the same time.

    A request that the server refuses for its options (ERROR 8 or 4), or that stays without any answer, is made
    again without options.

    Args:
        host: the server's name or address.
        port: the port that requests go to.
        block_size: bytes of a block to ask for, 8 to 65464; 512 asks for nothing. By default a block fills the packets
            of the route to the server, 1468 bytes on Ethernet, as far as the receive buffer has room for a window.
        window_size: blocks sent before an acknowledgement to ask for; 1 asks for nothing.
        timeout: seconds between the server's retransmissions to ask for, 1 to 255; None leaves it to the server.
        mode: ``"octet"`` for bytes as they are, ``"netascii"`` for text with converted line ends.
        use_options: False asks for no option at all, which is plain RFC 1350.
        local_addr: the address of this host, and the port, to send from; port 0 takes a free one.
        rollover: the block number that follows 65535; None sends 0, and learns from the server in lock-step.
        timing: how long to wait for answers, and how often to try again.

    Raises:
        ValueError: an option is out of range, or the mode is unknown.
    """

    def __init__(
        self,
        host: str,
        port: int = DEFAULT_PORT,
        *,
        block_size: int | None = None,
        window_size: int = 16,
        timeout: int | None = None,
        mode: Literal["octet", "netascii"] = "octet",
        use_options: bool = True,
        local_addr: tuple[str, int] | None = None,
        rollover: Rollover | None = None,
        timing: Timing = DEFAULT_TIMING,
    ) -> None:
        if mode not in ("octet", "netascii"):
            raise ValueError(f"mode must be octet or netascii, not {mode!r}")
        if rollover not in (None, 0, 1):
            raise ValueError(f"rollover must be 0 or 1, not {rollover}")
        self._options = partial(request_options, window_size=window_size, timeout=timeout)
        self._options(block_size=block_size or _USUAL_BLOCK_SIZE)
        self.host = host
        self.port = port
        self._mode = mode
        self._timing = timing
        self._rollover: Rollover | None = rollover
        self._use_options = use_options
        self._local_addr = local_addr
        self._block_size = block_size
        self._window_size = window_size
        self._sessions: set[Session] = set()

    async def download(
        self,
        remote: str,
        local: str | os.PathLike[str],
        *,
        sha256: str | None = None,
        progress: Progress | None = None,
    ) -> Report:
        """Fetch the file `remote` into the file `local`.

        The bytes go to a temporary file beside `local`, which takes its place when all have arrived; on any error
        `local` stays as it was.

        Args:
            remote: the name on the server.
            local: the path to write to.
            sha256: the digest that the file must have, 64 hexadecimal digits.
            progress: called with the bytes so far and, where the server tells, in all.

        Raises:
            RemoteError: the server refuses, or ends the transfer; it carries the code and the text.
            LocalError: the server breaks the protocol, sends another number of bytes than it announced, or sends
                something that does not have the digest.
            TimeoutError: the server does not answer.
            OSError: the server cannot be reached, or `local` cannot be written.
            ValueError: `sha256` is no such digest.
        """
        target = os.path.realpath(local)
        if sha256 is None:
            return await self._receive(remote, partial(FileSink, target), progress)
        if not re.fullmatch("[0-9a-fA-F]{64}", sha256):
            raise ValueError(f"a SHA-256 digest has 64 hexadecimal digits: {sha256!r}")
        digest = bytes.fromhex(sha256)
        return await self._receive(remote, lambda: CheckedSink(FileSink(target), digest), progress)

    async def read(self, remote: str, *, limit: int = 1 << 30, progress: Progress | None = None) -> bytes:
        """Fetch the file `remote` and return its content.

        Args:
            remote: the name on the server.
            limit: bytes that are taken at most; a larger file is a `LocalError`.
            progress: as in `download`.

        Raises:
            RemoteError, LocalError, TimeoutError, OSError: as in `download`.
        """
        sinks: list[BytesSink] = []

        def open_sink() -> Sink:
            sinks.append(BytesSink(limit))
            return sinks[-1]

        await self._receive(remote, open_sink, progress)
        return bytes(sinks[-1].data)

    async def upload(self, local: str | os.PathLike[str], remote: str, *, progress: Progress | None = None) -> Report:
        """Send the file `local` to the server as `remote`.

        Args:
            local: the path to read from.
            remote: the name on the server.
            progress: called with the bytes that the server has acknowledged, and those in all.

        Returns:
            The report; its `confirmed` is False when all was sent, something was acknowledged, and only the last
            acknowledgement is missing.

        Raises:
            RemoteError: the server refuses, or ends the transfer; it carries the code and the text.
            LocalError: the server breaks the protocol, or the file became shorter.
            TimeoutError: the server does not answer.
            OSError: the server cannot be reached, or `local` cannot be read.
        """
        return await self._send(partial(FileSource.open, local), remote, progress)

    async def write(self, remote: str, data: bytes, *, progress: Progress | None = None) -> Report:
        """Send `data` to the server as the file `remote`; arguments, result and errors as in `upload`."""
        return await self._send(partial(BytesSource, data), remote, progress)

    async def _receive(self, remote: str, open_sink: Callable[[], Sink], progress: Progress | None) -> Report:
        def begin(server: Address, block_size: int | None, retransmits: int) -> Session:
            size = 0 if self._mode == "octet" else None
            asked = () if block_size is None else self._options(block_size=block_size, size=size)
            request = encode_packet(ReadRequest(remote, self._mode, asked))
            sink = open_sink()
            if self._mode == "netascii":
                sink = NetasciiSink(sink)
            machine = Receiver(
                timing=self._timing,
                rollover=self._rollover,
                keep_beyond_gap=sink.random_access,
                unheard_retransmits=retransmits,
            )
            return ReceiveSession(
                sink, machine, opening=request, server=server, negotiate=partial(accept, asked), progress=progress
            )

        return await self._transfer(begin, trains=self._window_size > 1)

    async def _send(self, open_source: Callable[[], Source], remote: str, progress: Progress | None) -> Report:
        def begin(server: Address, block_size: int | None, retransmits: int) -> Session:
            source = open_source()
            try:
                if self._mode == "netascii":
                    source = NetasciiSource(source)
                asked = () if block_size is None else self._options(block_size=block_size, size=source.size)
                request = encode_packet(WriteRequest(remote, self._mode, asked))
            except BaseException:
                source.close()
                raise
            machine = Sender(timing=self._timing, rollover=self._rollover or 0, unheard_retransmits=retransmits)
            return SendSession(
                source, machine, opening=request, server=server, negotiate=partial(accept, asked), progress=progress
            )

        return await self._transfer(begin, trains=False)

    async def _transfer(self, begin: Callable[[Address, int | None, int], Session], *, trains: bool) -> Report:
        """Run a transfer with the first of the server's addresses that does not refuse it."""
        *others, last = await self._resolve()
        for family, server in others:
            sessions: list[Session] = []

            def begin_noted(*arguments: Any, sessions: list[Session] = sessions) -> Session:
                sessions.append(begin(*arguments))
                return sessions[-1]

            try:
                return await self._transfer_with(family, server, begin_noted, trains=trains)
            except ConnectionRefusedError:
                if any(session.was_answered for session in sessions):
                    raise
        return await self._transfer_with(*last, begin, trains=trains)

    async def _transfer_with(
        self, family: int, server: Address, begin: Callable[[Address, int | None, int], Session], *, trains: bool
    ) -> Report:
        """Run a transfer, and run it again without options where these seem to be what the server cannot take."""
        most = self._timing.max_retransmits
        if self._use_options:
            sock, block_size = self._new_socket(family, server)
            session = _begin_on(sock, partial(begin, server, block_size, most // 2 if most else 0))
            try:
                return await self._run(session, sock, trains=trains)
            except RemoteError as exc:
                if exc.code not in (ErrorCode.OPTION_REFUSED, ErrorCode.ILLEGAL_OPERATION) or not session.is_new:
                    raise
            except TimeoutError:
                if not most or not session.is_new:
                    raise
                most -= most // 2 + 1
        sock, _ = self._new_socket(family, server)
        return await self._run(_begin_on(sock, partial(begin, server, None, most)), sock, trains=False)

    async def _resolve(self) -> list[tuple[int, Address]]:
        """Return the server's addresses, each with its family."""
        return await resolve(self.host, self.port, action="reach", kind=socket.SOCK_DGRAM)

    def _new_socket(self, family: int, server: Address) -> tuple[socket.socket, int]:
        """Return a socket for one transfer, and the size of blocks to ask for."""
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            prepare_socket(sock, receive_buffer=_buffer_for((self._block_size or 0) * self._window_size))
            if sys.platform == "linux":  # learn of a refusal, although the server's port is not known beforehand
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
                else:
                    sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
            local = self._local_addr or ("::" if family == socket.AF_INET6 else "0.0.0.0", 0)
            try:
                sock.bind(local)
            except OSError as exc:
                raise explain(exc, "bind UDP", local) from exc
            block_size = self._block_size
            if block_size is None:
                mtu = route_mtu(server)
                fits = _USUAL_BLOCK_SIZE if mtu is None else min(mtu - _HEADERS[sock.family], MAX_BLOCK_SIZE)
                # A datagram takes up to twice its size of the buffer; and half of it stays for a window sent twice.
                room = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 4 // self._window_size
                block_size = max(512, min(fits, room))
        except BaseException:
            sock.close()
            raise
        return sock, block_size

    async def _run(self, session: Session, sock: socket.socket, *, trains: bool) -> Report:
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()

        def on_over(session: Session) -> None:
            if not over.done():
                over.set_result(None)

        session.on_over = on_over
        session.refused = partial(refused_addresses, sock)
        self._sessions = {s for s in self._sessions if not s.closed}
        self._sessions.add(session)
        try:
            await attach(session, sock, trains=trains)
            await over
        finally:
            if not session.over:
                session.close()
        if session.error is not None:
            raise session.error
        return session.report

    async def aclose(self) -> None:
        """End the transfers that still run, and close every socket."""
        sessions, self._sessions = self._sessions, set()
        for session in sessions:
            session.close()
        for session in sessions:
            await session.wait_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _begin_on(sock: socket.socket, begin: Callable[[], Session]) -> Session:
    try:
        return begin()
    except BaseException:
        sock.close()
        raise


def _buffer_for(window: int) -> int:
    """Return the receive buffer to ask for, for a window of so many bytes."""
    return max(1 << 20, min(4 * window, 8 << 20))

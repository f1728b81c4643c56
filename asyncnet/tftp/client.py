"""The TFTP client: `Client`, and `get` and `put` for one file by URL."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Self, TypeVar
from urllib.parse import unquote, urlsplit

import attrs

from asyncnet.addresses import Address
from asyncnet.errors import AddressError, RemoteError
from asyncnet.resolver import resolve
from asyncnet.tftp.files import BytesSink, BytesSource, FileSink, FileSource, NetasciiSink, NetasciiSource, Sink, Source
from asyncnet.tftp.options import accept, request_options
from asyncnet.tftp.packets import ErrorCode, ReadRequest, WriteRequest, encode_packet
from asyncnet.tftp.receiving import ReceiveSession
from asyncnet.tftp.retransmit import DEFAULT_TIMING, Timing
from asyncnet.tftp.sending import SendSession
from asyncnet.tftp.session import Progress, Report, Session, prepare_socket
from asyncnet.tftp.transfer import Receiver, Sender
from asyncnet.udp.create import attach

__all__ = ["DEFAULT_PORT", "Client", "TftpUrl", "get", "parse_url", "put"]

DEFAULT_PORT: Final = 69

_IP_RECVERR: Final = 11  # linux/in.h
_IPV6_RECVERR: Final = 25  # linux/in6.h

T = TypeVar("T")


class Client:
    """Transfers files from and to one TFTP server.

    ``async with Client(host) as client`` closes what is open at the end. Transfers may run at the same time.

    Args:
        host: the server's name or address.
        port: the port that requests go to.
        block_size: bytes of a block to ask for, 8 to 65464; 512 asks for nothing.
        window_size: blocks sent before an acknowledgement to ask for; 1 asks for nothing.
        timeout: seconds between the server's retransmissions to ask for, 1 to 255; None leaves it to the server.
        mode: ``"octet"`` for bytes as they are, ``"netascii"`` for text with converted line ends.
        timing: how long to wait for answers, and how often to try again.

    Raises:
        ValueError: an option is out of range, or the mode is unknown.
    """

    def __init__(
        self,
        host: str,
        port: int = DEFAULT_PORT,
        *,
        block_size: int = 1428,
        window_size: int = 16,
        timeout: int | None = None,
        mode: str = "octet",
        timing: Timing = DEFAULT_TIMING,
    ) -> None:
        if mode not in ("octet", "netascii"):
            raise ValueError(f"mode must be octet or netascii, not {mode!r}")
        self._options = partial(request_options, block_size=block_size, window_size=window_size, timeout=timeout)
        self._options()
        self.host = host
        self.port = port
        self._mode = mode
        self._timing = timing
        self._window_size = window_size
        self._receive_buffer = max(1 << 20, min(4 * block_size * window_size, 8 << 20))
        self._sessions: set[Session] = set()

    async def download(self, remote: str, local: str | os.PathLike[str], *, progress: Progress | None = None) -> Report:
        """Fetch the file `remote` into the file `local`.

        The bytes go to a temporary file beside `local`, which takes its place when all have arrived; on any error
        `local` stays as it was.

        Args:
            remote: the name on the server.
            local: the path to write to.
            progress: called with the bytes so far and, where the server tells, in all.

        Raises:
            RemoteError: the server refuses, or ends the transfer; it carries the code and the text.
            LocalError: the server breaks the protocol.
            TimeoutError: the server does not answer.
            OSError: the server cannot be reached, or `local` cannot be written.
        """
        target = os.path.realpath(local)
        return await self._receive(remote, partial(FileSink, target), progress)

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
            The report; its `confirmed` is False when all was sent and only the last acknowledgement is missing.

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
        async def attempt(server: Address, sock: socket.socket, *, plain: bool) -> Report:
            asked = () if plain else self._options(size=0 if self._mode == "octet" else None)
            request = encode_packet(ReadRequest(remote, self._mode, asked))
            sink = open_sink()
            if self._mode == "netascii":
                sink = NetasciiSink(sink)
            machine = Receiver(timing=self._timing, keep_beyond_gap=sink.random_access)
            session = ReceiveSession(
                sink, machine, opening=request, server=server, negotiate=partial(accept, asked), progress=progress
            )
            try:
                return await self._run(session, sock)
            finally:
                sink.abort()

        return await self._with_fallback(attempt)

    async def _send(self, open_source: Callable[[], Source], remote: str, progress: Progress | None) -> Report:
        async def attempt(server: Address, sock: socket.socket, *, plain: bool) -> Report:
            source = open_source()
            try:
                if self._mode == "netascii":
                    source = NetasciiSource(source)
                asked = () if plain else self._options(size=source.size)
                request = encode_packet(WriteRequest(remote, self._mode, asked))
                machine = Sender(timing=self._timing)
                session = SendSession(
                    source, machine, opening=request, server=server, negotiate=partial(accept, asked), progress=progress
                )
                return await self._run(session, sock)
            finally:
                source.close()

        return await self._with_fallback(attempt)

    async def _with_fallback(self, attempt: Callable[..., Awaitable[T]]) -> T:
        """Try with options, and without any when the server refuses them (RFC 2347, ERROR 8)."""
        family, server = (await resolve(self.host, self.port, action="reach", kind=socket.SOCK_DGRAM))[0]
        try:
            return await attempt(server, self._new_socket(family), plain=False)
        except RemoteError as exc:
            if exc.code != ErrorCode.OPTION_REFUSED:
                raise
        return await attempt(server, self._new_socket(family), plain=True)

    def _new_socket(self, family: int) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            prepare_socket(sock, receive_buffer=self._receive_buffer)
            if sys.platform == "linux":  # learn of a refusal, although the server's port is not known beforehand
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
                else:
                    sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
            sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", 0))
        except BaseException:
            sock.close()
            raise
        return sock

    async def _run(self, session: Session, sock: socket.socket) -> Report:
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()

        def on_over(session: Session) -> None:
            if not over.done():
                over.set_result(None)

        session.on_over = on_over
        self._sessions = {s for s in self._sessions if not s.closed}
        self._sessions.add(session)
        try:
            trains = isinstance(session, ReceiveSession) and self._window_size > 1
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


@attrs.frozen
class TftpUrl:
    """A URL of RFC 3617: ``tftp://host[:port]/file[;mode=octet|netascii]``."""

    host: str
    port: int
    file: str
    mode: str


def parse_url(url: str) -> TftpUrl:
    """Take a TFTP URL apart. The slash after the host is no part of the file's name (RFC 3617 section 3).

    Raises:
        AddressError: it is no such URL.
    """
    try:
        parts = urlsplit(url, allow_fragments=False)
        port = DEFAULT_PORT if parts.port is None else parts.port
    except ValueError as exc:
        raise AddressError(f"{url!r} is no URL: {exc}") from None
    path, _, parameter = parts.path.partition(";")
    mode = parameter.removeprefix("mode=") if parameter else "octet"
    file = unquote(path.removeprefix("/"), errors="surrogateescape")
    if parts.scheme != "tftp" or not parts.hostname or not file or mode not in ("octet", "netascii") or parts.query:
        raise AddressError(f"{url!r} is no TFTP URL: write tftp://HOST[:PORT]/FILE[;mode=octet|netascii]")
    return TftpUrl(unquote(parts.hostname), port, file, mode)


async def get(
    url: str,
    local: str | os.PathLike[str] | None = None,
    *,
    block_size: int = 1428,
    window_size: int = 16,
    timeout: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Download the file at a TFTP URL.

    Args:
        url: ``tftp://host[:port]/file[;mode=octet|netascii]``.
        local: the path to write to; by default the last component of the file's name, in the current directory.
        block_size, window_size, timeout: as in `Client`.
        progress: as in `Client.download`.

    Raises:
        AddressError: the URL is malformed.
        RemoteError, LocalError, TimeoutError, OSError: as in `Client.download`.
    """
    where = parse_url(url)
    async with Client(
        where.host, where.port, mode=where.mode, block_size=block_size, window_size=window_size, timeout=timeout
    ) as client:
        return await client.download(where.file, local or where.file.rpartition("/")[2], progress=progress)


async def put(
    local: str | os.PathLike[str],
    url: str,
    *,
    block_size: int = 1428,
    window_size: int = 16,
    timeout: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Upload a file to a TFTP URL.

    Args:
        local: the path to read from.
        url: ``tftp://host[:port]/file[;mode=octet|netascii]``; a file name that ends in ``/`` gets the local name.
        block_size, window_size, timeout: as in `Client`.
        progress: as in `Client.upload`.

    Raises:
        AddressError: the URL is malformed.
        RemoteError, LocalError, TimeoutError, OSError: as in `Client.upload`.
    """
    where = parse_url(url)
    name = where.file + os.path.basename(local) if where.file.endswith("/") else where.file
    async with Client(
        where.host, where.port, mode=where.mode, block_size=block_size, window_size=window_size, timeout=timeout
    ) as client:
        return await client.upload(local, name, progress=progress)

"""Connecting by TCP.

The race of addresses (RFC 8305, "happy eyeballs") is run here, on sockets, and only the winner is handed to the event
loop: uvloop's `create_connection` tries addresses strictly one after the other and takes no `happy_eyeballs_delay`, and
neither loop tells which address failed for which reason.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from collections import deque
from itertools import chain, zip_longest
from ssl import SSLContext, SSLError
from typing import Final, TypeAlias

from asyncnet.addresses import Address, explain, format_address
from asyncnet.resolver import resolve

__all__ = ["connect"]

ATTEMPT_DELAY: Final = 0.25
"""Seconds before the next address is tried while an attempt is under way (RFC 8305 section 5)."""

Candidate: TypeAlias = tuple[int, Address]
"""An address family and an address in it."""


async def connect(
    host: str,
    port: int,
    *,
    timeout: float | None = None,
    local_addr: tuple[str, int] | None = None,
    ssl: SSLContext | bool | None = None,
    server_hostname: str | None = None,
    limit: int = 65536,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a server and return a reader and a writer, as `asyncio.open_connection` does.

    A name with several addresses is tried with IPv6 and IPv4 in turn, the next one 0.25 seconds after the one before
    or as soon as that has failed; the first connection wins. Small writes are not held back (TCP_NODELAY).

    Args:
        host: the server's name or address.
        port: the server's port, 1 to 65535.
        timeout: seconds for everything: the name, the connection and the TLS handshake; None leaves it to the system.
        local_addr: the local host and port; by default the system picks them.
        ssl: a context, or True for one with the default settings; None and False mean no TLS.
        server_hostname: the name that the certificate must have; by default `host`.
        limit: bytes that the reader holds before it stops reading: half of it, and the longest line.

    Raises:
        ValueError: a number is out of range, `host` is empty, or `server_hostname` does not go with `ssl`.
        TimeoutError: not done within `timeout`.
        ssl.SSLError: the TLS handshake failed, such as for a certificate that is not trusted.
        OSError: the name does not resolve, or none of its addresses could be connected to; the message names them.
    """
    if not host:
        raise ValueError("host is empty: there is nobody to connect to")
    if not 1 <= port <= 65535:
        raise ValueError(f"port must be between 1 and 65535, not {port}")
    if timeout is not None and not 0 < timeout < float("inf"):
        raise ValueError(f"timeout must be above 0 seconds and finite, or None, not {timeout}")
    if limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    if server_hostname is not None and not ssl:
        raise ValueError("server_hostname is given, but ssl is not")
    if server_hostname == "" and (not isinstance(ssl, SSLContext) or ssl.check_hostname):
        raise ValueError("server_hostname is empty, but the context checks the name: set its check_hostname to False")
    address = (host, port)
    try:
        async with asyncio.timeout(timeout) as scope:
            sock = await _connected_socket(address, local_addr)
            if not ssl:
                return await _open_streams(sock, limit, None, None)
            try:
                return await _open_streams(sock, limit, ssl, host if server_hostname is None else server_hostname)
            except OSError as exc:
                raise _explain_tls(exc, address) from exc
    except TimeoutError as exc:
        if not scope.expired():
            raise
        message = f"cannot connect TCP to {format_address(address)}: no answer within {timeout:g} seconds"
        raise TimeoutError(errno.ETIMEDOUT, message) from exc


async def _open_streams(
    sock: socket.socket, limit: int, ssl: SSLContext | bool | None, server_hostname: str | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Wrap a connected socket, which belongs to the event loop from here on."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit, loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.create_connection(lambda: protocol, sock=sock, ssl=ssl, server_hostname=server_hostname)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def _explain_tls(exc: OSError, address: Address) -> OSError:
    if isinstance(exc, ConnectionAbortedError):  # the event loop's own limit for the handshake
        return explain(OSError(errno.ECONNABORTED, str(exc)), "connect TLS to", address)
    if not isinstance(exc, SSLError):
        reason = OSError(exc.errno or errno.ECONNRESET, "the peer ended the connection during the TLS handshake")
        return explain(reason, "connect TLS to", address)
    told = type(exc)(exc.errno, f"cannot connect TLS to {format_address(address)}: {exc.strerror or exc}")
    told.__dict__.update(exc.__dict__)  # library, reason, verify_code and verify_message live there
    return told


async def _connected_socket(address: tuple[str, int], local_addr: tuple[str, int] | None) -> socket.socket:
    candidates = await resolve(*address, action="connect TCP to", kind=socket.SOCK_STREAM)
    local: list[Candidate] = []
    if local_addr is not None:
        local = await resolve(*local_addr, action="bind TCP", kind=socket.SOCK_STREAM)
        candidates = [candidate for candidate in candidates if candidate[0] in {family for family, _ in local}]
        if not candidates:
            way = f"{format_address(address)} from {format_address(local_addr)}"
            raise OSError(errno.EAFNOSUPPORT, f"cannot connect TCP to {way}: one is IPv4, the other IPv6")
    # Two sockets cannot have one local port: with a fixed one, addresses are tried one after the other.
    delay = ATTEMPT_DELAY if local_addr is None or local_addr[1] == 0 else None
    return await _race(address, _interleaved(candidates), dict(reversed(local)), delay)


def _interleaved(candidates: list[Candidate]) -> list[Candidate]:
    """Alternate the families, the first address's family first (RFC 8305 section 4)."""
    families: dict[int, list[Candidate]] = {}
    for candidate in candidates:
        families.setdefault(candidate[0], []).append(candidate)
    return [candidate for candidate in chain(*zip_longest(*families.values())) if candidate is not None]


async def _race(
    address: tuple[str, int], candidates: list[Candidate], local: dict[int, Address], delay: float | None
) -> socket.socket:
    """Return the first socket that connects; `delay` None tries one candidate after the other."""
    loop = asyncio.get_running_loop()
    waiting = deque(candidates)
    running: dict[asyncio.Task[socket.socket], Candidate] = {}
    failures: list[tuple[Address, OSError]] = []
    try:
        while waiting or running:
            if waiting:
                candidate = waiting.popleft()
                running[loop.create_task(_attempt(address, candidate, local.get(candidate[0])))] = candidate
            timeout = delay if waiting else None
            done, _ = await asyncio.wait(running, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                _, tried = running.pop(task)
                try:
                    return task.result()
                except OSError as exc:
                    failures.append((tried, exc))
    finally:
        # Nothing is awaited here: a cancellation would lose the winner's socket.
        for task in running:
            task.cancel()
            task.add_done_callback(_discard)
    _, first = failures[0]
    if len(failures) == 1:
        raise first
    tried_all = ", ".join(f"{format_address(tried)}: {_reason(exc)}" for tried, exc in failures)
    raise OSError(first.errno, f"{first.strerror} (tried {tried_all})") from first


def _discard(task: asyncio.Task[socket.socket]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


def _reason(exc: OSError) -> str:
    return os.strerror(exc.errno) if exc.errno else str(exc)


async def _attempt(address: tuple[str, int], candidate: Candidate, local: Address | None) -> socket.socket:
    family, remote = candidate
    action: str = "connect TCP to"
    place: Address = address
    sock = None
    try:
        # Both loops set TCP_NODELAY, asyncio only where the socket was made with this protocol number.
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.setblocking(False)
        if local is not None:
            action, place = "bind TCP", local
            sock.bind(local)
            action, place = "connect TCP to", address
        await _connect(sock, remote)
    except OSError as exc:
        if sock is not None:
            sock.close()
        raise explain(OSError(exc.errno, _reason(exc)), action, place) from exc
    except BaseException:
        if sock is not None:
            sock.close()
        raise
    return sock


async def _connect(sock: socket.socket, remote: Address) -> None:
    """Connect a non-blocking socket; unlike uvloop's `sock_connect` with the scope of a link-local address."""
    loop = asyncio.get_running_loop()
    if sys.platform == "win32":  # its default loop has no add_writer
        await loop.sock_connect(sock, remote)
        return
    try:
        sock.connect(remote)
    except BlockingIOError:
        writable = loop.create_future()
        loop.add_writer(sock, _wake, writable)
        try:
            await writable
        finally:
            loop.remove_writer(sock)
        if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(error, os.strerror(error)) from None


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)

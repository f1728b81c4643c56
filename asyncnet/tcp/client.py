"""Connecting by TCP.

The race of addresses (RFC 8305, "happy eyeballs") is run here, on sockets, and only the winner is handed to the event
loop: uvloop's `create_connection` tries addresses strictly one after the other and takes no `happy_eyeballs_delay`, and
neither loop tells which address failed for which reason.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
import sys
from collections import deque
from itertools import chain, zip_longest
from ssl import SSLCertVerificationError, SSLContext, SSLError, create_default_context
from typing import Final, TypeAlias

from asyncnet.addresses import Address, explain, format_address
from asyncnet.arguments import check_address, check_count, check_hostname, check_path, check_port, check_seconds
from asyncnet.resolver import resolve
from asyncnet.tcp.deadlines import Timeouts
from asyncnet.tcp.listeners import SocketOptions, set_options
from asyncnet.tcp.reading import LIMIT, StreamReader
from asyncnet.tcp.streams import StreamProtocol
from asyncnet.tcp.transport import SocketTransport
from asyncnet.tcp.writing import StreamWriter, open_tls

__all__ = ["connect"]

ATTEMPT_DELAY: Final = 0.25
"""Seconds before the next address is tried while an attempt is under way (RFC 8305 section 5)."""

RETRY_DELAY: Final = 0.2
"""Seconds before the second attempt, at most."""
LONGEST_RETRY_DELAY: Final = 10.0
"""Seconds before any further attempt, at most."""
_PLAIN: Final = SocketOptions()

Target: TypeAlias = tuple[str, int] | str
"""A host and a port, or the path of a Unix socket."""
Candidate: TypeAlias = tuple[int, Address]
"""An address family and an address in it."""


async def connect(
    host: str | None = None,
    port: int | None = None,
    *,
    path: str | None = None,
    timeout: float | None = None,
    read_timeout: float | None = None,
    attempts: int = 1,
    local_addr: tuple[str, int] | None = None,
    ssl: SSLContext | bool | None = None,
    server_hostname: str | None = None,
    limit: int = LIMIT,
    options: SocketOptions = _PLAIN,
) -> tuple[StreamReader, StreamWriter]:
    """Connect to a server and return a reader and a writer, which do what those of `asyncio.open_connection` do.

    A name with several addresses is tried with IPv6 and IPv4 in turn, the next one 0.25 seconds after the one before
    or as soon as that has failed; the first connection wins. Small writes are not held back (TCP_NODELAY).

    Args:
        host: the server's name or address.
        port: the server's port, 1 to 65535.
        path: of a Unix socket, instead of `host` and `port`; a leading ``@`` means the abstract namespace.
        timeout: seconds for everything: the name, the connection and the TLS handshake; None leaves it to the system.
            With several `attempts`, each has as long.
        read_timeout: seconds that a read waits without a byte in either direction before it raises `TimeoutError`.
        attempts: how often it is tried in all. Before each further time it waits a random time, of at most 0.2 seconds
            first, then twice as long each time, up to 10. A certificate that does not fit is not tried again.
        local_addr: the local host and port; by default the system picks them.
        ssl: a context, or True for one with the default settings; None and False mean no TLS.
        server_hostname: the name that the certificate must have; by default `host`.
        limit: bytes that the reader holds before it stops reading: half of it, and the longest line.
        options: what is set on the socket, such as keepalive.

    Raises:
        ValueError: a number is out of range, `host` is empty, or `server_hostname` does not go with `ssl`.
        TimeoutError: not done within `timeout`.
        ssl.SSLError: the TLS handshake failed, such as for a certificate that is not trusted.
        OSError: the name does not resolve, or none of its addresses could be connected to; the message names them.
    """
    if path is None:
        if not isinstance(host, str | None):
            raise TypeError(f"host must be a name or an address, not {host!r}")
        if not host:
            raise ValueError("host is empty: there is nobody to connect to")
        check_port("port", port, lowest=1)
        assert port is not None
        target: Target = (host, port)
    elif host is not None or port is not None or local_addr is not None:
        raise ValueError("path does not go with host, port and local_addr")
    else:
        check_path("path", path)
        target = path
    if local_addr is not None:
        check_address("local_addr", local_addr)
    check_seconds("timeout", timeout)
    check_seconds("read_timeout", read_timeout)
    check_count("limit", limit)
    check_count("attempts", attempts)
    if not isinstance(options, SocketOptions):
        raise TypeError(f"options must be SocketOptions, not {options!r}")
    if options.reuse_port:
        raise ValueError("options: reuse_port is for servers")
    if ssl is not None and not isinstance(ssl, SSLContext | bool):
        raise TypeError(f"ssl must be an ssl.SSLContext, True or None, not {ssl!r}")
    check_hostname("server_hostname", server_hostname)
    if server_hostname is not None and not ssl:
        raise ValueError("server_hostname is given, but ssl is not")
    if server_hostname == "" and (not isinstance(ssl, SSLContext) or ssl.check_hostname):
        raise ValueError("server_hostname is empty, but the context checks the name: set its check_hostname to False")
    if server_hostname is None and ssl:
        server_hostname = host or ""
    context = create_default_context() if ssl is True else ssl or None
    longest = RETRY_DELAY
    while True:
        attempts -= 1
        try:
            return await _connect_once(
                target, timeout, local_addr, context, server_hostname, options, limit, Timeouts(idle=read_timeout)
            )
        except SSLCertVerificationError:
            raise
        except OSError:
            if not attempts:
                raise
        await asyncio.sleep(random.uniform(0, longest))
        longest = min(2 * longest, LONGEST_RETRY_DELAY)


async def _connect_once(
    target: Target,
    timeout: float | None,
    local_addr: tuple[str, int] | None,
    context: SSLContext | None,
    server_hostname: str | None,
    options: SocketOptions,
    limit: int,
    timeouts: Timeouts,
) -> tuple[StreamReader, StreamWriter]:
    tried: list[Address] = []
    try:
        async with asyncio.timeout(timeout) as scope:
            if isinstance(target, str):
                sock = await _connect_unix(target)
            else:
                sock = await _connected_socket(target, local_addr, tried)
            try:
                set_options(sock, options)
                peer = target if isinstance(target, str) else sock.getpeername()
            except OSError as exc:
                sock.close()
                if exc.errno == errno.ENOTCONN:  # the peer has reset it meanwhile
                    exc = OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
                raise explain(exc, "connect TCP to", target) from exc
            try:
                return await _open_streams(sock, peer, limit, context, server_hostname, timeouts)
            except OSError as exc:
                raise _explain_tls(exc, target) from exc
    except TimeoutError as exc:
        if not scope.expired():
            raise
        place = format_address(target)
        message = f"cannot connect TCP to {place}: no answer within {timeout:g} seconds"
        places = [format_address(address) for address in tried]
        if places and places != [place]:
            message += f" (tried {', '.join(places)})"
        raise TimeoutError(errno.ETIMEDOUT, message) from exc


async def _open_streams(
    sock: socket.socket,
    peer: Address | str,
    limit: int,
    context: SSLContext | None,
    server_hostname: str | None,
    timeouts: Timeouts,
) -> tuple[StreamReader, StreamWriter]:
    """Put streams on a connected socket, which belongs to them from here on."""
    loop = asyncio.get_running_loop()
    reader = StreamReader(limit, loop)
    protocol = StreamProtocol(reader, loop, peer, server_side=False, timeouts=timeouts)
    transport: asyncio.Transport
    if context is not None:
        transport = await open_tls(loop, sock, protocol, context, server_hostname=server_hostname)
    elif sys.platform == "win32":  # its default loop has no add_reader
        transport, _ = await loop.create_connection(lambda: protocol, sock=sock)
    else:
        transport = SocketTransport(loop, sock, protocol, peer)
    return reader, StreamWriter(transport, protocol)


async def _connect_unix(path: str) -> socket.socket:
    family = getattr(socket, "AF_UNIX", None)
    if family is None:
        raise OSError(errno.EAFNOSUPPORT, f"cannot connect to unix socket {path}: this system has none")
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await _connect(sock, "\0" + path[1:] if path.startswith("@") else path)
    except OSError as exc:
        sock.close()
        raise explain(exc, "connect to unix socket", path) from exc
    except BaseException:
        sock.close()
        raise
    return sock


def _explain_tls(exc: OSError, address: Target) -> OSError:
    if isinstance(exc, ConnectionAbortedError):  # the event loop's own limit for the handshake
        return explain(OSError(errno.ECONNABORTED, str(exc)), "connect TLS to", address)
    if not isinstance(exc, SSLError):
        reason = OSError(exc.errno or errno.ECONNRESET, "the peer ended the connection during the TLS handshake")
        return explain(reason, "connect TLS to", address)
    told = type(exc)(exc.errno, f"cannot connect TLS to {format_address(address)}: {exc.strerror or exc}")
    told.__dict__.update(exc.__dict__)  # library, reason, verify_code and verify_message live there
    return told


async def _connected_socket(
    address: tuple[str, int], local_addr: tuple[str, int] | None, tried: list[Address]
) -> socket.socket:
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
    return await _race(address, _interleaved(candidates), dict(reversed(local)), delay, tried)


def _interleaved(candidates: list[Candidate]) -> list[Candidate]:
    """Alternate the families, the first address's family first (RFC 8305 section 4)."""
    families: dict[int, list[Candidate]] = {}
    for candidate in candidates:
        families.setdefault(candidate[0], []).append(candidate)
    return [candidate for candidate in chain(*zip_longest(*families.values())) if candidate is not None]


async def _race(
    address: tuple[str, int],
    candidates: list[Candidate],
    local: dict[int, Address],
    delay: float | None,
    tried: list[Address],
) -> socket.socket:
    """Return the first socket that connects; `delay` None tries one candidate after the other.

    Each address goes to `tried` when its turn comes, for an error that somebody else raises.
    """
    loop = asyncio.get_running_loop()
    waiting = deque(candidates)
    running: dict[asyncio.Task[socket.socket], Candidate] = {}
    failures: list[tuple[Address, OSError]] = []
    try:
        while waiting or running:
            if waiting:
                candidate = waiting.popleft()
                tried.append(candidate[1])
                running[loop.create_task(_attempt(address, candidate, local.get(candidate[0])))] = candidate
            timeout = delay if waiting else None
            done, _ = await asyncio.wait(running, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                _, remote = running.pop(task)
                try:
                    return task.result()
                except OSError as exc:
                    failures.append((remote, exc))
    finally:
        # Nothing is awaited here: a cancellation would lose the winner's socket.
        for task in running:
            task.cancel()
            task.add_done_callback(_discard)
    _, first = failures[0]
    if len(failures) == 1:
        raise first
    tried_all = ", ".join(f"{format_address(remote)}: {_reason(exc)}" for remote, exc in failures)
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


async def _connect(sock: socket.socket, remote: Address | str) -> None:
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

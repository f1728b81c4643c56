"""`serve`: checks what it is told, opens the listening sockets, and starts the server."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from ssl import SSLContext
from typing import Any, Final, Literal

from asyncnet.activation import inherited_sockets
from asyncnet.addresses import IPNetwork, parse_network
from asyncnet.arguments import check_address, check_count, check_path, check_port, check_seconds, checked_sequence
from asyncnet.opening import Opening
from asyncnet.tcp.deadlines import Timeouts
from asyncnet.tcp.listeners import SocketOptions, open_listeners, open_unix, resolve, set_options
from asyncnet.tcp.reading import LIMIT
from asyncnet.tcp.server import Server
from asyncnet.tcp.settings import Handler, Settings
from asyncnet.tcp.transport import HARD_LIMIT

__all__ = ["serve"]

BACKLOG: Final = 4096
_INT_MAX: Final = (1 << 31) - 1


def serve(
    handler: Handler,
    host: str | Sequence[str] | None = None,
    port: int | None = None,
    *,
    path: str | None = None,
    fd: int | Literal["systemd"] | None = None,
    sockets: Sequence[socket.socket] = (),
    addresses: Sequence[tuple[str, int]] = (),
    max_connections: int | None = None,
    max_per_client: int | None = None,
    when_full: Literal["wait", "reject"] = "wait",
    backlog: int = BACKLOG,
    reuse_port: bool = False,
    nodelay: bool = True,
    keepalive: float | None = None,
    user_timeout: float | None = None,
    first_byte_timeout: float | None = None,
    message_timeout: float | None = None,
    idle_timeout: float | None = None,
    write_timeout: float | None = None,
    lifetime_timeout: float | None = None,
    handshake_timeout: float = 30.0,
    proxy_from: Sequence[str] = (),
    grace: float = 5.0,
    ssl: SSLContext | None = None,
    limit: int = LIMIT,
    hard_limit: int = HARD_LIMIT,
) -> Opening[Server]:
    """Open a TCP server: ``async with serve(...) as server`` or ``server = await serve(...)``.

    Each connection runs ``handler(reader, writer)`` in a task of its own, named after the peer; a handler written for
    `asyncio.start_server` needs no change. When it returns or raises, the connection is flushed and closed. What it
    raises goes to the log ``asyncnet.tcp`` and ends nothing but its connection; `ConnectionError`, `TimeoutError` and
    `asyncio.IncompleteReadError` that come from a peer that went away are only logged for debugging.

    A peer that takes longer than a timeout ends the read that waits for it with `TimeoutError`; one that takes nothing
    of what is sent to it loses its connection; at the end of its lifetime, the handler is cancelled. The time that a
    handler works is not counted against the peer.

    Args:
        handler: a coroutine function, or a callable that returns a coroutine.
        host: an address of this host, or a name for all of its addresses, or several of them; None or empty for every
            IPv4 and IPv6 one.
        port: 0 takes a free one, the same on each address.
        path: of a Unix socket, also instead of `host` and `port`; a leading ``@`` means the abstract namespace.
        fd: a listening descriptor that this process has inherited; ``"systemd"`` for those of LISTEN_FDS.
        sockets: listening sockets; the server owns them.
        addresses: further hosts and ports to listen on.
        max_connections: how many are served at a time. None sets no limit.
        max_per_client: how many of one IPv4 address, or of one /64 network of IPv6; more are closed at once.
        when_full: at `max_connections`, let more ``"wait"`` in the kernel's backlog, or ``"reject"`` them at once.
        backlog: how many the kernel may keep waiting, for each address; the system caps it.
        reuse_port: share the port with other processes that ask for the same.
        nodelay: do not hold small writes back (TCP_NODELAY).
        keepalive: seconds of silence after which the system asks the peer whether it is still there; it gives up
            after as long again.
        user_timeout: seconds that sent bytes may stay unacknowledged (TCP_USER_TIMEOUT).
        first_byte_timeout: seconds until the peer sends its first byte.
        message_timeout: seconds from the first byte after an answer to the next answer.
        idle_timeout: seconds without a byte in either direction.
        write_timeout: seconds in which the peer takes none of the unsent bytes.
        lifetime_timeout: seconds of a connection in all.
        handshake_timeout: seconds for a TLS handshake, and for the header of a proxy.
        proxy_from: networks, or ``"unix"``, whose connections begin with a header of the PROXY protocol, version 1 or
            2. ``get_extra_info("peername")`` is then the client that it names, ``"proxy"`` the header with its fields,
            and ``"proxy_peername"`` the proxy. Connections from elsewhere must have no header.
        grace: seconds that handlers have to finish when the server closes, unless `Server.aclose` is told otherwise.
        ssl: a context with a certificate, for TLS; `Server.ssl` replaces it for connections to come.
        limit: bytes that a reader holds before it stops reading: half of it, and the longest line.
        hard_limit: bytes that the peer has not taken at which the next write ends the connection.

    Raises:
        TypeError: `handler` cannot be called, or another argument is of a wrong type.
        ValueError: a number is out of range, a network is malformed, or there is nothing to listen on.
        OSError: an address cannot be used; the message says why and what to do.
    """
    if not callable(handler):
        raise TypeError(f"handler must be a coroutine function, not {handler!r}")
    if ssl is not None and not isinstance(ssl, SSLContext):
        raise TypeError(f"ssl must be an ssl.SSLContext, not {ssl!r}")
    if port is None and path is None and fd is None and not sockets and not addresses:
        raise ValueError("there is nothing to listen on: give a port, a path, a descriptor or sockets")
    if host is not None and port is None:
        raise ValueError("port is missing: 0 takes a free one")
    _check_places(host, port, path, fd, sockets, addresses)
    if when_full not in ("wait", "reject"):
        raise ValueError(f"when_full must be 'wait' or 'reject', not {when_full!r}")
    check_count("max_connections", max_connections, or_none=True)
    check_count("max_per_client", max_per_client, or_none=True)
    check_count("backlog", backlog, most=_INT_MAX)
    check_count("limit", limit)
    check_count("hard_limit", hard_limit)
    check_seconds("handshake_timeout", handshake_timeout, or_none=False)
    check_seconds("grace", grace, or_none=False, from_zero=True)
    options = SocketOptions(nodelay, keepalive, user_timeout, reuse_port)
    timeouts = Timeouts(first_byte_timeout, message_timeout, idle_timeout, write_timeout, lifetime_timeout)
    settings = Settings(
        max_connections=max_connections,
        max_per_client=max_per_client,
        reject=when_full == "reject",
        grace=grace,
        ssl=ssl,
        limit=limit,
        hard_limit=hard_limit,
        path=path,
        timeouts=timeouts,
        handshake_timeout=handshake_timeout,
        proxy_from=tuple(_networks("proxy_from", proxy_from)),
        proxy_unix="unix" in proxy_from,
    )
    hosts = [host] if host is None or isinstance(host, str) else host

    async def open_() -> Server:
        listeners: list[socket.socket] = []
        try:
            listeners += sockets
            if fd == "systemd":
                listeners += inherited_sockets(socket.SOCK_STREAM)
                if not listeners:
                    raise ValueError("fd is 'systemd', and LISTEN_FDS hands no socket to this process")
            elif fd is not None:
                listeners.append(_from_descriptor(fd))
            for listener in listeners:
                listener.setblocking(False)
                set_options(listener, options)
            if path is not None:
                listeners.append(open_unix(path, backlog))
            if port is not None:
                found = [place for name in hosts for place in await resolve(name, port)]
                listeners += open_listeners(list(dict.fromkeys(found)), backlog, options)
            for name, where in addresses:
                listeners += open_listeners(await resolve(name, where), backlog, options)
            return Server(handler, listeners, settings)
        except BaseException:
            for listener in listeners:
                listener.close()
            raise

    return Opening(open_)


def _check_places(host: Any, port: Any, path: Any, fd: Any, sockets: Any, addresses: Any) -> None:
    for name in [] if host is None or isinstance(host, str) else checked_sequence("host", host, "names"):
        if not isinstance(name, str):
            raise TypeError(f"host must be a name, or several, not {name!r}")
    if host is not None and not isinstance(host, str) and not host:
        raise ValueError("host is an empty list: leave it out for every address")
    if port is not None:
        check_port("port", port)
    if path is not None:
        check_path("path", path)
    if fd is not None and fd != "systemd" and (isinstance(fd, bool) or not isinstance(fd, int)):
        raise TypeError(f"fd must be the number of a descriptor, or 'systemd', not {fd!r}")
    if isinstance(fd, int) and not 0 <= fd <= _INT_MAX:
        raise ValueError(f"fd must be between 0 and {_INT_MAX}, not {fd}")
    for sock in checked_sequence("sockets", sockets, "listening sockets"):
        if not isinstance(sock, socket.socket):
            raise TypeError(f"sockets must be a list of listening sockets, not of {sock!r}")
        if not _listens(sock):
            raise ValueError(f"sockets must be listening stream sockets, and {sock!r} is none")
    for address in checked_sequence("addresses", addresses, "hosts and ports"):
        check_address("addresses", address)


def _networks(name: str, texts: Any) -> Iterator[IPNetwork]:
    for text in checked_sequence(name, texts, "networks"):
        if not isinstance(text, str):
            raise TypeError(f"{name} must be a list of networks, not of {text!r}")
        if text != "unix":
            try:
                yield parse_network(text)
            except ValueError as exc:
                raise ValueError(f"{name}: {exc}") from None


def _from_descriptor(fd: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
    except OSError as exc:
        raise OSError(exc.errno, f"cannot listen on descriptor {fd}: {exc.strerror}") from exc
    if not _listens(sock):
        sock.detach()
        raise ValueError(f"fd must be a listening stream socket, and descriptor {fd} is none")
    return sock


def _listens(sock: socket.socket) -> bool:
    try:
        return sock.type == socket.SOCK_STREAM and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False

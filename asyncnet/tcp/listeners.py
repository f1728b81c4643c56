"""Listening sockets: on one address, on all that a name has, or on every one of this host, with one port for all."""

from __future__ import annotations

import errno
import os
import socket
import stat
from typing import Any, Final

import attrs

from asyncnet import resolver
from asyncnet.addresses import Address, explain
from asyncnet.arguments import check_flag, check_seconds

__all__ = ["PEER_ERRORS", "SocketOptions", "open_listeners", "open_unix", "resolve", "set_options"]

PEER_ERRORS: Final = frozenset(
    getattr(errno, name)
    for name in (
        "ECONNABORTED",
        "ECONNRESET",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "ENETDOWN",
        "ENETUNREACH",
        "ENONET",
        "ENOPROTOOPT",
        "EOPNOTSUPP",
        "EPERM",
        "EPROTO",
        "ETIMEDOUT",
    )
    if hasattr(errno, name)
)
"""Errors by which accept() reports what happened to the waiting connection (accept(2), "Error handling")."""

_UNIX: Final = getattr(socket, "AF_UNIX", None)

PORT_ATTEMPTS: Final = 10
"""How often a free port is looked for that is free on every address."""


def _flag(_: object, attribute: attrs.Attribute[bool], value: bool) -> None:
    check_flag(attribute.name, value)


def _keepalive(_: object, attribute: attrs.Attribute[float | None], value: float | None) -> None:
    check_seconds(attribute.name, value, most=32767)  # MAX_TCP_KEEPIDLE of Linux


def _user_timeout(_: object, attribute: attrs.Attribute[float | None], value: float | None) -> None:
    check_seconds(attribute.name, value, most=2_000_000)  # milliseconds in an int


@attrs.frozen
class SocketOptions:
    """What is set on every connection of a listener; the system hands it down from there.

    Raises:
        TypeError, ValueError: an option is of a wrong type, or out of range.
    """

    nodelay: bool = attrs.field(default=True, validator=_flag)
    """Do not hold small writes back (TCP_NODELAY)."""
    keepalive: float | None = attrs.field(default=None, validator=_keepalive)
    """Seconds of silence after which the system asks the peer whether it is still there, four times in as long."""
    user_timeout: float | None = attrs.field(default=None, validator=_user_timeout)
    """Seconds that sent bytes may stay unacknowledged (TCP_USER_TIMEOUT)."""
    reuse_port: bool = attrs.field(default=False, validator=_flag)
    """Share the port with other processes that ask for the same."""


def set_options(sock: socket.socket, options: SocketOptions) -> None:
    """Set them on a listener or a connection.

    Raises:
        OSError: the system does not have an option.
    """
    if sock.family == _UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, options.nodelay)
    if options.keepalive is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", options.keepalive),
            ("TCP_KEEPINTVL", options.keepalive / 4),
            ("TCP_KEEPCNT", 4),
        ):
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), max(1, round(value)))
    if options.user_timeout is not None:
        if not hasattr(socket, "TCP_USER_TIMEOUT"):
            raise OSError(errno.ENOPROTOOPT, "user_timeout is set, and this system has no TCP_USER_TIMEOUT")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, round(options.user_timeout * 1000)))


async def resolve(host: str | None, port: int) -> list[tuple[int, Address]]:
    """Return the family and the address of each socket to open."""
    if not host:
        return [(socket.AF_INET, ("0.0.0.0", port)), (socket.AF_INET6, ("::", port, 0, 0))]
    return await resolver.resolve(host, port, action="bind TCP", kind=socket.SOCK_STREAM)


def open_listeners(addresses: list[tuple[int, Address]], backlog: int, options: SocketOptions) -> list[socket.socket]:
    """Listen on every address, on one port; an IPv6 address is left out where the host has no IPv6 and others work.

    Args:
        addresses: family and address of each socket, as `resolve` returns them.
        backlog: connections that the kernel may keep waiting, for each address.
        options: of every connection.

    Raises:
        OSError: an address cannot be used; the message says why and what to do.
    """
    # A port that the system picked on the first address may be in use on the second one.
    attempts = PORT_ATTEMPTS if addresses[0][1][1] == 0 and len(addresses) > 1 else 1
    while True:
        attempts -= 1
        try:
            return _listen_on_all(addresses, backlog, options)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE or attempts == 0:
                raise


def _listen_on_all(addresses: list[tuple[int, Address]], backlog: int, options: SocketOptions) -> list[socket.socket]:
    listeners: list[socket.socket] = []
    try:
        for family, (host, port, *scope) in addresses:
            try:
                shared_port = listeners[0].getsockname()[1] if listeners else port
                listeners.append(_listen(family, (host, shared_port, *scope), backlog, options))
            except OSError as exc:
                # Names such as "localhost" have an IPv6 address on hosts without IPv6, too.
                without_ipv6 = family == socket.AF_INET6 and exc.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
                if not without_ipv6 or len(addresses) == 1:
                    raise
                missing = exc
        if not listeners:
            raise missing
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _listen(family: int, address: tuple[Any, ...], backlog: int, options: SocketOptions) -> socket.socket:
    try:
        # Accepted sockets inherit the protocol number; asyncio sets TCP_NODELAY only where it is there.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setblocking(False)
            if os.name == "posix":  # on Windows the option would let another program take the port over
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if options.reuse_port:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            set_options(listener, options)
            listener.bind(address)
            listener.listen(backlog)
        except BaseException:
            listener.close()
            raise
    except OSError as exc:
        raise explain(exc, "bind TCP", address) from exc
    return listener


def open_unix(path: str, backlog: int) -> socket.socket:
    """Listen on a Unix socket; one that a program has left behind is replaced, one that is in use is not.

    Args:
        path: of the socket; a leading ``@`` stands for the abstract namespace of Linux.
        backlog: connections that the kernel may keep waiting.

    Raises:
        OSError: the path cannot be used; the message says why.
    """
    if _UNIX is None:
        raise OSError(errno.EAFNOSUPPORT, f"cannot bind unix socket {path}: this system has none")
    listener = socket.socket(_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        if path.startswith("@"):
            listener.bind("\0" + path[1:])
        else:
            _remove_stale(path)
            listener.bind(path)
        listener.listen(backlog)
    except OSError as exc:
        listener.close()
        raise explain(exc, "bind unix socket", path) from exc
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)

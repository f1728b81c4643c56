"""Listening sockets: on one address, on all that a name has, or on every one of this host, with one port for all."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any, Final

from asyncnet import resolver
from asyncnet.addresses import Address, explain

__all__ = ["PEER_ERRORS", "open_listeners", "resolve"]

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

PORT_ATTEMPTS: Final = 10
"""How often a free port is looked for that is free on every address."""


async def resolve(host: str | None, port: int) -> list[tuple[int, Address]]:
    """Return the family and the address of each socket to open."""
    if not host:
        return [(socket.AF_INET, ("0.0.0.0", port)), (socket.AF_INET6, ("::", port, 0, 0))]
    return await resolver.resolve(host, port, action="bind TCP", kind=socket.SOCK_STREAM)


def open_listeners(addresses: list[tuple[int, Address]], backlog: int) -> list[socket.socket]:
    """Listen on every address, on one port; an IPv6 address is left out where the host has no IPv6 and others work.

    Args:
        addresses: family and address of each socket, as `resolve` returns them.
        backlog: connections that the kernel may keep waiting, for each address.

    Raises:
        OSError: an address cannot be used; the message says why and what to do.
    """
    # A port that the system picked on the first address may be in use on the second one.
    attempts = PORT_ATTEMPTS if addresses[0][1][1] == 0 and len(addresses) > 1 else 1
    while True:
        attempts -= 1
        try:
            return _listen_on_all(addresses, backlog)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE or attempts == 0:
                raise


def _listen_on_all(addresses: list[tuple[int, Address]], backlog: int) -> list[socket.socket]:
    listeners: list[socket.socket] = []
    try:
        for family, (host, port, *scope) in addresses:
            try:
                shared_port = listeners[0].getsockname()[1] if listeners else port
                listeners.append(_listen(family, (host, shared_port, *scope), backlog))
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


def _listen(family: int, address: tuple[Any, ...], backlog: int) -> socket.socket:
    try:
        # Accepted sockets inherit the protocol number; asyncio sets TCP_NODELAY only where it is there.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setblocking(False)
            if os.name == "posix":  # on Windows the option would let another program take the port over
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(address)
            listener.listen(backlog)
        except BaseException:
            listener.close()
            raise
    except OSError as exc:
        raise explain(exc, "bind TCP", address) from exc
    return listener

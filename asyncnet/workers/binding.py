"""What a master listens on: how people write it, and the sockets that its workers inherit."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from typing import Any

import attrs

from asyncnet.activation import inherited_sockets
from asyncnet.addresses import Address, explain, format_address, parse_address
from asyncnet.errors import AddressError
from asyncnet.tcp.listeners import SocketOptions, open_listeners, open_unix

__all__ = ["Bind", "Kind", "Sharing", "Sockets", "open_sockets"]

_RECEIVE_BUFFER = 1 << 20


class Kind(Enum):
    """The kind of socket."""

    TCP = "tcp"
    UDP = "udp"
    UNIX = "unix"
    FD = "fd"
    SYSTEMD = "systemd"


class Sharing(Enum):
    """How UDP sockets come to workers."""

    EACH = "each"
    """Each worker has a socket of its own; the kernel keeps a client's flow on one of them (SO_REUSEPORT)."""
    ONE = "one"
    """All workers read from one socket, and whoever is first takes a datagram: for questions that stand alone."""


@attrs.frozen
class Bind:
    """One thing to listen on."""

    kind: Kind
    address: tuple[str, int] = ("", 0)
    """Of TCP and UDP."""
    path: str = ""
    """Of a Unix socket."""
    fd: int = -1

    @classmethod
    def parse(cls, text: str) -> Bind:
        """Parse ``HOST:PORT``, ``tcp:HOST:PORT``, ``udp:HOST:PORT``, ``unix:PATH``, ``fd:NUMBER`` or ``systemd``.

        Raises:
            AddressError: the text has no such form.
        """
        if not isinstance(text, str):
            raise TypeError(f"bind must be a list of texts such as 'tcp:127.0.0.1:7788', not of {text!r}")
        if text == "systemd":
            return cls(Kind.SYSTEMD)
        word, _, rest = text.partition(":")
        if word == "unix":
            if not rest:
                raise AddressError(f"{text!r} has no path: write unix:PATH")
            return cls(Kind.UNIX, path=rest)
        if word == "fd":
            if not rest.isdecimal():
                raise AddressError(f"{text!r} has no descriptor: write fd:3")
            return cls(Kind.FD, fd=int(rest))
        if word in ("tcp", "udp"):
            return cls(Kind(word), parse_address(rest))
        return cls(Kind.TCP, parse_address(text))


@attrs.define
class Sockets:
    """The sockets of a master."""

    shared: list[socket.socket] = attrs.field(factory=list)
    """Listeners and UDP sockets that all workers inherit."""
    places: list[socket.socket] = attrs.field(factory=list)
    """TCP sockets that are bound and do not listen: they keep the ports for workers that open their own."""
    seats: list[list[socket.socket]] = attrs.field(factory=list)
    """The UDP sockets of each seat; the first seat's say where all of them are bound."""
    paths: list[str] = attrs.field(factory=list)
    """Of Unix sockets, to be removed at the end."""

    @property
    def addresses(self) -> list[Address | str]:
        """Where clients find the workers, in the order of `bind`."""
        found = [*self.shared, *self.places, *(self.seats[0] if self.seats else ())]
        return [sock.getsockname() for sock in found]

    @property
    def all(self) -> list[socket.socket]:
        """Every socket."""
        return [*self.shared, *self.places, *(sock for seat in self.seats for sock in seat)]

    def resize(self, seats: int) -> None:
        """Open the UDP sockets of further seats, and close those of seats that are no more.

        The first seat's socket is bound alone, so a port that another program has is an error, shared or not. It
        shares the port when there is a second seat, not before.

        Raises:
            OSError: the system has no room for another socket, or does not spread datagrams over them.
        """
        if not self.seats:
            return
        if seats > 1 and sys.platform != "linux":
            raise OSError(
                "this system does not spread datagrams over the sockets of a port (only Linux does): run one worker"
            )
        while len(self.seats) < seats:
            for sock in self.seats[0]:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self.seats.append([_open_beside(sock) for sock in self.seats[0]])
        while len(self.seats) > max(seats, 1):
            for sock in self.seats.pop():
                sock.close()

    def close(self) -> None:
        """Close this process's copies, and remove the paths of Unix sockets."""
        for sock in self.all:
            sock.close()
        self.shared, self.places, self.seats = [], [], []
        for path in self.paths:
            try:
                os.unlink(path)
            except OSError:
                pass
        self.paths = []


def open_sockets(
    binds: Sequence[Bind], *, workers: int, backlog: int, reuse_port: bool, udp: Sharing, broadcast: bool
) -> Sockets:
    """Open everything that the master listens on.

    Args:
        binds: what to listen on.
        workers: how many seats UDP has.
        backlog: connections that the kernel may keep waiting.
        reuse_port: leave it to each worker to open TCP listeners (SO_REUSEPORT).
        udp: how UDP sockets come to workers.
        broadcast: UDP sockets hear broadcasts beside other programs, and may send them.

    Raises:
        OSError: an address cannot be used; the message says why and what to do.
        ValueError: a descriptor is no socket, is named twice, or systemd handed none over.
    """
    inherited = [bind.fd for bind in binds if bind.kind is Kind.FD]
    if len(set(inherited)) != len(inherited):
        raise ValueError("bind names a descriptor twice")
    sockets = Sockets()
    try:
        for bind in binds:
            if bind.kind is Kind.TCP:
                opened = _open_tcp(bind.address, backlog, reuse_port)
                (sockets.places if reuse_port else sockets.shared).extend(opened)
            elif bind.kind is Kind.UDP:
                opened = _open_places(_resolve(bind, "bind UDP"), partial(_open_udp, broadcast=broadcast))
                if udp is Sharing.EACH:
                    sockets.seats = sockets.seats or [[]]
                    sockets.seats[0].extend(opened)
                else:
                    sockets.shared.extend(opened)
            elif bind.kind is Kind.UNIX:
                sockets.shared.append(open_unix(bind.path, backlog))
                if not bind.path.startswith("@"):
                    sockets.paths.append(bind.path)
            else:
                sockets.shared.extend(_inherited(bind))
        sockets.resize(workers)
    except BaseException:
        sockets.close()
        raise
    return sockets


def open_own_listeners(places: Sequence[socket.socket], backlog: int) -> list[socket.socket]:
    """Open a worker's own listeners beside those of the others."""
    found = [(sock.family, sock.getsockname()) for sock in places]
    listeners: list[socket.socket] = []
    try:
        for place in found:
            listeners += open_listeners([place], backlog, SocketOptions(reuse_port=True))
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _resolve(bind: Bind, action: str) -> list[tuple[int, Any]]:
    host, port = bind.address
    kind = socket.SOCK_STREAM if bind.kind is Kind.TCP else socket.SOCK_DGRAM
    if not host:
        return [(socket.AF_INET, ("0.0.0.0", port)), (socket.AF_INET6, ("::", port, 0, 0))]
    try:
        infos = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_PASSIVE)
    except socket.gaierror as exc:
        raise explain(exc, action, bind.address) from exc
    found = list(dict.fromkeys((int(info[0]), info[4]) for info in infos))
    return found if bind.kind is Kind.TCP else found[:1]


def _open_tcp(address: tuple[str, int], backlog: int, reuse_port: bool) -> list[socket.socket]:
    places = _resolve(Bind(Kind.TCP, address), "bind TCP")
    if not reuse_port:
        return open_listeners(places, backlog, SocketOptions())
    if not hasattr(socket, "SO_REUSEPORT"):
        raise OSError("this system has no SO_REUSEPORT: leave reuse_port out, and workers share one listener")
    _check_free(places)
    return _open_places(places, _bind_place)


def _open_places(places: Sequence[tuple[int, Any]], open_: Callable[[int, Any], socket.socket]) -> list[socket.socket]:
    """Open a socket on each place, on one port; a host without IPv6 does without."""
    found: list[socket.socket] = []
    try:
        for family, (host, port, *scope) in places:
            try:
                found.append(open_(family, (host, found[0].getsockname()[1] if found else port, *scope)))
            except OSError as exc:
                if not found or exc.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    raise
    except BaseException:
        for sock in found:
            sock.close()
        raise
    return found


def _check_free(places: Sequence[tuple[int, Any]]) -> None:
    """Another program that shares ports too would silently get half of the clients: see that there is none."""
    for family, address in places:
        if not address[1]:
            continue
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                raise explain(exc, "bind TCP", address) from exc


def _bind_place(family: int, address: Any) -> socket.socket:
    """Bind a TCP port without listening on it."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
    except OSError as exc:
        sock.close()
        raise explain(exc, "bind TCP", address) from exc
    return sock


def _open_beside(sock: socket.socket) -> socket.socket:
    """Open another UDP socket on the port of one that shares it."""
    broadcast = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST))
    return _open_udp(sock.family, sock.getsockname(), share=True, broadcast=broadcast)


def _open_udp(family: int, address: Any, *, share: bool = False, broadcast: bool = False) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if share:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if broadcast:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        sock.bind(address)
    except OSError as exc:
        sock.close()
        raise explain(exc, "bind UDP", address) from exc
    return sock


def _inherited(bind: Bind) -> list[socket.socket]:
    if bind.kind is Kind.FD:
        try:
            found = [socket.socket(fileno=bind.fd)]
            found[0].set_inheritable(False)
        except OSError as exc:
            raise OSError(exc.errno, f"descriptor {bind.fd} is no socket that this process has inherited") from exc
    else:
        found = inherited_sockets(None)
        if not found:
            raise ValueError("bind is 'systemd', and LISTEN_FDS hands no socket to this process")
    for sock in found:
        sock.setblocking(False)
        if sock.type not in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            raise ValueError(f"{format_address(sock.getsockname())} is no stream and no datagram socket")
    return found

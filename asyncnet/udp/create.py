"""`create_datagram_endpoint`: the event loop's method, as a function that uses this package's transport."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Callable
from typing import Any, TypeVar

from asyncnet.addresses import Address, explain
from asyncnet.udp.ancillary import ask_for
from asyncnet.udp.transport import DatagramTransport

__all__ = ["attach", "create_datagram_endpoint"]

ProtocolT = TypeVar("ProtocolT", bound=asyncio.BaseProtocol)


async def create_datagram_endpoint(
    protocol_factory: Callable[[], ProtocolT],
    local_addr: tuple[str, int] | str | None = None,
    remote_addr: tuple[str, int] | str | None = None,
    *,
    family: int = 0,
    proto: int = 0,
    flags: int = 0,
    reuse_port: bool | None = None,
    allow_broadcast: bool | None = None,
    sock: socket.socket | None = None,
    trains: bool = False,
    notes: bool = False,
) -> tuple[DatagramTransport, ProtocolT]:
    """Open a datagram socket with a protocol on it, as the method of the running event loop does.

    Args:
        protocol_factory: makes the protocol. If it has a method ``datagrams_received(batch)``, that is called with a
            list of datagrams, and ``datagram_received`` is not called.
        local_addr: host and port to bind; a path for AF_UNIX.
        remote_addr: host and port to connect to; a path for AF_UNIX.
        family: of the addresses; 0 for any.
        proto: passed to `socket.getaddrinfo`.
        flags: passed to `socket.getaddrinfo`.
        reuse_port: share the port with other sockets that ask for the same.
        allow_broadcast: allow sending to broadcast addresses.
        sock: an open socket instead of all of these; the transport owns it then.
        trains: let the kernel join datagrams of one sender on their way in (UDP_GRO), which is faster for bulk data;
            the batch holds the single datagrams. Needs ``datagrams_received``, as do the notes.
        notes: ask the kernel for the address and interface that each datagram was sent to, its TOS byte, and the
            number of datagrams dropped for want of room. The items of a batch are then `Datagram`.

    Raises:
        ValueError: the arguments contradict each other.
        TypeError: an address has the wrong form.
        OSError: a name does not resolve, or an address cannot be used.
    """
    loop = asyncio.get_running_loop()
    modifiers = {
        "local_addr": local_addr,
        "remote_addr": remote_addr,
        "family": family,
        "proto": proto,
        "flags": flags,
        "reuse_port": reuse_port,
        "allow_broadcast": allow_broadcast,
    }
    address: Address | None = None
    if sock is not None:
        given = ", ".join(f"{name}={value}" for name, value in modifiers.items() if value)
        if sock.type == socket.SOCK_STREAM:
            raise ValueError(f"a datagram socket is needed, not {sock!r}")
        if given:
            raise ValueError(f"arguments that make a socket cannot go with sock: {given}")
        sock.setblocking(False)
    else:
        if reuse_port and not hasattr(socket, "SO_REUSEPORT"):
            raise ValueError("reuse_port: this system has no SO_REUSEPORT")
        sock, address = await _open(
            loop, local_addr, remote_addr, family, proto, flags, bool(reuse_port), bool(allow_broadcast)
        )
    try:
        if notes or trains:
            ask_for(sock, trains=trains, notes=notes)
        protocol = protocol_factory()
        waiter: asyncio.Future[None] = loop.create_future()
        transport = DatagramTransport(loop, sock, protocol, address=address, waiter=waiter, trains=trains, notes=notes)
    except BaseException:
        sock.close()
        raise
    try:
        await waiter
    except BaseException:
        transport.close()
        raise
    return transport, protocol


async def attach(
    protocol: ProtocolT, sock: socket.socket, *, trains: bool = False, notes: bool = False
) -> DatagramTransport:
    """Put `protocol` on `sock`, as `create_datagram_endpoint` does; on any error the socket is closed."""
    try:
        transport, _ = await create_datagram_endpoint(lambda: protocol, sock=sock, trains=trains, notes=notes)
    except BaseException:
        sock.close()
        raise
    return transport


async def _open(
    loop: asyncio.AbstractEventLoop,
    local_addr: Any,
    remote_addr: Any,
    family: int,
    proto: int,
    flags: int,
    reuse_port: bool,
    allow_broadcast: bool,
) -> tuple[socket.socket, Address | None]:
    """Return a socket on the first pair of addresses that works, and the peer that it was given."""
    failure: OSError | None = None
    for (kind, protocol), (local, remote) in await _candidates(loop, local_addr, remote_addr, family, proto, flags):
        sock = None
        action, place = "open a UDP socket for", local or remote
        try:
            sock = socket.socket(kind, socket.SOCK_DGRAM, protocol)
            sock.setblocking(False)
            if reuse_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if allow_broadcast:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            if local is not None:
                action = "bind UDP"
                sock.bind(local)
            if remote is not None and not allow_broadcast:  # a broadcast's answers come from other addresses
                action, place = "send UDP to", remote
                sock.connect(remote)
        except OSError as exc:
            if sock is not None:
                sock.close()
            failure = failure or explain(exc, action, place)
        except BaseException:
            if sock is not None:
                sock.close()
            raise
        else:
            return sock, remote
    assert failure is not None
    raise failure


_Candidate = tuple[tuple[int, int], tuple[Any, Any]]


async def _candidates(
    loop: asyncio.AbstractEventLoop, local_addr: Any, remote_addr: Any, family: int, proto: int, flags: int
) -> list[_Candidate]:
    """Return families and protocols with the local and the remote address to try for each, in order."""
    if not local_addr and not remote_addr:
        if not family:
            raise ValueError("unexpected address family: give an address, a family or a socket")
        return [((family, proto), (None, None))]
    if hasattr(socket, "AF_UNIX") and family == socket.AF_UNIX:
        for address in (local_addr, remote_addr):
            if address is not None and not isinstance(address, str):
                raise TypeError(f"the address of a Unix socket is a string, not {address!r}")
        if local_addr and local_addr[0] != "\0":
            _remove_stale(local_addr)
        return [((family, proto), (local_addr, remote_addr))]
    found: dict[tuple[int, int], list[Any]] = {}
    for place, address in enumerate((local_addr, remote_addr)):
        if address is None:
            continue
        if not (isinstance(address, tuple) and len(address) == 2):
            raise TypeError(f"an address is a tuple of host and port, not {address!r}")
        kind = socket.SOCK_DGRAM
        try:  # a number needs no resolver; uvloop's loses the scope of a link-local address
            infos = socket.getaddrinfo(*address, family, kind, proto, flags | socket.AI_NUMERICHOST)
        except socket.gaierror:
            infos = await loop.getaddrinfo(*address, family=family, type=kind, proto=proto, flags=flags)
        for each_family, _, each_proto, _, resolved in infos:
            pair = found.setdefault((each_family, each_proto), [None, None])
            if pair[place] is None:
                pair[place] = resolved
    complete: list[_Candidate] = [
        (key, (local, remote))
        for key, (local, remote) in found.items()
        if (local is not None or not local_addr) and (remote is not None or not remote_addr)
    ]
    if not complete:
        raise ValueError("can not get address information: local_addr and remote_addr have no family in common")
    return complete


def _remove_stale(path: str) -> None:
    try:
        if stat.S_ISSOCK(os.stat(path).st_mode):
            os.remove(path)
    except FileNotFoundError:
        pass

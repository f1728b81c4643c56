"""`serve`: opens the listening sockets, and puts storage, limits and server together."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from typing import Final, Literal

from asyncnet.addresses import explain
from asyncnet.opening import Opening
from asyncnet.privileges import drop_privileges
from asyncnet.resolver import resolve
from asyncnet.tftp.guard import Guard
from asyncnet.tftp.journal import Hooks
from asyncnet.tftp.options import DEFAULT_LIMITS, Limits
from asyncnet.tftp.packets import Rollover
from asyncnet.tftp.ports import Listener
from asyncnet.tftp.retransmit import DEFAULT_TIMING, Timing
from asyncnet.tftp.server import Server, Settings
from asyncnet.tftp.storage import Directory, Storage, WritePolicy

__all__ = ["serve"]

_PORT_ATTEMPTS: Final = 10
"""How often a free port is looked for that is free on every address."""
_RECEIVE_BUFFER: Final = 1 << 20


def serve(
    source: str | os.PathLike[str] | Storage,
    host: str = "127.0.0.1",
    port: int = 69,
    *,
    addresses: Sequence[tuple[str, int]] = (),
    sockets: Sequence[socket.socket] = (),
    write: str | WritePolicy = WritePolicy.NONE,
    max_file_size: int | None = None,
    single_port: bool = False,
    ports: tuple[int, int] | None = None,
    reuse_port: bool = False,
    user: str | None = None,
    guard: Guard | None = None,
    max_sessions: int = 1000,
    limits: Limits = DEFAULT_LIMITS,
    rollover: Rollover | None = None,
    grace: float = 5.0,
    timing: Timing = DEFAULT_TIMING,
    log_format: Literal["text", "json"] = "text",
    hooks: Hooks | None = None,
    paused: bool = False,
) -> Opening[Server]:
    """Serve files: ``async with serve(...) as server: await server.serve_forever()``.

    Args:
        source: a directory, of which clients reach the regular files and nothing outside; or an object with
            ``open_read(request)`` and ``open_write(request)``, see `Storage`.
        host: an address of this host; ``"0.0.0.0"`` for every IPv4 address, ``"::"`` for every IPv6 address, empty for
            both.
        port: 0 takes any free one.
        addresses: further addresses to listen on.
        sockets: bound UDP sockets to listen on instead of `host` and `port`, as from systemd; the server owns them.
        write: of a directory: ``"none"``, ``"create"`` for new files only, or ``"overwrite"``.
        max_file_size: of a directory: bytes of an upload at most.
        single_port: answer from the listening port instead of a port for each transfer; this passes NAT.
        ports: the first and the last port that transfers may use; by default the system picks them.
        reuse_port: share the port with other processes that ask for the same.
        user: become this user for good once the ports are open, before anything is heard; only root may.
        guard: who is admitted, and how much runs at once; `max_sessions` does not count then.
        max_sessions: transfers that may run at once, of which one client may have 16; further requests get no answer,
            which makes clients try again. See `Guard`.
        limits: what the options may be at most.
        rollover: the block number that follows 65535; None sends 0, and learns from an uploading client in lock-step.
        grace: seconds that running transfers get when the server closes.
        timing: how long to wait for acknowledgements.
        log_format: how the one line about each transfer is logged, by the logger ``asyncnet.tftp`` at level INFO.
        hooks: called when transfers start, progress and end.
        paused: hear nothing until ``listener.resume()`` is called for each of ``server.listeners``, as for a worker
            that takes the socket over from another one.

    Raises:
        ValueError: `write` is no such policy, `max_sessions` is below 1, `ports` is no range, or `rollover` is neither
            0 nor 1.
        OSError: the directory cannot be read, an address cannot be used, or this process cannot become `user`.
    """
    policy = WritePolicy(write)
    if max_sessions < 1:
        raise ValueError(f"max_sessions must be at least 1, not {max_sessions}")
    if ports is not None and not 1 <= ports[0] <= ports[1] <= 65535:
        raise ValueError(f"ports must be a first and a last one between 1 and 65535, not {ports}")
    if rollover not in (None, 0, 1):
        raise ValueError(f"rollover must be 0 or 1, not {rollover}")
    settings = Settings(
        limits=limits,
        rollover=rollover,
        timing=timing,
        grace=grace,
        ports=None if ports is None else range(ports[0], ports[1] + 1),
        log_format=log_format,
        hooks=hooks or Hooks(),
    )

    async def open_() -> Server:
        found = list(sockets) or await _open_sockets([(host, port), *addresses], reuse_port=reuse_port)
        listeners: list[Listener] = []
        try:
            if user is not None:
                drop_privileges(user)
            storage: Storage
            if isinstance(source, str | os.PathLike):  # looked at by the user who is to read it
                storage = Directory(source, write=policy, max_size=max_file_size)
            else:
                storage = source
            server = Server(storage, guard or Guard(max_sessions=max_sessions), settings)
            server.listeners = listeners
            while found:
                sock = found.pop(0)
                sock.setblocking(False)
                listener = Listener(sock, server.arrived, single_port=single_port, paused=paused)
                await listener.open()
                listeners.append(listener)
        except BaseException:
            for sock in found:
                sock.close()
            for listener in listeners:
                listener.close()
            raise
        return server

    return Opening(open_)


async def _open_sockets(addresses: Sequence[tuple[str, int]], *, reuse_port: bool) -> list[socket.socket]:
    found: list[socket.socket] = []
    try:
        for host, port in addresses:
            found += await _open_both(port, reuse_port) if not host else [await _open_one(host, port, reuse_port)]
    except BaseException:
        for sock in found:
            sock.close()
        raise
    return found


async def _open_both(port: int, reuse_port: bool) -> list[socket.socket]:
    """Listen on every IPv4 and every IPv6 address, on one port; a host without IPv6 listens on IPv4."""
    for attempt in range(_PORT_ATTEMPTS):
        first = await _open_one("0.0.0.0", port, reuse_port)
        try:
            return [first, await _open_one("::", first.getsockname()[1], reuse_port)]
        except OSError as exc:
            if exc.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                return [first]
            first.close()
            if port or exc.errno != errno.EADDRINUSE or attempt == _PORT_ATTEMPTS - 1:
                raise
    raise AssertionError("the last attempt returns or raises")


async def _open_one(host: str, port: int, reuse_port: bool) -> socket.socket:
    family, address = (await resolve(host, port, action="bind UDP", kind=socket.SOCK_DGRAM))[0]
    try:
        sock = socket.socket(family, socket.SOCK_DGRAM)
    except OSError as exc:
        raise explain(exc, "bind UDP", address) from exc
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        sock.bind(address)
    except OSError as exc:
        sock.close()
        raise explain(exc, "bind UDP", address) from exc
    return sock

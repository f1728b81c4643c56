"""`bind` and `connect`: open an `Endpoint`."""

from __future__ import annotations

import socket

from asyncnet.opening import Opening
from asyncnet.udp.create import attach
from asyncnet.udp.endpoint import Endpoint
from asyncnet.udp.inbox import QueuePolicy
from asyncnet.udp.sockets import open_socket

__all__ = ["bind", "connect"]


def bind(
    host: str = "",
    port: int = 0,
    *,
    broadcast: bool = False,
    reuse_port: bool = False,
    share_port: bool = False,
    queue_size: int = 1024,
    queue_bytes: int = 4 << 20,
    policy: QueuePolicy | str = QueuePolicy.STOP_READING,
    receive_buffer: int | None = None,
    notes: bool = False,
    sock: socket.socket | None = None,
) -> Opening[Endpoint]:
    """Open an endpoint on a local address, by ``async with bind(...) as endpoint`` or ``endpoint = await bind(...)``.

    Args:
        host: an address of this host; empty for every IPv4 address, ``"::"`` for every IPv6 address.
        port: 0 takes any free one.
        broadcast: allow sending to broadcast addresses.
        reuse_port: share the port with other sockets that ask for the same; each datagram goes to one of them.
        share_port: share the port; each broadcast and multicast datagram goes to every one of the sockets.
        queue_size: datagrams that may wait to be received; reading in batches, the queue may exceed it by 64.
        queue_bytes: bytes that may wait to be received; the queue may exceed it by as many datagrams.
        policy: what happens beyond these bounds, see `QueuePolicy`.
        receive_buffer: bytes of the socket's buffer to ask the system for.
        notes: ask the kernel for more about each datagram; `recv_batch` then returns `Datagram` items.
        sock: a bound UDP socket to use instead, such as one that a worker inherits; the endpoint owns it.

    Raises:
        ValueError: a bound of the queue is below 1, or the policy has no such name.
        OSError: the address cannot be used; the message says why and what to do.
    """

    async def open_() -> Endpoint:
        opened = sock or await open_socket(
            local=(host or "0.0.0.0", port),
            broadcast=broadcast,
            reuse_port=reuse_port,
            share_broadcasts=share_port,
            destinations=notes,
        )
        return await _endpoint(opened, queue_size, queue_bytes, policy, receive_buffer, notes)

    return Opening(open_)


def connect(
    host: str,
    port: int,
    *,
    local_addr: tuple[str, int] | None = None,
    broadcast: bool = False,
    queue_size: int = 1024,
    queue_bytes: int = 4 << 20,
    policy: QueuePolicy | str = QueuePolicy.STOP_READING,
    receive_buffer: int | None = None,
    notes: bool = False,
) -> Opening[Endpoint]:
    """Open an endpoint with one peer: it sends to no other, hears no other, and learns of ICMP errors.

    Args:
        host: the peer's name or address; an IPv6 address may end in ``%INTERFACE``.
        port: the peer's port.
        local_addr: the local host and port; by default the system picks them.
        broadcast: allow a broadcast address as the peer.
        queue_size, queue_bytes, policy, receive_buffer, notes: as in `bind`.

    Raises:
        ValueError: a bound of the queue is below 1, or the policy has no such name.
        OSError: the name does not resolve, or one of the addresses cannot be used.
    """

    async def open_() -> Endpoint:
        sock = await open_socket(local=local_addr, remote=(host, port), broadcast=broadcast, destinations=notes)
        return await _endpoint(sock, queue_size, queue_bytes, policy, receive_buffer, notes)

    return Opening(open_)


async def _endpoint(
    sock: socket.socket,
    queue_size: int,
    queue_bytes: int,
    policy: QueuePolicy | str,
    receive_buffer: int | None,
    notes: bool,
) -> Endpoint:
    try:
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        endpoint = Endpoint(queue_size=queue_size, queue_bytes=queue_bytes, policy=QueuePolicy(policy))
    except BaseException:
        sock.close()
        raise
    await attach(endpoint, sock, notes=notes)
    return endpoint

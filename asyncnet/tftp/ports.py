"""Where transfers send and receive: each on a connected socket, or all of them on the listening socket.

A connected socket leaves it to the kernel to keep strangers out of a transfer, and reports at once when the client is
gone. On a single port the server tells clients apart itself; that passes NAT and container networks, and what arrives
from many clients is received and answered in batches.

The listening socket hears requests and nothing else: an ERROR, DATA or ACK that belongs to no transfer gets no answer,
so two servers can never be made to answer each other (CVE-2024-2169).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import socket
import struct
from collections.abc import Callable, Collection, Iterator
from itertools import chain
from typing import Any, Final, cast

import attrs

from asyncnet.addresses import Address, explain, format_address
from asyncnet.tftp.session import Session, prepare_socket
from asyncnet.udp.ancillary import Datagram
from asyncnet.udp.create import attach
from asyncnet.udp.transport import DatagramTransport

__all__ = ["Arrival", "Listener", "PeerPort", "transfer_socket"]

logger: Final = logging.getLogger("asyncnet.tftp")

_MAX_UNSENT: Final = 8 << 20
"""Bytes that may wait on a single port; what comes then is dropped, and retransmission makes up for it."""
_PKTINFO: Final = struct.Struct("=i4s4s")  # struct in_pktinfo: interface, address to send from, header's address
_PKTINFO6: Final = struct.Struct("=16si")  # struct in6_pktinfo: address to send from, interface
_IP_PKTINFO: Final = 8
_IPV6_PKTINFO: Final = 50
_WILDCARDS: Final = ("0.0.0.0", "::")


@attrs.frozen
class Arrival:
    """A datagram on the listening socket that belongs to no transfer."""

    data: bytes
    peer: Address
    listener: Listener
    local_addr: str | None
    """The address that it was sent to, where the system tells."""
    interface: int
    reply_addr: str | None
    """The address of this host to answer from; None leaves it to the system."""

    @property
    def key(self) -> tuple[Listener, Address]:
        """What tells clients apart."""
        return self.listener, self.peer


class Listener(asyncio.DatagramProtocol):
    """The protocol of a listening socket.

    Args:
        sock: the socket, bound.
        arrived: told of everything that belongs to no transfer.
        single_port: whether transfers run on this socket.
        paused: hear nothing before `resume`.

    Attributes:
        steer: called with a datagram of a peer that has no transfer here, and its address; when it returns True,
            somebody else has taken it.
    """

    def __init__(
        self, sock: socket.socket, arrived: Callable[[Arrival], None], *, single_port: bool, paused: bool = False
    ) -> None:
        self.steer: Callable[[bytes, Address], bool] | None = None
        self._paused = paused
        self.address: Address = sock.getsockname()
        self.single_port = single_port
        self.unsent = 0
        """Datagrams dropped because too many waited to leave."""
        self.closed = asyncio.Event()
        self._sock = sock
        self._arrived = arrived
        self._ports: dict[Address, PeerPort] = {}
        self._sources: dict[str, str] = {}  # by the client's host: the address that the system answers it from
        self._transport: DatagramTransport | None = None
        self._is_full = False

    @property
    def is_wildcard(self) -> bool:
        """Whether it listens on every address."""
        return self.address[0] in _WILDCARDS

    async def open(self) -> None:
        """Listen; on any error the socket is closed."""
        if self.single_port:
            prepare_socket(self._sock)
        # A request is rare and its notes tell where to answer from. All traffic of a single port would pay for them.
        await attach(self, self._sock, notes=not self.single_port or self.is_wildcard)

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(DatagramTransport, transport)
        self._transport.set_write_buffer_limits(high=_MAX_UNSENT)
        if self._paused:
            self._transport.pause_reading()

    def datagrams_received(self, batch: list[tuple[bytes, Address]] | list[Datagram]) -> None:
        """Give each datagram to its transfer, or report it."""
        ports = self._ports
        blocks: list[tuple[memoryview, Address]] = []
        for item in batch:
            data, peer = item[0], item[1]
            port = ports.get(peer)
            try:
                if port is None and self.steer is not None and self.steer(data, peer):
                    continue
                if port is None or (len(data) > 1 and data[1] < 3):
                    self._arrived(self._arrival(item))
                elif port.source is not None or (block := port.session.answer(data)) is None:
                    port.session.datagram_received(data, peer)
                else:
                    blocks.append((block, peer))
            except Exception:
                logger.exception("a datagram of %s could not be handled", format_address(peer))
        if len(blocks) == 1:
            self.send(*blocks[0])
        elif self._is_full:
            self.unsent += len(blocks)
        elif blocks and self._transport is not None:
            self._transport.send_batch(blocks)

    def _arrival(self, item: tuple[bytes, Address] | Datagram) -> Arrival:
        if isinstance(item, Datagram):
            return Arrival(item.data, item.addr, self, item.local_addr, item.interface, item.reply_addr)
        return Arrival(*item, self, None if self.is_wildcard else self.address[0], 0, None)

    def error_received(self, exc: Exception) -> None:
        logger.debug("error on the listening socket: %s", exc)

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.closed.set()

    # What a worker uses that shares the socket with another one.

    @property
    def peers(self) -> Collection[Address]:
        """Who has a transfer on this socket."""
        return self._ports.keys()

    def serves(self, data: bytes, peer: Address) -> bool:
        """Tell whether a datagram is for a transfer on this socket; a request is not for one that only dallies."""
        port = self._ports.get(peer)
        return port is not None and not (port.session.dallies and data[1:2] < b"\3")

    def pause(self) -> None:
        """Hear nothing; what is sent leaves as before."""
        self._paused = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Hear again."""
        self._paused = False
        if self._transport is not None:
            self._transport.resume_reading()

    def inject(self, data: bytes, peer: Address) -> None:
        """Handle a datagram that came by another way."""
        self.datagrams_received([(data, peer)])

    # What transfers on a single port use.

    def enter(self, session: Session, arrival: Arrival) -> None:
        """Let a transfer with the peer of `arrival` run on this socket."""
        peer = arrival.peer
        source = arrival.reply_addr
        if source is not None and source == self._usual_source(peer):
            source = None
        self._ports[peer] = port = PeerPort(self, session, peer, source)
        session.connection_made(port)

    def leave(self, port: PeerPort) -> None:
        """Forget a transfer."""
        if self._ports.get(port.peer) is port:
            del self._ports[port.peer]

    def send(self, data: bytes | memoryview, peer: Address, source: str | None = None, segment_size: int = 0) -> None:
        """Send a datagram, or a train of them, from an address of this host; None leaves it to the system."""
        if self._transport is None:
            return
        if self._is_full:
            self.unsent += 1
        elif source is not None:
            view = memoryview(data)
            for start in range(0, len(view), segment_size or len(view)):
                self._send_from(source, view[start : start + (segment_size or len(view))], peer)
        elif segment_size:
            self._transport.send_segments(data, segment_size, peer)
        else:
            self._transport.sendto(data, peer)

    def _send_from(self, source: str, data: memoryview, peer: Address) -> None:
        note: tuple[int, int, bytes]
        if ":" in source:
            packed = socket.inet_pton(socket.AF_INET6, source)
            note = (socket.IPPROTO_IPV6, _IPV6_PKTINFO, _PKTINFO6.pack(packed, peer[3] if len(peer) == 4 else 0))
        else:
            note = (socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO.pack(0, socket.inet_aton(source), bytes(4)))
        try:
            self._sock.sendmsg([data], [note], 0, peer)
        except OSError as exc:
            self.unsent += 1
            logger.debug("%s", explain(exc, "send UDP to", peer))

    def _usual_source(self, peer: Address) -> str | None:
        """Return the address that the system would answer a client from."""
        known = self._sources.get(peer[0])
        if known is None:
            if len(self._sources) >= 4096:
                self._sources.clear()
            try:
                with socket.socket(self._sock.family, socket.SOCK_DGRAM) as probe:
                    probe.connect(peer)
                    known = probe.getsockname()[0]
            except OSError:  # there is no route, or no descriptor left
                return None
            self._sources[peer[0]] = known
        return known

    def close(self) -> None:
        """Hear no more; on a single port the transfers end with it."""
        if self._transport is not None:
            self._transport.close()


class PeerPort:
    """What a session on a single port has for a transport."""

    def __init__(self, listener: Listener, session: Session, peer: Address, source: str | None) -> None:
        self.session = session
        self.peer = peer
        self.source = source
        """The address of this host to answer from, where it is not the one that the system takes."""
        self._listener = listener
        self._closed = False

    def sendto(self, data: bytes | memoryview, addr: Address | None = None) -> None:
        """Send a datagram to the client."""
        self._listener.send(data, self.peer, self.source)

    def send_segments(self, data: memoryview, segment_size: int, addr: Address | None = None) -> None:
        """Send a train of datagrams to the client."""
        self._listener.send(data, self.peer, self.source, segment_size)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return the client's or the server's address."""
        return {"peername": self.peer, "sockname": self._listener.address}.get(name, default)

    def close(self) -> None:
        """Leave the port to the others."""
        if not self._closed:
            self._closed = True
            self._listener.leave(self)
            asyncio.get_running_loop().call_soon(self.session.connection_lost, None)


def _all_from_anywhere(ports: range) -> Iterator[int]:
    """Go round, beginning at a random place: to shuffle a wide range takes longer than a small transfer."""
    start = random.randrange(len(ports))
    return chain(ports[start:], ports[:start])


def transfer_socket(arrival: Arrival, ports: range | None) -> socket.socket:
    """Return a socket connected to a client, on the address that it asked.

    Args:
        arrival: the request.
        ports: the ports to take one of; None for any free one.

    Raises:
        OSError: no port is free, or the client cannot be reached.
    """
    listener, peer = arrival.listener, arrival.peer
    host = arrival.reply_addr if listener.is_wildcard and arrival.reply_addr else listener.address[0]
    rest = () if len(peer) == 2 else (0, peer[3])
    sock = socket.socket(socket.AF_INET6 if ":" in peer[0] else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        prepare_socket(sock)
        for port in _all_from_anywhere(ports) if ports else [0]:
            try:
                sock.bind((host, port, *rest))
            except OSError as exc:
                if exc.errno != errno.EADDRINUSE:
                    raise
            else:
                break
        else:
            raise OSError(errno.EADDRINUSE, "no port of the range is free")
        sock.connect(peer)
    except BaseException:
        sock.close()
        raise
    return sock

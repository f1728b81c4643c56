"""UDP where the test needs interfaces and routes of its own: IPv6 multicast, link-local addresses, missing routes."""

from __future__ import annotations

import pytest

from tests.netns.hosts import Host

LOOPS = ["asyncio", "uvloop"]

MULTICAST = """
import asyncio, socket, sys
import asyncnet
from asyncnet import udp

async def main():
    async with (
        udp.bind("::", 0, share_port=True) as member,
        udp.bind("::", member.local_addr[1], share_port=True) as other,
        udp.bind("::", 0) as sender,
        asyncio.timeout(5),
    ):
        group = "ff02::7788"
        member.join(group, "near")
        other.join(group, socket.if_nametoindex("near"))
        sender.set_multicast(ttl=1, loop=True, interface="near")
        await sender.send(b"all", (group, member.local_addr[1]))
        assert (await member.recv())[0] == b"all"
        assert (await other.recv())[0] == b"all"
        member.leave(group, "near")
        await sender.send(b"rest", (group, member.local_addr[1]))
        assert (await other.recv())[0] == b"rest"
        assert member.stats.received == 1

asyncnet.run(main(), loop=sys.argv[1])
"""

LINK_LOCAL = """
import asyncio, socket, sys
import asyncnet
from asyncnet import tcp, udp

async def main():
    index = socket.if_nametoindex("near")
    async with udp.bind("fe80::1%near", 0) as server, asyncio.timeout(5):
        assert server.local_addr[3] == index
        async with udp.connect("fe80::1%near", server.local_addr[1]) as client:
            assert client.remote_addr[3] == index
            await client.send(b"hello")
            data, addr = await server.recv()
            assert (data, addr) == (b"hello", client.local_addr) and addr[3] == index, addr
            await server.send(b"answer", addr)
            assert await client.recv() == (b"answer", server.local_addr)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        asyncio.DatagramProtocol, local_addr=("fe80::1%near", 0))
    assert transport.get_extra_info("sockname")[3] == index
    transport.close()

asyncnet.run(main(), loop=sys.argv[1])
"""

NO_ROUTE = """
import asyncio, errno, sys
import asyncnet
from asyncnet import udp

async def main():
    async with udp.bind("0.0.0.0", 0) as endpoint:
        for _ in range(2):
            try:
                await endpoint.send(b"x", ("192.0.2.1", 9))
            except OSError as exc:
                assert exc.errno == errno.ENETUNREACH and "192.0.2.1:9" in str(exc), exc
            else:
                raise AssertionError("sent")
    for opening in (
        udp.connect("192.0.2.1", 9),
        udp.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=("192.0.2.1", 9)),
    ):
        try:
            await opening
        except OSError as exc:
            assert exc.errno == errno.ENETUNREACH and "192.0.2.1:9" in str(exc), exc
        else:
            raise AssertionError("connected")

asyncnet.run(main(), loop=sys.argv[1])
"""

LONG_SEGMENTS = """
import asyncio, errno, sys
import asyncnet
from asyncnet import udp

class Told(asyncio.DatagramProtocol):
    def __init__(self):
        self.received, self.errors = [], []
    def datagram_received(self, data, addr):
        self.received.append(data)
    def error_received(self, exc):
        self.errors.append(exc)

async def main():
    receiver, got = await udp.create_datagram_endpoint(Told, local_addr=("127.0.0.1", 0))
    sender, told = await udp.create_datagram_endpoint(Told, remote_addr=receiver.get_extra_info("sockname"))
    sent = []
    for size in (1400, 2000, 1400, 3000):
        whole = b"".join(bytes([number]) * size for number in range(10)) + b"rest"
        sender.send_segments(whole, size)
        sent += [whole[start : start + size] for start in range(0, len(whole), size)]
        async with asyncio.timeout(5):
            while len(got.received) < len(sent):
                await asyncio.sleep(0.001)
    assert got.received == sent and not told.errors
    sender.close()
    receiver.close()

asyncnet.run(main(), loop=sys.argv[1])
"""


def plug_in(host: Host) -> None:
    """Give the host an interface ``near`` with a link-local address."""
    host.run("ip", "link", "add", "near", "type", "veth", "peer", "name", "far")
    host.run("ip", "address", "add", "fe80::1/64", "dev", "near", "nodad")
    host.run("ip", "link", "set", "far", "up")
    host.run("ip", "link", "set", "near", "up")


@pytest.mark.parametrize("loop", LOOPS)
def test_ipv6_multicast(host: Host, loop: str) -> None:
    plug_in(host)
    host.python(MULTICAST, loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_link_local_addresses_keep_their_scope(host: Host, loop: str) -> None:
    plug_in(host)
    host.python(LINK_LOCAL, loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_network_that_cannot_be_reached_is_named(host: Host, loop: str) -> None:
    host.python(NO_ROUTE, loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_segments_longer_than_the_path_takes_leave_as_datagrams(host: Host, loop: str) -> None:
    host.run("ip", "link", "set", "lo", "mtu", "1500", "up")
    host.python(LONG_SEGMENTS, loop)

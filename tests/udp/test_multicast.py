"""Multicast: who joins hears, who leaves does not, and how datagrams leave."""

from __future__ import annotations

import asyncio
import socket
import sys

import pytest

from asyncnet import udp
from asyncnet.errors import ClosedError
from asyncnet.udp.sockets import set_multicast


def loopback_takes(group: str) -> bool:
    """Whether this host has a route for the group on its loopback interface."""
    family = socket.AF_INET6 if ":" in group else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            set_multicast(sock, ttl=0, interface="lo")
            sock.sendto(b"", (group, 9))
    except OSError:
        return False
    return True


@pytest.mark.parametrize(("anywhere", "group"), [("0.0.0.0", "239.255.77.88"), ("::", "ff01::7788")])
async def test_multicast(anywhere: str, group: str) -> None:
    if not loopback_takes(group):
        pytest.skip(f"the loopback interface has no route for {group}")
    async with (
        udp.bind(anywhere, 0, share_port=True) as member,
        udp.bind(anywhere, member.local_addr[1], share_port=True) as other,
        udp.bind(anywhere, 0) as sender,
    ):
        member.join(group, "lo")
        other.join(group, socket.if_nametoindex("lo"))
        sender.set_multicast(ttl=0, loop=True, interface="lo")
        await sender.send(b"all", (group, member.local_addr[1]))
        async with asyncio.timeout(5):
            assert (await member.recv())[0] == b"all"
            assert (await other.recv())[0] == b"all"
        member.leave(group, "lo")
        await sender.send(b"rest", (group, member.local_addr[1]))
        async with asyncio.timeout(5):
            assert (await other.recv())[0] == b"rest"
        assert member.stats.received == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_how_multicast_leaves_is_set(host: str) -> None:
    six = ":" in host
    async with udp.bind(host, 0) as endpoint:
        endpoint.set_multicast(ttl=7, loop=False)
        assert endpoint._transport is not None
        sock = endpoint._transport.get_extra_info("socket")
        level = socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP
        assert sock.getsockopt(level, socket.IPV6_MULTICAST_HOPS if six else socket.IP_MULTICAST_TTL) == 7
        assert sock.getsockopt(level, socket.IPV6_MULTICAST_LOOP if six else socket.IP_MULTICAST_LOOP) == 0
        endpoint.set_multicast(loop=True)
        assert sock.getsockopt(level, socket.IPV6_MULTICAST_HOPS if six else socket.IP_MULTICAST_TTL) == 7
        assert sock.getsockopt(level, socket.IPV6_MULTICAST_LOOP if six else socket.IP_MULTICAST_LOOP) == 1


async def test_multicast_arguments_are_checked() -> None:
    async with udp.bind("127.0.0.1", 0) as endpoint:
        with pytest.raises(ValueError, match="no multicast address"):
            endpoint.join("10.0.0.1")
        with pytest.raises(ValueError, match="family"):
            endpoint.join("ff02::1")
        with pytest.raises(OSError, match="no-such-interface"):
            endpoint.join("239.0.0.1", "no-such-interface")
        endpoint.join("239.255.77.89", "lo" if sys.platform == "linux" else None)
        with pytest.raises(ValueError, match="ttl"):
            endpoint.set_multicast(ttl=256)
        endpoint.close()
        with pytest.raises(ClosedError):
            endpoint.join("239.0.0.1")

"""How many connections a server takes, of everybody and of each client."""

from __future__ import annotations

import asyncio
import socket
import sys

import pytest

from asyncnet import tcp
from asyncnet.addresses import client_of
from tests.tcp.clients import client, echo, ends, exchange, until


async def test_one_too_many_is_closed_at_once_when_told_to_reject() -> None:
    async with tcp.serve(echo, "127.0.0.1", 0, max_connections=2, when_full="reject") as server:
        async with client(server) as first, client(server) as second:
            assert await exchange(first, b"1") == b"1"
            assert await exchange(second, b"2") == b"2"
            async with client(server) as (reader, _):
                assert await ends(reader)
            assert (server.stats.rejected, server.stats.active) == (1, 2)
            assert await exchange(first, b"1") == b"1"
        await until(lambda: server.stats.active == 0)
        async with client(server) as again:
            assert await exchange(again, b"3") == b"3"
        await until(lambda: server.stats.completed == 3)
    assert server.stats.accepted == 4


async def test_one_too_many_waits_for_a_place_when_told_to_wait() -> None:
    async with tcp.serve(echo, "127.0.0.1", 0, max_connections=1) as server:
        async with client(server) as first, client(server) as second:
            assert await exchange(first, b"1") == b"1"
            waiting = asyncio.create_task(exchange(second, b"2"))
            assert await exchange(first, b"1") == b"1"
            assert not waiting.done()
            assert server.stats.accepted == 1
            first[1].close()
            assert await waiting == b"2"
    assert server.stats.rejected == 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs all of 127.0.0.0/8")
async def test_each_client_has_so_many() -> None:
    async with tcp.serve(echo, "127.0.0.1", 0, max_per_client=1) as server:
        async with (
            client(server, local_addr=("127.0.0.2", 0)) as greedy,
            client(server, local_addr=("127.0.0.3", 0)) as other,
        ):
            assert await exchange(greedy, b"1") == b"1"
            assert await exchange(other, b"2") == b"2"
            async with client(server, local_addr=("127.0.0.2", 0)) as (reader, _):
                assert await ends(reader)
            assert server.stats.rejected == 1
            assert await exchange(greedy, b"1") == b"1"
        await until(lambda: server.stats.active == 0)
        async with client(server, local_addr=("127.0.0.2", 0)) as again:
            assert await exchange(again, b"3") == b"3"


def test_a_client_is_an_ipv4_address_or_a_64_network_of_ipv6() -> None:
    assert client_of("192.0.2.1") != client_of("192.0.2.2")
    assert client_of("2001:db8:0:1::1") == client_of("2001:db8:0:1:ffff::2")
    assert client_of("2001:db8:0:1::1") != client_of("2001:db8:0:2::1")
    assert client_of("::ffff:192.0.2.1") == client_of("192.0.2.1")
    assert client_of("fe80::1%eth0") == client_of("fe80::2%eth0")


async def test_a_local_socket_is_no_client_of_an_address(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = str(tmp_path_factory.mktemp("s") / "s")
    async with tcp.serve(echo, path=path, max_per_client=1) as server:
        streams = [await tcp.connect(path=path) for _ in range(3)]
        for stream in streams:
            assert await exchange(stream, b"x") == b"x"
            stream[1].close()
        await until(lambda: server.stats.completed == 3)


async def test_a_crowd_at_the_door_is_taken_in_over_several_turns_of_the_loop() -> None:
    """At most 64 connections are accepted in a turn, so that timers and other sockets have theirs."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with tcp.serve(handler, "127.0.0.1", 0, grace=0) as server:
        crowd = [socket.create_connection(server.address[:2]) for _ in range(200)]  # nothing of the loop runs meanwhile
        try:
            steps: list[int] = []
            while sum(steps) < 200:
                before = server.stats.accepted
                await asyncio.sleep(0)
                steps.append(server.stats.accepted - before)
        finally:
            for sock in crowd:
                sock.close()
    assert max(steps) <= 64


async def test_crowds_at_several_doors_are_one_crowd() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with tcp.serve(handler, addresses=[("127.0.0.1", 0)] * 9, grace=0) as server:
        places = [address[:2] for address in server.addresses if isinstance(address, tuple)]
        crowd = [socket.create_connection(place) for place in places for _ in range(25)]
        try:
            steps: list[int] = []
            while sum(steps) < len(crowd):
                before = server.stats.accepted
                await asyncio.sleep(0)
                steps.append(server.stats.accepted - before)
        finally:
            for sock in crowd:
                sock.close()
    assert len(crowd) == 225
    assert max(steps) <= 64

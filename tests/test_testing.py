"""The bad network: the same seed is the same network, and every fault is counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asyncnet import testing, udp
from asyncnet.testing import UdpRelay
from asyncnet.udp import Endpoint


@asynccontextmanager
async def bad_network(host: str = "127.0.0.1", **faults: Any) -> AsyncIterator[tuple[Endpoint, UdpRelay, Endpoint]]:
    async with (
        udp.bind(host, 0) as server,
        testing.udp_relay(server.local_addr, **faults) as relay,
        udp.connect(*relay.address[:2]) as client,
    ):
        yield client, relay, server


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def send_all(client: Endpoint, relay: UdpRelay, count: int) -> None:
    """Send numbers, few enough at a time that no buffer overflows."""
    before = relay.stats.arrived
    for number in range(count):
        await client.send(number.to_bytes(2) * 50)
        if number % 50 == 49:
            await until(lambda sent=number + 1: relay.stats.arrived >= before + sent)  # type: ignore[misc]
    await until(lambda: relay.stats.arrived >= before + count)


async def numbers_that_arrive(faults: dict[str, Any], *, echo: bool) -> list[int]:
    async with bad_network(**faults) as (client, relay, server):
        arrived: list[int] = []
        await send_all(client, relay, 400)
        await until(lambda: server.stats.received == relay.stats.forwarded)
        while len(arrived) < server.stats.received:
            data, addr = await server.recv()
            arrived.append(int.from_bytes(data[:2]))
            if echo:
                await server.send(data, addr)
    return arrived


async def test_the_same_seed_loses_the_same_datagrams_whatever_the_other_direction_does() -> None:
    faults = {"seed": 3, "loss": 0.1, "duplicate": 0.1}
    first = await numbers_that_arrive(faults, echo=False)
    assert await numbers_that_arrive(faults, echo=True) == first
    assert await numbers_that_arrive(faults | {"seed": 4}, echo=False) != first
    lost = 400 - len(set(first))
    assert 15 <= lost <= 80
    assert 15 <= len(first) - len(set(first)) <= 80


async def test_two_clients_meet_different_fates() -> None:
    async with bad_network(loss=0.5) as (one, relay, server), udp.connect(*relay.address[:2]) as two:
        fates = []
        for client in (one, two):
            await send_all(client, relay, 100)
            await until(lambda: server.stats.received == relay.stats.forwarded)
            fates.append([int.from_bytes(item[0][:2]) for item in await server.recv_batch(200)])
        assert fates[0] != fates[1]


async def test_a_damaged_datagram_has_one_bit_flipped() -> None:
    async with bad_network(corrupt=0.5, seed=1) as (client, relay, server):
        await send_all(client, relay, 200)
        await until(lambda: server.stats.received == 200)
        flips = []
        for number in range(200):
            data, _ = await server.recv()
            wanted = int.from_bytes(number.to_bytes(2) * 50)
            flips.append((int.from_bytes(data) ^ wanted).bit_count())
        assert set(flips) == {0, 1}
        assert sum(flips) == relay.stats.corrupted
        assert 60 <= sum(flips) <= 140


async def test_what_exceeds_the_rate_waits_and_then_is_dropped() -> None:
    async with bad_network(rate=1000.0, queue=2000) as (client, relay, server):
        await send_all(client, relay, 100)
        assert relay.stats.overflowed >= 60
        await until(lambda: server.stats.received >= 1)


async def test_datagrams_can_be_overtaken_and_delayed() -> None:
    async with bad_network(reorder=0.3, delay=0.001, seed=2) as (client, relay, server):
        await send_all(client, relay, 100)
        await until(lambda: server.stats.received == 100)
        order = [int.from_bytes(item[0][:2]) for item in await server.recv_batch(200)]
        assert sorted(order) == list(range(100))
        assert order != sorted(order)
        assert relay.stats.reordered > 10


async def test_answers_of_another_port_are_the_clients_from_then_on() -> None:
    async with bad_network("::1") as (client, _, server), udp.bind("::1", 0) as transfer:
        await client.send(b"request")
        _, addr = await server.recv()
        await transfer.send(b"answer", addr)
        assert (await client.recv())[0] == b"answer"
        await client.send(b"next")
        assert (await transfer.recv())[0] == b"next"


async def test_a_client_that_has_not_heard_of_another_port_means_the_first_one() -> None:
    async with bad_network(delay=0.5) as (client, relay, server), udp.bind(server.local_addr[0], 0) as transfer:
        await client.send(b"request")
        _, addr = await server.recv()
        await transfer.send(b"answer", addr)
        await until(lambda: relay.stats.arrived == 2)
        await client.send(b"request again")
        assert (await server.recv())[0] == b"request again"


@pytest.mark.parametrize("wrong", [
    {"loss": 1.5}, {"duplicate": -0.1}, {"reorder": 2.0}, {"corrupt": 1.1}, {"delay": -1.0}, {"rate": 0.0},
    {"queue": 0},
])  # fmt: skip
async def test_what_makes_no_sense_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        await testing.udp_relay(("127.0.0.1", 9), **wrong)

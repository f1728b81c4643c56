"""`Endpoint.request`: a question, its answer, and what comes instead."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncnet import udp
from asyncnet.addresses import Address
from asyncnet.errors import ClosedError
from asyncnet.udp import Endpoint
from tests.udp.recorders import until


async def echo(server: Endpoint) -> None:
    async for data, addr in server:
        await server.send(data, addr)


async def test_a_request_finds_its_answer_among_others() -> None:
    async with udp.bind("127.0.0.1", 0) as server, udp.connect(*server.local_addr[:2]) as client:

        async def answer() -> None:
            _, addr = await server.recv()
            for data in (b"news", b"7 wrong", b"8 right"):
                await server.send(data, addr)

        answering = asyncio.create_task(answer())
        data, addr = await client.request(b"8?", match=lambda data, addr: data.startswith(b"8 "), timeout=5)
        assert (data, addr) == (b"8 right", server.local_addr)
        assert [(await client.recv())[0] for _ in range(2)] == [b"news", b"7 wrong"]
        await answering


async def test_a_request_is_repeated_until_it_is_answered() -> None:
    async with udp.bind("127.0.0.1", 0) as server, udp.bind("127.0.0.1", 0) as client:

        async def answer_the_third() -> None:
            for _ in range(3):
                _, addr = await server.recv()
            await server.send(b"at last", addr)

        answering = asyncio.create_task(answer_the_third())
        answer = await client.request(b"?", server.local_addr, timeout=0.02, retries=5)
        assert answer == (b"at last", server.local_addr)
        await answering
        assert client.stats.sent >= 3


async def test_a_request_gives_up_with_the_address() -> None:
    async with udp.bind("127.0.0.1", 0) as server, udp.connect(*server.local_addr[:2]) as client:
        with pytest.raises(TimeoutError, match=f"127.0.0.1:{server.local_addr[1]} does not answer: asked 3 times"):
            await client.request(b"?", timeout=0.01, retries=2, backoff=1)
        await until(lambda: server.stats.received == 3)
        with pytest.raises(ValueError, match="timeout"):
            await client.request(b"?", timeout=0)


async def test_a_request_learns_of_a_refusal_and_of_close() -> None:
    async with udp.bind("127.0.0.1", 0) as unused:
        address = unused.local_addr
    async with udp.connect(*address[:2]) as client:
        with pytest.raises(ConnectionRefusedError):
            await client.request(b"?", timeout=5)
    async with udp.bind("127.0.0.1", 0) as silent, udp.connect(*silent.local_addr[:2]) as client:
        asking = asyncio.create_task(client.request(b"?", timeout=5))
        await until(lambda: silent.stats.received)
        client.close()
        with pytest.raises(ClosedError):
            await asking


async def test_a_host_can_be_asked_by_name() -> None:
    async with udp.bind("127.0.0.1", 0) as server, udp.bind("127.0.0.1", 0) as client:
        echoing = asyncio.create_task(echo(server))
        answer = await client.request(b"?", ("localhost", server.local_addr[1]), timeout=5, retries=0)
        assert answer == (b"?", server.local_addr)
        with pytest.raises(OSError, match=r"no-such-host\.invalid"):
            await client.request(b"?", ("no-such-host.invalid", 9))
        server.close()
        await echoing


async def test_answers_count_as_received() -> None:
    async with udp.bind("127.0.0.1", 0) as server, udp.connect(*server.local_addr[:2]) as client:
        echoing = asyncio.create_task(echo(server))
        for number in range(3):
            assert (await client.request(b"%d" % number, timeout=5))[0] == b"%d" % number
        assert (client.stats.received, client.stats.received_bytes, client.stats.sent) == (3, 3, 3)
        server.close()
        await echoing


async def test_many_questions_at_once_each_find_their_answer() -> None:
    async with udp.bind("127.0.0.1", 0) as server, udp.connect(*server.local_addr[:2]) as client:
        echoing = asyncio.create_task(echo(server))

        async def ask(number: int) -> None:
            own = b"%d" % number

            def matches(data: bytes, addr: Address) -> bool:
                return data == own

            assert (await client.request(own, match=matches, timeout=5))[0] == own

        await asyncio.gather(*map(ask, range(50)))
        server.close()
        await echoing


async def test_a_match_that_fails_is_the_askers_error_and_costs_no_datagram() -> None:
    async with udp.bind("127.0.0.1", 0) as server, udp.connect(*server.local_addr[:2]) as client:

        def fail(data: bytes, addr: Address) -> bool:
            raise ZeroDivisionError

        asking = asyncio.create_task(client.request(b"?", match=fail, timeout=5))
        _, addr = await server.recv()
        await server.send(b"answer", addr)
        with pytest.raises(ZeroDivisionError):
            await asking
        assert (await client.recv())[0] == b"answer"


async def test_a_cancelled_request_leaves_nothing_behind() -> None:
    async with udp.bind("127.0.0.1", 0) as server, udp.connect(*server.local_addr[:2]) as client:
        asking: asyncio.Task[Any] = asyncio.create_task(client.request(b"?", timeout=5))
        _, addr = await server.recv()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert client._requests == []
        await server.send(b"late", addr)
        assert (await client.recv())[0] == b"late"


async def test_the_wait_grows_from_one_try_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    wait, waits = asyncio.wait, []

    async def recording(*args: Any, timeout: float) -> Any:
        waits.append(timeout)
        return await wait(*args, timeout=timeout)

    monkeypatch.setattr(asyncio, "wait", recording)
    async with udp.bind("127.0.0.1", 0) as server, udp.connect(*server.local_addr[:2]) as client:
        with pytest.raises(TimeoutError):
            await client.request(b"?", timeout=0.001, retries=3, backoff=3)
    assert waits == pytest.approx([0.001, 0.003, 0.009, 0.027])

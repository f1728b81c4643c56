"""Questions and answers on the loopback's broadcast address."""

from __future__ import annotations

import asyncio
import logging
import sys

import pytest

from asyncnet import broadcast, udp
from asyncnet.addresses import Address

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="127.255.255.255 is a broadcast address on Linux only")

LOOPBACK = ["127.255.255.255"]


async def ask_all(data: bytes, port: int, **options: float) -> list[broadcast.Reply]:
    return [reply async for reply in broadcast.ask(data, port, to=LOOPBACK, **options)]  # type: ignore[arg-type]


async def test_every_responder_on_one_port_answers() -> None:
    async with (
        broadcast.answer(lambda data, addr: b"first " + data, 0) as first,
        broadcast.answer(lambda data, addr: b"second " + data, first.address[1]) as second,
    ):
        replies = await ask_all(b"Hi", first.address[1], limit=2)
        assert {reply.data for reply in replies} == {b"first Hi", b"second Hi"}
        assert all(reply.interface == "lo" for reply in replies)
        assert all(reply.addr[1] == first.address[1] for reply in replies)
        assert (first.stats.questions, first.stats.answers) == (1, 1)
        assert second.stats.answers == 1


async def test_a_handler_may_be_async_and_may_say_nothing() -> None:
    async def handler(data: bytes, addr: Address) -> bytes | None:
        await asyncio.sleep(0)
        return data if data == b"you" else None

    async with broadcast.answer(handler, 0) as answerer:
        port = answerer.address[1]
        assert [reply.data for reply in await ask_all(b"you", port, limit=1)] == [b"you"]
        assert await ask_all(b"somebody else", port, timeout=0.05) == []
        assert (answerer.stats.questions, answerer.stats.answers) == (2, 1)


async def test_a_handler_that_raises_is_logged_and_answering_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    def handler(data: bytes, addr: Address) -> bytes:
        return b"%d" % (1 // len(data))

    async def async_handler(data: bytes, addr: Address) -> bytes:
        return handler(data, addr)

    for which in (handler, async_handler):
        caplog.clear()
        async with broadcast.answer(which, 0) as answerer:
            port = answerer.address[1]
            with caplog.at_level(logging.ERROR):
                async with udp.connect("127.0.0.1", port) as peer:
                    await peer.send(b"x")
                    assert (await peer.recv())[0] == b"1"
            assert not caplog.records


async def test_a_handlers_error_names_the_asker(caplog: pytest.LogCaptureFixture) -> None:
    def handler(data: bytes, addr: Address) -> bytes:
        raise ZeroDivisionError(data)

    async with broadcast.answer(handler, 0) as answerer, udp.connect("127.0.0.1", answerer.address[1]) as peer:
        for _ in range(2):
            await peer.send(b"x")
        async with asyncio.timeout(5):
            while answerer.stats.failed < 2:
                await asyncio.sleep(0.001)
        assert f"127.0.0.1:{peer.local_addr[1]}" in caplog.text
        assert "ZeroDivisionError" in caplog.text


async def test_too_many_pending_handlers_drop_questions() -> None:
    gate = asyncio.Event()

    async def handler(data: bytes, addr: Address) -> bytes:
        await gate.wait()
        return data

    async with (
        broadcast.answer(handler, 0, max_pending=2) as answerer,
        udp.connect("127.0.0.1", answerer.address[1]) as peer,
    ):
        for number in range(5):
            await peer.send(b"%d" % number)
        async with asyncio.timeout(5):
            while answerer.stats.questions < 5:
                await asyncio.sleep(0.001)
            assert answerer.stats.dropped == 3
            gate.set()
            assert {(await peer.recv())[0] for _ in range(2)} == {b"0", b"1"}


async def test_closing_cancels_handlers_at_work() -> None:
    cancelled = asyncio.Event()

    async def handler(data: bytes, addr: Address) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return data

    async with broadcast.answer(handler, 0) as answerer, udp.connect("127.0.0.1", answerer.address[1]) as peer:
        await peer.send(b"x")
        async with asyncio.timeout(5):
            while not answerer.stats.questions:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        await answerer.aclose()
        assert cancelled.is_set()


async def test_stopping_early_closes_the_sockets() -> None:
    async with broadcast.answer(lambda data, addr: data, 0) as answerer:
        async for reply in broadcast.ask(b"Hi", answerer.address[1], to=LOOPBACK):
            assert reply.data == b"Hi"
            break
        for _ in range(3):
            await asyncio.sleep(0)


async def test_one_bad_address_beside_a_good_one_is_tolerated() -> None:
    async with broadcast.answer(lambda data, addr: data, 0) as answerer:
        ways = ["no-such-host.invalid", *LOOPBACK]
        replies = [reply async for reply in broadcast.ask(b"Hi", answerer.address[1], to=ways, limit=1)]
        assert [reply.data for reply in replies] == [b"Hi"]


async def test_a_question_that_cannot_be_sent_at_all_is_an_error() -> None:
    with pytest.raises(OSError, match=r"no-such-host\.invalid"):
        async for _ in broadcast.ask(b"Hi", 7788, to=["no-such-host.invalid"]):
            pass


async def test_wrong_parameters_are_named() -> None:
    with pytest.raises(ValueError, match="timeout"):
        await ask_all(b"x", 1, timeout=-1)
    with pytest.raises(ValueError, match="limit"):
        await ask_all(b"x", 1, limit=-1)
    with pytest.raises(ValueError, match="max_pending"):
        broadcast.answer(lambda data, addr: data, 0, max_pending=0)


async def test_a_port_of_an_exclusive_socket_is_one_line_with_the_way_out() -> None:
    async with udp.bind("0.0.0.0", 0) as exclusive:
        with pytest.raises(OSError, match="another program uses that port"):
            await broadcast.answer(lambda data, addr: data, exclusive.local_addr[1])

"""Questions and answers on the loopback's broadcast address."""

from __future__ import annotations

import asyncio
import logging
import random
import sys
from typing import Any

import pytest

from asyncnet import broadcast, udp
from asyncnet.addresses import Address, Interface, InterfaceAddress, InterfaceFlags, interfaces
from asyncnet.broadcast import medium
from asyncnet.broadcast.messages import Answer, Present, Question, decode, encode

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="127.255.255.255 is a broadcast address on Linux only")

LOOPBACK = ["127.255.255.255"]


async def ask_all(data: bytes, port: int, **options: Any) -> list[broadcast.Reply]:
    return [reply async for reply in broadcast.ask(data, port, to=LOOPBACK, **options)]


async def test_every_responder_on_one_port_answers() -> None:
    async with (
        broadcast.answer(lambda data, addr: b"first " + data, 0) as first,
        broadcast.answer(lambda data, addr: b"second " + data, first.address[1]) as second,
    ):
        replies = await ask_all(b"Hi", first.address[1], limit=2, repeat_at=[0.0])
        assert {reply.data for reply in replies} == {b"first Hi", b"second Hi"}
        assert all(reply.interface == "lo" for reply in replies)
        assert all(reply.addr[1] == first.address[1] for reply in replies)
        assert (first.stats.questions, first.stats.answers) == (1, 1)
        assert second.stats.answers == 1


async def test_a_question_is_asked_at_once_and_twice_more() -> None:
    loop = asyncio.get_running_loop()
    heard: list[float] = []
    async with broadcast.answer(lambda data, addr: heard.append(loop.time()), 0) as answerer:
        begin = loop.time()
        # In an envelope: repetitions that are heard together after a pause are told from copies.
        assert await ask_all(b"Hi", answerer.address[1], timeout=2, window=0.0) == []
    assert len(heard) == 3
    assert heard[1] - begin >= 0.25
    assert heard[2] - begin >= 1.0


async def test_answers_spread_over_the_window() -> None:
    loop = asyncio.get_running_loop()
    async with (
        broadcast.answer(lambda data, addr: data, 0, max_rate=None) as answerer,
        udp.bind("127.0.0.1", 0) as asker,
    ):
        begin = loop.time()
        for number in range(30):
            await asker.send(encode(Question(number.to_bytes(8), 0, 1.5, b"")), ("127.0.0.1", answerer.address[1]))
        times = []
        for _ in range(30):
            await asker.recv()
            times.append(loop.time() - begin)
    # By chance not so once in thirty million, even if everything stands still for half a second.
    assert times[-1] - times[0] > 0.25


async def test_a_handler_may_be_async_and_may_say_nothing() -> None:
    async def handler(data: bytes, addr: Address) -> bytes | None:
        await asyncio.sleep(0)
        return data if data == b"you" else None

    async with broadcast.answer(handler, 0) as answerer:
        port = answerer.address[1]
        assert [reply.data for reply in await ask_all(b"you", port, limit=1, repeat_at=[0.0])] == [b"you"]
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


async def test_a_flood_of_questions_with_forged_addresses_does_not_keep_others_waiting() -> None:
    """Of the answers that are delayed, those that are due first leave early: nobody's question is dropped."""
    async with (
        broadcast.answer(lambda data, addr: data, 0, max_pending=10, max_rate=None) as answerer,
        udp.bind("127.0.0.1", 0) as sender,
    ):
        port = answerer.address[1]
        flood = [encode(Question(number.to_bytes(8), 0, 60.0, b"who?")) for number in range(200)]
        await sender.send_batch([(packet, ("127.0.0.1", port)) for packet in flood])
        await until(lambda: answerer.stats.questions == 200)
        assert answerer.stats.answers == 190
        assert answerer.stats.dropped == 0
        replies = await ask_all(b"Hi", port, timeout=1, repeat_at=[0.0], window=0.05)
        assert [reply.data for reply in replies] == [b"Hi"]


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


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def test_with_a_window_answers_are_told_apart_by_their_programs() -> None:
    async with broadcast.answer(lambda data, addr: b"the same", 0, delay=0.02) as first:
        port = first.address[1]
        async with broadcast.answer(lambda data, addr: b"the same", port, delay=0.02):
            assert len(await ask_all(b"Hi", port, timeout=1.0)) == 1
            replies = await ask_all(b"Hi", port, timeout=1.0, window=0.05)
            assert len(replies) == len({reply.instance for reply in replies}) == 2
            assert {reply.data for reply in replies} == {b"the same"}


async def test_the_asker_names_the_window_and_repetitions_bring_no_duplicates() -> None:
    async with broadcast.answer(lambda data, addr: data, 0, delay=60.0) as answerer:
        asking = broadcast.ask(
            b"Hi", answerer.address[1], to=LOOPBACK, window=0.02, timeout=1.0, repeat_at=[0.0, 0.05, 0.1]
        )
        assert [reply.data async for reply in asking] == [b"Hi"]
        assert asking.stats.sent == 3
        assert (asking.stats.replies, asking.stats.duplicates) == (1, 2)
        assert answerer.stats.questions == answerer.stats.answers == 3
        assert [(report.sent, report.failed) for report in asking.ways] == [(3, 0)]


async def test_a_broadcast_waits_a_random_delay_and_a_question_to_one_host_does_not() -> None:
    async with broadcast.answer(lambda data, addr: data, 0, delay=1e6) as answerer:
        port = answerer.address[1]
        assert await ask_all(b"Hi", port, timeout=0.1) == []
        direct = [reply async for reply in broadcast.ask(b"Hi", port, to=["127.0.0.1"], limit=1)]
        assert [reply.data for reply in direct] == [b"Hi"]


async def test_late_answers_are_heard_until_the_end() -> None:
    async def handler(data: bytes, addr: Address) -> bytes:
        await asyncio.sleep(0.1)
        return b"late"

    async with broadcast.answer(handler, 0, delay=0.0) as answerer:
        assert [reply.data for reply in await ask_all(b"Hi", answerer.address[1], timeout=1.0, repeat_at=[0.0])] == [
            b"late"
        ]


async def test_the_own_question_is_left_out_unless_asked_for() -> None:
    async with broadcast.answer(lambda data, addr: b"answer", 0, delay=0.0) as answerer:
        port = answerer.address[1]
        for window in (None, 0.0):
            options = {"local_port": port, "timeout": 0.6, "window": window}
            asking = broadcast.ask(b"Hi", port, to=LOOPBACK, **options)  # type: ignore[arg-type]
            replies = [reply async for reply in asking]
            assert asking.stats.own >= 1
            assert not any(reply.own for reply in replies)
            with_own = await ask_all(b"Hi", port, own=True, **options)
            assert [reply.data for reply in with_own if reply.own] == [b"Hi"]


async def test_nothing_answers_an_answer() -> None:
    async with (
        broadcast.answer(lambda data, addr: data, 0) as answerer,
        udp.connect("127.0.0.1", answerer.address[1]) as peer,
        udp.bind("127.0.0.2", answerer.address[1], share_port=True) as same_port,
    ):
        await peer.send(encode(Answer(b"question", b"instance", b"an answer")))
        await same_port.send(b"plain, from the port that answers come from", ("127.0.0.1", answerer.address[1]))
        await until(lambda: answerer.stats.answers_heard == 2)
        assert (answerer.stats.questions, answerer.stats.answers) == (0, 0)


async def test_a_source_that_asks_too_often_is_limited() -> None:
    loop = asyncio.get_running_loop()
    async with (
        broadcast.answer(lambda data, addr: data, 0, max_rate=5) as answerer,
        udp.connect("127.0.0.1", answerer.address[1]) as peer,
        udp.connect("127.0.0.1", answerer.address[1], local_addr=("127.0.0.9", 0)) as other,
    ):
        begin = loop.time()
        for _ in range(50):
            await peer.send(b"x")
        await until(lambda: answerer.stats.questions == 50)
        stats = answerer.stats
        assert 10 <= stats.answers <= 10.01 + 5 * (loop.time() - begin)  # at once, and a second
        assert stats.limited == 50 - stats.answers
        await other.send(b"y")
        assert (await other.recv())[0] == b"y"


async def test_rubbish_is_counted_by_kind_and_answering_goes_on() -> None:
    good = encode(Question(b"question", 0, 0.0, b"Hi"))
    wrong_kind = encode(Present(b"instance", b"the node", bytes(8), 1, 0, 5.0, 1, "x", {}))
    choose = random.Random(2)
    async with (
        broadcast.answer(lambda data, addr: data, 0, max_rate=None) as answerer,
        udp.connect("127.0.0.1", answerer.address[1]) as peer,
    ):
        for data in (good[:4] + b"\x02" + good[5:], good[:5] + b"\x77" + good[6:], good[:17], wrong_kind):
            await peer.send(data)
        await until(lambda: answerer.stats.malformed)
        stats = answerer.stats
        await until(lambda: stats.unknown_kind == 2)
        assert (stats.unknown_version, stats.malformed, stats.questions) == (1, 1, 0)
        for _ in range(200):
            await peer.send(good[:5] + choose.randbytes(choose.randrange(40)))
        await peer.send(b"still there?")
        async with asyncio.timeout(5):
            while (await peer.recv())[0] != b"still there?":
                pass


async def test_rubbish_instead_of_an_answer_is_counted_by_kind() -> None:
    def handler(data: bytes, addr: Address) -> bytes:
        return b"x"

    async with broadcast.answer(handler, 0) as answerer, udp.bind("0.0.0.0", 0, share_port=True) as liar:
        port = liar.local_addr[1]

        async def lie() -> None:
            data, addr = await liar.recv()
            question = decode(data)
            assert isinstance(question, Question)
            good = encode(Answer(question.id, b"instance", b"true"))
            for reply in (b"plain", good[:4] + b"\x09" + good[5:], good[:5] + b"\x77" + good[6:], good[:20]):
                await liar.send(reply, addr)
            await liar.send(encode(Answer(b"another!", b"instance", b"false")), addr)
            await liar.send(encode(Answer(question.id, b"instance", b"x" * 100)), addr)
            await liar.send(good, addr)

        lying = asyncio.create_task(lie())
        asking = broadcast.ask(b"Hi", port, to=LOOPBACK, window=0.0, limit=1, max_size=50)
        assert [reply.data async for reply in asking] == [b"true"]
        await lying
        stats = asking.stats
        assert (stats.wrong_magic, stats.unknown_version, stats.unknown_kind, stats.malformed) == (1, 1, 1, 1)
        assert (stats.strangers, stats.oversized) == (1, 1)
        assert answerer.stats.questions == 0


async def test_an_answer_that_fits_no_datagram_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    async with (
        broadcast.answer(lambda data, addr: bytes(70_000), 0) as answerer,
        udp.connect("127.0.0.1", answerer.address[1]) as peer,
    ):
        await peer.send(b"x")
        await until(lambda: answerer.stats.oversized == 1)
        assert "70000 bytes" in caplog.text
        assert answerer.stats.answers == 0


async def test_an_interface_that_fails_beside_one_that_works_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    loopback = next(interface for interface in interfaces() if interface.loopback)
    flags = InterfaceFlags.UP | InterfaceFlags.LOOPBACK
    gone = Interface("gone0", 99_999, 1500, flags, (InterfaceAddress.of("192.0.2.1", 24),))
    monkeypatch.setattr(medium, "interfaces", lambda: [gone, loopback])
    async with broadcast.answer(lambda data, addr: data, 0) as answerer:
        asking = broadcast.ask(b"Hi", answerer.address[1], limit=1, repeat_at=[0.0])
        assert [reply.data async for reply in asking] == [b"Hi"]
        told = {report.way.interface: (report.sent, report.failed, bool(report.error)) for report in asking.ways}
        assert told == {"gone0": (0, 1, True), "lo": (1, 0, False)}
        monkeypatch.setattr(medium, "interfaces", lambda: [gone])
        with pytest.raises(OSError, match=r"cannot broadcast to 192\.0\.2\.255"):
            await anext(aiter(broadcast.ask(b"Hi", answerer.address[1])))
        monkeypatch.setattr(medium, "interfaces", lambda: [])
        with pytest.raises(OSError, match="no interface of this host is up"):
            await anext(aiter(broadcast.ask(b"Hi", answerer.address[1])))


@pytest.mark.parametrize("without", ["recvmmsg", "sendmmsg", "recvmmsg,sendmmsg"])
async def test_without_calls_for_many_datagrams_it_works_too(monkeypatch: pytest.MonkeyPatch, without: str) -> None:
    monkeypatch.setenv("ASYNCNET_UDP_DISABLE", without)
    async with broadcast.answer(lambda data, addr: data, 0) as first:
        port = first.address[1]
        async with broadcast.answer(lambda data, addr: data, port):
            replies = await ask_all(b"Hi", port, window=0.1, limit=2)
            assert [(reply.data, reply.interface) for reply in replies] == [(b"Hi", "lo")] * 2


async def test_where_the_system_tells_no_interfaces_sockets_are_bound_to_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("asyncnet.broadcast.channel.HAVE_ROUTES", False)
    monkeypatch.setattr("asyncnet.broadcast.medium.HAVE_ROUTES", False)
    loopback = [interface for interface in interfaces() if interface.loopback]
    monkeypatch.setattr(medium, "interfaces", lambda: loopback)
    async with broadcast.answer(lambda data, addr: data, 0) as answerer:
        for window in (None, 0.1):
            replies = [reply async for reply in broadcast.ask(b"Hi", answerer.address[1], limit=1, window=window)]
            assert [(reply.data, reply.interface) for reply in replies] == [(b"Hi", "lo")]

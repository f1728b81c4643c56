"""Announcing and browsing on the loopback's broadcast address."""

from __future__ import annotations

import asyncio
import random
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asyncnet import broadcast, udp
from asyncnet.broadcast.messages import NO_ID, Goodbye, Present, Who, decode, encode

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="127.255.255.255 is a broadcast address on Linux only")

LOOPBACK = ["127.255.255.255"]
KEY = b"a shared secret"
FAST: dict[str, Any] = {"interval": 0.1, "expiry": 5.0}


@pytest.fixture
def port() -> int:
    """A port for discovery that no other test uses now."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", 0))
        return int(sock.getsockname()[1])


async def event_of(browser: broadcast.Browser, kind: str, reason: str | None = None) -> broadcast.Event:
    """The next event, which must be of this kind."""
    async with asyncio.timeout(5):
        event = await anext(browser)
    assert (event.kind, event.reason if reason is not None else None) == (kind, reason), event
    return event


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def browsing(name: str, port: int, **options: Any) -> AsyncIterator[broadcast.Browser]:
    async with broadcast.browse(name, discovery_port=port, to=LOOPBACK, **options) as browser:
        yield browser


def announcing(name: str, port: int, **options: Any) -> Any:
    return broadcast.announce(name, 631, discovery_port=port, to=LOOPBACK, **options)


async def test_joined_changed_and_left(port: int) -> None:
    async with browsing("printer", port) as browser:
        async with announcing("printer", port, info={"room": "12"}) as announcer:
            joined = await event_of(browser, "joined")
            assert joined.peer.addr == ("127.0.0.1", 631)
            assert (joined.peer.interface, joined.peer.info) == ("lo", {"room": "12"})
            assert (joined.peer.instance, joined.peer.node) == (announcer.instance, announcer.node)
            assert browser.peers == [joined.peer]
            announcer.update({"room": "13"})
            changed = await event_of(browser, "changed", "info")
            assert (changed.peer.info, changed.previous) == ({"room": "13"}, joined.peer)
        await event_of(browser, "left", "goodbye")
        assert browser.peers == []


async def test_a_newcomer_is_told_at_once(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncnet.broadcast.announcing._REPEAT_AT", (0.01, 0.02))
    async with announcing("printer", port, interval=60.0) as announcer:
        await until(lambda: announcer.stats.announcements == 3)  # those of the beginning are over
        async with browsing("printer", port) as browser:
            await event_of(browser, "joined")
        assert announcer.stats.announcements == 3
        assert announcer.stats.answers >= 1


async def test_only_the_service_that_is_browsed_for_and_every_one_for_a_star(port: int) -> None:
    async with announcing("printer", port), announcing("scanner", port):
        async with browsing("scanner", port) as browser, browsing("*", port) as everything:
            assert (await event_of(browser, "joined")).peer.name == "scanner"
            names = {(await event_of(everything, "joined")).peer.name for _ in range(2)}
            assert names == {"printer", "scanner"}
            await until(lambda: browser.stats.other_services)
            assert len(browser.peers) == 1


async def test_an_announcer_that_is_silent_has_left_within_its_expiry(port: int) -> None:
    async with browsing("printer", port) as browser, udp.bind("127.0.0.1", 0, broadcast=True) as dead:
        loop = asyncio.get_running_loop()
        now = time.time_ns() // 1000
        packet = Present(b"instance", b"the node", NO_ID, now, 0, 2.0, 631, "printer", {})
        begin = loop.time()
        await dead.send(encode(packet), (LOOPBACK[0], port))
        await event_of(browser, "joined")
        await event_of(browser, "left", "expired")
        assert 1.9 < loop.time() - begin < 3.0
        assert browser.stats.questions >= 2  # it was asked for before it was given up


async def test_a_restart_is_one_event(port: int) -> None:
    async with browsing("printer", port) as browser:
        first = await announcing("printer", port)
        joined = await event_of(browser, "joined")
        first._medium.close()  # it dies without a word
        first._stop()
        async with announcing("printer", port) as second:
            event = await event_of(browser, "changed", "restarted")
            assert (event.peer.instance, event.previous) == (second.instance, joined.peer)
            assert event.peer.node == joined.peer.node


async def test_two_programs_of_one_name_and_port_are_two_peers(port: int) -> None:
    async with announcing("printer", port, node="left"), announcing("printer", port, node="right"):
        async with browsing("printer", port) as browser:
            events = [await event_of(browser, "joined") for _ in range(2)]
            assert len({event.peer.instance for event in events}) == 2


async def test_a_shared_key_keeps_strangers_out_and_each_is_counted(port: int) -> None:
    async with (
        announcing("printer", port, key=KEY, **FAST) as friend,
        announcing("printer", port, key=b"another secret", **FAST) as stranger,
        announcing("printer", port, **FAST) as naive,
        browsing("printer", port, key=KEY) as browser,
    ):
        assert (await event_of(browser, "joined")).peer.instance == friend.instance
        await until(lambda: browser.stats.unsigned and browser.stats.wrong_hmac)
        assert [peer.instance for peer in browser.peers] == [friend.instance]
        await until(lambda: stranger.stats.wrong_hmac and naive.stats.announcements)
        assert stranger.stats.answers == 0


async def test_what_is_signed_and_old_is_a_replay(port: int) -> None:
    async with (
        browsing("printer", port, key=KEY) as browser,
        announcing("printer", port, key=KEY) as announcer,
        udp.bind("127.0.0.1", 0, broadcast=True) as attacker,
    ):
        await event_of(browser, "joined")
        old = time.time_ns() // 1000 - 60_000_000
        recorded = Present(b"instance", b"the node", NO_ID, old, 0, 5.0, 631, "printer", {})
        await attacker.send(encode(recorded, KEY), (LOOPBACK[0], port))
        await attacker.send(encode(Who(b"question", "printer", old, 0.0), KEY), (LOOPBACK[0], port))
        await until(lambda: browser.roster_stats.replayed and announcer.stats.replayed)
        last_words = Goodbye(bytes.fromhex(announcer.instance), old, "printer")
        await attacker.send(encode(last_words, KEY), (LOOPBACK[0], port))
        await until(lambda: browser.roster_stats.replayed == 2)
        assert [peer.instance for peer in browser.peers] == [announcer.instance]


async def test_rubbish_is_counted_by_kind_and_ends_nothing(port: int) -> None:
    choose = random.Random(1)
    good = encode(Present(b"instance", b"the node", NO_ID, 1, 0, 5.0, 631, "other", {"k": "v"}))
    async with (
        browsing("printer", port) as browser,
        announcing("printer", port, interval=60.0) as announcer,
        udp.bind("127.0.0.1", 0, broadcast=True) as attacker,
    ):
        await event_of(browser, "joined")
        rubbish = [b"", b"Hi", good[:4] + b"\x09" + good[5:], good[:5] + b"\x63" + good[6:], good[:-1]]
        for _ in range(300):
            damaged = bytearray(good)
            damaged[choose.randrange(len(good))] ^= choose.randrange(1, 256)
            rubbish += [choose.randbytes(choose.randrange(100)), bytes(damaged)]
        for data in rubbish:
            await attacker.send(data, (LOOPBACK[0], port))
            await asyncio.sleep(0)  # the buffers of the two that hear it have no room for all of it
        for stats in (browser.stats, announcer.stats):
            await until(lambda: stats.wrong_magic >= 300)  # noqa: B023
            assert min(stats.unknown_version, stats.unknown_kind, stats.malformed) >= 1
        announcer.update({"still": "here"})
        while (await anext(browser)).peer.info != {"still": "here"}:
            pass


async def test_questions_by_the_hundred_are_answered_a_few_times(port: int) -> None:
    loop = asyncio.get_running_loop()
    async with announcing("printer", port) as announcer, udp.bind("127.0.0.1", 0, broadcast=True) as asker:
        begin = loop.time()
        for number in range(100):
            question = Who(number.to_bytes(8, "big"), "printer", time.time_ns() // 1000, 0.0)
            await asker.send(encode(question), (LOOPBACK[0], port))
        await until(lambda: announcer.stats.questions == 100)
        stats = announcer.stats
        assert 10 <= stats.answers <= 10.01 + 5 * (loop.time() - begin)  # at once, and a second
        assert stats.limited == 100 - stats.answers
        data, _ = await asker.recv()
        packet = decode(data)
        assert isinstance(packet, Present)
        assert packet.nonce == bytes(8)


async def test_events_that_nobody_takes_are_bounded_and_the_table_is_right(port: int) -> None:
    async with browsing("printer", port, max_events=3) as browser, announcing("printer", port) as announcer:
        for number in range(10):
            announcer.update({"n": str(number)})
            await until(lambda: browser.peers and browser.peers[0].info == {"n": str(number)})  # noqa: B023
        assert browser.stats.events_dropped >= 7
        assert (await anext(browser)).peer.info == {"n": "7"}


async def test_iterating_without_entering_and_leaving_early_closes(port: int) -> None:
    async with announcing("printer", port):
        async for event in broadcast.browse("printer", discovery_port=port, to=LOOPBACK):
            assert event.kind is broadcast.EventKind.JOINED
            break
        for _ in range(3):
            await asyncio.sleep(0)


async def test_closing_ends_the_iteration_and_cancelling_leaves_nothing(port: int) -> None:
    async with browsing("printer", port) as browser:
        waiting = asyncio.create_task(anext(browser, None))
        await asyncio.sleep(0)
        browser.close()
        assert await waiting is None
    announcer = await announcing("printer", port)
    serving = asyncio.create_task(announcer.serve_forever())
    await asyncio.sleep(0)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving


async def test_a_port_of_an_exclusive_socket_is_one_line_with_the_way_out(port: int) -> None:
    async with udp.bind("0.0.0.0", port):
        for opening in (announcing("printer", port), broadcast.browse("printer", discovery_port=port, to=LOOPBACK)):
            with pytest.raises(OSError, match="another program uses that port") as raised:
                await opening
            assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"name": ""}, "name"),
        ({"port": 0}, "port"),
        ({"interval": 0}, "interval"),
        ({"expiry": 0.5}, "expiry"),
        ({"key": b"short"}, "key"),
        ({"group": "10.0.0.1"}, "group"),
        ({"info": {"k": "v" * 2000}}, "info"),
        ({"discovery_port": 70_000}, "discovery_port"),
    ],
)
def test_wrong_parameters_are_named(options: dict[str, Any], word: str) -> None:
    given: dict[str, Any] = {"name": "printer", "port": 631} | options
    with pytest.raises(ValueError, match=word):
        broadcast.announce(**given)
    if word in ("name", "key", "group", "discovery_port"):
        del given["port"]
        with pytest.raises(ValueError, match=word):
            broadcast.browse(**given)

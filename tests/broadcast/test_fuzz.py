"""Whatever arrives, no loop ends, nothing is raised out of one, and everything is counted."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncnet import broadcast
from asyncnet.broadcast.channel import Heard, Route, route_by
from asyncnet.broadcast.messages import MAGIC, VERSION, encode
from asyncnet.loops import new_event_loop
from tests.broadcast.test_messages import KEY, packets

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="127.255.255.255 is a broadcast address on Linux only")

LOOPBACK = ["127.255.255.255"]
FAULTS = ("wrong_magic", "unknown_version", "unknown_kind", "malformed", "unsigned", "wrong_hmac")

head = st.sampled_from([b"", MAGIC, MAGIC + bytes([VERSION])])
datagrams = st.one_of(
    st.builds(bytes.__add__, head, st.binary(max_size=120)),
    st.builds(encode, packets, st.sampled_from([None, KEY])),
    st.builds(lambda packet, cut: encode(packet)[:cut], packets, st.integers(0, 100)),
)
routes = st.sampled_from(
    [Route(), Route(direct=False), route_by(1, "127.0.0.1", socket.AF_INET, interface="lo", direct=False)]
)
batches = st.lists(st.tuples(datagrams, st.just(("127.0.0.1", 9)), routes), min_size=1, max_size=20)


def with_open(opening: Callable[[], Any], check: Callable[[Any], Any]) -> None:
    """Open something on a loop, run the check with it, and see that no callback of the loop has raised."""

    async def main() -> None:
        problems: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        async with opening() as opened:
            check(opened)
            await asyncio.sleep(0)
        assert not problems

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main())


def faults(stats: Any) -> int:
    return sum(getattr(stats, name, 0) for name in FAULTS)


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", 0))
        return int(sock.getsockname()[1])


def test_an_answerer_counts_everything() -> None:
    def check(answerer: broadcast.Answerer) -> None:
        @settings(deadline=None, max_examples=60)
        @given(batches)
        def fuzz(batch: list[Heard]) -> None:
            before = attrs.asdict(answerer.stats)
            answerer._on_batch(batch)
            stats = answerer.stats
            counted = stats.questions + stats.copies + stats.answers_heard + faults(stats)
            earlier = before["questions"] + before["copies"] + before["answers_heard"]
            earlier += sum(before.get(name, 0) for name in FAULTS)
            assert counted - earlier == len(batch)

        fuzz()

    with_open(lambda: broadcast.answer(lambda data, addr: None, 0, max_rate=None), check)


@pytest.mark.parametrize("key", [None, KEY])
def test_a_browser_and_an_announcer_take_everything(key: bytes | None) -> None:
    options: dict[str, Any] = {"key": key, "to": LOOPBACK, "discovery_port": free_port()}

    def told(opened: Any) -> int:
        """Every datagram has one place where it is counted."""
        stats = opened.stats
        if isinstance(opened, broadcast.Announcer):
            return int(stats.questions + stats.others + faults(stats))
        about = opened.roster_stats
        heard = about.announcements + about.duplicates + about.stale + about.replayed + about.refused
        return int(heard + about.goodbyes + stats.other_services + stats.others + faults(stats))

    def check(opened: Any) -> None:
        @settings(deadline=None, max_examples=60)
        @given(batches)
        def fuzz(batch: list[Heard]) -> None:
            before = told(opened)
            opened._on_batch(batch)
            assert told(opened) - before == len(batch)

        fuzz()
        opened._on_batch([(b"rubbish", ("127.0.0.1", 9), Route())])
        assert opened.stats.wrong_magic > 0

    with_open(lambda: broadcast.browse("*", max_peers=16, **options), check)
    with_open(lambda: broadcast.announce("a", 1, **options), check)


@pytest.mark.parametrize("window", [None, 0.0])
def test_an_asker_takes_everything(window: float | None) -> None:
    asking = broadcast.ask(b"Hi", 9, window=window, max_size=50)

    @settings(deadline=None, max_examples=60)
    @given(batches)
    def fuzz(batch: list[Heard]) -> None:
        before = attrs.asdict(asking.stats)
        asking._on_batch(batch)
        after = attrs.asdict(asking.stats)
        assert after["received"] - before["received"] == len(batch)
        assert sum(after.values()) - sum(before.values()) == 2 * len(batch)  # received, and one thing more

    fuzz()

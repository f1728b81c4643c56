"""Questions on real broadcast domains: several hosts and cards, cards that fail, come and change."""

from __future__ import annotations

import json
from typing import Any

from tests.netns.hosts import Host
from tests.netns.lan import Lan

ASK = """
import asyncio, json, sys
import asyncnet
from asyncnet import broadcast

async def main():
    options = json.loads(sys.argv[1])
    asking = broadcast.ask(b"who", 7788, **options)
    begin = asyncio.get_running_loop().time()
    async for reply in asking:
        took = asyncio.get_running_loop().time() - begin
        print(json.dumps({"data": reply.data.decode(), "host": reply.addr[0], "interface": reply.interface,
                          "took": took}), flush=True)
    print(json.dumps({"sent": asking.stats.sent, "failures": asking.stats.send_failures,
                      "duplicates": asking.stats.duplicates, "malformed": asking.stats.malformed,
                      "ways": [[w.way.interface, w.way.target, w.sent, w.error] for w in asking.ways]}))

asyncnet.run(main())
"""

MANY = """
import asyncio, sys
import asyncnet
from asyncnet import broadcast

async def main():
    count = int(sys.argv[1])
    def handler(number):
        return lambda data, addr: b"%d" % number
    for number in range(count):
        await broadcast.answer(handler(number), 7788)
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncnet.run(main())
"""


def ask(host: Host, **options: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Ask on a host; return the answers, and what the asker has counted."""
    *replies, counts = map(json.loads, host.python(ASK, json.dumps(options)).splitlines())
    return replies, counts


def found(replies: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    return {(reply["data"], reply["host"], reply["interface"]) for reply in replies}


def answerers(network: Lan, **hosts: Host) -> None:
    for program in [network.asyncnet(host, "answer", "7788", name, ready=False) for name, host in hosts.items()]:
        program.until_ready()


def test_three_hosts_on_one_segment_and_one_on_the_other_answer_a_host_with_two_cards(network: Lan) -> None:
    network.segment("one")
    network.segment("two")
    a, b, c = (network.host("one", f"10.1.0.{number}/24") for number in (1, 2, 3))
    d = network.host("one", "10.1.0.4/24")
    network.plug(d, "card2", "two", "10.2.0.4/24")
    network.plug(d, "broken", "two", "10.3.0.4/24", up=False)
    network.segment("three")
    network.plug(d, "bare", "three")
    e = network.host("two", "10.2.0.5/24")
    d.run("ip", "route", "add", "default", "via", "10.1.0.1")
    answerers(network, a=a, b=b, c=c, e=e)
    for window in (None, 0.1):
        replies, counts = ask(d, limit=4, timeout=5, window=window)
        assert found(replies) == {
            ("a", "10.1.0.1", "card1"),
            ("b", "10.1.0.2", "card1"),
            ("c", "10.1.0.3", "card1"),
            ("e", "10.2.0.5", "card2"),
        }
    assert {tuple(way[:2]) for way in counts["ways"]} >= {
        ("card1", "10.1.0.255"),
        ("card1", "255.255.255.255"),
        ("card2", "10.2.0.255"),
        ("card2", "255.255.255.255"),
    }
    assert not {"broken", "bare"} & {way[0] for way in counts["ways"]}


def test_hosts_of_another_subnet_hear_the_limited_broadcast_of_every_card(network: Lan) -> None:
    """A directed broadcast is none for them: only 255.255.255.255 reaches them, by each card."""
    asker = network.host()
    for number in (1, 2):
        network.segment(f"segment{number}")
        network.plug(asker, f"card{number}", f"segment{number}", f"10.{number}.0.1/24")
        asker.run("ip", "route", "add", f"10.9.{number}.0/24", "dev", f"card{number}")
        other = network.host(f"segment{number}", f"10.9.{number}.2/24")
        other.run("ip", "route", "add", f"10.{number}.0.1/32", "dev", "card1")
        answerers(network, **{f"other{number}": other})
    replies, _ = ask(asker, limit=2, timeout=5)
    assert found(replies) == {("other1", "10.9.1.2", "card1"), ("other2", "10.9.2.2", "card2")}


def test_an_answer_leaves_by_the_card_that_the_question_came_by(network: Lan) -> None:
    network.segment("one")
    network.segment("two")
    asker = network.host("one", "10.1.0.1/24")
    responder = network.host("one", "10.1.0.2/24")
    network.plug(responder, "card2", "two", "10.1.0.3/24")  # the same subnet on another segment: the routes mislead
    responder.run("ip", "route", "replace", "10.1.0.1/32", "dev", "card2")
    responder.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.card1.rp_filter=0")
    answerers(network, here=responder)
    replies, _ = ask(asker, limit=1, timeout=5)
    assert found(replies) == {("here", "10.1.0.2", "card1")}


def test_a_card_that_appears_and_one_that_is_renumbered_while_a_question_is_asked(network: Lan) -> None:
    network.segment("one")
    network.segment("two")
    asker = network.host("one", "10.1.0.1/24")
    near, far = network.host("one", "10.1.0.2/24"), network.host("two", "10.2.0.2/24")
    answerers(network, near=near, far=far)
    program = network.start(
        asker, "-c", ASK, json.dumps({"timeout": 10, "limit": 3, "repeat_at": [number / 4 for number in range(40)]})
    )
    program.event(5, data="near", host="10.1.0.2")
    network.plug(asker, "card2", "two", "10.2.0.1/24")
    program.event(5, data="far", interface="card2")
    near.run("ip", "address", "add", "10.5.0.2/24", "broadcast", "+", "dev", "card1")
    near.run("ip", "address", "del", "10.1.0.2/24", "dev", "card1")
    asker.run("ip", "address", "add", "10.5.0.1/24", "broadcast", "+", "dev", "card1")
    asker.run("ip", "address", "del", "10.1.0.1/24", "dev", "card1")
    program.event(5, data="near", host="10.5.0.2")


def test_multicast_and_every_ipv6_host_on_the_link(network: Lan) -> None:
    network.segment("one")
    hosts = [network.host("one") for _ in range(2)]
    for number, each in enumerate(hosts, 1):
        each.run("ip", "address", "add", f"fe80::{number}/64", "dev", "card1", "nodad")
    network.asyncnet(hosts[1], "answer", "7788", "six", "--ipv6", "--group", "239.255.77.88")
    replies, _ = ask(hosts[0], limit=1, timeout=5, ipv6=True)
    assert found(replies) == {("six", "fe80::2%card1", "card1")} or found(replies) == {("six", "fe80::2", "card1")}
    for number, each in enumerate(hosts, 1):  # the address comes while the answerer runs; it must join then
        each.run("ip", "address", "add", f"10.1.0.{number}/32", "dev", "card1")
        each.run("ip", "route", "add", "10.1.0.0/24", "dev", "card1")
    replies, counts = ask(
        hosts[0], limit=1, timeout=5, group="239.255.77.88", repeat_at=[number / 4 for number in range(16)]
    )
    assert found(replies) == {("six", "10.1.0.2", "card1")}
    assert counts["ways"][0][1] == "239.255.77.88"


def test_a_hundred_instances_are_found_within_two_seconds_by_three_probes(network: Lan) -> None:
    network.segment("one")
    asker = network.host("one", "10.1.0.1/24")
    hosts = [network.host("one", f"10.1.0.{number}/24") for number in (2, 3)]
    for program in [network.start(host, "-c", MANY, "50") for host in hosts]:
        assert program.line(15) == "ready"
    replies, counts = ask(asker, limit=100, timeout=5, window=0.25)
    assert len({(reply["host"], reply["data"]) for reply in replies}) == 100
    assert max(reply["took"] for reply in replies) < 2
    assert counts["sent"] <= 6

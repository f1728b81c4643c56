"""Presence on real broadcast domains: cuts, cards that come, go and change, loss, floods."""

from __future__ import annotations

import json
import sys
import time
from functools import partial

import pytest

from tests.attempts import first_good
from tests.netns.hosts import Host
from tests.netns.lan import Lan, Program

EXPIRY = 1.5
"""Seconds; announced more often than by default, so that the tests take no longer than they must."""

STORM = """
import os, random, socket, struct, sys, time
from asyncnet.udp.batch import Arena
from asyncnet.broadcast.messages import ID_SIZE, NO_ID, Goodbye, Present, Who, encode

target, seconds, port, rate = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), 20_000
sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
choose = random.Random(7)

def forged():
    source = socket.inet_aton(f"10.1.{choose.randrange(256)}.{choose.randrange(1, 255)}")
    now = time.time_ns() // 1000
    kind = choose.randrange(10)
    if kind == 0:
        payload = choose.randbytes(choose.randrange(200))
    elif kind == 1:
        payload = encode(Who(choose.randbytes(8), "printer", now, 0.0))
    elif kind == 2:
        payload = encode(Goodbye(choose.randbytes(8), now, "printer"))
    else:
        present = Present(choose.randbytes(8), choose.randbytes(8), NO_ID, now, 0, 3600.0, 631, "printer",
                          {"note": "x" * 400})
        payload = encode(present)
    udp = struct.pack("!HHHH", 9, port, 8 + len(payload), 0) + payload
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, source, socket.inet_aton(target))
    return ip + udp

packets = [forged() for _ in range(20_000)]
batches = [packets[place:place + 64] for place in range(0, len(packets) - 64, 64)]
arena = Arena()
codec = arena.codec(socket.AF_INET)
names = codec.encode_all([(target, 0)] * 64, None)
os.nice(-15)  # a storm does not wait for its turn
begin, sent = time.monotonic(), 0
print("storm", flush=True)
while (now := time.monotonic() - begin) < seconds:
    while sent < now * rate:
        try:
            sent += arena.send(sock.fileno(), batches[sent // 64 % len(batches)], names, codec.size)
        except OSError:
            time.sleep(0.0005)
    time.sleep(0.0005)
print(sent / (time.monotonic() - begin), flush=True)
"""

BROWSE_IN_STORM = """
import asyncio, json, sys
from pathlib import Path
import asyncnet
from asyncnet import broadcast

def resident():
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]) / 1024

async def main():
    wanted, seconds = set(json.loads(sys.argv[1])), float(sys.argv[2])
    print("ready", flush=True)
    sys.stdin.readline()
    loop = asyncio.get_running_loop()
    begin, real = loop.time(), {}
    async with broadcast.browse("printer", max_peers=1024) as browser:
        first = 0.0
        async def watch():
            async for event in browser:
                if event.peer.info.get("real") in wanted:
                    real.setdefault(event.peer.info["real"], loop.time() - begin)
        task = asyncio.create_task(watch())
        await asyncio.sleep(seconds / 3)
        first = resident()
        await asyncio.sleep(seconds * 2 / 3)
        task.cancel()
        here = {peer.info.get("real") for peer in browser.peers}
        print(json.dumps({"real": real, "still": sorted(wanted & here), "peers": len(browser.peers),
                          "grown": resident() - first, "received": browser.stats.received,
                          "malformed": browser.stats.malformed, "wrong_magic": browser.stats.wrong_magic,
                          "refused": browser.roster_stats.refused}))

asyncnet.run(main())
"""


def announce(network: Lan, host: Host, expiry: float = EXPIRY, **info: str) -> Program:
    """Announce a printer on a host."""
    words = [word for key, value in info.items() for word in ("--info", f"{key}={value}")]
    return network.asyncnet(host, "announce", "printer", "631", "--interval", "0.3", "--expiry", str(expiry), *words)


def browse(network: Lan, host: Host, *words: str) -> Program:
    return network.asyncnet(host, "browse", "printer", "--json", *words, ready=False)


@pytest.mark.parametrize("words", [("--ipv6",), ("--group", "239.255.77.88"), ("--group", "ff02::7788")])
def test_presence_over_ipv6_and_in_a_group(network: Lan, words: tuple[str, ...]) -> None:
    """None of the hosts has an IPv4 broadcast address: there is no other way."""
    network.segment("one")
    hosts = [network.host("one") for _ in range(2)]
    for number, host in enumerate(hosts, 1):
        host.run("ip", "address", "add", f"fe80::{number}/64", "dev", "card1", "nodad")
        host.run("ip", "address", "add", f"10.1.0.{number}/32", "dev", "card1")
        host.run("ip", "route", "add", "10.1.0.0/24", "dev", "card1")
    browser = browse(network, hosts[1], *words)
    announcer = network.asyncnet(hosts[0], "announce", "printer", "631", "--interval", "0.3", *words)
    event = browser.event(5, event="joined")
    assert event["host"].partition("%")[0] == ("10.1.0.1" if words[-1].startswith("239") else "fe80::1")
    announcer.stop()
    assert browser.event(5, event="left")["reason"] == "goodbye"


def test_restart_goodbye_and_what_goes_with_a_name(network: Lan) -> None:
    network.segment("one")
    here, there = network.host("one", "10.1.0.1/24"), network.host("one", "10.1.0.2/24")
    browser = browse(network, here)
    announcer = announce(network, there, 30.0, room="12")  # it is still believed in when it comes again
    joined = browser.event(5, event="joined", host="10.1.0.2", port=631, info={"room": "12"})
    assert joined["locations"] == [{"host": "10.1.0.2", "interface": "card1"}]
    announcer.process.kill()
    announce(network, there, 30.0, room="13").stop()
    changed = browser.event(5, event="changed", reason="restarted", info={"room": "13"})
    assert changed["node"] == joined["node"]
    assert changed["instance"] != joined["instance"]
    browser.event(1, event="left", reason="goodbye", instance=changed["instance"])


def test_who_is_cut_off_has_left_within_the_expiry_and_joins_again_within_two_seconds(network: Lan) -> None:
    network.segment("one")
    network.segment("two")
    cable = network.join("one", "two")
    here = network.host("one", "10.1.0.1/24")
    there = network.host()
    port = network.plug(there, "card1", "two", "10.1.0.2/24")
    browser = browse(network, here)
    announce(network, there)
    browser.event(5, event="joined")

    def cut_off(where: str) -> float:
        """Return how long it is believed in."""
        network.switch.run("ip", "link", "set", where, "down")
        cut = time.monotonic()
        browser.event(EXPIRY + 2, event="left", reason="expired")
        took = time.monotonic() - cut
        network.switch.run("ip", "link", "set", where, "up")
        browser.event(2, event="joined", host="10.1.0.2")
        return took

    most = EXPIRY + 0.3  # the test itself takes some of it
    for where in (port, cable):  # the host's own cable, which it notices, and one in the middle, which nobody does
        assert first_good(partial(cut_off, where), lambda took: took <= most) <= most


def test_cards_that_come_go_and_are_renumbered_are_noticed_on_both_sides(network: Lan) -> None:
    network.segment("one")
    network.segment("two")
    here, there = network.host(), network.host()  # neither has a card
    browser = browse(network, here)
    # So seldom that nothing is heard but what is said because of a change.
    network.asyncnet(there, "announce", "printer", "631", "--interval", "100", "--expiry", "500")
    network.plug(here, "card1", "one", "10.1.0.1/24")
    network.plug(there, "card1", "one", "10.1.0.2/24")
    browser.event(3, event="joined", host="10.1.0.2")
    there.run("ip", "address", "flush", "dev", "card1", "scope", "global")
    there.run("ip", "address", "add", "10.1.0.77/24", "dev", "card1")
    only = [{"host": "10.1.0.77", "interface": "card1"}]
    browser.event(3, event="changed", reason="addresses", host="10.1.0.77", locations=only)
    there.run("ip", "address", "add", "10.1.0.78/24", "dev", "card1")
    both = [*only, {"host": "10.1.0.78", "interface": "card1"}]
    browser.event(3, event="changed", reason="addresses", host="10.1.0.77", locations=both)
    network.plug(here, "card2", "two", "10.2.0.1/24")
    network.plug(there, "card2", "two", "10.2.0.2/24")
    deadline = time.monotonic() + 4
    while "card2" not in str(browser.event(deadline - time.monotonic(), event="changed")["locations"]):
        pass
    here.run("ip", "link", "delete", "card1")
    browser.event(3, event="changed", host="10.2.0.2", locations=[{"host": "10.2.0.2", "interface": "card2"}])


@pytest.mark.long
def test_a_loss_of_30_percent_in_one_direction_hides_nobody(network: Lan) -> None:
    network.segment("one")
    here = network.host("one", "10.1.0.1/24")
    browser = browse(network, here)
    for number in range(2, 5):
        there = network.host()
        network.plug_lossy(there, "card1", "one", f"10.1.0.{number}/24", percent=30)
        announce(network, there, real=str(number))
        network.asyncnet(there, "answer", "7788", f"host {number}")
    joined = {browser.event(5, event="joined")["host"] for _ in range(3)}
    assert joined == {"10.1.0.2", "10.1.0.3", "10.1.0.4"}
    for _ in range(5):
        out = here.run(sys.executable, "-m", "asyncnet", "broadcast", "ask", "7788", "Hi", "--limit", "3")
        assert {f"host {number}" in out for number in range(2, 5)} == {True}
    assert browser.line(5) is None  # and none of them seems to leave


@pytest.mark.long
def test_a_storm_of_forged_packets_leaves_memory_bounded_and_real_peers_are_found(network: Lan) -> None:
    network.segment("one")
    here, attacker = network.host("one", "10.1.0.1/16"), network.host("one", "10.1.0.2/16")
    names = ["3", "4"]
    for name in names:
        announce(network, network.host("one", f"10.1.0.{name}/16"), real=name)
    program = network.start(here, "-c", BROWSE_IN_STORM, json.dumps(names), "5", stdin=True)
    assert program.line(10) == "ready"
    storm = network.start(attacker, "-c", STORM, "10.1.255.255", "7", "17788")
    assert storm.line(10) == "storm"
    assert program.process.stdin is not None
    program.process.stdin.write(b"go\n")
    program.process.stdin.flush()
    result = json.loads(program.line(15) or "{}")
    assert set(result["real"]) == set(names) == set(result["still"]), result
    assert max(result["real"].values()) < 2, result
    assert result["peers"] <= 1024
    assert result["grown"] < 16, result
    assert result["refused"] > 1000
    assert result["wrong_magic"] > 0
    rate = float(storm.line(10) or 0)
    assert rate > 19_000, f"the storm itself had only {rate:.0f} packets a second"

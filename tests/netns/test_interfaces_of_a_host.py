"""What `interfaces` and ``asyncnet info`` tell of a host whose cards are known."""

from __future__ import annotations

import sys

from tests.netns.hosts import Host

TELL = """
from asyncnet.addresses import interfaces
for i in interfaces():
    if not i.loopback:
        print(i.name, i.index > 0, i.mtu, i.up, i.running, i.can_broadcast, i.can_multicast, i.hardware,
              *(f"{a.address}/{a.prefix}={a.broadcast}" for a in i.addresses if not a.address.startswith("fe80")))
"""


def test_interfaces_are_told_as_they_are_at_each_call(host: Host) -> None:
    host.run("ip", "link", "add", "near", "mtu", "1400", "address", "02:00:5e:10:00:01", "type", "veth", "peer", "far")
    assert "near True 1400 False False True True 02:00:5e:10:00:01\n" in host.python(TELL)
    host.run("ip", "link", "set", "near", "up")
    assert "near True 1400 True False True True" in host.python(TELL)
    host.run("ip", "link", "set", "far", "up")
    host.run("ip", "address", "add", "10.20.30.40/20", "dev", "near")  # told without its broadcast address
    host.run("ip", "address", "add", "10.9.0.1/31", "dev", "near")
    host.run("ip", "address", "add", "2001:db8::1/64", "dev", "near", "nodad")
    told = host.python(TELL)
    assert (
        "near True 1400 True True True True 02:00:5e:10:00:01 "
        "10.20.30.40/20=10.20.31.255 10.9.0.1/31=None 2001:db8::1/64=None\n"
    ) in told
    host.run("ip", "link", "delete", "near")
    assert host.python(TELL) == ""


def test_info_prints_them_as_a_table(host: Host) -> None:
    host.run("ip", "link", "add", "near", "mtu", "1400", "type", "veth", "peer", "far")
    host.run("ip", "address", "add", "10.20.30.40/20", "dev", "near")
    out = host.run(sys.executable, "-m", "asyncnet", "info").splitlines()
    assert out[1].split() == ["index", "name", "MTU", "address", "broadcast", "flags"]
    row = next(line.split() for line in out if " near " in line)
    assert row[1:] == ["near", "1400", "10.20.30.40/20", "10.20.31.255", "down", "broadcast", "multicast"]

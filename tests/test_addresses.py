"""Addresses as people type them, and the errors that name them."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from asyncnet import netlink
from asyncnet.addresses import (
    InterfaceAddress,
    InterfaceFlags,
    PortClass,
    broadcast_address,
    explain,
    format_address,
    interfaces,
    parse_address,
    port_class,
    same_subnet,
)
from asyncnet.errors import AddressError, AsyncnetError


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:53", ("::1", 53)),
        ("[fe80::1%eth0]:53", ("fe80::1%eth0", 53)),
        (":8080", ("", 8080)),
        ("*:8080", ("", 8080)),
        (" host.example:1 ", ("host.example", 1)),
        ("host:65535", ("host", 65535)),
    ],
)
def test_addresses_as_people_write_them(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


def test_defaults_stand_in_for_what_is_left_out() -> None:
    assert parse_address("host", default_port=69) == ("host", 69)
    assert parse_address("::1", default_port=69) == ("::1", 69)
    assert parse_address("[::1]", default_port=69) == ("::1", 69)
    assert parse_address("8080", default_host="0.0.0.0") == ("0.0.0.0", 8080)
    assert parse_address("10.0.0.1:7", default_host="0.0.0.0", default_port=69) == ("10.0.0.1", 7)


@pytest.mark.parametrize(
    "text",
    ["", "host", "host:", "host:port", "host:-1", "host:65536", "host:1.5", "::1", "[::1]", "[::1]53", "[::1:53",
     "[host]:1", "[::g]:1", "1.2.3:4", "256.1.1.1:4", "1.2.3.4.5:4",
     "ho st:1", "http://host:1", "host:\u0661", "a@b:1"],
)  # fmt: skip
def test_what_is_no_address_raises_address_error_in_one_line(text: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_address(text)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, AsyncnetError)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("127.0.0.1", 80), "127.0.0.1:80"),
        (("", 80), "*:80"),
        (("::1", 80, 0, 0), "[::1]:80"),
        (("fe80::1", 80, 0, 999_999), "[fe80::1%999999]:80"),
        (("fe80::1%eth7", 80, 0, 3), "[fe80::1%eth7]:80"),
        ("/run/socket", "/run/socket"),
        ("", "unix socket"),
        (None, "-"),
    ],
)
def test_formatting(address: tuple[str, int] | str | None, text: str) -> None:
    assert format_address(address) == text


@pytest.mark.parametrize("text", ["127.0.0.1:80", "[::1]:80", "host:1"])
def test_what_is_formatted_parses_again(text: str) -> None:
    assert format_address(parse_address(text)) == text


def test_ports_below_1024_are_the_systems() -> None:
    assert [port_class(port) for port in (0, 69, 1023)] == [PortClass.RESERVED] * 3
    assert [port_class(port) for port in (1024, 65535)] == [PortClass.OPEN] * 2
    with pytest.raises(AddressError):
        port_class(65536)


def test_hosts_compare_addresses_by_their_mask() -> None:
    assert same_subnet("192.168.1.7", "192.168.1.200", "255.255.255.0")
    assert not same_subnet("192.168.1.7", "192.168.2.7", 24)
    assert same_subnet("192.168.1.7", "192.168.2.7", 16)
    assert same_subnet("fd00::1", "fd00::2", 64)
    assert not same_subnet("192.168.1.7", "fd00::2", 0)
    with pytest.raises(AddressError):
        same_subnet("192.168.1.7", "192.168.1.8", 33)


def test_the_broadcast_address_has_every_bit_outside_the_mask_set() -> None:
    assert broadcast_address("192.168.1.7", "255.255.255.0") == "192.168.1.255"
    assert broadcast_address("10.20.30.40", 20) == "10.20.31.255"
    assert broadcast_address("127.0.0.1", 8) == "127.255.255.255"
    with pytest.raises(AddressError):
        broadcast_address("::1", 64)
    assert InterfaceAddress.of("10.0.0.1", 31).broadcast is None


@pytest.mark.parametrize(
    ("number", "kind", "action", "address", "way_out"),
    [
        (errno.EACCES, PermissionError, "bind UDP", ("0.0.0.0", 69), "reserved"),
        (errno.EACCES, PermissionError, "send to", ("10.255.255.255", 7788), "forbids"),
        (errno.EADDRINUSE, OSError, "bind TCP", ("127.0.0.1", 8080), "another program uses that port"),
        (errno.EADDRNOTAVAIL, OSError, "bind TCP", ("10.9.8.7", 80), "10.9.8.7 is no address of this host"),
        (errno.ECONNREFUSED, ConnectionRefusedError, "connect TCP to", ("::1", 80), "no program listens there"),
        (errno.ENETUNREACH, OSError, "connect TCP to", ("10.9.8.7", 80), "no way to that host"),
        (errno.EMSGSIZE, OSError, "send to", ("10.9.8.7", 80), "too large"),
        (errno.EIO, OSError, "send to", ("10.9.8.7", 80), os.strerror(errno.EIO)),
    ],
)
def test_system_errors_keep_their_class_and_name_address_and_way_out(
    number: int, kind: type[OSError], action: str, address: tuple[str, int], way_out: str
) -> None:
    explained = explain(OSError(number, os.strerror(number)), action, address)
    assert type(explained) is kind
    assert explained.errno == number
    text = str(explained)
    assert f"cannot {action} {format_address(address)}" in text
    assert way_out in text
    assert "\n" not in text


def test_a_name_that_does_not_resolve() -> None:
    explained = explain(socket.gaierror(-2, "Name or service not known"), "connect TCP to", ("no.invalid", 1))
    assert isinstance(explained, socket.gaierror)
    assert "'no.invalid' does not resolve" in str(explained)


def test_the_loopback_interface_is_listed_with_its_addresses() -> None:
    loopback = next(interface for interface in interfaces() if interface.loopback)
    assert loopback.up
    if sys.platform == "linux":
        assert InterfaceAddress("127.0.0.1", 8, "127.255.255.255") in loopback.addresses
        assert loopback.mtu
        assert loopback.index == socket.if_nametoindex(loopback.name)
        assert InterfaceFlags.LOOPBACK | InterfaceFlags.UP | InterfaceFlags.RUNNING in loopback.flags
        assert loopback.running
        assert not loopback.can_broadcast


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no getifaddrs")
def test_a_system_that_tells_nothing_more_tells_names_and_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    own = [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (host, 0)) for host in ("192.0.2.7", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: own)
    found = {interface.name: interface for interface in interfaces()}
    assert InterfaceFlags.LOOPBACK in found["lo"].flags
    assert [address.address for address in found["*"].addresses] == ["192.0.2.7"]

    def unknown(*_: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert {"lo", "*"} <= {interface.name for interface in interfaces()}


def test_getifaddrs_tells_the_same_interfaces() -> None:
    told = {
        (i.name, i.index, (i.flags & 0xFFFF).value, frozenset((a.address, a.prefix) for a in i.addresses))
        for i in interfaces()
    }
    found = {
        (link.name, link.index, link.flags & 0xFFFF, frozenset(link.addresses)) for link in netlink.get_interfaces()
    }
    assert found == told


def can_drop_privileges() -> bool:
    """Whether a process without privileges can be made, for which reserved ports are reserved."""
    try:
        start = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    except OSError:
        return False
    return os.geteuid() == 0 and start > 69


@pytest.mark.skipif(not can_drop_privileges(), reason="needs root on Linux, to start a process that is not root")
@pytest.mark.parametrize("component", ["udp.bind", "tcp.serve", "tftp.serve"])
def test_a_reserved_port_without_the_right_to_it_says_so_in_one_line(component: str) -> None:
    program = f"""
import asyncio, os, sys
from asyncnet import tcp, tftp, udp
async def handler(reader, writer): ...
openings = {{"udp.bind": lambda: udp.bind("127.0.0.1", 69),
            "tcp.serve": lambda: tcp.serve(handler, "127.0.0.1", 69),
            "tftp.serve": lambda: tftp.serve("/", "127.0.0.1", 69)}}
async def main():
    await (await udp.bind("localhost", 0)).aclose()  # what is imported late is imported before
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    try:
        await openings["{component}"]()
    except PermissionError as exc:
        print(exc)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    line = done.stdout.strip()
    assert "127.0.0.1:69" in line
    assert "reserved for the system" in line
    assert "CAP_NET_BIND_SERVICE" in line
    assert "\n" not in line

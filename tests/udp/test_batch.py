"""What stands below the transport: what this system has, the memory that all sockets of a loop share."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
import subprocess
import sys
import tracemalloc
from types import SimpleNamespace
from typing import Any

import pytest

from asyncnet import udp
from asyncnet.udp import Capabilities, Endpoint, batch, capabilities, probe
from asyncnet.udp.capabilities import DISABLE_VARIABLE
from tests.udp.recorders import Recorder, plain_socket, until

linux = pytest.mark.skipif(not probe().recvmmsg or not probe().sendmmsg, reason="this system has no batch calls")


# What this system has


@pytest.mark.parametrize("name", ["recvmmsg", "sendmmsg", "gso", "gro"])
def test_each_capability_can_be_switched_off(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = probe()
    monkeypatch.setenv(DISABLE_VARIABLE, f" {name} ,nonsense")
    assert not getattr(probe(), name)
    others = [other for other in ("recvmmsg", "sendmmsg", "gso", "gro") if other != name]
    assert [getattr(probe(), other) for other in others] == [getattr(whole, other) for other in others]


@linux
def test_a_call_that_libc_has_and_the_kernel_refuses_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = SimpleNamespace(recvmmsg=lambda *_: -1, sendmmsg=lambda *_: -1)
    capabilities._has.cache_clear()
    try:
        with monkeypatch.context() as patched:
            patched.setattr(capabilities, "libc", lambda: refusing)
            found = probe()
    finally:
        capabilities._has.cache_clear()
    assert (found.recvmmsg, found.sendmmsg) == (False, False)


@linux
def test_a_libc_without_the_calls_is_none_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    capabilities._has.cache_clear()
    try:
        with monkeypatch.context() as patched:
            patched.setattr(capabilities, "libc", SimpleNamespace)
            found = probe()
    finally:
        capabilities._has.cache_clear()
    assert (found.recvmmsg, found.sendmmsg) == (False, False)


def test_another_system_has_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    capabilities._has.cache_clear()
    try:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "platform", "darwin")
            assert probe() == Capabilities()
    finally:
        capabilities._has.cache_clear()


def test_the_package_can_be_imported_on_windows() -> None:
    """Without the modules that Windows has not; the standard library's own are loaded before."""
    program = """
import asyncio, ctypes, importlib.metadata, logging.handlers, mmap, socket, ssl, subprocess, sys, tempfile
import attrs
for name in ("fcntl", "termios", "resource", "pwd", "grp", "uvloop"):
    sys.modules[name] = None
del socket.AF_UNIX
sys.platform = "win32"
import asyncnet
asyncnet.udp.create_datagram_endpoint
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr


# Memory


@linux
async def test_the_sockets_of_a_loop_share_one_arena() -> None:
    async with udp.bind("127.0.0.1", 0) as one, udp.bind("::1" if socket.has_ipv6 else "127.0.0.1", 0) as other:
        arenas = {id(endpoint._transport._arena) for endpoint in (one, other)}  # type: ignore[union-attr]
        assert len(arenas) == 1
        assert batch.arena_of(asyncio.get_running_loop()) is one._transport._arena  # type: ignore[union-attr]


@linux
def test_each_loop_has_an_arena_of_its_own_that_goes_with_it() -> None:
    loops = [asyncio.new_event_loop() for _ in range(2)]
    first, second = map(batch.arena_of, loops)
    assert first is not second
    before = len(batch._arenas)
    for loop in loops:
        loop.close()
    del loops, loop, first, second
    gc.collect()
    assert len(batch._arenas) <= before - 2


async def test_an_idle_endpoint_takes_6_kib_of_memory_at_most() -> None:
    first = await udp.bind("127.0.0.1")
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    endpoints = [await udp.bind("127.0.0.1") for _ in range(200)]
    await asyncio.sleep(0)
    gc.collect()
    each = (tracemalloc.get_traced_memory()[0] - before) / len(endpoints)
    tracemalloc.stop()
    for endpoint in [first, *endpoints]:
        await endpoint.aclose()
    assert each <= 6 * 1024


@linux
def test_the_known_addresses_are_bounded() -> None:
    codec = batch.AddressCodec(socket.AF_INET)
    for number in range(40_000):
        host = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        raw = codec.encode((host, 53))
        assert raw is not None
        assert codec[raw[: codec.size]] == (host, 53)
    assert len(codec) < 20_000
    assert len(codec._raw) < 20_000


@pytest.mark.parametrize(
    "address",
    [
        ("localhost", 1),
        ("127.0.0.1", 65536),
        ("127.0.0.1", -1),
        ("127.0.0.1", "1"),
        (b"127.0.0.1", 1),
        "x",
        7,
        [],
        None,
    ],
)
def test_what_is_no_address_is_left_to_the_system(address: Any) -> None:
    assert batch.AddressCodec(socket.AF_INET).encode(address) is None


def test_ipv6_addresses_keep_flow_and_scope() -> None:
    codec = batch.AddressCodec(socket.AF_INET6)
    address = ("fe80::1", 53, 0x12345, 7)
    raw = codec.encode(address)
    assert raw is not None
    codec.clear()
    assert codec[raw[: codec.size]] == address
    assert codec.encode(("::1", 53)) == codec.encode(("::1", 53, 0, 0))


# Slots


@linux
async def test_a_datagram_larger_than_its_slot_is_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "SLOT_SIZE", 100)  # the real one takes any datagram
    arena = batch.Arena()
    with plain_socket() as sock, plain_socket() as peer:
        for size in (100, 101, 0):
            peer.sendto(bytes(size), sock.getsockname())
        found = arena.receive_messages(sock.fileno(), arena.codec(socket.AF_INET))
    assert [(len(item.data), item.truncated) for item in found] == [(100, False), (100, True), (0, False)]
    endpoint = Endpoint()
    endpoint.datagrams_received(found)
    assert endpoint.stats.truncated == 1


@linux
async def test_the_arena_says_when_nothing_has_come_and_what_is_wrong() -> None:
    arena = batch.Arena()
    codec = arena.codec(socket.AF_INET)
    with plain_socket() as sock:
        for receive in (arena.receive, arena.receive_trains, arena.receive_split_trains, arena.receive_messages):
            assert receive(sock.fileno(), codec) == []
        number = sock.fileno()
    for receive in (arena.receive, arena.receive_trains, arena.receive_messages):
        with pytest.raises(OSError) as caught:  # noqa: PT011  # the number says it
            receive(number, codec)
        assert caught.value.errno == errno.EBADF
    with pytest.raises(OSError) as caught:  # noqa: PT011
        arena.send(number, [b"x", b"y"], None, 0)
    assert caught.value.errno == errno.EBADF


@linux
async def test_a_batch_of_more_bytes_than_the_arena_takes_leaves_whole() -> None:
    transport, protocol = await udp.create_datagram_endpoint(Recorder, local_addr=("127.0.0.1", 0))
    try:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
    except PermissionError:
        transport.abort()
        pytest.skip("a receive buffer for all of it needs root")
    sender, other = await udp.create_datagram_endpoint(Recorder, remote_addr=transport.get_extra_info("sockname"))
    sender.send_batch([(bytes([number]) * 60_000, None) for number in range(40)])
    await until(lambda: len(protocol.received) == 40)
    assert [data[0] for data, _ in protocol.received] == list(range(40))
    assert {len(data) for data, _ in protocol.received} == {60_000}
    for each, told in ((transport, protocol), (sender, other)):
        each.close()
        await told.lost

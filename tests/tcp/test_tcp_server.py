"""The TCP server on loopback: limits, handlers that fail, peers that leave, lack of descriptors, and stopping."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import logging
import math
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from asyncnet import tcp
from asyncnet.loops import loop_name

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
LOG = "asyncnet.tcp"


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def echo(reader: Reader, writer: Writer) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


@asynccontextmanager
async def client(server: tcp.Server) -> AsyncIterator[tuple[Reader, Writer]]:
    reader, writer = await tcp.connect(*server.address[:2], timeout=10)
    try:
        yield reader, writer
    finally:
        writer.close()
        try:
            await writer.wait_closed()
        except ConnectionError:
            pass


async def exchange(stream: tuple[Reader, Writer], data: bytes) -> bytes:
    reader, writer = stream
    writer.write(data)
    async with asyncio.timeout(10):
        return await reader.readexactly(len(data))


def reset(writer: Writer) -> None:
    """Close with RST instead of FIN."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def assert_nothing_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


# Serving.


async def test_an_echo_of_many_clients() -> None:
    async with tcp.serve(echo, "127.0.0.1", 0) as server:
        assert server.addresses == (server.address,)

        async def talk(number: int) -> None:
            async with client(server) as stream:
                data = bytes([number]) * 100_000
                assert await exchange(stream, data) == data

        await asyncio.gather(*(talk(number) for number in range(100)))
        await until(lambda: server.stats.completed == 100)
        assert server.stats == tcp.ServerStats(accepted=100, completed=100)


async def test_a_handler_of_asyncio_start_server_runs_unchanged() -> None:
    async def handle(reader: Reader, writer: Writer) -> None:
        line = await reader.readline()
        writer.write(f"{writer.get_extra_info('peername')[0]} said {line.decode()}".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def ask(host: str, port: int) -> bytes:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"hello\n")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as theirs:
        expected = await ask(*theirs.sockets[0].getsockname())
    async with tcp.serve(handle, "127.0.0.1", 0) as ours:
        assert await ask(*ours.address[:2]) == expected == b"127.0.0.1 said hello\n"


async def test_what_the_handler_wrote_last_arrives_although_it_neither_drains_nor_closes() -> None:
    data = bytes(range(256)) * 40_000

    async def handle(reader: Reader, writer: Writer) -> None:
        writer.write(data)

    async with tcp.serve(handle, "127.0.0.1", 0) as server, client(server) as (reader, _):
        async with asyncio.timeout(10):
            assert await reader.read(-1) == data
        await until(lambda: server.stats.completed == 1)
        assert server.stats.aborted == 0


async def test_a_peer_that_takes_no_bytes_cannot_hold_a_finished_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncnet.tcp.server.FLUSH_STALL", 0.05)

    async def handle(reader: Reader, writer: Writer) -> None:
        writer.write(bytes(50_000_000))

    async with tcp.serve(handle, "127.0.0.1", 0) as server:
        with socket.create_connection(server.address[:2]):
            await until(lambda: server.stats.aborted == 1 and server.stats.active == 0)
            assert server.stats.completed == 1


async def test_small_writes_are_not_held_back_and_tasks_are_named_after_their_peer() -> None:
    seen: list[tuple[int, str]] = []

    async def handle(reader: Reader, writer: Writer) -> None:
        task = asyncio.current_task()
        assert task is not None
        nodelay = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        seen.append((nodelay, task.get_name()))

    async with tcp.serve(handle, "127.0.0.1", 0) as server, client(server) as (reader, writer):
        host, port = writer.get_extra_info("sockname")
        assert await reader.read() == b""
        [(nodelay, name)] = seen
        assert nodelay
        assert name == f"tcp {host}:{port}"
        assert writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_the_limit_is_the_longest_line() -> None:
    raised: list[BaseException] = []

    async def handle(reader: Reader, writer: Writer) -> None:
        try:
            await reader.readline()
        except ValueError as exc:
            raised.append(exc)

    async with tcp.serve(handle, "127.0.0.1", 0, limit=100) as server, client(server) as (_, writer):
        writer.write(bytes(1000))
        await until(lambda: raised)


async def test_a_callable_object_is_a_handler() -> None:
    class Greeter:
        async def __call__(self, reader: Reader, writer: Writer) -> None:
            writer.write(b"hi")

    async with tcp.serve(Greeter(), "127.0.0.1", 0) as server, client(server) as (reader, _):
        assert await reader.read() == b"hi"


# Addresses.


async def test_ipv6() -> None:
    async with tcp.serve(echo, "::1", 0) as server, client(server) as stream:
        assert server.address[0] == "::1"
        assert await exchange(stream, b"six") == b"six"


@pytest.mark.parametrize("host", ["", None])
async def test_every_address_of_both_families_shares_one_port(host: str | None) -> None:
    async with tcp.serve(echo, host, 0) as server:
        assert [address[0] for address in server.addresses] == ["0.0.0.0", "::"]
        assert len({address[1] for address in server.addresses}) == 1
        for peer in ("127.0.0.1", "::1"):
            reader, writer = await tcp.connect(peer, server.address[1])
            assert await exchange((reader, writer), b"x") == b"x"
            writer.close()
            await writer.wait_closed()


async def test_a_host_without_ipv6_gets_ipv4_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    def without_ipv6(family: int = -1, *args: Any, **kwargs: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, *args, **kwargs)

    monkeypatch.setattr("asyncnet.tcp.server.socket.socket", without_ipv6)
    server = await tcp.serve(echo, "", 0)
    with pytest.raises(OSError, match="IPv6"):
        await tcp.serve(echo, "::1", 0)
    monkeypatch.undo()
    assert [address[0] for address in server.addresses] == ["0.0.0.0"]
    await server.aclose()


async def test_a_name_is_served_on_every_address_it_has() -> None:
    found = await asyncio.get_running_loop().getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)
    async with tcp.serve(echo, "localhost", 0) as server:
        assert {address[0] for address in server.addresses} == {info[4][0] for info in found}


@pytest.mark.parametrize(
    ("host", "number", "way_out"),
    [
        ("192.0.2.1", errno.EADDRNOTAVAIL, "no address of this host"),
        ("no-such-host.invalid", None, "does not resolve"),
        ("a" * 70 + ".example", None, "does not resolve"),
    ],
)
async def test_an_address_that_cannot_be_used_is_named_with_a_way_out(
    host: str, number: int | None, way_out: str
) -> None:
    with pytest.raises(OSError, match=way_out) as caught:
        await tcp.serve(echo, host, 0)
    assert number is None or caught.value.errno == number
    message = str(caught.value)
    assert f"cannot bind TCP {host}:0" in message
    assert "\n" not in message


async def test_a_port_in_use_is_named_with_a_way_out() -> None:
    async with tcp.serve(echo, "127.0.0.1", 0) as server:
        host, port = server.address[:2]
        with pytest.raises(OSError, match=f"cannot bind TCP {host}:{port}: another program uses that port") as caught:
            await tcp.serve(echo, host, port)
        assert caught.value.errno == errno.EADDRINUSE


async def test_a_port_can_be_served_again_at_once_after_a_stop() -> None:
    port = 0
    for _ in range(3):
        async with tcp.serve(echo, "127.0.0.1", port) as server:
            port = server.address[1]
            async with client(server) as stream:
                assert await exchange(stream, b"again") == b"again"
                server.close()  # this side closes first: the port is in TIME_WAIT
                await server.aclose(grace=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", -1),
        ("port", 65536),
        ("max_connections", 0),
        ("backlog", 0),
        ("limit", 0),
        ("grace", -1.0),
        ("grace", math.nan),
        ("grace", math.inf),
    ],
)
def test_a_number_out_of_range_is_an_error_that_names_the_parameter(name: str, value: float) -> None:
    arguments: dict[str, Any] = {"port": 0, name: value}
    with pytest.raises(ValueError, match=f"{name} must be"):
        tcp.serve(echo, "127.0.0.1", **arguments)


def test_what_is_no_handler_is_an_error_that_names_the_parameter() -> None:
    wrong: Any = "handler"
    with pytest.raises(TypeError, match="handler must be"):
        tcp.serve(wrong, "127.0.0.1", 0)
    with pytest.raises(TypeError, match="ssl must be"):
        tcp.serve(echo, "127.0.0.1", 0, ssl=wrong)


async def test_a_handler_that_returns_no_coroutine_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    wrong: Any = lambda reader, writer: None  # noqa: E731
    async with tcp.serve(wrong, "127.0.0.1", 0) as server, client(server) as (reader, _):
        assert await reader.read() == b""
        await until(lambda: server.stats.failed == 1)
    assert "handler must be a coroutine function" in caplog.text


# Limits.


async def test_a_client_above_the_limit_is_served_when_another_one_left() -> None:
    served: list[bytes] = []

    async def handle(reader: Reader, writer: Writer) -> None:
        served.append(await reader.readline())
        await echo(reader, writer)

    async with tcp.serve(handle, "127.0.0.1", 0, max_connections=1) as server, client(server) as first:
        first[1].write(b"first\n")
        await until(lambda: served)
        async with client(server) as second:
            second[1].write(b"second\n")
            for _ in range(5):  # the first one is answered, the second one waits
                assert await exchange(first, b"x") == b"x"
            assert served == [b"first\n"]
            assert server.stats.accepted == server.stats.active == 1
            first[1].close()
            assert await exchange(second, b"y") == b"y"
            assert served == [b"first\n", b"second\n"]


async def test_a_place_is_given_back_however_a_connection_ends(caplog: pytest.LogCaptureFixture) -> None:
    async def handle(reader: Reader, writer: Writer) -> None:
        match await reader.readline():
            case b"raise\n":
                raise LookupError
            case b"cancel\n":
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                await asyncio.sleep(0)
            case b"echo\n":
                await echo(reader, writer)

    async with tcp.serve(handle, "127.0.0.1", 0, max_connections=1) as server:
        async with client(server) as (_, writer):
            reset(writer)
        for line in (b"raise\n", b"cancel\n"):
            async with client(server) as (reader, writer):
                writer.write(line)
                assert await reader.read() == b""
        async with client(server) as stream:
            stream[1].write(b"echo\n")
            assert await exchange(stream, b"alive") == b"alive"
            assert (server.stats.failed, server.stats.cancelled, server.stats.active) == (1, 1, 1)


async def test_an_accept_that_fails_for_its_peer_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = socket.socket.accept
    errors = [errno.ECONNABORTED, errno.EPROTO]

    def accept(self: socket.socket) -> tuple[socket.socket, Any]:
        if errors:
            raise OSError(errors.pop(), "scripted")
        return real(self)

    monkeypatch.setattr(socket.socket, "accept", accept)
    async with tcp.serve(echo, "127.0.0.1", 0) as server, client(server) as stream:
        assert await exchange(stream, b"x") == b"x"
        assert server.stats.accept_errors == 2
    assert_nothing_logged(caplog)


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.ENOMEM, errno.EINVAL])
async def test_an_exhausted_system_is_logged_once_per_episode(
    number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = socket.socket.accept
    errors: list[int] = []

    def accept(self: socket.socket) -> tuple[socket.socket, Any]:
        if errors:
            raise OSError(errors.pop(), "scripted")
        return real(self)

    monkeypatch.setattr(socket.socket, "accept", accept)
    async with tcp.serve(echo, "127.0.0.1", 0) as server:
        for _ in range(2):  # a success between two failures does not make two episodes
            errors += [number, number]
            async with client(server) as stream:
                assert await exchange(stream, b"x") == b"x"
        assert server.stats.accept_errors == 4
        assert caplog.text.count(f"cannot accept on 127.0.0.1:{server.address[1]}: scripted") == 1
        monkeypatch.setattr("asyncnet.tcp.acceptor.EPISODE_GAP", 0.0)
        errors.append(number)
        async with client(server) as stream:
            assert await exchange(stream, b"x") == b"x"
        assert caplog.text.count("cannot accept") == 2


OUT_OF_DESCRIPTORS = """
import asyncio, json, logging, resource, sys, time
from asyncnet import loops, tcp

async def echo(reader, writer):
    while data := await reader.read(100):
        writer.write(data)

async def main():
    logging.basicConfig(stream=sys.stderr, format="LOGGED %(message)s")
    async with tcp.serve(echo, "127.0.0.1", 0) as server:
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        print(server.address[1], flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            stats = server.stats
            print(json.dumps([stats.active, stats.shed, time.process_time()]), flush=True)

loops.run(main(), loop=sys.argv[1])
"""


@pytest.mark.alone
@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_NOFILE")
async def test_a_server_out_of_descriptors_serves_on_and_recovers(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(OUT_OF_DESCRIPTORS)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
        loop_name(asyncio.get_running_loop()),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    commands, answers = process.stdin, process.stdout

    async def stats() -> list[Any]:
        commands.write(b"\n")
        answer: list[Any] = json.loads(await answers.readline())
        return answer

    streams = []
    try:
        async with asyncio.timeout(20):
            port = int(await answers.readline())
            streams = [await tcp.connect("127.0.0.1", port) for _ in range(60)]
            while sum((await stats())[:2]) < 60:  # all are either served or shed
                await asyncio.sleep(0.01)
            active, shed, before = await stats()
            for _ in range(20):  # a second in which clients come again and again
                await asyncio.sleep(0.05)
                streams.append(await tcp.connect("127.0.0.1", port))
            _, also_shed, after = await stats()
            assert also_shed >= shed + 19
            assert after - before < 0.05  # it does not spin
            assert 10 < active < 40
            for stream in streams[:active]:
                assert await exchange(stream, b"served") == b"served"
            for reader, _ in streams[active:]:
                try:
                    assert await reader.read() == b""
                except ConnectionResetError:
                    pass
            for _, writer in streams[:10]:
                writer.close()
            while (await stats())[0] > active - 10:
                await asyncio.sleep(0.01)
            streams.append(await tcp.connect("127.0.0.1", port))
            assert await exchange(streams[-1], b"recovered") == b"recovered"
            for _, writer in streams:
                writer.close()
            commands.close()
            logged = await process.stderr.read()
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        for _, writer in streams:
            writer.close()
    assert logged.count(b"LOGGED") == 1, logged.decode()
    assert b"Too many open files" in logged
    assert b"ulimit -n" in logged


# Handlers that fail and peers that leave.


async def test_a_handler_that_raises_does_not_stop_the_server(caplog: pytest.LogCaptureFixture) -> None:
    async def handle(reader: Reader, writer: Writer) -> None:
        if await reader.read(100) == b"bad":
            raise LookupError("what went wrong")
        writer.write(b"good")

    async with tcp.serve(handle, "127.0.0.1", 0) as server:
        async with client(server) as (reader, writer):
            port = writer.get_extra_info("sockname")[1]
            writer.write(b"bad")
            assert await reader.read() == b""
        async with client(server) as (reader, writer):
            writer.write(b"fine")
            assert await reader.read() == b"good"
        await until(lambda: server.stats.active == 0)
        assert (server.stats.failed, server.stats.completed) == (1, 1)
    [record] = [record for record in caplog.records if record.name == LOG]
    assert record.levelno == logging.ERROR
    assert f"127.0.0.1:{port}" in record.getMessage()
    assert "Traceback" in caplog.text
    assert "what went wrong" in caplog.text


@pytest.mark.parametrize("grouped", [False, True])
async def test_a_peer_that_resets_the_connection_is_no_failure(grouped: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, LOG)
    begun = asyncio.Event()

    async def handle(reader: Reader, writer: Writer) -> None:
        begun.set()
        if grouped:
            async with asyncio.TaskGroup() as group:
                group.create_task(reader.readexactly(100))
        await reader.readexactly(100)

    async with tcp.serve(handle, "127.0.0.1", 0) as server:
        async with client(server) as (_, writer):
            await begun.wait()
            reset(writer)
            await until(lambda: server.stats.disconnected == 1)
        async with client(server) as (_, writer):
            writer.write(b"less than a hundred bytes")
            writer.close()
            await until(lambda: server.stats.disconnected == 2)
    assert_nothing_logged(caplog)
    assert "the peer went away" in caplog.text


async def test_a_peer_that_left_before_its_handler_began_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    async with tcp.serve(echo, "127.0.0.1", 0) as server:
        for _ in range(20):
            with socket.create_connection(server.address[:2]) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await until(lambda: server.stats.accepted == 20 and server.stats.active == 0)
        assert server.stats.failed == 0
        async with client(server) as stream:
            assert await exchange(stream, b"x") == b"x"
    assert_nothing_logged(caplog)


async def test_a_timeout_in_a_handler_ends_just_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    async def handle(reader: Reader, writer: Writer) -> None:
        async with asyncio.timeout(0.01):
            await reader.read()

    async with tcp.serve(handle, "127.0.0.1", 0) as server, client(server) as (reader, _):
        assert await reader.read() == b""
        await until(lambda: server.stats.disconnected == 1)
    assert_nothing_logged(caplog)


async def test_a_handler_refused_by_another_host_has_failed(caplog: pytest.LogCaptureFixture) -> None:
    async def handle(reader: Reader, writer: Writer) -> None:
        raise ConnectionRefusedError("the database is down")

    async with tcp.serve(handle, "127.0.0.1", 0) as server, client(server) as (reader, _):
        assert await reader.read() == b""
        await until(lambda: server.stats.failed == 1)
    assert "the database is down" in caplog.text


# Stopping.


async def test_stopping_waits_for_a_handler_that_finishes_in_time() -> None:
    async def handle(reader: Reader, writer: Writer) -> None:
        writer.write(b"ready")
        await server.closing.wait()
        writer.write(b" and done")

    server = await tcp.serve(handle, "127.0.0.1", 0)
    async with client(server) as (reader, _):
        assert await reader.readexactly(5) == b"ready"
        assert await server.aclose() == tcp.StopReport(finished=1, cancelled=0, aborted=0)
        assert await reader.read() == b" and done"
    assert server.stats == tcp.ServerStats(accepted=1, completed=1)


async def test_stopping_cancels_a_handler_after_the_grace() -> None:
    cleaned_up = []

    async def handle(reader: Reader, writer: Writer) -> None:
        writer.write(b"ready")
        try:
            await reader.read()
        finally:
            cleaned_up.append(True)
            writer.write(b" bye")

    server = await tcp.serve(handle, "127.0.0.1", 0, grace=0.05)
    async with client(server) as (reader, _):
        assert await reader.readexactly(5) == b"ready"
        assert await server.aclose() == tcp.StopReport(finished=0, cancelled=1, aborted=0)
        assert cleaned_up
        assert await reader.read() == b" bye"
    assert server.stats == tcp.ServerStats(accepted=1, cancelled=1)


@pytest.mark.parametrize("closed_before", [False, True])
async def test_stopping_aborts_a_handler_that_swallows_its_cancellation(
    closed_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncnet.tcp.server.CANCEL_WAIT", 0.05)
    release = asyncio.Event()

    async def handle(reader: Reader, writer: Writer) -> None:
        writer.write(b"ready")
        if closed_before:
            writer.close()
            await writer.wait_closed()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                pass

    server = await tcp.serve(handle, "127.0.0.1", 0)
    try:
        async with client(server) as (reader, _):
            assert await reader.readexactly(5) == b"ready"
            report = tcp.StopReport(finished=0, cancelled=0, aborted=1)
            assert await server.aclose(grace=0) == report
            async with asyncio.timeout(10):
                try:
                    assert await reader.read() == b""
                except ConnectionResetError:
                    pass
            assert server.stats.active == 1
    finally:
        release.set()
    await until(lambda: server.stats.active == 0)
    assert await server.aclose() == report


async def test_closing_twice_at_once_and_again_gives_one_report() -> None:
    server = await tcp.serve(echo, "127.0.0.1", 0)
    async with client(server) as stream:
        assert await exchange(stream, b"x") == b"x"
        reports = list(await asyncio.gather(server.aclose(grace=0.05), server.aclose(grace=0.05)))
        reports.append(await server.aclose())
        assert reports == [tcp.StopReport(finished=0, cancelled=1, aborted=0)] * 3
    with pytest.raises(ValueError, match="grace must be"):
        await server.aclose(grace=-1)


async def test_close_stops_accepting_at_once_and_lets_connections_go_on() -> None:
    async with tcp.serve(echo, "127.0.0.1", 0) as server, client(server) as stream:
        assert await exchange(stream, b"x") == b"x"
        server.close()
        server.close()
        assert server.closing.is_set()
        with pytest.raises(ConnectionRefusedError):
            await tcp.connect(*server.address[:2])
        assert await exchange(stream, b"y") == b"y"
        await server.aclose(grace=0)


async def test_a_handler_may_close_its_server() -> None:
    reports = []

    async def handle(reader: Reader, writer: Writer) -> None:
        reports.append(await server.aclose())
        writer.write(b"closed")

    server = await tcp.serve(handle, "127.0.0.1", 0)
    async with client(server) as (reader, _):
        async with asyncio.timeout(10):
            assert await reader.read() == b"closed"
        assert reports == [tcp.StopReport(finished=0, cancelled=0, aborted=0)]
        await until(lambda: server.stats.active == 0)


async def test_serve_forever_returns_when_the_server_is_closed() -> None:
    async with tcp.serve(echo, "127.0.0.1", 0, grace=0.05) as server, client(server) as stream:
        forever = asyncio.create_task(server.serve_forever())
        assert await exchange(stream, b"x") == b"x"
        server.close()
        async with asyncio.timeout(10):
            await forever
        assert server.stats.active == 0


async def test_a_cancelled_serve_forever_drains_first() -> None:
    async def handle(reader: Reader, writer: Writer) -> None:
        writer.write(b"ready")
        await server.closing.wait()
        await asyncio.sleep(0)
        writer.write(b" and done")

    server = await tcp.serve(handle, "127.0.0.1", 0)
    forever = asyncio.create_task(server.serve_forever())
    async with client(server) as (reader, _):
        assert await reader.readexactly(5) == b"ready"
        forever.cancel()
        with pytest.raises(asyncio.CancelledError):
            await forever
        assert server.stats == tcp.ServerStats(accepted=1, completed=1)
        assert await reader.read() == b" and done"


async def test_a_cancelled_aclose_leaves_nothing_open() -> None:
    server = await tcp.serve(echo, "127.0.0.1", 0, grace=1000)
    async with client(server) as stream:
        assert await exchange(stream, b"x") == b"x"
        closing = asyncio.create_task(server.aclose())
        await server.closing.wait()
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await until(lambda: server.stats.active == 0)
        with pytest.raises(ConnectionRefusedError):
            await tcp.connect(*server.address[:2])


@pytest.mark.parametrize("turns", range(6))
async def test_a_connection_that_the_stop_meets_at_its_beginning_is_closed(turns: int) -> None:
    server = await tcp.serve(echo, "127.0.0.1", 0)
    with socket.create_connection(server.address[:2]) as sock:
        while server.stats.accepted == 0:
            await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0)
        assert await server.aclose(grace=0) == tcp.StopReport(finished=0, cancelled=1, aborted=0)
        sock.settimeout(5)
        assert sock.recv(1) == b""
    assert server.stats == tcp.ServerStats(accepted=1, cancelled=1)
    del server
    gc.collect()  # a transport that was left open warns now


async def test_every_task_of_a_server_may_be_cancelled_from_outside() -> None:
    server = await tcp.serve(echo, "127.0.0.1", 0)
    with socket.create_connection(server.address[:2]) as early:
        while server.stats.accepted == 0:
            await asyncio.sleep(0)
        async with client(server) as stream:
            assert await exchange(stream, b"x") == b"x"
            with socket.create_connection(server.address[:2]) as late:
                while server.stats.accepted < 3:
                    await asyncio.sleep(0)
                for task in asyncio.all_tasks() - {asyncio.current_task()}:
                    task.cancel()
                await until(lambda: server.stats.active == 0)
                for sock in (early, late):
                    sock.settimeout(5)
                    assert sock.recv(1) == b""
        assert server.stats.cancelled == 3
        async with client(server) as stream:
            assert await exchange(stream, b"y") == b"y"
    await server.aclose()

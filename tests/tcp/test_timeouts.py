"""Peers that take too long, on real sockets; test_deadlines.py has what counts, with a clock of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import sys
from pathlib import Path
from typing import Any

import pytest

from asyncnet import tcp
from tests.tcp.clients import (
    Reader,
    Writer,
    assert_silent,
    client,
    echo,
    echo_lines,
    ends,
    exchange,
    raw_client,
    until,
)

SHORT = 0.03
LONG = 60.0


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "asyncnet.tcp")
    return caplog


@pytest.mark.parametrize(
    ("timeout", "first", "seconds"),
    [
        ("first_byte", b"", SHORT),
        ("idle", b"", SHORT),
        ("idle", b"whole\n", 0.6),  # time for the line to arrive
        ("message", b"unfinished", SHORT),
    ],
)
async def test_a_silent_peer_loses_its_connection(
    timeout: str, first: bytes, seconds: float, log: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {f"{timeout}_timeout": seconds}
    async with tcp.serve(echo_lines, "127.0.0.1", 0, **options) as server:
        async with client(server) as (reader, writer):
            writer.write(first)
            if first.endswith(b"\n"):
                assert await reader.readline() == first
            assert await ends(reader)
        await until(lambda: server.stats.active == 0)
        assert getattr(server.stats, f"{timeout}_timeouts") == 1
        assert server.stats.disconnected == 1
    assert_silent(log)


async def test_a_trickle_does_not_stretch_a_message() -> None:
    async with tcp.serve(echo_lines, "127.0.0.1", 0, message_timeout=0.1, idle_timeout=LONG) as server:
        async with client(server) as (reader, writer):
            ended = asyncio.create_task(ends(reader))
            while not ended.done():
                writer.write(b"x")
                await asyncio.sleep(0.005)
            assert await ended
        assert server.stats.message_timeouts == 1
        assert server.stats.idle_timeouts == 0


async def test_a_peer_that_answers_in_time_stays() -> None:
    """Each message and each silence is shorter than allowed, all of them together are not."""
    async with tcp.serve(echo_lines, "127.0.0.1", 0, first_byte_timeout=LONG, message_timeout=1.0) as server:
        async with client(server) as (reader, writer):
            loop = asyncio.get_running_loop()
            begin = loop.time()
            while loop.time() < begin + 1.2:
                writer.write(b"half ")
                await asyncio.sleep(0.01)
                writer.write(b"line\n")
                assert await reader.readline() == b"half line\n"
        assert server.stats.message_timeouts == 0


async def test_the_read_that_waits_raises_and_the_next_one_may_go_on() -> None:
    async def patient(reader: Reader, writer: Writer) -> None:
        with pytest.raises(TimeoutError, match=r"127\.0\.0\.1:\d+ was silent for 0\.03 seconds"):
            await reader.readline()
        writer.write(b"still there?\n")
        line: bytes | None = None
        while line is None:  # the answer, too, may take longer than that
            with contextlib.suppress(TimeoutError):
                line = await reader.readline()
        writer.write(line)

    async with tcp.serve(patient, "127.0.0.1", 0, idle_timeout=SHORT) as server:
        async with client(server) as (reader, writer):
            writer.write(b"half ")
            assert await reader.readline() == b"still there?\n"
            writer.write(b"line\n")
            assert await reader.readline() == b"half line\n"
        await until(lambda: server.stats.completed == 1)


async def test_a_handler_at_work_is_not_the_peers_fault() -> None:
    async def work(reader: tcp.StreamReader, writer: Writer) -> None:
        while not reader.has_data():  # who does not read holds nobody to a deadline
            await asyncio.sleep(0.001)
        line = await reader.readline()
        await asyncio.sleep(3 * SHORT)
        writer.write(line)

    options: dict[str, Any] = {"first_byte_timeout": SHORT, "message_timeout": SHORT, "idle_timeout": SHORT}
    async with tcp.serve(work, "127.0.0.1", 0, **options) as server:
        async with client(server) as stream:
            assert await exchange(stream, b"request\n") == b"request\n"
        await until(lambda: server.stats.completed == 1)


async def test_a_peer_that_takes_nothing_is_cut_off(log: pytest.LogCaptureFixture) -> None:
    seen: list[type[BaseException]] = []

    async def flood(reader: Reader, writer: Writer) -> None:
        try:
            while True:
                writer.write(bytes(65536))
                await writer.drain()
        except OSError as exc:
            seen.append(type(exc))
            raise

    async with tcp.serve(flood, "127.0.0.1", 0, write_timeout=SHORT) as server:
        with raw_client(server):
            await until(lambda: server.stats.active == 0 and server.stats.accepted == 1)
        assert server.stats.write_timeouts == server.stats.aborted == 1
        assert seen == [TimeoutError]
    assert_silent(log)


@pytest.mark.skipif(sys.platform == "win32", reason="needs sendfile")
async def test_a_peer_that_takes_nothing_of_a_file_is_cut_off(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(50_000_000)
    seen: list[OSError] = []

    async def send(reader: Reader, writer: tcp.StreamWriter) -> None:
        with path.open("rb") as file:
            try:
                await writer.send_file(file)
            except OSError as exc:
                seen.append(exc)
                raise

    async with tcp.serve(send, "127.0.0.1", 0, write_timeout=SHORT) as server:
        with raw_client(server):
            await until(lambda: server.stats.active == 0 and server.stats.accepted == 1)
        assert server.stats.write_timeouts == server.stats.aborted == 1
        assert [type(exc) for exc in seen] == [TimeoutError]
        assert "took none of the bytes" in str(seen[0])
    assert_silent(log)


async def test_a_few_unsent_bytes_count_though_a_read_has_begun_to_wait_before_them() -> None:
    unsent: list[int] = []

    async def answer(reader: Reader, writer: Writer) -> None:
        reading = asyncio.create_task(reader.read(1))
        await asyncio.sleep(0)
        while not writer.transport.get_write_buffer_size():
            writer.write(bytes(16384))
            await asyncio.sleep(0)
        unsent.append(writer.transport.get_write_buffer_size())
        await reading

    async with tcp.serve(answer, "127.0.0.1", 0, write_timeout=SHORT) as server:
        with raw_client(server):
            await until(lambda: server.stats.active == 0 and server.stats.accepted == 1)
        assert server.stats.write_timeouts == 1
    assert unsent[0] <= 16384


@pytest.mark.skipif(sys.platform == "win32", reason="needs sendfile")
async def test_a_file_is_an_answer(tmp_path: Path) -> None:
    """The time until the next request does not belong to the message that the file has answered."""
    path = tmp_path / "file"
    path.write_bytes(b"content")

    async def answer(reader: Reader, writer: tcp.StreamWriter) -> None:
        with path.open("rb") as file:
            while await reader.readline():
                await writer.send_file(file)

    async with tcp.serve(answer, "127.0.0.1", 0, message_timeout=0.1) as server:
        async with client(server) as (reader, writer):
            loop = asyncio.get_running_loop()
            begin = loop.time()
            while loop.time() < begin + 0.3:
                writer.write(b"request\n")
                assert await reader.readexactly(7) == b"content"
                await asyncio.sleep(0.01)
            writer.write(b"unfinished")
            assert await ends(reader)
        await until(lambda: server.stats.active == 0)
        assert server.stats.message_timeouts == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs sendfile")
async def test_a_request_that_comes_while_a_file_leaves_has_its_time_after_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(20_000_000)

    async def answer(reader: Reader, writer: tcp.StreamWriter) -> None:
        with path.open("rb") as file:
            while await reader.readline():
                await writer.send_file(file)

    async with tcp.serve(answer, "127.0.0.1", 0, message_timeout=1.0) as server:
        async with client(server, limit=4096) as (reader, writer):
            writer.write(b"first\n")
            await reader.readexactly(1)
            writer.write(b"sec")
            await asyncio.sleep(1.1)  # as slow as it likes: the file is the server's turn
            await reader.readexactly(20_000_000 - 1)
            writer.write(b"ond\n")
            await reader.readexactly(20_000_000)
        assert server.stats.message_timeouts == 0


async def test_a_slow_reader_is_not_cut_off_while_it_takes_some() -> None:
    total = 6_000_000

    async def send(reader: Reader, writer: Writer) -> None:
        # Otherwise the kernel takes nearly everything at once, and then nothing for long.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        writer.write(bytes(total))
        await writer.drain()

    async with tcp.serve(send, "127.0.0.1", 0, write_timeout=0.8) as server:
        reader, writer = await tcp.connect(*server.address, limit=4096)
        got = 0
        loop = asyncio.get_running_loop()
        begin = loop.time()
        while got < total:
            piece = len(await reader.read(65536))
            got += piece
            assert piece
            if loop.time() < begin + 1.2:
                await asyncio.sleep(0.02)
        writer.close()
        await until(lambda: server.stats.completed == 1)
        assert server.stats.write_timeouts == 0


async def test_a_connection_that_has_lasted_for_too_long_has_its_handler_cancelled(
    log: pytest.LogCaptureFixture,
) -> None:
    async with tcp.serve(echo, "127.0.0.1", 0, lifetime_timeout=0.1) as server:
        async with client(server) as stream:
            try:
                while True:
                    assert await exchange(stream, b"busy") == b"busy"
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
        await until(lambda: server.stats.active == 0)
        assert server.stats.lifetime_timeouts == server.stats.cancelled == 1
    assert_silent(log)


async def test_a_tls_handshake_that_hangs_ends(log: pytest.LogCaptureFixture) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    async with tcp.serve(echo, "127.0.0.1", 0, ssl=context, handshake_timeout=SHORT) as server:
        async with client(server) as (reader, _):
            assert await ends(reader)
        await until(lambda: server.stats.handshakes_failed == 1)
        assert server.stats.active == 0
    assert_silent(log)


async def test_thousands_of_deadlines_leave_nothing_behind() -> None:
    options: dict[str, Any] = {
        "first_byte_timeout": LONG,
        "idle_timeout": LONG,
        "lifetime_timeout": LONG,
        "write_timeout": LONG,
    }
    async with tcp.serve(echo, "127.0.0.1", 0, **options) as server:
        for _ in range(300):
            with raw_client(server):
                await asyncio.sleep(0)
        await until(lambda: server.stats.accepted == 300 and server.stats.active == 0)


async def test_a_client_that_reads_for_too_long() -> None:
    async def be_silent(reader: Reader, writer: Writer) -> None:
        await reader.read()

    async with tcp.serve(be_silent, "127.0.0.1", 0) as server:
        async with client(server, read_timeout=SHORT) as (reader, _):
            with pytest.raises(TimeoutError, match=rf"127\.0\.0\.1:{server.address[1]} was silent for 0\.03 seconds"):
                await reader.read(1)

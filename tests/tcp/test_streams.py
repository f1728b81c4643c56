"""Readers and writers: what those of asyncio do, and what they do not."""

from __future__ import annotations

import asyncio
import random
import socket
from typing import Any

import pytest

from asyncnet import tcp
from asyncnet.tcp.reading import StreamReader
from asyncnet.tcp.streams import StreamProtocol
from asyncnet.tcp.transport import SocketTransport
from asyncnet.tcp.writing import StreamWriter
from tests.tcp.clients import until
from tests.tcp.pairs import pair

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


# Reading: the same as asyncio's reader.

READERS = [pytest.param(asyncio.StreamReader, id="asyncio's"), pytest.param(StreamReader, id="ours")]


async def outcome(awaitable: Any) -> object:
    try:
        async with asyncio.timeout(5):
            return await awaitable
    except asyncio.IncompleteReadError as exc:
        return "incomplete", exc.partial, exc.expected
    except asyncio.LimitOverrunError as exc:
        return "overrun", exc.consumed
    except (ValueError, OSError, RuntimeError) as exc:
        return type(exc), str(exc)


@pytest.mark.parametrize("kind", READERS)
async def test_reads(kind: type[asyncio.StreamReader]) -> None:
    reader = kind(limit=100)
    reader.feed_data(b"one\ntwo\nthree")
    assert await reader.read(2) == b"on"
    assert await reader.readline() == b"e\n"
    assert await reader.readexactly(0) == b""
    assert await reader.readuntil(b"o") == b"two"
    assert await reader.readexactly(2) == b"\nt"
    assert await reader.read(0) == b""
    assert await reader.read(1000) == b"hree"
    reader.feed_data(b"rest")
    assert not reader.at_eof()
    reader.feed_eof()
    assert await reader.read() == b"rest"
    assert reader.at_eof()
    assert await reader.read() == await reader.read(5) == await reader.readline() == b""
    assert await outcome(reader.readexactly(1)) == ("incomplete", b"", 1)
    assert await outcome(reader.readuntil(b"x")) == ("incomplete", b"", None)


@pytest.mark.parametrize("kind", READERS)
async def test_lines_that_are_too_long(kind: type[asyncio.StreamReader]) -> None:
    reader = kind(limit=10)
    reader.feed_data(b"x" * 11 + b"\nshort\n")
    assert await outcome(reader.readuntil()) == ("overrun", 11)
    assert issubclass((await outcome(reader.readline()))[0], ValueError)  # type: ignore[index]
    assert await reader.readline() == b"short\n"
    reader.feed_data(b"y" * 30)
    assert await outcome(reader.readuntil()) == ("overrun", 30)
    assert issubclass((await outcome(reader.readline()))[0], ValueError)  # type: ignore[index]
    reader.feed_data(b"again\n")
    assert await reader.readline() == b"again\n"


@pytest.mark.parametrize("kind", READERS)
async def test_what_cannot_be_read(kind: type[asyncio.StreamReader]) -> None:
    with pytest.raises(ValueError, match="Limit cannot be <= 0"):
        kind(limit=0)
    reader = kind()
    assert await outcome(reader.readexactly(-1)) == (ValueError, "readexactly size can not be less than zero")
    assert await outcome(reader.readuntil(b"")) == (ValueError, "Separator should be at least one-byte string")
    reader.set_exception(ConnectionResetError("gone"))
    assert reader.exception() is not None
    for call in (reader.read(5), reader.read(), reader.readexactly(1), reader.readline(), reader.readuntil(b"x")):
        assert await outcome(call) == (ConnectionResetError, "gone")


@pytest.mark.parametrize("kind", READERS)
async def test_one_task_reads_at_a_time(kind: type[asyncio.StreamReader]) -> None:
    reader = kind()
    first = asyncio.create_task(reader.read(5))
    await asyncio.sleep(0)
    assert (await outcome(reader.read(5)))[0] is RuntimeError  # type: ignore[index]
    reader.feed_data(b"x")
    assert await first == b"x"


@pytest.mark.parametrize("kind", READERS)
async def test_iteration_gives_lines(kind: type[asyncio.StreamReader]) -> None:
    reader = kind()
    reader.feed_data(b"one\ntwo\nrest")
    reader.feed_eof()
    assert [line async for line in reader] == [b"one\n", b"two\n", b"rest"]


@pytest.mark.parametrize("kind", READERS)
async def test_random_reads_of_random_pieces(kind: type[asyncio.StreamReader]) -> None:
    choose = random.Random(7)
    data = bytes(choose.choices(b"abc\n", k=20_000))
    reader, task, got = kind(limit=1000), asyncio.current_task(), []
    assert task is not None

    async def feed() -> None:
        place = 0
        while place < len(data):
            size = choose.randint(1, 300)
            reader.feed_data(data[place : place + size])
            place += size
            await asyncio.sleep(0)
        reader.feed_eof()

    feeder = asyncio.create_task(feed())
    while not reader.at_eof():
        match choose.randrange(4):
            case 0:
                got.append(await reader.read(choose.randint(1, 500)))
            case 1:
                got.append(await reader.readline())
            case _:
                try:
                    got.append(await reader.readexactly(choose.randint(1, 500)))
                except asyncio.IncompleteReadError as exc:
                    got.append(exc.partial)
    await feeder
    assert b"".join(got) == data


async def test_the_separator_that_ends_first_counts() -> None:
    reader = StreamReader()
    reader.feed_data(b"one\r\ntwo\nthree")
    assert await reader.readuntil((b"\r\n", b"\n")) == b"one\r\n"
    assert await reader.readuntil((b"\r\n", b"\n")) == b"two\n"


async def test_chunks_come_as_they_arrive() -> None:
    async with pair() as (reader, _, far):
        chunks = reader.chunks()
        far.send(b"one")
        assert await anext(chunks) == b"one"
        far.send(b"two\nthree")
        assert await anext(chunks) == b"two\nthree"
        far.shutdown(socket.SHUT_WR)
        assert [chunk async for chunk in chunks] == []


async def test_reading_pauses_above_the_limit_and_goes_on() -> None:
    async with pair(limit=1000) as (reader, writer, far):
        sent = 0
        try:
            while True:
                sent += far.send(bytes(10_000))
                await asyncio.sleep(0)
        except BlockingIOError:
            pass
        assert not writer.transport.is_reading()
        assert sum([len(await reader.readexactly(1000)) for _ in range(sent // 1000)]) == sent // 1000 * 1000
        assert len(await reader.readexactly(sent % 1000)) == sent % 1000
        far.send(b"more")
        assert await reader.read(10) == b"more"


async def test_more_than_the_limit_may_be_asked_for() -> None:
    async with pair(limit=100) as (reader, _, far):
        wanted = asyncio.create_task(reader.readexactly(50_000))
        for _ in range(50):
            far.send(bytes(1000))
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            assert await wanted == bytes(50_000)


async def test_a_cancelled_read_loses_no_byte() -> None:
    choose = random.Random(3)
    data = choose.randbytes(200_000)
    async with pair(limit=5000) as (reader, _, far):

        async def send() -> None:
            view = memoryview(data)
            while view:
                try:
                    view = view[far.send(view[: choose.randint(1, 3000)]) :]
                except BlockingIOError:
                    pass
                await asyncio.sleep(0)

        sender, got = asyncio.create_task(send()), b""
        async with asyncio.timeout(30):
            while len(got) < len(data):
                size = min(choose.randint(1, 4000), len(data) - len(got))
                read = asyncio.create_task(reader.readexactly(size) if choose.random() < 0.5 else reader.read(size))
                for _ in range(choose.randrange(4)):
                    await asyncio.sleep(0)
                if choose.random() < 0.5:
                    read.cancel()
                try:
                    got += await read
                except asyncio.CancelledError:
                    pass
        await sender
        assert got == data


# Writing.


async def test_small_writes_of_one_turn_leave_together() -> None:
    async with pair() as (reader, writer, far):
        sock = writer.transport._sock  # type: ignore[attr-defined]
        for _ in range(10):
            writer.write(b"0123456789")
        await writer.drain()
        assert sock.sent == []
        await asyncio.sleep(0)
        assert sock.sent == [100]
        assert far.recv(1000) == b"0123456789" * 10

        async def answer() -> None:
            await reader.readexactly(1)
            writer.write(b"head")
            writer.write(bytearray(b"body"))
            writer.writelines([b"a", memoryview(b"b")])

        task = asyncio.create_task(answer())
        await asyncio.sleep(0)
        far.send(b"?")
        await task
        assert sock.sent == [100, 10]


async def test_large_writes_leave_at_once_and_in_order() -> None:
    choose = random.Random(5)
    pieces = [choose.randbytes(choose.choice([1, 10, 5000, 70_000, 300_000])) for _ in range(60)]
    async with pair() as (_, writer, far):
        got = bytearray()

        async def receive() -> None:
            loop = asyncio.get_running_loop()
            while len(got) < sum(map(len, pieces)):
                got.extend(await loop.sock_recv(far, choose.randint(1, 100_000)))

        receiver = asyncio.create_task(receive())
        for piece in pieces:
            writer.write(piece)
            if choose.random() < 0.3:
                await writer.drain()
        async with asyncio.timeout(10):
            await receiver
        assert got == b"".join(pieces)
        assert writer.transport.get_write_buffer_size() == 0


async def test_what_is_written_may_be_changed_afterwards() -> None:
    async with pair() as (_, writer, far):
        data = bytearray(b"before")
        writer.write(data)
        data[:] = b"after!"
        await asyncio.sleep(0)
        assert far.recv(100) == b"before"


async def test_drain_waits_for_a_slow_reader_and_close_sends_the_rest() -> None:
    data = random.Random(1).randbytes(3_000_000)
    async with pair() as (_, writer, far):
        writer.write(data)
        drained = [asyncio.create_task(writer.drain()) for _ in range(3)]
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in drained)
        writer.close()
        closed = asyncio.create_task(writer.wait_closed())
        got, loop = bytearray(), asyncio.get_running_loop()
        while chunk := await loop.sock_recv(far, 1 << 20):
            got += chunk
        assert got == data
        async with asyncio.timeout(5):
            await closed
            await asyncio.gather(*drained, return_exceptions=True)


async def test_a_peer_that_never_reads_is_cut_off_at_the_hard_limit() -> None:
    async with pair(hard_limit=1 << 20) as (reader, writer, _):
        written = 0
        while not writer.is_closing():
            writer.write(bytes(100_000))
            written += 100_000
            assert writer.transport.get_write_buffer_size() < (1 << 20) + 100_000
        assert written < 4 << 20
        with pytest.raises(ConnectionAbortedError, match="unread"):
            await reader.read(1)
        with pytest.raises(ConnectionAbortedError, match="unread"):
            await writer.drain()
        writer.write(b"into the void")


async def test_many_tiny_writes_that_cannot_leave_take_no_more_memory_than_their_bytes() -> None:
    async with pair() as (_, writer, _):
        writer.write(bytes(5_000_000))
        for _ in range(200_000):
            writer.write(b"x")
        queue = writer.transport._queue  # type: ignore[attr-defined]
        assert len(queue._pieces) < 10


async def test_one_direction_may_end_before_the_other() -> None:
    async with pair() as (reader, writer, far):
        writer.write(b"request")
        assert writer.can_write_eof()
        writer.write_eof()
        await asyncio.sleep(0)
        assert far.recv(100) == b"request"
        assert far.recv(100) == b""
        far.send(b"answer")
        far.shutdown(socket.SHUT_WR)
        assert await reader.read() == b"answer"
        with pytest.raises(RuntimeError, match="write_eof"):
            writer.write(b"more")


async def test_what_is_not_bytes_is_an_error_that_names_its_type() -> None:
    async with pair() as (_, writer, _):
        for wrong in ("text", 5, None):
            with pytest.raises(TypeError, match=type(wrong).__name__):
                writer.write(wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="low"):
            writer.transport.set_write_buffer_limits(high=1, low=2)


async def test_a_loop_of_writes_and_drains_sees_that_the_connection_is_lost() -> None:
    async def write_for_ever(writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"x" * 100)
            await writer.drain()

    async with pair() as (_, writer, far):
        far.close()
        with pytest.raises(OSError, match=r"reset|Broken pipe|lost"):
            await asyncio.wait_for(write_for_ever(writer), 10)


async def test_a_reset_after_data_is_noticed() -> None:
    """On uvloop, `add_reader` alone would never tell of it."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(5):
            pass

    async with tcp.serve(handle, "127.0.0.1", 0) as server:

        def reset_with_data() -> None:
            for _ in range(20):
                sock = socket.create_connection(server.address)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                sock.sendall(b"hello")
                sock.close()

        await asyncio.to_thread(reset_with_data)
        await until(lambda: server.stats.accepted == 20 and server.stats.active == 0)


async def test_a_writer_that_nobody_closed_warns() -> None:
    near, far = socket.socketpair()
    loop = asyncio.get_running_loop()
    protocol = StreamProtocol(StreamReader(100, loop), loop, "far", server_side=False)
    near.setblocking(False)
    writer = StreamWriter(SocketTransport(loop, near, protocol, "far"), protocol)
    with far, pytest.warns(ResourceWarning, match="unclosed"):
        writer.__del__()
    del writer
    await until(lambda: protocol.lost)


async def test_another_protocol_may_take_over() -> None:
    class Plain(asyncio.Protocol):
        got = b""

        def data_received(self, data: bytes) -> None:
            self.got += data

    class Buffered(asyncio.BufferedProtocol):
        def __init__(self) -> None:
            self.buffer, self.got = bytearray(3), b""

        def get_buffer(self, sizehint: int) -> bytearray:
            return self.buffer

        def buffer_updated(self, nbytes: int) -> None:
            self.got += self.buffer[:nbytes]

    async with pair() as (_, writer, far):
        transport = writer.transport
        streams = transport.get_protocol()
        takers: list[Plain | Buffered] = [Plain(), Buffered()]
        for protocol in takers:
            transport.set_protocol(protocol)
            assert transport.get_protocol() is protocol
            far.send(b"hello world")
            while protocol.got != b"hello world":
                await asyncio.sleep(0.001)
        with pytest.raises(TypeError, match="protocol must be"):
            transport.set_protocol(asyncio.DatagramProtocol())
        transport.set_protocol(streams)


async def test_a_protocol_that_fails_does_not_keep_back_what_others_have_written() -> None:
    class Bad(asyncio.Protocol):
        def resume_writing(self) -> None:
            raise RuntimeError("on purpose")

    told: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    async with pair() as (_, bad, _), pair() as (_, good, far):
        loop.set_exception_handler(lambda _, context: told.append(context))
        streams = bad.transport.get_protocol()
        bad.transport.set_protocol(Bad())
        bad.write(b"bad")
        bad.transport.set_write_buffer_limits(0)  # below what waits for the end of this turn
        good.write(b"good")
        async with asyncio.timeout(10):
            assert await loop.sock_recv(far, 100) == b"good"
        bad.transport.set_protocol(streams)
        assert [str(context["exception"]) for context in told] == ["on purpose"]

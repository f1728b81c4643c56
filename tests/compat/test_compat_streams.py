"""The reader and the writer on socket pairs, blocking and not, and the reader against asyncio's own."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from contextlib import closing
from typing import Any, TypeVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asyncnet.compat import Reader, Writer, open_streams, run_blocking
from asyncnet.errors import ForeignAwaitError

T = TypeVar("T")


async def drained(writer: Writer) -> None:
    await writer.drain()


@pytest.fixture(params=["blocking", "non-blocking"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(request.param == "blocking")
        theirs.settimeout(10)
        yield ours, theirs


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname(), timeout=10)
        ours, _ = listener.accept()
    return ours, theirs


class Stubborn:
    """A socket that takes one byte at a time, and none every other time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.willing = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def send(self, data: bytes | bytearray | memoryview) -> int:
        self.willing = not self.willing
        if not self.willing:
            raise BlockingIOError
        return self._sock.send(memoryview(data).cast("B")[:1])


class Watched:
    """A socket that counts how often recv was called."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def recv(self, size: int) -> bytes:
        self.calls += 1
        return self._sock.recv(size)


def test_what_a_socket_does_not_take_is_sent_by_drain_in_order() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        _, writer = open_streams(Stubborn(ours))
        writer.write(b"one ")
        writer.writelines([b"two ", bytearray(b"three "), memoryview(b"four")])
        assert writer.pending
        run_blocking(drained(writer))
        assert not writer.pending
        assert theirs.recv(100) == b"one two three four"


def test_a_read_sends_what_is_pending_first() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        reader, writer = open_streams(Stubborn(ours))
        theirs.sendall(b"question")
        writer.write(b"answer")
        assert run_blocking(reader.read(100)) == b"question"
        assert theirs.recv(100) == b"answer"


def test_views_of_wider_items_are_sent_whole() -> None:
    data = struct.pack("i", 1234)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        _, writer = open_streams(Stubborn(ours))
        writer.write(memoryview(data).cast("i"))  # one item, and the socket takes one byte
        run_blocking(drained(writer))
        assert theirs.recv(100) == data


def test_a_read_after_a_short_one_waits_before_it_asks() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        watched = Watched(ours)
        reader, _ = open_streams(watched)
        theirs.sendall(b"short")
        assert run_blocking(reader.read(100)) == b"short"
        assert watched.calls == 1
        read = reader.read(100)
        assert read.send(None).source is watched
        assert watched.calls == 1
        theirs.sendall(b"next")
        with pytest.raises(StopIteration, match="next"):
            read.send(None)
        assert watched.calls == 2


def test_bytes_that_are_left_are_read_at_once() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.sendall(b"abcd")
        reader, _ = open_streams(ours)
        for expected in "ab", "cd":
            with pytest.raises(StopIteration, match=expected):
                reader.read(2).send(None)


@pytest.mark.parametrize("way", ["read", "readexactly", "readline", "drain"])
def test_operations_that_never_wait_yield_after_a_while(way: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.sendall(b"\n" * 1000)
        reader, writer = open_streams(ours)
        run_blocking(reader.readexactly(1))
        ways = {
            "read": lambda: reader.read(1),
            "readexactly": lambda: reader.readexactly(1),
            "readline": reader.readline,
            "drain": writer.drain,
        }

        async def wait() -> None:
            await ways[way]()

        for _ in range(100):
            try:
                yielded = wait().send(None)
            except StopIteration:
                continue
            assert yielded.timeout == 0
            return
        pytest.fail("it never yielded")


def test_write_and_read_after_a_reset_tell_what_happened() -> None:
    ours, theirs = tcp_pair()
    reader, writer = open_streams(ours, ("peer", 1))
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            run_blocking(reader.read(1))
    writer.write(b"lost")  # says nothing, as in asyncio
    with pytest.raises(ConnectionResetError):
        run_blocking(drained(writer))
    with pytest.raises(ConnectionResetError):
        run_blocking(writer.wait_closed())
    assert writer.is_closing()
    assert ours.fileno() == -1
    assert writer.get_extra_info("peername") == ("peer", 1)
    assert writer.get_extra_info("sockname", "gone") == "gone"


def test_after_close_reads_end_and_drain_fails(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    closed: list[object] = []
    reader, writer = open_streams(ours, closing=closed.append)
    writer.write(b"last")
    writer.close()
    writer.close()
    writer.write(b"dropped")
    run_blocking(writer.wait_closed())
    assert closed == [ours]
    assert run_blocking(reader.read(10)) == b""
    assert reader.at_eof()
    with pytest.raises(ConnectionResetError):
        run_blocking(drained(writer))
    assert theirs.recv(10) == b"last"
    assert theirs.recv(10) == b""


def test_close_sends_what_is_pending_before_it_closes() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setblocking(False)
        _, writer = open_streams(Stubborn(ours))
        writer.write(b"pending")
        writer.close()
        assert ours.fileno() >= 0
        run_blocking(writer.wait_closed())
        assert ours.fileno() == -1
        assert theirs.recv(100) == b"pending"


def test_a_peer_that_takes_nothing_cannot_hold_up_closing(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncnet.compat.writing.FLUSH_STALL", 0.01)
    ours, _ = pair
    _, writer = open_streams(ours)
    writer.pending.append(bytes(1 << 22))  # more than the pair holds; a blocking write would wait
    writer.close()
    with pytest.raises(TimeoutError):
        run_blocking(writer.wait_closed())
    assert ours.fileno() == -1


def test_write_eof_ends_one_direction_once_everything_is_sent() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        reader, writer = open_streams(Stubborn(ours))
        writer.write(b"all")
        writer.write_eof()
        with pytest.raises(RuntimeError, match="write_eof"):
            writer.write(b"more")
        run_blocking(drained(writer))
        assert theirs.recv(10) == b"all"
        assert theirs.recv(10) == b""
        theirs.sendall(b"answer")
        assert run_blocking(reader.read(10)) == b"answer"


def test_text_is_refused(pair: tuple[socket.socket, socket.socket]) -> None:
    _, writer = open_streams(pair[0])
    with pytest.raises(TypeError):
        writer.write("text")  # type: ignore[arg-type]


def test_a_limit_must_be_positive(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(ValueError, match="Limit"):
        open_streams(pair[0], limit=0)


# Against asyncio: the same bytes, the same calls, the same answers.

CALLS = st.one_of(
    st.tuples(st.just("read"), st.integers(-1, 12)),
    st.tuples(st.just("readexactly"), st.integers(-1, 12)),
    st.tuples(st.just("readuntil"), st.sampled_from([b"\n", b"ab", b"aab", b""])),
    st.tuples(st.just("readline")),
    st.tuples(st.just("at_eof")),
    st.tuples(st.just("__anext__")),
)


async def answers(reader: Any, calls: list[tuple[Any, ...]]) -> list[object]:
    found: list[object] = []
    for name, *arguments in calls:
        try:
            answer = getattr(reader, name)(*arguments)
            found.append(answer if isinstance(answer, bool) else await answer)
        except asyncio.IncompleteReadError as exc:
            found.append(("incomplete", exc.partial, exc.expected))
        except asyncio.LimitOverrunError as exc:
            found.append(("limit", str(exc), exc.consumed))
        except (ValueError, StopAsyncIteration) as exc:
            found.append((type(exc), str(exc)))
    return found


@given(st.text("ab\n", max_size=40), st.lists(CALLS, max_size=12))
@example("a" * 10 + "\nb\n", [("readline",)] * 3)
@example("a" * 11 + "\nb\n", [("readuntil", b"\n"), ("readline",), ("readline",)])
@example("a" * 30, [("readuntil", b"\n"), ("readline",), ("readline",)])
def test_the_reader_answers_as_that_of_asyncio(text: str, calls: list[tuple[Any, ...]]) -> None:
    data = text.encode()

    async def theirs() -> list[object]:
        reader = asyncio.StreamReader(limit=10)
        reader.feed_data(data)
        reader.feed_eof()
        # Ours has read nothing yet, so it cannot know of the end; a read of nothing does not tell either.
        return await answers(reader, calls)

    async def ours(reader: Reader) -> list[object]:
        return await answers(reader, calls)

    left, right = socket.socketpair()
    with left, right:
        right.sendall(data)
        right.shutdown(socket.SHUT_WR)
        mine = run_blocking(ours(open_streams(left, limit=10)[0]))
    expected = asyncio.run(theirs())
    for call, got, wanted in zip(calls, mine, expected, strict=True):
        if call[0] == "at_eof":  # asyncio may know of the end before anything was read
            assert got <= wanted  # type: ignore[operator]
        else:
            assert got == wanted


# Driving.


def test_a_coroutine_that_fails_to_wait_gets_the_error_where_it_waits() -> None:
    async def waits() -> str:
        from asyncnet.compat import sleep

        try:
            await sleep(1)
        except KeyError:
            return "caught"
        return "slept"

    def refuse(seconds: float) -> None:
        raise KeyError(seconds)

    assert run_blocking(waits(), refuse) == "caught"


def test_run_blocking_refuses_a_foreign_await() -> None:
    loop = asyncio.new_event_loop()
    with closing(loop):
        future = loop.create_future()

        async def waits() -> None:
            await future

        with pytest.raises(ForeignAwaitError, match=r"_asyncio\.Future.*asyncio, uvloop, asyncnet"):
            run_blocking(waits())


def test_a_blocking_handler_never_traps() -> None:
    async def echo(reader: Reader, writer: Writer) -> None:
        while data := await reader.read(100):
            writer.write(data)
            await writer.drain()

    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(10)

        def talk() -> None:
            for _ in range(10):
                theirs.sendall(b"x")
                theirs.recv(1)
            theirs.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=talk)
        thread.start()
        coro: Coroutine[Any, Any, None] = echo(*open_streams(ours))
        with pytest.raises(StopIteration):
            coro.send(None)
        thread.join()

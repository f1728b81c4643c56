"""The kernel, over every selector that this system has."""

from __future__ import annotations

import ast
import asyncio
import gc
import logging
import os
import selectors
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from asyncnet import compat
from asyncnet.compat import Kernel, open_streams, readiness, sleep, timeout, wait_readable, wait_writable
from asyncnet.compat.connections import ACCEPTS_PER_TURN, StreamService
from asyncnet.compat.datagrams import DATAGRAMS_PER_TURN, DatagramService
from asyncnet.compat.readiness import KernelServer
from asyncnet.compat.serving import Job, Stats
from asyncnet.errors import ForeignAwaitError

SELECTORS = [
    getattr(module, name)
    for module, name in (
        (selectors, "EpollSelector"),
        (selectors, "KqueueSelector"),
        (selectors, "PollSelector"),
        (readiness, "LimitedSelector"),
        (readiness, "EdgeSelector"),
        (readiness, "PollingSelector"),
    )
    if hasattr(module, name)
]


class Counting:
    """A selector that writes down what it is told."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._selector, name)
        if name in ("register", "modify", "unregister"):
            self.calls.append(name)
        return found


@pytest.fixture(params=SELECTORS, ids=lambda kind: kind.__name__)
def selector(request: pytest.FixtureRequest) -> Any:
    return Counting(request.param())


@pytest.fixture
def kernel(selector: Any) -> Iterator[Kernel]:
    kernel = Kernel(selector)
    yield kernel
    kernel.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        yield ours, theirs


def test_tasks_take_turns(kernel: Kernel) -> None:
    order: list[str] = []

    async def work(name: str) -> None:
        for _ in range(3):
            order.append(name)
            await sleep(0)

    for name in "abc":
        kernel.spawn(work(name))
    kernel.run(timeout=10)
    assert order == ["a", "b", "c"] * 3


def test_sleepers_wake_in_the_order_of_their_times(kernel: Kernel) -> None:
    order: list[float] = []

    async def nap(seconds: float) -> None:
        await sleep(seconds)
        order.append(seconds)

    for seconds in (0.03, 0.01, 0.02):
        kernel.spawn(nap(seconds))
    kernel.run(timeout=10)
    assert order == [0.01, 0.02, 0.03]


def test_a_task_may_sleep_for_ever(kernel: Kernel, pair: tuple[socket.socket, socket.socket]) -> None:
    seen: list[str] = []

    async def nap(seconds: float) -> None:
        try:
            await sleep(seconds)
        finally:
            seen.append("cancelled")

    async def wait() -> None:
        await wait_readable(pair[0])
        kernel.cancel_all()

    for seconds in (1e12, float("inf")):
        kernel.spawn(nap(seconds))
    kernel.spawn(wait())
    timer = threading.Timer(0.05, pair[1].send, [b"x"])
    timer.start()
    kernel.run()
    timer.join()
    assert seen == ["cancelled"] * 2


def test_a_descriptor_stays_registered_between_the_waits_of_a_conversation(
    kernel: Kernel, selector: Any, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair

    async def echo() -> None:
        reader, writer = open_streams(ours, closing=kernel.forget)
        for _ in range(10):
            writer.write(await reader.readexactly(4))
            await writer.drain()
        writer.close()

    async def ask() -> None:
        reader, writer = open_streams(theirs, closing=kernel.forget)
        for _ in range(10):
            writer.write(b"ping")
            assert await reader.readexactly(4) == b"ping"
        writer.close()

    kernel.spawn(echo())
    kernel.spawn(ask())
    kernel.run(timeout=10)
    assert selector.calls.count("register") <= 2
    assert selector.calls.count("unregister") == selector.calls.count("register")
    assert "modify" not in selector.calls


def test_a_ready_descriptor_that_nobody_waits_for_costs_nothing(
    kernel: Kernel, selector: Any, pair: tuple[socket.socket, socket.socket]
) -> None:
    if isinstance(selector._selector, readiness.PollingSelector):
        pytest.skip("polling costs a turn whatever happens: that is what it is")
    ours, theirs = pair
    turns = 0

    async def reads_once_and_sleeps() -> None:
        theirs.send(b"first")
        await wait_readable(ours)
        ours.recv(100)
        theirs.send(b"second")
        await sleep(0.05)

    select = selector._selector.select

    def counted(timeout: float | None) -> Any:
        nonlocal turns
        turns += 1
        return select(timeout)

    selector._selector.select = counted
    kernel.spawn(reads_once_and_sleeps())
    kernel.run(timeout=10)
    assert turns < 10
    assert selector.calls == ["register", "unregister"]


def test_one_task_reads_while_another_writes(kernel: Kernel, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    done: list[str] = []

    def fill() -> None:
        try:
            while True:
                ours.send(bytes(65536))
        except BlockingIOError:
            pass

    async def read() -> None:
        await wait_readable(ours)
        done.append("read")

    async def write() -> None:
        await wait_writable(ours)
        done.append("write")

    async def peer() -> None:
        await sleep(0)
        theirs.send(b"x")
        await sleep(0)
        await sleep(0)
        try:
            while True:
                theirs.recv(1 << 20)
        except BlockingIOError:
            pass

    fill()
    for work in (read, write, peer):
        kernel.spawn(work())
    kernel.run(timeout=10)
    assert done == ["read", "write"]


@pytest.mark.parametrize("known", [False, True])
def test_two_tasks_cannot_wait_for_the_same(
    kernel: Kernel, pair: tuple[socket.socket, socket.socket], known: bool
) -> None:
    ours, theirs = pair
    raised: list[BaseException] = []

    async def work() -> None:
        try:
            while not raised:
                await wait_readable(ours)
                ours.recv(1)
                await sleep(0)
        except RuntimeError as exc:
            raised.append(exc)
            theirs.send(b"x")

    async def knowing() -> None:
        """Wait once while nobody else does."""
        theirs.send(b"x")
        await wait_readable(ours)
        ours.recv(1)
        kernel.spawn(work())
        await sleep(0)
        await work()

    if not known:
        kernel.spawn(work())
    kernel.spawn(knowing() if known else work())
    kernel.run(timeout=10)
    assert [str(exc).partition(" for ")[0] for exc in raised] == ["another task waits"]


def test_a_descriptor_number_may_be_used_again_at_once(kernel: Kernel) -> None:
    numbers: set[int] = set()

    async def converse() -> None:
        for n in range(20):
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            numbers.add(ours.fileno())
            theirs.send(b"%d" % n)
            with theirs:
                await wait_readable(ours)
                assert ours.recv(10) == b"%d" % n
                if n % 2:
                    kernel.forget(ours)  # as the writer does; every other socket goes without a word
                ours.close()

    problems: list[BaseException] = []

    async def main() -> None:
        try:
            await converse()
        except BaseException as exc:
            problems.append(exc)
            raise

    kernel.spawn(main())
    kernel.run(timeout=10)
    assert not problems
    assert len(numbers) < 20


def test_closing_a_socket_wakes_who_waits_for_it(kernel: Kernel, pair: tuple[socket.socket, socket.socket]) -> None:
    reader, writer = open_streams(pair[0], closing=kernel.forget)
    got: list[bytes] = []

    async def read() -> None:
        got.append(await reader.read(1))

    async def close() -> None:
        await sleep(0)
        writer.close()

    kernel.spawn(read())
    kernel.spawn(close())
    kernel.run(timeout=10)
    assert got == [b""]


def test_waiting_for_a_closed_socket_fails(kernel: Kernel) -> None:
    raised: list[BaseException] = []

    async def wait() -> None:
        sock = socket.socket()
        sock.close()
        try:
            await wait_readable(sock)
        except OSError as exc:
            raised.append(exc)

    kernel.spawn(wait())
    kernel.run(timeout=10)
    assert raised


def test_a_task_that_fails_is_logged_and_ends_alone(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    done: list[bool] = []

    async def fail() -> None:
        raise ZeroDivisionError("on purpose")

    async def work() -> None:
        await sleep(0.001)
        done.append(True)

    kernel.spawn(fail())
    kernel.spawn(work())
    with caplog.at_level(logging.ERROR, "asyncnet.compat"):
        kernel.run(timeout=10)
    assert done == [True]
    assert "on purpose" in caplog.text


@pytest.mark.parametrize("where", ["start", "sleep", "read", "yield"])
def test_a_cancelled_task_cleans_up_and_may_wait_meanwhile(
    kernel: Kernel, pair: tuple[socket.socket, socket.socket], where: str
) -> None:
    seen: list[str] = []

    async def work() -> None:
        try:
            if where == "sleep":
                await sleep(3600)
            elif where == "read":
                await wait_readable(pair[0])
            while True:
                await sleep(0)
        except asyncio.CancelledError:
            seen.append("cancelled")
            await sleep(0)
            await sleep(0.001)
            seen.append("clean")
            raise

    task = kernel.spawn(work())
    if where != "start":
        kernel.run(timeout=0.01)
    kernel.cancel(task)
    kernel.run(timeout=10)
    assert seen == ["cancelled", "clean"]
    kernel.cancel(task)


def test_close_ends_tasks_that_ignore_everything_else(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    ended: list[bool] = []

    async def work() -> None:
        try:
            while True:
                try:
                    await sleep(3600)
                except asyncio.CancelledError:
                    continue
        finally:
            ended.append(True)

    kernel.spawn(work())
    kernel.run(timeout=0.01)
    kernel.cancel_all()
    kernel.run(timeout=0.01)
    assert not ended
    kernel.close()
    assert ended == [True]


def test_a_foreign_await_is_refused_where_it_stands(kernel: Kernel) -> None:
    refused: list[str] = []

    async def work(await_it: Callable[[], Any]) -> None:
        try:
            await await_it()
        except ForeignAwaitError as exc:
            refused.append(str(exc))

    async def future() -> None:
        await asyncio.get_running_loop().create_future()

    for way in (lambda: asyncio.sleep(1), lambda: asyncio.sleep(0), asyncio.Event().wait, future):
        kernel.spawn(work(way))
    kernel.run(timeout=10)
    assert len(refused) == 4
    assert "asyncio.tasks.sleep" in refused[0]
    assert "asyncio.locks.Event.wait" in refused[2]
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


@pytest.mark.parametrize("kind", ["connections", "datagrams"])
def test_a_flood_leaves_others_their_turns(kernel: Kernel, kind: str) -> None:
    """Counted, not timed: between two turns of another task, a server takes so many and no more."""
    many, taken = 200, 0

    async def handler(*_: Any) -> None:
        pytest.fail("nobody is served here")

    def admit(job: Job) -> None:
        nonlocal taken
        taken += 1
        job.close()

    async def other() -> list[int]:
        seen = [0]
        while taken < many:
            await sleep(0)
            seen.append(taken)
        front.cancel()
        return [after - before for before, after in pairwise(seen)]

    with ExitStack() as stack:
        service: StreamService | DatagramService
        if kind == "connections":
            service = StreamService(handler, ("127.0.0.1", 0), backlog=many)
            for _ in range(many):
                stack.enter_context(socket.create_connection(service.address[:2], timeout=10))
        else:
            service = DatagramService(handler, ("127.0.0.1", 0))
            sender = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            for _ in range(many):
                sender.sendto(b"x", service.address[:2])
        task = kernel.spawn(other())
        front = kernel.spawn(service.front(admit, Stats()))
        kernel.run(timeout=10)
    assert task.finished, f"{taken} of {many} were taken"
    assert max(task.result) <= (ACCEPTS_PER_TURN if kind == "connections" else DATAGRAMS_PER_TURN)


FOLDER = Path(compat.__file__).parent


def test_there_is_one_yield_of_coroutines_and_the_kernel_is_short() -> None:
    places = [
        (path.name, function.name, sum(isinstance(node, ast.Yield | ast.YieldFrom) for node in ast.walk(function)))
        for path in FOLDER.rglob("*.py")
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef)
        if any("coroutine" in ast.unparse(decorator) for decorator in function.decorator_list)
    ]
    assert places == [("traps.py", "trap", 1)]
    assert len((FOLDER / "kernel.py").read_text().splitlines()) < 300


def test_the_kernel_refuses_to_block_an_event_loop(kernel: Kernel) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="thread of its own"):
            kernel.run()

    asyncio.run(main())


@pytest.mark.parametrize("kind", SELECTORS)
def test_a_server_over_any_selector_forgets_connections_that_are_reset(
    kind: type[selectors.BaseSelector], caplog: pytest.LogCaptureFixture
) -> None:
    async def echo(reader: Any, writer: Any) -> None:
        while data := await reader.read(100):
            writer.write(data)
            await writer.drain()

    server = KernelServer(kind, StreamService(echo, ("127.0.0.1", 0), backlog=100), grace=1.0)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        for _ in range(50):
            sock = socket.create_connection(server.address[:2], timeout=10)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
            with socket.create_connection(server.address[:2], timeout=10) as sock:
                sock.sendall(b"here")
                assert sock.recv(10) == b"here"
    finally:
        server.stop()
        thread.join(10)
    assert not thread.is_alive()
    assert server.stats.accepted >= 50
    assert (server.stats.active, server.stats.failed) == (0, 0)


def test_a_server_in_the_main_thread_is_woken_by_signals() -> None:
    found: list[int] = []

    async def ask(reader: Any, writer: Any) -> None:
        found.append(signal.set_wakeup_fd(-1))
        signal.set_wakeup_fd(found[0])
        server.stop()

    server = KernelServer(selectors.DefaultSelector, StreamService(ask, ("127.0.0.1", 0), backlog=1), grace=1.0)
    with socket.create_connection(server.address[:2], timeout=10):
        server.run()
    assert found != [-1]
    assert signal.set_wakeup_fd(-1) == -1


def test_a_wait_for_what_was_left_unread_is_over_at_once(
    kernel: Kernel, pair: tuple[socket.socket, socket.socket]
) -> None:
    """A selector that tells only what changes has told of all these bytes already."""
    ours, theirs = pair
    received = []

    async def read_one_by_one() -> None:
        theirs.send(b"abc")
        for _ in range(3):
            await wait_readable(ours)
            received.append(ours.recv(1))

    kernel.spawn(read_one_by_one())
    kernel.run(timeout=5)
    assert received == [b"a", b"b", b"c"]


def test_the_end_of_a_stream_that_came_with_its_last_bytes_is_seen(
    kernel: Kernel, selector: Any, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    drains = getattr(selector._selector, "edge_triggered", False)
    received = []

    async def read() -> None:
        reader, _ = open_streams(ours, closing=kernel.forget, drains=drains)
        while data := await reader.read(100):
            received.append(data)

    task = kernel.spawn(read())
    theirs.send(b"last")
    theirs.shutdown(socket.SHUT_WR)
    kernel.run(until=task, timeout=5)
    assert task.finished
    assert received == [b"last"]


def test_a_task_is_waited_for_by_several_others(kernel: Kernel) -> None:
    results: list[object] = []

    async def work() -> str:
        await sleep(0.01)
        return "done"

    async def wait() -> None:
        results.append(await worker)

    async def wait_in_vain() -> None:
        try:
            async with timeout(0.001):
                await worker
        except TimeoutError:
            results.append("gave up")

    worker = kernel.spawn(work())
    for waiter in (wait(), wait(), wait_in_vain()):
        kernel.spawn(waiter)
    kernel.run(timeout=5)
    assert results == ["gave up", "done", "done"]


def test_a_task_that_cancels_itself_hears_of_it_in_its_next_wait(kernel: Kernel) -> None:
    seen: list[str] = []

    async def cancels_itself() -> None:
        task.cancel()
        seen.append("still running")
        try:
            await sleep(0)
        except asyncio.CancelledError:
            seen.append("cancelled")

    async def ends_at_once() -> None:
        other.cancel()

    task = kernel.spawn(cancels_itself())
    other = kernel.spawn(ends_at_once())
    kernel.run(timeout=5)
    assert seen == ["still running", "cancelled"]
    assert other.finished
    assert other.error is None


def test_a_task_that_never_waits_is_ended_by_its_timeout_all_the_same(kernel: Kernel) -> None:
    async def busy() -> int:
        turns = 0
        try:
            async with timeout(0.01):
                while True:
                    turns += 1
                    await sleep(0)
        except TimeoutError:
            return turns

    task = kernel.spawn(busy())
    kernel.run(timeout=5)
    assert task.result > 0


def test_what_is_awaited_to_clean_up_after_a_timeout_is_not_ended_by_it(kernel: Kernel) -> None:
    async def cleans_up() -> str:
        with suppress(TimeoutError):
            async with timeout(0.001):
                try:
                    await sleep(60)
                finally:
                    await sleep(0.001)
                    seen.append("clean")
        return "over"

    seen: list[str] = []
    task = kernel.spawn(cleans_up())
    kernel.run(timeout=5)
    assert (seen, task.result) == (["clean"], "over")


@pytest.mark.skipif(sys.platform != "linux", reason="limits of descriptors differ")
def test_select_refuses_what_it_cannot_watch_with_a_counter_and_a_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncnet.compat.readiness._COMPLAIN_EVERY", 3600.0)

    async def hello(reader: Any, writer: Any) -> None:
        writer.write(b"hello")

    server = KernelServer(readiness.LimitedSelector, StreamService(hello, ("127.0.0.1", 0), backlog=100), grace=1.0)
    thread = threading.Thread(target=server.run)
    thread.start()

    def ask() -> bytes:
        with socket.create_connection(server.address[:2], timeout=5) as sock:
            return sock.recv(100) + sock.recv(100)

    try:
        assert ask() == b"hello"
        gc.collect()  # what closes a descriptor later would make room
        fill = [os.dup(0)]
        try:
            while fill[-1] <= readiness.SELECT_LIMIT:
                fill.append(os.dup(0))
            assert [ask() for _ in range(3)] == [b"", b"", b""]
        finally:
            for fd in fill:
                os.close(fd)
        assert ask() == b"hello"
    finally:
        server.stop()
        thread.join(5)
    assert (server.stats.accepted, server.stats.refused) == (2, 3)
    lines = [record.getMessage() for record in caplog.records if "select()" in record.getMessage()]
    assert len(lines) == 1
    assert "1 connections refused" in lines[0]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of descriptors differ")
def test_a_wait_for_a_descriptor_beyond_selects_limit_is_an_error_of_that_task_alone() -> None:
    kernel = Kernel(readiness.LimitedSelector())
    gc.collect()  # what closes a descriptor later would make room
    fill = [os.dup(0) for _ in range(readiness.SELECT_LIMIT)]
    ours, theirs = socket.socketpair()
    seen: list[str] = []

    async def waits() -> None:
        try:
            await wait_readable(ours)
        except OSError as exc:
            seen.append(str(exc.strerror))

    try:
        with ours, theirs:
            kernel.spawn(waits())
            kernel.spawn(sleep(0.001))
            kernel.run(timeout=5)
    finally:
        for fd in fill:
            os.close(fd)
        kernel.close()
    assert seen == [f"select() cannot watch descriptor {fill[-1] + 1}: its limit is 1023"]

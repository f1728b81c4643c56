"""`timeout`, `spawn` and cancellation mean the same on every engine."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from asyncnet import compat
from asyncnet.compat.readiness import PollingSelector
from asyncnet.compat.traps import TRAP_ENGINES
from asyncnet.errors import ForeignAwaitError
from tests.compat.test_engines import NAMES, receive_all, receive_exactly, running

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the servers are stopped by SIGTERM")


@pytest.fixture(params=NAMES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


async def cleans_up_for_long() -> None:
    try:
        await compat.sleep(60)
    finally:
        await compat.sleep(0.1)


async def is_cancelled_while_it_cleans_up() -> list[str]:
    seen: list[str] = []
    cleaning: list[bool] = []

    async def cleans_up() -> None:
        try:
            await compat.sleep(60)
        finally:
            cleaning.append(True)
            await compat.sleep(60)

    async def work() -> None:
        try:
            async with compat.timeout(0.01):
                await cleans_up()
        except TimeoutError:
            seen.append("timed out")

    task = compat.spawn(work())
    while not cleaning:
        await compat.sleep(0.001)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        seen.append("cancelled")
    return seen


def test_a_cancellation_is_not_taken_for_the_timeout_that_came_before(engine: str) -> None:
    assert compat.run(is_cancelled_while_it_cleans_up(), engine=engine) == ["cancelled"]


async def has_two_timeouts() -> str:
    try:
        async with compat.timeout(0.05):
            try:
                async with compat.timeout(0.01):
                    await cleans_up_for_long()
            except TimeoutError:
                return "the inner one"
            await compat.sleep(60)
    except TimeoutError:
        return "the outer one"
    return "none"


def test_an_outer_timeout_holds_while_an_inner_one_cleans_up(engine: str) -> None:
    assert compat.run(has_two_timeouts(), engine=engine) == "the outer one"


async def cancels_at_once() -> str:
    task = compat.spawn(compat.sleep(60))
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return "cancelled"
    return "ended"


def test_a_task_that_is_cancelled_before_it_begins_can_be_awaited(engine: str) -> None:
    assert compat.run(cancels_at_once(), engine=engine) == "cancelled"


async def cancels_one_that_waits_for_another() -> str:
    other = compat.spawn(compat.sleep(60))

    async def wait() -> None:
        await other

    waiter = compat.spawn(wait())
    await compat.sleep(0.02)
    waiter.cancel()
    try:
        await waiter
    except asyncio.CancelledError:
        return "cancelled"
    return "ended"


def test_a_task_that_waits_for_another_can_be_cancelled(engine: str) -> None:
    assert compat.run(cancels_one_that_waits_for_another(), engine=engine) == "cancelled"


@pytest.mark.parametrize("name", [name for name in NAMES if name in TRAP_ENGINES])
def test_a_future_that_asyncio_has_made_already_is_refused_by_name(name: str) -> None:
    loop = asyncio.new_event_loop()
    future = loop.create_future()

    async def waits() -> None:
        await future

    with pytest.raises(ForeignAwaitError, match=r"awaited \w+\.Future, .* asyncio, uvloop, asyncnet"):
        compat.run(waits(), engine=name)
    loop.close()


@pytest.mark.parametrize("name", [name for name in NAMES if name in TRAP_ENGINES])
def test_who_only_asks_for_the_task_of_asyncio_hears_that_there_is_none(name: str) -> None:
    async def asks() -> bool:  # as logging does
        return asyncio.current_task() is None

    assert compat.run(asks(), engine=name)


def test_both_directions_of_a_connection_go_on_at_once(engine: str, tmp_path: Path) -> None:
    with running(engine, tmp_path) as server, server.connect("full_duplex") as sock:
        assert receive_exactly(sock, 1) == b"x"
        time.sleep(0.1)  # a slow reader, whom the writer waits for while reads time out
        assert len(receive_all(sock)) == 8_000_000 - 1


def test_a_second_signal_ends_the_grace(engine: str, tmp_path: Path) -> None:
    with running(engine, tmp_path, "--grace", "60") as server, server.connect("wait_for_bytes") as sock:
        assert receive_exactly(sock, 7) == b"waiting"
        server.process.send_signal(signal.SIGTERM)
        while True:  # until the first one has arrived: the listener is closed
            try:
                server.connect().close()
            except ConnectionError:
                break
        server.process.send_signal(signal.SIGTERM)
        assert "cleaned up" in server.wait()
    assert "Traceback" not in server.log()
    assert "did not end" not in server.log()


def test_a_kernel_remembers_no_timer_for_each_wait_within_a_timeout() -> None:
    from selectors import DefaultSelector

    async def waits() -> None:
        async with compat.timeout(3600):
            for _ in range(5000):
                await compat.sleep(0)
                await compat.sleep(1e-9)

    kernel = compat.Kernel(DefaultSelector())
    kernel.spawn(waits())
    kernel.run(timeout=20)
    assert len(kernel._timers) < 200
    kernel.close()


@pytest.mark.parametrize("name", ["epoll", "epoll-et", "polling", "gevent"])
def test_a_busy_endpoint_lets_others_run(name: str) -> None:
    async def talks_to_itself() -> str:
        async with await compat.open_endpoint(("127.0.0.1", 0)) as endpoint:
            addr = endpoint.local_addr
            try:
                async with compat.timeout(0.05):
                    while True:
                        await endpoint.send(b"x", addr)
                        await endpoint.recv()
            except TimeoutError:
                return "timed out"

    assert compat.run(talks_to_itself(), engine=name) == "timed out"


def test_a_task_that_waits_for_itself_is_told_so() -> None:
    async def waits_for_itself() -> Any:
        return await tasks[0]

    kernel = compat.Kernel(PollingSelector())
    tasks = [kernel.spawn(waits_for_itself())]
    tasks[0].expect()
    kernel.run(timeout=5)
    kernel.close()
    assert isinstance(tasks[0].error, RuntimeError)

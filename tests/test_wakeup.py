"""Wakeup: a task is resumed at once, and everything else that a task can do goes on working."""

from __future__ import annotations

import asyncio
import contextvars

import pytest

from asyncnet.wakeup import Wakeup

name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")


async def called_by_the_loop(wakeup: Wakeup) -> None:
    """Wake from a callback, as a transport does, and wait until that has happened."""
    done = asyncio.Event()

    def callback() -> None:
        wakeup.wake()
        done.set()

    asyncio.get_running_loop().call_soon(callback)
    await done.wait()


async def test_the_task_runs_inside_the_call() -> None:
    wakeup = Wakeup(asyncio.get_running_loop())
    events: list[str] = []

    async def wait() -> None:
        name.set("waiter")
        for turn in ("first", "second"):
            await wakeup
            events.append(turn)
            assert asyncio.current_task() is task
            assert name.get() == "waiter"

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    done = asyncio.Event()

    def callback() -> None:
        for expected in (["first"], ["first", "second"]):
            wakeup.wake()
            assert events == expected
        assert not wakeup.waiting
        assert name.get() == "nobody"
        done.set()

    asyncio.get_running_loop().call_soon(callback)
    await done.wait()
    await task


async def test_a_running_task_wakes_another_in_the_next_turn() -> None:
    wakeup = Wakeup(asyncio.get_running_loop())
    woken = False

    async def wait() -> None:
        nonlocal woken
        await wakeup
        woken = True

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    wakeup.wake()
    assert not woken
    await task
    assert woken


async def test_waking_nobody_does_nothing_and_is_not_remembered() -> None:
    wakeup = Wakeup(asyncio.get_running_loop())
    wakeup.wake()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await wakeup


async def test_cancelling_with_a_message() -> None:
    wakeup = Wakeup(asyncio.get_running_loop())

    async def wait() -> None:
        await wakeup

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    assert wakeup.waiting
    task.cancel("enough")
    with pytest.raises(asyncio.CancelledError, match="enough"):
        await task
    assert not wakeup.waiting
    again = asyncio.create_task(wait())
    await asyncio.sleep(0)
    await called_by_the_loop(wakeup)
    await again


async def test_cancelling_what_is_woken_but_has_not_run() -> None:
    wakeup = Wakeup(asyncio.get_running_loop())

    async def wait() -> None:
        await wakeup

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    wakeup.wake()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_exception_of_the_task_stays_in_the_task() -> None:
    wakeup = Wakeup(asyncio.get_running_loop())

    async def wait() -> None:
        await wakeup
        raise LookupError("mine")

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    await called_by_the_loop(wakeup)
    with pytest.raises(LookupError, match="mine"):
        await task


async def test_groups_wait_for_and_timeouts_work() -> None:
    wakeup = Wakeup(asyncio.get_running_loop())

    async def wait() -> str:
        await wakeup
        return "woken"

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(wait(), 0.01)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(wait())
        await asyncio.sleep(0)
        await called_by_the_loop(wakeup)
    assert task.result() == "woken"

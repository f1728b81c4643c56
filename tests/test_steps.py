"""Steps: a task whose coroutine runs on without it behaves like any other task."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncnet.wakeup import Steps, Wakeup

number: contextvars.ContextVar[int] = contextvars.ContextVar("number", default=0)


async def called_by_the_loop(function: Callable[[], object]) -> None:
    """Call a function where no task runs, as the poller does."""
    called = asyncio.Event()

    def call() -> None:
        try:
            function()
        finally:
            called.set()

    asyncio.get_running_loop().call_soon(call)
    await called.wait()


def woken_by(wakeup: Wakeup) -> Callable[[], None]:
    """Return what a reader does when bytes arrive."""

    def wake() -> None:
        if wakeup.callback is not None:
            if wakeup.steps is None:
                wakeup.wake_from_callback()
            else:
                wakeup.steps.run()

    return wake


async def test_the_task_does_not_know_of_the_steps_and_the_coroutine_does_not_either() -> None:
    wakeup = Wakeup(asyncio.get_running_loop())
    seen: list[object] = []

    async def work() -> str:
        for turn in range(3):
            number.set(turn)
            await wakeup
            seen.append((asyncio.current_task() is task, number.get()))
        return "result"

    task = asyncio.create_task(Steps(work(), wakeup))
    await asyncio.sleep(0)
    first = wakeup.callback
    await called_by_the_loop(woken_by(wakeup))
    await called_by_the_loop(woken_by(wakeup))
    assert wakeup.callback is first  # what the task left at the first time
    assert seen == [(True, 0), (True, 1)]
    assert not task.done()
    await called_by_the_loop(woken_by(wakeup))
    assert await task == "result"
    assert number.get() == 0


async def test_an_exception_of_a_step_is_the_tasks() -> None:
    wakeup = Wakeup(asyncio.get_running_loop())

    async def work() -> None:
        await wakeup
        await wakeup
        raise LookupError("what went wrong")

    task = asyncio.create_task(Steps(work(), wakeup))
    await asyncio.sleep(0)
    await called_by_the_loop(woken_by(wakeup))
    await called_by_the_loop(woken_by(wakeup))
    with pytest.raises(LookupError, match="what went wrong"):
        await task


async def test_waiting_for_something_else_and_coming_back() -> None:
    wakeup = Wakeup(asyncio.get_running_loop())
    event = asyncio.Event()
    seen: list[str] = []

    async def work() -> None:
        await wakeup
        await asyncio.sleep(0)
        seen.append("slept")
        await event.wait()
        seen.append("event")
        await wakeup
        seen.append("end")

    task = asyncio.create_task(Steps(work(), wakeup))
    await asyncio.sleep(0)
    await called_by_the_loop(woken_by(wakeup))
    while not seen:
        await asyncio.sleep(0)
    woken_by(wakeup)()  # nobody waits: nothing happens
    event.set()
    while len(seen) < 2:
        await asyncio.sleep(0)
    await called_by_the_loop(woken_by(wakeup))
    await task
    assert seen == ["slept", "event", "end"]


async def test_another_task_may_wait_meanwhile() -> None:
    """`asyncio.wait_for(reader.read(), 1)` in a handler does that before Python 3.12."""
    wakeup = Wakeup(asyncio.get_running_loop())
    seen: list[str] = []

    async def wait() -> None:
        await wakeup
        seen.append("other")

    async def work() -> None:
        await wakeup
        await asyncio.create_task(wait())
        seen.append("work")
        await wakeup

    task = asyncio.create_task(Steps(work(), wakeup))
    await asyncio.sleep(0)
    for _ in range(3):
        await called_by_the_loop(woken_by(wakeup))
        for _ in range(3):
            await asyncio.sleep(0)
    await task
    assert seen == ["other", "work"]


async def test_cancelling_what_a_step_began_to_wait_for() -> None:
    """As with any task, the cancellation reaches what is waited for, not only the one who waits."""
    wakeup = Wakeup(asyncio.get_running_loop())
    ended: list[str] = []

    async def child() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            ended.append("child")
            raise

    async def work() -> None:
        await wakeup
        inner = asyncio.create_task(child())
        await asyncio.sleep(0)
        await wakeup
        task.cancel()  # in a step of which the task does not know
        await inner

    task = asyncio.create_task(Steps(work(), wakeup))
    await asyncio.sleep(0)
    for _ in range(2):
        await called_by_the_loop(woken_by(wakeup))
        for _ in range(3):
            await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["child"]


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_task_that_has_ended_leaves_no_cycle(cancelled: bool) -> None:
    wakeup = Wakeup(asyncio.get_running_loop())

    async def work() -> None:
        await wakeup
        await wakeup

    gc.collect()
    gc.disable()
    try:
        task = asyncio.create_task(Steps(work(), wakeup))
        gone = weakref.ref(task)
        await asyncio.sleep(0)
        await called_by_the_loop(woken_by(wakeup))
        if cancelled:
            task.cancel()
        else:
            await called_by_the_loop(woken_by(wakeup))
        await asyncio.wait([task])
        del task
        assert gone() is None
    finally:
        gc.enable()


async def test_the_task_shows_the_coroutine() -> None:
    wakeup = Wakeup(asyncio.get_running_loop())

    async def some_handler() -> None:
        await wakeup

    coroutine = some_handler()
    task = asyncio.create_task(Steps(coroutine, wakeup))
    await asyncio.sleep(0)
    assert "some_handler" in repr(task)
    assert [frame.f_code.co_name for frame in task.get_stack()] == ["some_handler"]
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_SUSPENDED
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# Any program, in a task by itself and in one that does not know of its steps.

Program = list[str]
OPERATIONS = ("wait", "wait", "wait", "sleep", "event", "cancel self", "timeout", "raise", "swallow", "child", "group")
ACTIONS = ("wake", "wake", "wake", "set", "cancel")


async def run_program(program: Program, actions: list[str], wrap: bool) -> list[str]:
    loop = asyncio.get_running_loop()
    wakeup, event, log = Wakeup(loop), asyncio.Event(), list[str]()

    async def wait_for_event() -> None:
        try:
            await event.wait()
        finally:
            log.append("child ended")

    async def one(operation: str) -> None:
        match operation:
            case "wait":
                await wakeup
            case "sleep":
                await asyncio.sleep(0)
            case "event":
                await event.wait()
                event.clear()
            case "cancel self":
                task.cancel("by itself")
            case "timeout":
                async with asyncio.timeout(0):
                    await wakeup
            case "raise":
                raise LookupError(operation)
            case "swallow":
                try:
                    await wakeup
                except asyncio.CancelledError:
                    log.append("swallowed")
            case "child":
                await loop.create_task(wait_for_event())
            case "group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(wait_for_event())
                    await wakeup

    async def work() -> str:
        for operation in program:
            log.append(operation)
            try:
                await one(operation)
            except (TimeoutError, LookupError) as exc:
                log.append(repr(exc))
                if operation == "raise" and len(log) % 2:
                    raise
            assert asyncio.current_task() is task
        return "done"

    coroutine: Coroutine[Any, Any, str] = work()
    task = loop.create_task(Steps(coroutine, wakeup) if wrap else coroutine)
    for action in [*actions, "cancel", "cancel", "cancel"]:
        for _ in range(12):
            await asyncio.sleep(0)
        log.append(f"[{action}]")
        match action:
            case "wake":
                await called_by_the_loop(woken_by(wakeup))
            case "set":
                event.set()
            case "cancel":
                task.cancel("from outside")
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    log.append("cancelled" if task.cancelled() else repr(task.exception() or task.result()))
    return log


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(OPERATIONS), max_size=12),
    st.lists(st.sampled_from(ACTIONS), max_size=16),
)
def test_any_program_runs_as_in_a_task_by_itself(program: Program, actions: list[str]) -> None:
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        expected = runner.run(run_program(program, actions, wrap=False))
        assert runner.run(run_program(program, actions, wrap=True)) == expected

"""What every test shares: each asynchronous test runs on asyncio and on uvloop, and must leave no task behind."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import hypothesis
import pytest

from asyncnet.loops import HAVE_UVLOOP, new_event_loop

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    names = ["asyncio", "uvloop"] if HAVE_UVLOOP else ["asyncio"]
    return {name: functools.partial(new_event_loop, name) for name in names}


ALONE = {"lab", "netns", "workers"}
"""Folders of tests that need the machine for themselves."""
NOT_ALONE = {"test_compare.py", "test_figures.py", "test_fleet.py", "test_parts.py"}
"""Tests in them that measure nothing."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0] in ALONE and item.path.name not in NOT_ALONE:
            item.add_marker("alone")
        # Tests of a file stay on one processor, and those with peers, which have fixed ports, all on one.
        item.add_marker(pytest.mark.xdist_group("interop" if "interop" in item.path.parts else str(item.path)))
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.function):
            item.fixturenames.insert(0, "no_leaks")


@pytest.fixture
async def no_leaks() -> AsyncIterator[None]:
    """Fail a test that leaves a task behind or raises inside a callback of the loop."""
    loop = asyncio.get_running_loop()
    problems: list[str] = []
    loop.set_exception_handler(
        lambda _, context: problems.append(f"{context['message']}: {context.get('exception')!r}")
    )
    yield
    for _ in range(3):  # a transport closes one turn after it was told to
        await asyncio.sleep(0)
    leaked = {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
    assert not leaked, f"tasks left behind: {leaked}"
    assert not problems, f"errors in callbacks: {problems}"

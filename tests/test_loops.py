from __future__ import annotations

import asyncio

import pytest

from asyncnet.loops import HAVE_UVLOOP, loop_name, new_event_loop, run


async def running_loop() -> str:
    return loop_name(asyncio.get_running_loop())


@pytest.mark.parametrize(
    "name", ["asyncio", pytest.param("uvloop", marks=pytest.mark.skipif(not HAVE_UVLOOP, reason="no uvloop"))]
)
def test_the_named_loop_runs(name: str) -> None:
    assert run(running_loop(), loop=name) == name


def test_uvloop_is_the_default_where_it_is_installed() -> None:
    assert run(running_loop()) == ("uvloop" if HAVE_UVLOOP else "asyncio")


def test_a_loop_factory_for_the_runner() -> None:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        assert runner.run(running_loop()) == ("uvloop" if HAVE_UVLOOP else "asyncio")


def test_an_unknown_loop_is_an_error_that_lists_the_names() -> None:
    with pytest.raises(ValueError, match="auto, asyncio, uvloop, not 'trio'"):
        run(running_loop(), loop="trio")


def test_a_running_loop_is_an_error() -> None:
    async def main() -> None:
        run(running_loop())

    with pytest.raises(RuntimeError):
        run(main())

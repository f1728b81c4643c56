"""The function under test, in two kinds."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from asyncnet.loops import loop_name
from tests.udp.recorders import Create


@pytest.fixture(params=["asyncnet", "stock"])
async def create(request: pytest.FixtureRequest) -> Create:
    """The function under test: ours, and asyncio's own on asyncio's loop, which is the specification."""
    loop = asyncio.get_running_loop()
    if request.param == "asyncnet":
        return loop.create_datagram_endpoint
    if loop_name(loop) != "asyncio":
        pytest.skip("asyncio's own transport runs on asyncio's loop")
    return partial(asyncio.BaseEventLoop.create_datagram_endpoint, loop)  # type: ignore[arg-type]

"""Responders on 127.0.0.1: ``python discovery.py WAY`` answers every question; the port goes to standard error.

``python discovery.py many COUNT DELAY`` opens so many responders on one port, each with its own answer.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any


class Responder(asyncio.DatagramProtocol):
    """What anybody would write."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data, addr)  # the load compares


def ready(port: int) -> None:
    print(f"listening on 127.0.0.1:{port}", file=sys.stderr, flush=True)


async def until_told() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()


async def protocol() -> None:
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Responder, ("0.0.0.0", 0))
    ready(transport.get_extra_info("sockname")[1])
    await until_told()
    transport.close()


async def answer() -> None:
    from asyncnet import broadcast

    # The limit stays on, and is high: all questions of the load come from one address.
    async with broadcast.answer(lambda data, addr: data, 0, max_rate=1e7) as answerer:
        ready(answerer.address[1])
        await until_told()


async def many() -> None:
    from contextlib import AsyncExitStack

    from asyncnet import broadcast

    count, delay = int(sys.argv[2]), float(sys.argv[3])
    async with AsyncExitStack() as stack:
        port = 0
        for number in range(count):
            data = b"responder %d" % number
            opening = broadcast.answer(lambda _, addr, data=data: data, port, delay=delay)  # type: ignore[misc]
            answerer = await stack.enter_async_context(opening)
            port = answerer.address[1]
        ready(port)
        await until_told()


def uvloop_loop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


def asyncnet_loop() -> asyncio.AbstractEventLoop:
    import asyncnet

    return asyncnet.new_event_loop()


WAYS: dict[str, tuple[Callable[[], asyncio.AbstractEventLoop], Callable[[], Coroutine[Any, Any, None]]]] = {
    "asyncio protocol": (asyncio.SelectorEventLoop, protocol),
    "uvloop protocol": (uvloop_loop, protocol),
    "asyncnet answer": (asyncnet_loop, answer),
    "asyncnet answer on asyncio": (asyncio.SelectorEventLoop, answer),
    "many": (asyncnet_loop, many),
}

if __name__ == "__main__":
    factory, main = WAYS[sys.argv[1]]
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())

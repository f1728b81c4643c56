"""TCP servers for clients that behave badly: ``python tcp_faults.py WAY KIND [FILES]`` on a free port.

The way is ``tcp.serve`` or ``start_server`` on one of two loops; all have the same handler, which is the kind:

- ``lines``: a line comes back when it is whole.
- ``patient``: the same, and a client has two seconds for a line where the server can say so.
- ``flood``: writes 1 GiB to whoever sends a byte, and does not wait.
- ``work``: a request takes 5 ms; then its echo. Told to stop by SIGTERM, the server says how many requests it began.

FILES limits the files that the server may have open.
"""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import sys
from typing import Any, Final

HOST: Final = "127.0.0.1"
BACKLOG: Final = 1024
PIECE: Final = bytes(65535)
PIECES: Final = 16384


def announce(address: Any) -> None:
    print(f"listening on {address[0]}:{address[1]}", file=sys.stderr, flush=True)


class Service:
    """The handlers, and what they have in common."""

    def __init__(self) -> None:
        self.begun = 0
        self.stopping = asyncio.Event()

    async def lines(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(line)
                await writer.drain()
        except (OSError, ValueError):
            pass
        writer.close()

    patient = lines

    async def flood(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        for number in range(PIECES):
            writer.write(PIECE + b"x")  # a new one each time
            if number % 64 == 0:
                await asyncio.sleep(0)
        writer.close()

    async def work(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not self.stopping.is_set() and (request := await reader.read(65536)):
                self.begun += 1
                await asyncio.sleep(0.005)
                writer.write(request)
                await writer.drain()
        except OSError:
            pass
        writer.close()


async def main(way: str, kind: str, files: int) -> None:
    service = Service()
    handle = getattr(service, kind)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, service.stopping.set)
    if way.startswith("tcp.serve"):
        from asyncnet import tcp

        timeouts: dict[str, Any] = {"message_timeout": 2.0} if kind == "patient" else {}
        async with tcp.serve(handle, HOST, 0, backlog=BACKLOG, **timeouts) as server:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
            announce(server.address)
            await service.stopping.wait()
        told: dict[str, int] = {"overflows": server.stats.overflows, "shed": server.stats.shed}
    else:
        base = await asyncio.start_server(handle, HOST, 0, backlog=BACKLOG)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        announce(base.sockets[0].getsockname())
        await service.stopping.wait()
        base.close()
        await base.wait_closed()
        told = {}
    print(json.dumps(told | {"begun": service.begun}), file=sys.stderr, flush=True)


if __name__ == "__main__":
    way, kind, *limit = sys.argv[1:]
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    factory: Any = asyncio.SelectorEventLoop
    if way.startswith("tcp.serve"):
        import asyncnet

        asyncnet_loop = asyncnet.new_event_loop
        factory = asyncnet_loop if way.endswith("uvloop") else lambda: asyncnet_loop("asyncio")
    elif way.endswith("uvloop"):
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main(way, kind, int(limit[0]) if limit else most))

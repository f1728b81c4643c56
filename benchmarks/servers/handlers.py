"""Servers whose handlers do one thing: ``python handlers.py ENGINE echo|wait|compute`` on a free port.

The port goes to standard error. A request has 100 bytes and comes back after 5 ms: of waiting, or of the processor's
time; ``echo`` sends what comes. At the end, a line ``stats`` says in JSON what became of the connections.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import time
from typing import Any, Final

import attrs

from asyncnet import compat

SIZE: Final = 100
SECONDS: Final = 0.005


async def echo(reader: Any, writer: Any) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def wait(reader: Any, writer: Any) -> None:
    while data := await read_request(reader):
        await compat.sleep(SECONDS)
        writer.write(data)
        await writer.drain()


async def compute(reader: Any, writer: Any) -> None:
    while data := await read_request(reader):
        over = time.thread_time() + SECONDS  # of this thread's own time, however many share the core
        while time.thread_time() < over:
            pass
        writer.write(data)
        await writer.drain()


async def read_request(reader: Any) -> bytes:
    data = b""
    while len(data) < SIZE and (more := await reader.read(SIZE - len(data))):
        data += more
    return data


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    engine, work = sys.argv[1:]
    handler = {"echo": echo, "wait": wait, "compute": compute}[work]
    server = compat.create_server(handler, ("127.0.0.1", 0), engine=engine, grace=0.5)
    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    print(f"listening on 127.0.0.1:{server.address[1]}", file=sys.stderr, flush=True)
    server.run()
    counted = attrs.asdict(server.stats, filter=lambda attribute, _: not attribute.name.startswith("_"))
    print(f"stats {json.dumps(counted)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

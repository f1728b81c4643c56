"""An echo server: ``python workers_echo.py alone`` in this process, or ``workers_echo.py N [reuse_port]`` by N workers.

The address goes to standard error. The server is the same in both cases: `tcp.serve` with a handler that echoes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from asyncio import StreamReader, StreamWriter
from typing import Any

import asyncnet
from asyncnet import tcp, workers

PID_FILE = os.environ.get("PID_FILE")


async def echo(reader: StreamReader, writer: StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


def announce(addresses: list[Any]) -> None:
    print(f"listening on {addresses[0][0]}:{addresses[0][1]}", file=sys.stderr, flush=True)


async def alone() -> None:
    async with tcp.serve(echo, "127.0.0.1", 0) as server:
        announce([server.address])
        await asyncio.Event().wait()


async def main(worker: workers.Worker) -> None:
    await worker.serve(tcp.serve(echo, sockets=worker.tcp, grace=worker.grace))


if __name__ == "__main__":
    if sys.argv[1] == "alone":
        asyncnet.run(alone())
    else:
        logging.basicConfig(level=logging.ERROR)
        workers.run(
            main,
            workers=int(sys.argv[1]),
            bind=["127.0.0.1:0"],
            reuse_port="reuse_port" in sys.argv,
            pid_file=PID_FILE,
            ready=announce,
        )

"""What a classic server does, as a handler on an engine: ``matching_server.py ENGINE HANDLER``.

It prints the line of every server, ``listening on HOST:PORT``, on standard error, and stops on SIGTERM.
"""

from __future__ import annotations

import asyncio
import sys

from asyncnet import compat
from asyncnet.cli.common import announce


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1024):
        writer.write(data)
        await writer.drain()


async def hahaha(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(1024):
        writer.write(b"hahaha")
        await writer.drain()


if __name__ == "__main__":
    handler = {"echo": echo, "hahaha": hahaha}[sys.argv[2]]
    compat.serve(handler, ("127.0.0.1", 0), engine=sys.argv[1], ready=announce)

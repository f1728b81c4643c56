"""One handler, every engine: `serve` runs ``async def handler(reader, writer)`` unchanged on each of `ENGINES`."""

from asyncnet.compat.blocking import run_blocking
from asyncnet.compat.connections import Handler
from asyncnet.compat.datagrams import DatagramHandler, Endpoint, open_endpoint
from asyncnet.compat.engines import (
    ENGINES,
    Engine,
    create_datagram_server,
    create_server,
    find_engine,
    run,
    serve,
    serve_datagram,
)
from asyncnet.compat.kernel import Kernel
from asyncnet.compat.serving import Server, Stats
from asyncnet.compat.streams import Reader, open_streams
from asyncnet.compat.tasks import Spawned, spawn, timeout
from asyncnet.compat.traps import sleep, wait_readable, wait_writable
from asyncnet.compat.writing import Writer

__all__ = [
    "ENGINES",
    "DatagramHandler",
    "Endpoint",
    "Engine",
    "Handler",
    "Kernel",
    "Reader",
    "Server",
    "Spawned",
    "Stats",
    "Writer",
    "create_datagram_server",
    "create_server",
    "find_engine",
    "open_endpoint",
    "open_streams",
    "run",
    "run_blocking",
    "serve",
    "serve_datagram",
    "sleep",
    "spawn",
    "timeout",
    "wait_readable",
    "wait_writable",
]

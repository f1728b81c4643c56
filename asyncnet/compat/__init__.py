"""One handler, every engine: `serve` runs ``async def handler(reader, writer)`` unchanged on each of `ENGINES`."""

from asyncnet.compat.blocking import run_blocking
from asyncnet.compat.engines import ENGINES, Engine, create_server, serve
from asyncnet.compat.kernel import Kernel
from asyncnet.compat.serving import Handler, Server, Stats
from asyncnet.compat.streams import Reader, Writer, open_streams
from asyncnet.compat.traps import sleep, wait_readable, wait_writable

__all__ = [
    "ENGINES",
    "Engine",
    "Handler",
    "Kernel",
    "Reader",
    "Server",
    "Stats",
    "Writer",
    "create_server",
    "open_streams",
    "run_blocking",
    "serve",
    "sleep",
    "wait_readable",
    "wait_writable",
]

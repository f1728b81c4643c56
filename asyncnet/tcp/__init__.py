"""TCP streams: `serve` and `connect`, with the readers and writers of asyncio."""

from asyncnet.tcp.client import connect
from asyncnet.tcp.connections import ServerStats, StopReport
from asyncnet.tcp.server import Server, serve

__all__ = ["Server", "ServerStats", "StopReport", "connect", "serve"]

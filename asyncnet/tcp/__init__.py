"""TCP streams: `serve` and `connect`, with readers and writers that do what those of asyncio do."""

from asyncnet.tcp.client import connect
from asyncnet.tcp.connections import MetricsCollector, ServerStats, StopReport
from asyncnet.tcp.listeners import SocketOptions
from asyncnet.tcp.proxy import ProxyHeader
from asyncnet.tcp.reading import StreamReader
from asyncnet.tcp.server import Server
from asyncnet.tcp.serving import serve
from asyncnet.tcp.writing import StreamWriter

__all__ = [
    "MetricsCollector",
    "ProxyHeader",
    "Server",
    "ServerStats",
    "SocketOptions",
    "StopReport",
    "StreamReader",
    "StreamWriter",
    "connect",
    "serve",
]

"""TFTP: `Client`, `get`, `put` and `serve`, on a protocol that runs without sockets."""

from asyncnet.tftp.client import Client, TftpUrl, get, parse_url, put
from asyncnet.tftp.options import Limits, Options
from asyncnet.tftp.retransmit import Timing
from asyncnet.tftp.server import Server, ServerStats, serve
from asyncnet.tftp.session import Report
from asyncnet.tftp.storage import Directory, WritePolicy

__all__ = [
    "Client",
    "Directory",
    "Limits",
    "Options",
    "Report",
    "Server",
    "ServerStats",
    "TftpUrl",
    "Timing",
    "WritePolicy",
    "get",
    "parse_url",
    "put",
    "serve",
]

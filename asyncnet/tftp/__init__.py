"""TFTP: `Client`, `get`, `put` and `serve`, on a protocol that runs without sockets."""

from asyncnet.tftp.client import Client
from asyncnet.tftp.guard import Guard
from asyncnet.tftp.journal import Hooks, MetricsCollector, Outcome, ServerStats, TransferRecord
from asyncnet.tftp.options import Limits, Options
from asyncnet.tftp.retransmit import Timing
from asyncnet.tftp.routing import Remapped, RemapRule, Roots, explain_remap
from asyncnet.tftp.server import Server
from asyncnet.tftp.serving import serve
from asyncnet.tftp.session import Report
from asyncnet.tftp.storage import Directory, Request, Storage, WritePolicy
from asyncnet.tftp.urls import TftpUrl, get, parse_url, put

__all__ = [
    "Client",
    "Directory",
    "Guard",
    "Hooks",
    "Limits",
    "MetricsCollector",
    "Options",
    "Outcome",
    "RemapRule",
    "Remapped",
    "Report",
    "Request",
    "Roots",
    "Server",
    "ServerStats",
    "Storage",
    "TftpUrl",
    "Timing",
    "TransferRecord",
    "WritePolicy",
    "explain_remap",
    "get",
    "parse_url",
    "put",
    "serve",
]

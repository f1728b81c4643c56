"""Networking below HTTP for asyncio: UDP, LAN broadcast, TFTP, TCP streams, and one handler on every engine."""

from asyncnet import broadcast, compat, errors, tcp, tftp, udp
from asyncnet.loops import new_event_loop, run

__version__ = "0.1.0"

__all__ = ["__version__", "broadcast", "compat", "errors", "new_event_loop", "run", "tcp", "tftp", "udp"]

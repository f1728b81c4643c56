"""What a program is known by: its node, which outlives a restart, and the key that it shares with others."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path

from asyncnet.addresses import interfaces
from asyncnet.broadcast.messages import ID_SIZE

__all__ = ["check_key", "named_node", "node_of"]


def named_node(text: str) -> bytes:
    """Return the node that somebody names."""
    return hashlib.sha256(text.encode()).digest()[:ID_SIZE]


def node_of(name: str, port: int) -> bytes:
    """Return what stays the same when the program is restarted on this host."""
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        machine = ""
    try:
        cards = [interface.hardware for interface in interfaces() if interface.hardware]
    except OSError:
        cards = []
    text = "\0".join([machine, socket.gethostname(), *cards[:1], name, str(port)])
    return named_node(text)


def check_key(key: bytes | None) -> None:
    """Check a shared key.

    Raises:
        TypeError: it is not bytes.
        ValueError: it is too short to be a secret.
    """
    if key is None:
        return
    if not isinstance(key, bytes):
        raise TypeError(f"key must be bytes or None, not {type(key).__name__}")
    if len(key) < 8:
        raise ValueError(f"key must be 8 bytes or more, not {len(key)}")

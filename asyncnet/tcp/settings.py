"""How a server runs, and what it calls."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from ssl import SSLContext
from typing import Any, TypeAlias

import attrs

from asyncnet.addresses import IPNetwork
from asyncnet.tcp.deadlines import Timeouts
from asyncnet.tcp.reading import LIMIT
from asyncnet.tcp.transport import HARD_LIMIT

__all__ = ["Handler", "Settings"]

Handler: TypeAlias = Callable[[Any, Any], Coroutine[Any, Any, object]]
"""What `serve` calls for each connection, with a reader and a writer."""


@attrs.define
class Settings:
    """How a server runs; `serve` explains them."""

    max_connections: int | None = None
    max_per_client: int | None = None
    reject: bool = False
    grace: float = 5.0
    ssl: SSLContext | None = None
    limit: int = LIMIT
    hard_limit: int = HARD_LIMIT
    timeouts: Timeouts = attrs.field(factory=Timeouts)
    handshake_timeout: float = 30.0
    proxy_from: tuple[IPNetwork, ...] = ()
    proxy_unix: bool = False
    path: str | None = None
    """Of the Unix socket that the server has made, and removes when it closes."""

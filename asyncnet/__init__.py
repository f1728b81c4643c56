"""Networking below HTTP for asyncio: UDP, LAN broadcast, TFTP, TCP streams, and one handler on every engine."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncnet import broadcast, compat, errors, tcp, tftp, udp, workers
    from asyncnet.loops import new_event_loop, run

__version__ = "0.1.0"

__all__ = ["__version__", "broadcast", "compat", "errors", "new_event_loop", "run", "tcp", "tftp", "udp", "workers"]


def __getattr__(name: str) -> object:
    """Import a component when it is first named, so that nobody waits for those that are not used."""
    if name in ("new_event_loop", "run"):
        return getattr(importlib.import_module("asyncnet.loops"), name)
    if name in __all__:
        return importlib.import_module(f"asyncnet.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

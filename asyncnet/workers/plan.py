"""What a master is given: the signals that it hears, what it runs, and children that are no workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import attrs

from asyncnet.workers import fleet as fleets
from asyncnet.workers.child import Main
from asyncnet.workers.recycling import Recycle

__all__ = ["SIGNALS", "Other", "Plan"]

SIGNALS: Final = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGTTIN", "SIGTTOU", "SIGUSR2", "SIGCHLD")
"""What a master handles; they stay blocked until it can."""


@attrs.frozen
class Plan:
    """What a master runs; `run` explains it."""

    main: Main | str
    limits: fleets.Limits
    recycle: Recycle
    counters: tuple[str, ...]
    gauges: tuple[str, ...]
    backlog: int
    loop: str
    ready: Callable[[list[Any]], object] | None


@attrs.frozen
class Other:
    """A child that is no worker."""

    deadline: float
    """When it is killed."""
    ended: Callable[[int], object]
    """Called with its exit status."""

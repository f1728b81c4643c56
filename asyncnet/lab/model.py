"""What is measured, and what came out, as data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import attrs

__all__ = ["AGAIN", "CEILING", "BlockReading", "Run", "Settings", "Workload"]

CEILING: Final = "C"
"""The name under which the echo server in C runs beside the engines."""
AGAIN: Final = "again"
"""The baseline, measured a second time in each round: what two measurements of the same thing differ by."""


@attrs.frozen
class Workload:
    """One kind of load."""

    name: str
    title: str
    """One line for people."""
    mode: str = "echo"
    """``echo``, ``churn``, ``udp``, ``tftp``, ``idle``, ``slow``, ``stall`` or ``stop``."""
    handler: str = "echo"
    """What the servers run; a name in `asyncnet.lab.servers.HANDLERS`."""
    clients: int = 100
    size: int = 1000
    """Bytes of a message, or of a file."""
    rate: float = 0.0
    """Requests a second with Poisson arrivals; 0 for a closed loop."""
    rounds: int | None = None
    """At most so many rounds; None for all."""


@attrs.frozen
class Settings:
    """What is compared, and how."""

    engines: tuple[str, ...]
    protocol: str = "tcp"
    """``tcp``, ``udp`` or ``tftp``."""
    clients: int = 100
    """Connections at once in the main workload."""
    size: int = 1000
    """Bytes of a message; of a file for TFTP."""
    seconds: float = 1.5
    """Length of one measurement."""
    rounds: int = 5
    warm_up: float = 1.0
    """Seconds of load before each measurement at most; it ends as soon as the rate is steady."""
    workloads: tuple[str, ...] = ()
    """Names; none for all of the protocol."""
    idle: int = 10_000
    """Connections that are held open without a word."""
    against: str = ""
    """The engine that the others are held against; empty for asyncio (asyncnet over TFTP), or the first."""
    python_load: bool = False
    """Whether the generator in Python is used although there is a compiler."""
    within: float = float("inf")
    """Seconds after which no further round begins, once two are done."""
    attempts: int = 2
    """How often a run that is INVALID is made."""

    @property
    def baseline(self) -> str:
        """The engine that the others are held against."""
        if self.against:
            return self.against
        usual = "asyncnet" if self.protocol == "tftp" else "asyncio"
        return usual if usual in self.engines or not self.engines else self.engines[0]


@attrs.frozen
class Run:
    """One workload on one engine in one round."""

    engine: str
    workload: str
    round: int
    values: Mapping[str, float] = attrs.field(factory=dict)
    """Figures by name: see `asyncnet.lab.metrics`. Times are in seconds, memory in bytes."""
    failures: int = 0
    """Requests or connections that were refused, lost, cut off, or answered wrongly."""
    requests: int = 0
    invalid: tuple[str, ...] = ()
    """Why the figures do not count."""
    notes: tuple[str, ...] = ()
    """Limits that were met."""
    error: str | None = None
    """Why there are no figures."""
    attempts: int = 1
    raw: Mapping[str, Any] = attrs.field(factory=dict, repr=False)
    """What the load generator printed."""

    @property
    def valid(self) -> bool:
        """Whether there are figures that count."""
        return self.error is None and not self.invalid


@attrs.frozen
class BlockReading:
    """The thermometer before and after a block: every engine once, under one workload."""

    workload: str
    round: int
    before: float
    """Requests a second."""
    after: float
    moved: bool

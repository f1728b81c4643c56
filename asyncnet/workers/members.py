"""What a fleet consists of: workers and their states, the limits on them, and what can be done to them."""

from __future__ import annotations

import signal
from enum import Enum
from typing import Final, TypeAlias

import attrs

__all__ = [
    "BOOT_FAILED",
    "DUMP_WAIT",
    "HURRY_WAIT",
    "MAX_WORKERS",
    "STEADY",
    "Action",
    "Drain",
    "Dump",
    "Hurry",
    "Kill",
    "Limits",
    "Member",
    "Phase",
    "Spawn",
    "State",
]

MAX_WORKERS: Final = 256
BOOT_FAILED: Final = 3
"""The exit status of a worker that could not start and says why: trying again would not help."""
STEADY: Final = 1.0
"""Seconds of service after which a death is no longer counted with those before it."""
HURRY_WAIT: Final = 2.0
"""Seconds that a hurried worker has to end, and a draining one beyond its grace."""
DUMP_WAIT: Final = 0.5
"""Seconds, at least, between the dump of a hung worker's stacks and its end."""


class State(Enum):
    """The life of a worker, in this order."""

    BOOTING = "booting"
    READY = "ready"
    DRAINING = "draining"
    DYING = "dying"


class Phase(Enum):
    """The life of the master."""

    RUNNING = "running"
    STOPPING = "stopping"
    HURRYING = "hurrying"
    ABORTING = "aborting"


@attrs.frozen
class Limits:
    """How long things may take, in seconds."""

    grace: float = 30.0
    """From the order to drain until a worker is killed, less two seconds."""
    boot: float = 30.0
    """From the fork until a worker is ready."""
    heartbeat: float | None = 30.0
    """A worker whose loop hangs for so long is killed; its stacks are dumped after three quarters of it."""
    backoff: tuple[float, float] = (0.1, 10.0)
    """The first and the longest pause before a worker that died is replaced; it doubles."""
    breaker: int = 5
    """Failed starts in a row of one seat, while no worker serves, after which the master gives up."""


@attrs.define(eq=False)
class Member:
    """One worker process."""

    pid: int
    seat: int
    generation: int
    started: float
    state: State = State.BOOTING
    ready_at: float = 0.0
    beat: float = 0.0
    """When its loop last turned."""
    deadline: float = 0.0
    """When it is killed, while it drains."""
    dumped_at: float | None = None
    replaced: bool = False
    """It serves on until its replacement is ready."""
    hurried: bool = False
    failed_start: str | None = None
    """Why it was killed before it was ready."""

    @property
    def is_serving(self) -> bool:
        """Whether it takes new work."""
        return self.state is State.READY

    def has_crashed(self, status: int) -> bool:
        """Whether it ended otherwise than it was told to, with a status or minus the number of a signal."""
        if self.state is State.DRAINING:  # the order to drain may reach it a second time, when its loop is closed
            return status not in (0, -signal.SIGTERM)
        return self.state is State.READY and status != 0


@attrs.frozen
class Spawn:
    """Fork a worker for a seat."""

    seat: int
    generation: int


@attrs.frozen
class Drain:
    """Tell a worker to take no more work and to finish what it has."""

    pid: int


@attrs.frozen
class Hurry:
    """Tell a worker to end at once."""

    pid: int


@attrs.frozen
class Dump:
    """Have a worker write its stacks."""

    pid: int
    reason: str


@attrs.frozen
class Kill:
    """End a worker that does not end by itself."""

    pid: int
    reason: str


Action: TypeAlias = Spawn | Drain | Hurry | Dump | Kill

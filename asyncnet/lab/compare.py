"""Every engine, every workload, round by round, with a thermometer between.

A block is one workload on every engine once, in random order, each in a fresh process; beside them run the echo
server in C, which is the ceiling, and the baseline a second time, which shows the noise. The thermometer is the
server in C under the same closed loop before and after each block: when it has moved, the machine was not the same
for all of the block, and the block is measured again, and INVALID if it moves again.
"""

from __future__ import annotations

import random
import secrets
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Final

import attrs

from asyncnet.lab.comparison import Comparison
from asyncnet.lab.environment import environment
from asyncnet.lab.generator import why_no_compiler
from asyncnet.lab.measuring import measure
from asyncnet.lab.model import AGAIN, CEILING, BlockReading, Run, Settings, Workload
from asyncnet.lab.workloads import workloads_of

__all__ = ["Progress", "compare"]

_MOST_MOVED: Final = 0.05
_CEILING_MODES: Final = ("echo", "udp", "churn")
"""The modes that the server in C answers."""
_BLOCK_ATTEMPTS: Final = 2
_THERMOMETER_READINGS: Final = 5
"""One alone differs from the next by 5 % on a machine that nobody disturbs: each process lies elsewhere in memory."""
_THERMOMETER_SECONDS: Final = 0.3
_THERMOMETER_WARM_UP: Final = 0.1


@attrs.frozen
class Progress:
    """Where a comparison stands."""

    done: int
    total: int
    """Measurements."""
    what: str
    """What runs now."""
    left: float | None
    """Seconds, as far as they can be told."""


@attrs.define
class _Laboratory:
    settings: Settings
    progress: Callable[[Progress], object]
    measure: Callable[[str, Workload, int, Settings], Run]
    order: random.Random
    began: float
    runs: list[Run] = attrs.field(factory=list)
    readings: list[BlockReading] = attrs.field(factory=list)
    done: int = 0
    total: int = 0

    def tell(self, what: str) -> None:
        """Report what runs now."""
        spent = time.monotonic() - self.began
        left = spent / self.done * (self.total - self.done) if self.done else None
        self.progress(Progress(self.done, self.total, what, left))

    def contestants(self, workload: Workload) -> list[str]:
        """Return who runs in a block."""
        settings = self.settings
        names = list(settings.engines)
        if settings.baseline in names:
            names.append(AGAIN)
        if self.has_ceiling and workload.mode in _CEILING_MODES and workload.handler == "echo":
            names.append(CEILING)
        return names

    @property
    def has_ceiling(self) -> bool:
        return self.settings.protocol != "tftp" and why_no_compiler() is None

    def thermometer(self) -> float:
        """Return the rate of the thermometer, the median of some readings; 0 when it does not work."""
        settings = self.settings
        mode = "udp" if settings.protocol == "udp" else "tftp" if settings.protocol == "tftp" else "echo"
        name = CEILING if self.has_ceiling else settings.baseline
        size = max(settings.size, 65536) if mode == "tftp" else settings.size
        workload = Workload("thermometer", "", mode, clients=min(50, settings.clients), size=size)
        short = attrs.evolve(
            settings,
            seconds=min(_THERMOMETER_SECONDS, settings.seconds),
            warm_up=min(_THERMOMETER_WARM_UP, settings.warm_up),
        )
        readings = [self.measure(name, workload, 0, short) for _ in range(_THERMOMETER_READINGS)]
        return statistics.median(run.values.get("requests_per_second", 0.0) for run in readings)

    def block(self, workload: Workload, number: int) -> None:
        """Measure a workload on everybody."""
        names = self.contestants(workload)
        attempts = min(_BLOCK_ATTEMPTS, self.settings.attempts)
        for attempt in range(1, attempts + 1):
            self.tell(f"round {number}: thermometer")
            before = self.thermometer() if not self.readings else self.readings[-1].after
            runs = []
            for name in self.order.sample(names, len(names)):
                self.tell(f"round {number} of {self.settings.rounds}: {workload.name}, {_spoken(name, self.settings)}")
                runs.append(self.attempt(name, workload, number))
                self.done += attempt == 1
            after = self.thermometer()
            moved = _moved(before, after)
            self.readings.append(BlockReading(workload.name, number, before, after, moved is not None))
            if moved is None or attempt == attempts or self.late():
                break
        if moved is not None:
            runs = [attrs.evolve(run, invalid=(*run.invalid, moved)) for run in runs]
        self.runs += runs

    def attempt(self, name: str, workload: Workload, number: int) -> Run:
        """Measure once, and again while the run is INVALID."""
        for attempt in range(1, self.settings.attempts + 1):
            run = attrs.evolve(self.measure(name, workload, number, self.settings), attempts=attempt)
            if not run.invalid or self.late():
                break
        return run

    def late(self) -> bool:
        return time.monotonic() - self.began > self.settings.within


def compare(
    settings: Settings,
    *,
    progress: Callable[[Progress], object] = lambda progress: None,
    measure: Callable[[str, Workload, int, Settings], Run] = measure,
    seed: int | None = None,
) -> Comparison:
    """Measure every engine under every workload, round by round.

    Args:
        settings: what to measure.
        progress: called before each measurement.
        measure: what measures; another one for tests.
        seed: of the order; None for another one each time.

    Raises:
        ValueError: there is no workload of a name that was asked for.
    """
    workloads = workloads_of(settings)
    seed = secrets.randbits(32) if seed is None else seed
    laboratory = _Laboratory(settings, progress, measure, random.Random(seed), time.monotonic())
    plan = [_of_round(workloads, number) for number in range(1, settings.rounds + 1)]
    laboratory.total = sum(len(laboratory.contestants(workload)) for chosen in plan for workload in chosen)
    for number, chosen in enumerate(plan, 1):
        took = (time.monotonic() - laboratory.began) / max(1, number - 1)
        if number > 2 and time.monotonic() - laboratory.began + took > settings.within:
            break
        for workload in laboratory.order.sample(chosen, len(chosen)):
            laboratory.block(workload, number)
    laboratory.done = laboratory.total
    laboratory.tell("done")
    where = environment() | {
        "load_generator": "python" if settings.python_load or why_no_compiler() else "c",
        "no_compiler": why_no_compiler(),
        "seconds": round(time.monotonic() - laboratory.began, 1),
        "seed": seed,
    }
    return Comparison(settings, workloads, where, tuple(laboratory.runs), tuple(laboratory.readings))


def _of_round(workloads: Sequence[Workload], number: int) -> list[Workload]:
    return [workload for workload in workloads if workload.rounds is None or number <= workload.rounds]


def _spoken(name: str, settings: Settings) -> str:
    return f"{settings.baseline} again" if name == AGAIN else name


def _moved(before: float, after: float) -> str | None:
    if not before or not after:
        return "the thermometer failed"
    share = after / before - 1
    return f"the thermometer moved by {share:+.0%}" if abs(share) > _MOST_MOVED else None

"""The state of a fleet for people and for monitoring: as data, as JSON, and in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import attrs

from asyncnet.addresses import Address, format_address
from asyncnet.workers.board import Board
from asyncnet.workers.fleet import Fleet, Phase

__all__ = ["RESERVED", "Report", "WorkerReport", "resident_bytes"]

_GAUGES: Final = ("wanted", "serving", "generation")
_TOTALS: Final = ("started", "crashes", "hung", "reloads", "failed_reloads")
_UNITS: Final = {"age": "age_seconds", "silence": "silence_seconds", "memory": "memory_bytes"}
RESERVED: Final = frozenset([*_GAUGES, *_TOTALS, *(f"{name}_total" for name in _TOTALS), *_UNITS, *_UNITS.values()])
"""What counters cannot be called: the metrics of the master have these names."""


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process; 0 where the system does not tell."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            sizes = dict(line.split()[:2] for line in file if line.startswith(("Rss:", "Pss:")))
        return int(sizes.get("Pss:", sizes.get("Rss:", "0"))) << 10
    except (OSError, ValueError):
        return 0


@attrs.frozen
class WorkerReport:
    """One worker process."""

    pid: int
    seat: int
    generation: int
    state: str
    age: float
    """Seconds since it was started."""
    silence: float
    """Seconds since its loop last turned."""
    memory: int
    """Bytes, its share of what it has in common with others counted as such (PSS)."""
    counters: dict[str, int]


@attrs.frozen
class Report:
    """The state of a master and its workers."""

    status: str
    """``ok``, ``degraded``, ``down``, ``starting`` or ``stopping``."""
    wanted: int
    serving: int
    generation: int
    settled: int
    started: int
    crashes: int
    hung: int
    reloads: int
    failed_reloads: int
    last_error: str | None
    addresses: list[str]
    totals: dict[str, int]
    """Of all workers, those that have ended included; of gauges, only those that live."""
    gauges: list[str]
    workers: list[WorkerReport]

    @classmethod
    def of(
        cls,
        fleet: Fleet,
        board: Board,
        retired: Mapping[str, int],
        gauges: Sequence[str],
        addresses: Sequence[Address | str],
        now: float,
        *,
        memory: bool = True,
    ) -> Report:
        """Take the state as it is; the memory of workers, which takes the system some time to add up, on request."""
        workers: list[WorkerReport] = []
        totals = dict(retired)
        for member in sorted(fleet.members.values(), key=lambda each: (each.seat, each.generation)):
            row = board.row_of(member.pid)
            counters = row.counters() if row is not None else {}
            for name in totals:  # a worker of a program before this one may count other things
                totals[name] += counters.get(name, 0)
            workers.append(
                WorkerReport(
                    member.pid,
                    member.seat,
                    member.generation,
                    member.state.value,
                    round(now - member.started, 3),
                    round(max(0.0, now - (row.beat if row is not None else now)), 3),
                    resident_bytes(member.pid) if memory else 0,
                    counters,
                )
            )
        return cls(
            status=_status(fleet),
            wanted=fleet.size,
            serving=fleet.serving,
            generation=fleet.generation,
            settled=fleet.settled,
            started=fleet.started,
            crashes=fleet.crashes,
            hung=fleet.hung,
            reloads=fleet.reloads,
            failed_reloads=fleet.failed_reloads,
            last_error=fleet.last_error,
            addresses=[format_address(address) for address in addresses],
            totals=totals,
            gauges=list(gauges),
            workers=workers,
        )

    @property
    def is_healthy(self) -> bool:
        """Whether clients are served."""
        return self.status in ("ok", "degraded")

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return attrs.asdict(self)

    def health(self) -> dict[str, Any]:
        """Return what a load balancer wants to know."""
        return {"status": self.status, "serving": self.serving, "wanted": self.wanted}

    def metrics(self) -> str:
        """Return it in the text format of Prometheus."""
        return "".join(f"{line}\n" for line in self._lines())

    def _lines(self) -> Iterator[str]:
        prefix = "asyncnet_workers"
        for name in _GAUGES:
            yield f"# TYPE {prefix}_{name} gauge"
            yield f"{prefix}_{name} {getattr(self, name)}"
        for name in _TOTALS:
            yield f"# TYPE {prefix}_{name}_total counter"
            yield f"{prefix}_{name}_total {getattr(self, name)}"
        for name, value in self.totals.items():
            is_gauge = name in self.gauges
            yield f"# TYPE {prefix}_{name}{'' if is_gauge else '_total'} {'gauge' if is_gauge else 'counter'}"
            yield f"{prefix}_{name}{'' if is_gauge else '_total'} {value}"
        for name in (*_UNITS, *self.totals):
            yield f"# TYPE asyncnet_worker_{_metric(name)} gauge"
            for worker in self.workers:
                value = worker.counters.get(name, 0) if name in self.totals else getattr(worker, name)
                yield f'asyncnet_worker_{_metric(name)}{{seat="{worker.seat}",pid="{worker.pid}"}} {value}'


def _metric(name: str) -> str:
    """Return a name with its unit."""
    return _UNITS.get(name, name)


def _status(fleet: Fleet) -> str:
    if fleet.phase is not Phase.RUNNING:
        return "stopping"
    if not fleet.serving:
        return "down" if fleet.settled else "starting"
    return "ok" if fleet.serving >= fleet.size else "degraded"

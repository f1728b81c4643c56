"""A comparison that is done: its runs, and what may be said about them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, cast

import attrs

from asyncnet.lab.figures import Interval, Ratio, Verdict, bootstrap_median, noise_floor, paired_ratio
from asyncnet.lab.metrics import METRICS
from asyncnet.lab.model import AGAIN, CEILING, BlockReading, Run, Settings, Workload

__all__ = ["Comparison", "Summary"]

T = TypeVar("T")


@attrs.frozen
class Summary:
    """One engine under one workload, over all rounds."""

    engine: str
    workload: str
    values: Mapping[str, Interval]
    """The median of the rounds that count with its interval, for each figure; of the INVALID ones where none counts."""
    ratios: Mapping[str, Ratio]
    """Against the baseline, for each figure."""
    of_ceiling: float | None
    """The rate as a share of that of C, paired by rounds."""
    requests: int
    failures: int
    rounds: int
    """Rounds that count."""
    invalid: tuple[str, ...]
    """Why others do not."""
    notes: tuple[str, ...]
    """What is different about its runs: a limit that it has, a rate that it did not keep."""
    errors: tuple[str, ...]

    @property
    def is_limited(self) -> bool:
        """Whether its load was another one than that of others, so that it is neither the best nor the worst."""
        return bool(self.notes)


@attrs.frozen
class Comparison:
    """Everything that was measured."""

    settings: Settings
    workloads: tuple[Workload, ...]
    environment: dict[str, Any]
    runs: tuple[Run, ...]
    readings: tuple[BlockReading, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every engine was measured and every request answered.

        What a stop cuts off is a figure, and so is a datagram that is lost.
        """
        figures = {workload.name for workload in self.workloads if workload.mode in ("stop", "udp")}
        runs = [run for run in self.runs if run.engine in self.settings.engines]
        return bool(runs) and all(
            run.error is None and not run.raw.get("wrong") and (not run.failures or run.workload in figures)
            for run in runs
        )

    def rounds_of(self, engine: str, workload: str, metric: str) -> dict[int, float]:
        """Return a figure of each round that counts."""
        return {
            run.round: run.values[metric]
            for run in self.runs
            if run.engine == engine and run.workload == workload and run.valid and metric in run.values
        }

    def floor(self, workload: str, metric: str) -> float:
        """Return the noise floor of a figure, from the second measurement of the baseline (A/A)."""
        return noise_floor(
            self.rounds_of(AGAIN, workload, metric), self.rounds_of(self.settings.baseline, workload, metric)
        )

    def ratio(self, workload: str, metric: str, engine: str, base: str) -> Ratio | None:
        """Compare two engines by the rounds that both have."""
        return paired_ratio(
            self.rounds_of(engine, workload, metric),
            self.rounds_of(base, workload, metric),
            self.floor(workload, metric),
        )

    def differences(self, workload: str, metric: str) -> Iterator[tuple[str, str]]:
        """Yield every pair of engines that differ, the one with the higher figure first."""
        for one, other in itertools.combinations(self.settings.engines, 2):
            found = self.ratio(workload, metric, one, other)
            if found is not None and found.verdict is Verdict.HIGHER:
                yield one, other
            elif found is not None and found.verdict is Verdict.LOWER:
                yield other, one

    def summaries(self, workload: str | None = None) -> list[Summary]:
        """Return a summary per engine, in the order that they were asked for; of all workloads, or of one."""
        return [
            self.summary(engine, chosen.name)
            for chosen in self.workloads
            if workload in (None, chosen.name)
            for engine in self.engines_of(chosen.name)
        ]

    def engines_of(self, workload: str) -> list[str]:
        """Return the engines of a table, and the ceiling last where it was measured."""
        there = any(run.engine == CEILING and run.workload == workload for run in self.runs)
        return [*self.settings.engines, *([CEILING] if there else [])]

    def summary(self, engine: str, workload: str) -> Summary:
        """Return one engine under one workload."""
        runs = [run for run in self.runs if run.engine == engine and run.workload == workload]
        values, ratios = {}, {}
        with_p99 = [run for run in runs if "p99" in run.values and run.error is None]
        rounds = sum(run.valid for run in with_p99) or len(with_p99)
        for metric in METRICS:
            found = self.rounds_of(engine, workload, metric)
            if not found and not any(run.valid for run in runs):
                found = {run.round: run.values[metric] for run in runs if run.error is None and metric in run.values}
            if metric == "p999" and len(found) < rounds:
                continue  # the rounds that had enough requests for it are not like the others
            if found:
                values[metric] = bootstrap_median(list(found.values()))
            if found and (ratio := self.ratio(workload, metric, engine, self.settings.baseline)) is not None:
                ratios[metric] = ratio
        ceiling = self.ratio(workload, "requests_per_second", engine, CEILING)
        return Summary(
            engine=engine,
            workload=workload,
            values=values,
            ratios=ratios,
            of_ceiling=None if ceiling is None else ceiling.median,
            requests=sum(run.requests for run in runs),
            failures=sum(run.failures for run in runs),
            rounds=sum(run.valid for run in runs),
            invalid=tuple(f"round {run.round}: {reason}" for run in runs for reason in run.invalid),
            notes=tuple(dict.fromkeys(note for run in runs for note in run.notes)),
            errors=tuple(dict.fromkeys(run.error for run in runs if run.error is not None)),
        )

    def to_json(self) -> str:
        """Return settings, environment, every run and the summaries as JSON; times in seconds, memory in bytes."""
        whole = attrs.asdict(self, value_serializer=_plain)
        whole["summaries"] = []
        for summary in self.summaries():
            found = attrs.asdict(summary)
            for name, ratio in summary.ratios.items():
                found["ratios"][name]["verdict"] = ratio.verdict.value
            whole["summaries"].append(found)
        return json.dumps(whole, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Comparison:
        """Return what `to_json` wrote.

        Raises:
            ValueError: it is no such JSON.
        """
        try:
            whole = json.loads(text)
            return cls(
                _made(Settings, whole["settings"]),
                tuple(_made(Workload, item) for item in whole["workloads"]),
                dict(whole["environment"]),
                tuple(_made(Run, item) for item in whole["runs"]),
                tuple(_made(BlockReading, item) for item in whole["readings"]),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as exc:
            raise ValueError(f"no comparison: {exc!r}") from exc


def _made(kind: type[T], values: Mapping[str, Any]) -> T:
    """Build a class of attrs from what JSON made of it; what another version wrote besides is left out."""
    known = {field.name for field in attrs.fields(cast(Any, kind))}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return kind(**{name: value for name, value in given.items() if name in known and value is not None})


def _plain(instance: object, attribute: object, value: Any) -> Any:
    return None if isinstance(value, float) and value == float("inf") else value  # JSON has no infinity

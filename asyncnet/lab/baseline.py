"""A comparison against the JSON of an earlier one: what has become worse."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Final

import attrs

from asyncnet.lab.comparison import Comparison
from asyncnet.lab.figures import Ratio, Verdict, chance_of, spread_of, two_samples, unlikely
from asyncnet.lab.generator import why_no_compiler
from asyncnet.lab.metrics import METRICS, Metric
from asyncnet.lab.model import CEILING, Settings

__all__ = ["Change", "agreement", "compare_with_baseline", "format_agreement", "format_changes", "read_baseline"]

_SPOKEN: Final = {"c": "C", "python": "Python"}
_SAME: Final = ("protocol", "clients", "size", "seconds", "idle")


@attrs.frozen
class Change:
    """One figure of one engine, now against then."""

    engine: str
    workload: str
    metric: Metric
    ratio: Ratio
    certain: bool = False
    """Whether chance is ruled out, though so many figures are compared at once."""

    @property
    def is_regression(self) -> bool:
        """Whether it has become worse, beyond the interval, the noise and chance."""
        return self.certain and self.ratio.verdict is (Verdict.LOWER if self.metric.more_is_better else Verdict.HIGHER)

    @property
    def is_progress(self) -> bool:
        """Whether it has become better, beyond the interval, the noise and chance."""
        return self.certain and self.ratio.verdict is (Verdict.HIGHER if self.metric.more_is_better else Verdict.LOWER)


def read_baseline(path: Path, settings: Settings) -> Comparison:
    """Read what ``--json`` wrote.

    Args:
        path: the file.
        settings: of the comparison that it is to be held against.

    Raises:
        OSError: there is no such file.
        ValueError: it is no such file, or it measured something else.
    """
    try:
        then = Comparison.from_json(path.read_text())
    except ValueError:
        raise ValueError(f"{path} is no comparison: write one by asyncnet compare --json {path}") from None
    for name in _SAME:
        now, before = getattr(settings, name), getattr(then.settings, name)
        if before != now:
            raise ValueError(f"{path} was measured with {name} {before}, not {now}: give the same options as then")
    generator = "python" if settings.python_load or why_no_compiler() else "c"
    if then.environment.get("load_generator") != generator:
        raise ValueError(f"{path} was not measured by the load generator in {_SPOKEN[generator]}, which is used now")
    if not {run.engine for run in then.runs} & set(settings.engines):
        raise ValueError(f"{path} has none of the engines {', '.join(settings.engines)}")
    return then


def compare_with_baseline(now: Comparison, then: Comparison) -> list[Change]:
    """Return every figure that both have, of runs that count."""
    changes: list[Change] = []
    chances: list[float] = []
    judged = [metric for metric in METRICS.values() if metric.judged]
    for workload, metric in itertools.product(now.workloads, judged):
        samples = {
            engine: tuple(_figures(run, engine, workload.name, metric.name) for run in (now, then))
            for engine in now.settings.engines
        }
        spread = spread_of(sample for both in samples.values() for sample in both)
        floor = max(found.floor(workload.name, metric.name) for found in (now, then))
        floor = max(floor, _machine(now, then, workload.name, metric.name))
        for engine, (new, old) in samples.items():
            ratio = two_samples(new, old, floor)
            if ratio is not None:
                changes.append(Change(engine, workload.name, metric, ratio))
                chances.append(chance_of(new, old, spread))
    return [attrs.evolve(change, certain=certain) for change, certain in zip(changes, unlikely(chances), strict=True)]


def _figures(found: Comparison, engine: str, workload: str, metric: str) -> list[float]:
    return list(found.rounds_of(engine, workload, metric).values())


def _machine(now: Comparison, then: Comparison, workload: str, metric: str) -> float:
    """By how much the server in C differs, which has not changed: so much is the machine's."""
    ratio = two_samples(_figures(now, CEILING, workload, metric), _figures(then, CEILING, workload, metric))
    return 0.0 if ratio is None or ratio.median <= 0 else max(ratio.median, 1 / ratio.median) - 1


def agreement(now: Comparison, then: Comparison) -> tuple[int, list[str]]:
    """Return how many pairs of engines both runs call different, and those that they put in opposite order."""
    both, opposite = 0, []
    judged = [metric for metric in METRICS.values() if metric.judged]
    for workload, metric in itertools.product(now.workloads, judged):
        here, there = (set(found.differences(workload.name, metric.name)) for found in (now, then))
        both += sum(pair in there or pair[::-1] in there for pair in here)
        opposite += [
            f"{workload.name}, {metric.heading}: {one} and {other}" for one, other in here if (other, one) in there
        ]
    return both, opposite


def format_agreement(both: int, opposite: list[str]) -> str:
    """Return for people whether two runs agree on the order of engines."""
    text = f"both runs call {both} pairs of engines different, and agree on the order of {both - len(opposite)}"
    return "\n".join([text, *(f"opposite order: {pair}" for pair in opposite)])


def format_changes(changes: list[Change], path: Path) -> str:
    """Return what differs from the baseline, for people."""
    if not changes:
        return f"against {path}: nothing can be said, as no engine has a run that counts in both"
    lines = [f"against {path}: {len(changes)} figures, judged together"]
    for word, chosen in (
        ("REGRESSION", [change for change in changes if change.is_regression]),
        ("better", [change for change in changes if change.is_progress]),
    ):
        lines += [
            f"{word}: {change.engine}, {change.workload}, {change.metric.heading}: "
            f"{change.ratio.median:.2f} times what it was [{change.ratio.low:.2f} {change.ratio.high:.2f}]"
            for change in chosen
        ]
    if len(lines) == 1:
        lines.append("no difference beyond the intervals, the noise and chance")
    different = (Verdict.HIGHER, Verdict.LOWER)
    doubtful = sum(change.ratio.verdict in different and not change.certain for change in changes)
    if doubtful:
        lines.append(f"{doubtful} more lie beyond their own interval, as some of so many do by chance")
    return "\n".join(lines)

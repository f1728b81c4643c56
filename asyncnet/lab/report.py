"""A comparison as tables for people, at most 100 columns wide."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Callable
from typing import Final

import attrs

from asyncnet.lab.comparison import Comparison, Summary
from asyncnet.lab.figures import LEAST_ROUNDS, Ratio, Verdict
from asyncnet.lab.metrics import METRICS
from asyncnet.lab.model import AGAIN, CEILING, Workload
from asyncnet.lab.workloads import MAIN

__all__ = ["COLUMNS", "WIDTH", "best_and_worst", "format_table", "heading_of", "notes_of", "spoken_ratio", "title_of"]

WIDTH: Final = 100
COLUMNS: Final = {
    "echo": ("p50", "p99", "p999"),
    "udp": ("p50", "p99", "p999"),
    "churn": ("p50", "p99", "p999"),
    "tftp": ("megabytes_per_second", "p50", "p99"),
    "idle": ("held", "memory", "kernel_memory", "p50", "p99"),
    "slow": ("p50", "p99", "p999", "cpu"),
    "stall": ("complete", "memory"),
    "stop": ("broken", "stop_seconds"),
}
"""The figures of a table by the mode of its workload, beside the rate and what it costs."""
_BEST: Final = "32"
_WORST: Final = "31"
_MANY: Final = 3
_MOST_REASONS: Final = 30
"""Lines about runs that do not count; beyond it there is one for each workload."""
_FIGURE: Final = re.compile(r":? (by |for )?[-+]?\d.*")
"""What a reason ends with: how much it was."""
_MOST_FLOOR: Final = 0.3


@attrs.frozen
class _Column:
    heading: str
    width: int
    cell: Callable[[Summary], str]
    metric: str | None = None


def format_table(comparison: Comparison, *, colour: bool = False) -> str:
    """Return the tables: a row per engine and workload, with the medians of the rounds.

    Args:
        comparison: what was measured.
        colour: mark the best green and the worst red, for a terminal; ``+`` and ``-`` stand in both.
    """
    parts = [title_of(comparison)]
    parts += [
        _table(comparison, workload, colour) for workload in comparison.workloads if _was_run(comparison, workload)
    ]
    notes = notes_of(comparison)
    return "\n\n".join([*parts, *(["\n".join(_wrapped(note) for note in notes)] if notes else [])])


def title_of(comparison: Comparison) -> str:
    """Return what was compared, in a line."""
    settings = comparison.settings
    rounds = max((run.round for run in comparison.runs), default=0)
    limited = ", client-limited" if _is_limited(comparison) else ""
    return (
        f"{settings.protocol.upper()}, {rounds} rounds of {settings.seconds:g} s, medians; "
        f"ratios to {settings.baseline}{' with 95 % intervals' if rounds >= LEAST_ROUNDS else ''}{limited}"
    )


def heading_of(comparison: Comparison, workload: Workload) -> str:
    """Return what stands above a table or a chart."""
    return workload.title + (" (client-limited)" if _is_limited(comparison) else "")


def _is_limited(comparison: Comparison) -> bool:
    return comparison.environment.get("load_generator") == "python"


def _was_run(comparison: Comparison, workload: Workload) -> bool:
    return any(run.workload == workload.name for run in comparison.runs)


def _table(comparison: Comparison, workload: Workload, colour: bool) -> str:
    columns = _columns(comparison, workload)
    summaries = comparison.summaries(workload.name)
    marks = {
        column.metric: best_and_worst(comparison, workload.name, column.metric) for column in columns if column.metric
    }
    lines = [heading_of(comparison, workload)]
    lines.append("".join(_padded(column.heading, column, i) for i, column in enumerate(columns)))
    for summary in summaries:
        row = ""
        for i, column in enumerate(columns):
            best, worst = marks.get(column.metric or "", (None, None))
            mark = "+" if summary.engine == best else "-" if summary.engine == worst else " "
            text = column.cell(summary)
            padded = _padded(text if column.metric is None else f"{text}{mark}", column, i)
            row += _coloured(padded, mark) if colour and column.metric is not None else padded
        lines.append(row.rstrip() if not colour else row)
    return "\n".join(lines)


def _padded(text: str, column: _Column, place: int) -> str:
    return text.ljust(column.width) if place == 0 else text.rjust(column.width)


def _coloured(text: str, mark: str) -> str:
    code = {"+": _BEST, "-": _WORST}.get(mark)
    return text if code is None else f"\x1b[{code}m{text}\x1b[0m"


def _columns(comparison: Comparison, workload: Workload) -> list[_Column]:
    columns = [_Column("engine", 11, lambda summary: summary.engine)]
    closed = not workload.rate and workload.mode in ("echo", "udp", "churn", "tftp")
    if closed:
        columns.append(_metric("requests_per_second", 11))
        columns.append(_Column("% of C", 7, _of_ceiling))
        columns.append(_Column("ratio", 19, lambda summary: spoken_ratio(summary.ratios.get("requests_per_second"))))
    if closed or (workload.rate and workload.mode != "slow"):
        columns.append(_Column("CPU µs=user+sys ", 18 if not closed else 17, _cpu, "cpu"))
    columns += [_metric(name, 9 if closed else 12) for name in COLUMNS[workload.mode]]
    if workload.rate and workload.mode != "slow":
        columns.append(_Column("p99 ratio", 20, lambda summary: spoken_ratio(summary.ratios.get("p99"))))
    columns.append(_Column("failed", 8, _failed))
    return columns


def _metric(name: str, width: int) -> _Column:
    metric = METRICS[name]

    def cell(summary: Summary) -> str:
        found = summary.values.get(name)
        return metric.show(found.median) if found is not None else "-"

    return _Column(f"{metric.heading} ", width, cell, name)


def _of_ceiling(summary: Summary) -> str:
    return "-" if summary.of_ceiling is None or summary.engine == CEILING else f"{summary.of_ceiling:.0%}"


def _cpu(summary: Summary) -> str:
    values = summary.values
    if "cpu" not in values:
        return "-"
    return "{}={}+{}".format(*(METRICS[name].show(values[name].median) for name in ("cpu", "cpu_user", "cpu_system")))


def _failed(summary: Summary) -> str:
    if summary.errors:
        return "error"
    return str(summary.failures) if summary.rounds else "INVALID"


def spoken_ratio(ratio: Ratio | None) -> str:
    """Return a ratio with its interval, or that there is no difference."""
    if ratio is None:
        return "-"
    if ratio.verdict is Verdict.NO_DIFFERENCE:
        return "no difference"
    if ratio.verdict is Verdict.UNKNOWN:
        return f"{ratio.median:.2f}"
    return f"{ratio.median:.2f} [{ratio.low:.2f} {ratio.high:.2f}]"


def best_and_worst(comparison: Comparison, workload: str, metric: str) -> tuple[str | None, str | None]:
    """Return the engines with the best and the worst figure that counts; neither where fewer than two differ."""
    found = {
        summary.engine: summary.values[metric].median
        for summary in comparison.summaries(workload)
        if metric in summary.values and summary.rounds and summary.engine != CEILING and not summary.is_limited
    }
    if len(found) < 2 or min(found.values()) == max(found.values()):
        return None, None
    low, high = min(found, key=found.__getitem__), max(found, key=found.__getitem__)
    return (high, low) if METRICS[metric].more_is_better else (low, high)


def notes_of(comparison: Comparison) -> list[str]:
    """Return what a reader must know beside the figures: limits, errors, and each INVALID run with its reason."""
    notes = []
    if _is_limited(comparison):
        why = comparison.environment.get("no_compiler") or "it was asked for"
        notes.append(f"client-limited: the load generator is a Python process ({why}); compare the CPU, not the rates")
    main = MAIN[comparison.settings.protocol]
    by_main = {summary.engine: summary for summary in comparison.summaries(main)}
    busy = [
        name for name, summary in by_main.items() if (found := summary.values.get("load_busy")) and found.median > 0.9
    ]
    if busy:
        notes.append(f"{main}: the generator used over 90 % of its core with {', '.join(busy)}: at least this rate")
    floor = comparison.floor(main, "requests_per_second")
    again = comparison.rounds_of(AGAIN, main, "requests_per_second")
    how = "the baseline against itself" if again else "the least; the baseline has no second measurement that counts"
    notes.append(f"noise floor of the rate in {main}: {floor:.1%} ({how})")
    if floor > _MOST_FLOOR:
        notes.append(f"{comparison.settings.baseline} differs that much from itself: use --against another engine")
    for summary in comparison.summaries():
        notes += [f"{summary.engine}, {summary.workload}: {text}" for text in (*summary.errors, *summary.notes)]
    notes += _invalid(comparison)
    return list(dict.fromkeys(notes))


def _invalid(comparison: Comparison) -> list[str]:
    """Say which runs do not count, and why; what a whole block has in common is said once."""
    reasons: dict[tuple[str, int, str], list[str]] = {}
    for run in comparison.runs:
        for reason in run.invalid:
            reasons.setdefault((run.workload, run.round, reason), []).append(run.engine)
    if len(reasons) > _MOST_REASONS:
        return _in_short(comparison)
    lines = []
    for (workload, number, reason), engines in reasons.items():
        who = ", ".join(engines) if len(engines) <= _MANY else f"{len(engines)} runs"
        lines.append(f"INVALID: {workload}, round {number}, {who}: {reason}")
    return lines


def _in_short(comparison: Comparison) -> list[str]:
    """Say for each workload how many runs do not count, and how often for which reason."""
    lines = []
    for workload in comparison.workloads:
        runs = [run for run in comparison.runs if run.workload == workload.name]
        kinds = Counter(_FIGURE.sub("", reason) for run in runs for reason in run.invalid)
        if kinds:
            bad = sum(bool(run.invalid) for run in runs)
            told = ", ".join(f"{kind} ({times})" for kind, times in kinds.most_common())
            lines.append(f"INVALID: {workload.name}, {bad} of {len(runs)} runs: {told}; the JSON names each")
    return lines


def _wrapped(note: str) -> str:
    return textwrap.fill(note, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)

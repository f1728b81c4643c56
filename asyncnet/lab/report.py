"""A comparison as a table for people, at most 100 columns wide."""

from __future__ import annotations

from typing import Final

from asyncnet.lab.compare import Comparison, Measure, Summary

__all__ = ["format_table"]

_HEADINGS: Final = ("engine", "requests/s", "spread", "p50 ms", "p99 ms", "CPU µs/request", "spread", "failed")
_WIDTHS: Final = (10, 11, 9, 9, 9, 15, 8, 8)


def format_table(comparison: Comparison) -> str:
    """Return the table: a row per engine, the median of the rounds and half their range as the spread."""
    settings = comparison.settings
    lines = [
        f"TCP echo, {settings.clients} connections, {settings.size} bytes, "
        f"{settings.rounds} rounds of {settings.seconds:g} s, median of the rounds",
        "",
        "".join(
            heading.ljust(width) if i == 0 else heading.rjust(width)
            for i, (heading, width) in enumerate(zip(_HEADINGS, _WIDTHS, strict=True))
        ),
    ]
    notes: list[str] = []
    for summary in comparison.summaries():
        lines.append(_row(summary))
        notes.extend(f"{summary.engine}: {error}" for error in dict.fromkeys(summary.errors))
    if any(summary.load_busy > 0.9 for summary in comparison.summaries()):
        notes.append(
            "client-limited: the load generator, a Python process, used over 90 % of its core; "
            "compare the CPU per request, not the rates"
        )
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _row(summary: Summary) -> str:
    cells = (
        _number(summary.requests_per_second, 1, 0),
        _spread(summary.requests_per_second),
        _number(summary.p50, 1e3, 2),
        _number(summary.p99, 1e3, 2),
        _number(summary.cpu_per_request, 1e6, 1),
        _spread(summary.cpu_per_request),
        str(summary.failures) if summary.requests_per_second else "-",
    )
    return summary.engine.ljust(_WIDTHS[0]) + "".join(
        cell.rjust(width) for cell, width in zip(cells, _WIDTHS[1:], strict=True)
    )


def _number(measure: Measure | None, factor: float, digits: int) -> str:
    return "-" if measure is None else f"{measure.median * factor:.{digits}f}"


def _spread(measure: Measure | None) -> str:
    if measure is None or not measure.median:
        return "-"
    return f"±{(measure.highest - measure.lowest) / 2 / measure.median * 100:.0f} %"

"""The figures that a run may have: what they are called, their unit, and which end is the better one."""

from __future__ import annotations

from typing import Final

import attrs

__all__ = ["METRICS", "Metric"]


@attrs.frozen
class Metric:
    """A figure."""

    name: str
    heading: str
    """With its unit, at most ten characters wide."""
    factor: float = 1.0
    """From the unit that is stored to the one that is shown."""
    digits: int = 0
    more_is_better: bool = False
    judged: bool = False
    """Whether `--baseline` calls a change for the worse a regression."""

    def show(self, value: float) -> str:
        """Return a value for people, in the unit of the heading."""
        shown = value * self.factor
        return f"{shown:.{self.digits}f}" if shown < 100 or not self.digits else f"{shown:.0f}"


METRICS: Final = {
    metric.name: metric
    for metric in (
        Metric("requests_per_second", "requests/s", more_is_better=True, judged=True),
        Metric("cpu", "CPU µs", 1e6, 1, judged=True),
        Metric("cpu_user", "user µs", 1e6, 1),
        Metric("cpu_system", "system µs", 1e6, 1),
        Metric("p50", "p50 ms", 1e3, 2, judged=True),
        Metric("p90", "p90 ms", 1e3, 2),
        Metric("p99", "p99 ms", 1e3, 2, judged=True),
        Metric("p999", "p99.9 ms", 1e3, 2),
        Metric("service_p99", "service ms", 1e3, 2),
        Metric("memory", "KiB/conn", 1 / 1024, 1, judged=True),
        Metric("kernel_memory", "kernel KiB", 1 / 1024, 1),
        Metric("held", "held", more_is_better=True),
        Metric("stop_seconds", "stop s", 1, 2),
        Metric("broken", "cut off"),
        Metric("complete", "complete", more_is_better=True),
        Metric("megabytes_per_second", "MB/s", 1, 1, more_is_better=True, judged=True),
        Metric("load_busy", "load busy", 100, 0),
        Metric("lag_p99", "lag µs", 1e6, 1),
    )
}
"""Every figure by its name; memory is proportional (PSS), over all processes of a server."""

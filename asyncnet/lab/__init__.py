"""The laboratory behind ``asyncnet compare``: the same handler on every engine, measured so that it can be believed."""

from asyncnet.lab.baseline import (
    Change,
    agreement,
    compare_with_baseline,
    format_agreement,
    format_changes,
    read_baseline,
)
from asyncnet.lab.compare import Progress, compare
from asyncnet.lab.comparison import Comparison, Summary
from asyncnet.lab.figures import Interval, Ratio, Verdict
from asyncnet.lab.model import Run, Settings, Workload
from asyncnet.lab.page import format_html
from asyncnet.lab.report import format_table
from asyncnet.lab.workloads import workloads_of

__all__ = [
    "Change",
    "Comparison",
    "Interval",
    "Progress",
    "Ratio",
    "Run",
    "Settings",
    "Summary",
    "Verdict",
    "Workload",
    "agreement",
    "compare",
    "compare_with_baseline",
    "format_agreement",
    "format_changes",
    "format_html",
    "format_table",
    "read_baseline",
    "workloads_of",
]

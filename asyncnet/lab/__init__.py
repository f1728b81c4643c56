"""The laboratory behind ``asyncnet compare``."""

from asyncnet.lab.compare import Comparison, Measure, Run, Settings, Summary, compare
from asyncnet.lab.report import format_table

__all__ = ["Comparison", "Measure", "Run", "Settings", "Summary", "compare", "format_table"]

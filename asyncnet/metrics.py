"""What servers count, for Prometheus; needs the extra ``metrics``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Protocol

import attrs

__all__ = ["HasStats", "MetricsCollector"]

_GAUGES: Final = ("active",)


class HasStats(Protocol):
    """A server whose ``stats`` is an attrs object of numbers."""

    @property
    def stats(self) -> Any: ...


class MetricsCollector:
    """A collector of prometheus_client for the counts of a server, read when they are asked for.

    Args:
        server: anything whose ``stats`` is an attrs object of numbers.
        prefix: of the metrics' names.

    Raises:
        ImportError: prometheus_client is not installed.
    """

    def __init__(self, server: HasStats, prefix: str) -> None:
        _prometheus()
        self._server = server
        self._prefix = prefix

    def collect(self) -> Iterator[Any]:
        """Yield a metric for each count."""
        core = _prometheus()
        for name, value in attrs.asdict(self._server.stats).items():
            kind = core.GaugeMetricFamily if name in _GAUGES else core.CounterMetricFamily
            yield kind(f"{self._prefix}_{name}", f"{name} of the server's counts", value=value)


def _prometheus() -> Any:
    try:
        import prometheus_client.core
    except ImportError:
        raise ImportError("metrics need prometheus_client: pip install 'asyncnet[metrics]'") from None
    return prometheus_client.core

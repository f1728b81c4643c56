"""The log-linear histogram of the load generators: 64 buckets for each power of two, so 1.6 % wide at most."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import attrs

__all__ = ["Histogram"]

_SUB_BITS: Final = 6
_SUB: Final = 1 << _SUB_BITS


@attrs.define
class Histogram:
    """Durations, in nanoseconds."""

    buckets: dict[int, int] = attrs.field(factory=dict)
    count: int = 0
    most: int = 0

    def record(self, ns: int) -> None:
        """Count a duration."""
        shift = max(0, ns.bit_length() - 1 - _SUB_BITS)
        bucket = ns if ns < _SUB else (shift + 1) * _SUB + (ns >> shift) - _SUB
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.count += 1
        self.most = max(self.most, ns)

    def percentile(self, share: float) -> float:
        """Return the seconds that this share of the durations does not exceed; 0 when there are none."""
        seen = 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= share * self.count:
                return min(_value(bucket), self.most / 1e9)
        return 0.0

    def percentiles(self, prefix: str = "") -> dict[str, float]:
        """Return the percentiles that a load generator prints, in seconds."""
        shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
        found = {f"{prefix}{name}": self.percentile(share) for name, share in shares.items()}
        return found | {f"{prefix}max": self.most / 1e9}

    def pairs(self) -> list[tuple[float, int]]:
        """Return seconds and how often, from the shortest on."""
        return [(_value(bucket), self.buckets[bucket]) for bucket in sorted(self.buckets)]

    @staticmethod
    def merged(histograms: Iterable[Histogram]) -> Histogram:
        """Return the sum of the histograms of one run."""
        whole = Histogram()
        for histogram in histograms:
            for bucket, count in histogram.buckets.items():
                whole.buckets[bucket] = whole.buckets.get(bucket, 0) + count
            whole.count += histogram.count
            whole.most = max(whole.most, histogram.most)
        return whole


def _value(bucket: int) -> float:
    if bucket < _SUB:
        return bucket / 1e9
    shift = bucket // _SUB - 1
    return (bucket % _SUB + _SUB + 0.5) * (1 << shift) / 1e9

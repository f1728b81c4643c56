"""What may be said about figures that differ from run to run.

Two engines are compared round by round: what slows the machine slows both of a pair. The median of the ratios counts,
and a bootstrap over the rounds gives its 95 % interval. An interval of few rounds is honest about those rounds only,
so a difference must also be larger than what two measurements of the same engine differ by: the noise floor, which a
second measurement of the baseline in each round shows (A/A).

Of hundreds of figures at 95 %, some differ by chance. Where all are judged together, `chance_of` gives each the
probability of its difference if there were none (Welch's t-test on the logarithms), and `unlikely` those that remain
when their number is taken into account (Holm).
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from typing import Final

import attrs

__all__ = [
    "LEAST_FLOOR",
    "LEAST_ROUNDS",
    "Interval",
    "Ratio",
    "Verdict",
    "bootstrap_median",
    "chance_of",
    "noise_floor",
    "paired_ratio",
    "spread_of",
    "two_samples",
    "unlikely",
]

LEAST_FLOOR: Final = 0.02
"""A difference below 2 % is never called one."""
_DRAWS: Final = 4000
_EXACT_UP_TO: Final = 5
_LEVEL: Final = 0.05
_OWN_SPREAD_FROM: Final = 3
LEAST_ROUNDS: Final = 4
"""Rounds from which on two engines may be called different: the interval of three holds the truth 3 times in 4."""


class Verdict(Enum):
    """How one engine compares with another."""

    HIGHER = "higher"
    LOWER = "lower"
    NO_DIFFERENCE = "no difference"
    UNKNOWN = "too few rounds"


@attrs.frozen
class Interval:
    """A median with its 95 % interval."""

    median: float
    low: float
    high: float


@attrs.frozen
class Ratio:
    """One engine's figure over another's, paired by rounds."""

    median: float
    low: float
    high: float
    rounds: int
    floor: float
    """The noise floor, as a share."""
    least: int = 2
    """Rounds from which on something may be said."""

    @property
    def verdict(self) -> Verdict:
        """What may be said: a difference is one when the interval lies outside the noise floor."""
        if self.rounds < self.least:
            return Verdict.UNKNOWN
        if self.low > 1 + self.floor:
            return Verdict.HIGHER
        if self.high < 1 / (1 + self.floor):
            return Verdict.LOWER
        return Verdict.NO_DIFFERENCE


@lru_cache(maxsize=4096)
def _bootstrap(values: tuple[float, ...]) -> tuple[float, float]:
    if len(values) <= _EXACT_UP_TO:  # all draws there are
        medians = sorted(map(statistics.median, itertools.product(values, repeat=len(values))))
    else:
        draw = random.Random(1).choices
        medians = sorted(statistics.median(draw(values, k=len(values))) for _ in range(_DRAWS))
    return medians[int(len(medians) * 0.025)], medians[min(len(medians) - 1, int(len(medians) * 0.975))]


def bootstrap_median(values: Sequence[float]) -> Interval:
    """Return the median of one value per round, and its bootstrap 95 % interval."""
    return Interval(statistics.median(values), *_bootstrap(tuple(values)))


def paired_ratio(values: Mapping[int, float], base: Mapping[int, float], floor: float = LEAST_FLOOR) -> Ratio | None:
    """Compare two engines by the rounds that both have; None when there is no such round.

    Args:
        values, base: one figure per round, by the number of the round.
        floor: the noise floor, as a share.
    """
    ratios = [values[key] / base[key] for key in sorted(values.keys() & base.keys()) if base[key] > 0]
    if not ratios:
        return None
    found = bootstrap_median(ratios)
    return Ratio(found.median, found.low, found.high, len(ratios), floor, LEAST_ROUNDS)


def noise_floor(again: Mapping[int, float], base: Mapping[int, float]) -> float:
    """Return the share by which two measurements of the same engine usually differ: the median of the rounds.

    For a difference, the ratio must lie beyond it on the same side in each of up to five rounds. That happens by chance
    to two engines that are alike in 2 of 1000 cases (8 with four rounds).
    """
    differences = [
        max(again[key] / base[key], base[key] / again[key]) - 1
        for key in again.keys() & base.keys()
        if base[key] > 0 and again[key] > 0
    ]
    return max(LEAST_FLOOR, statistics.median(differences)) if differences else LEAST_FLOOR


def two_samples(new: Sequence[float], old: Sequence[float], floor: float = LEAST_FLOOR) -> Ratio | None:
    """Compare the runs of today with those of another day, which share no rounds; None when one has no runs."""
    if not new or not old or min(old) <= 0:
        return None
    draw = random.Random(1).choices
    ratios = sorted(
        statistics.median(draw(new, k=len(new))) / statistics.median(draw(old, k=len(old))) for _ in range(_DRAWS)
    )
    middle = statistics.median(new) / statistics.median(old)
    low, high = ratios[int(_DRAWS * 0.025)], ratios[int(_DRAWS * 0.975)]
    return Ratio(middle, low, high, min(len(new), len(old)), floor)


def spread_of(samples: Iterable[Sequence[float]]) -> tuple[float, int]:
    """Return the variance within the samples, of logarithms, and its degrees of freedom."""
    logs = [[math.log(value) for value in sample] for sample in samples if sample and min(sample) > 0]
    free = sum(len(sample) - 1 for sample in logs)
    within = sum((value - statistics.fmean(sample)) ** 2 for sample in logs for value in sample)
    return (within / free if free else 0.0), free


def chance_of(new: Sequence[float], old: Sequence[float], spread: tuple[float, int]) -> float:
    """Return how probable it is that two samples differ so much by chance; 1 when that cannot be told.

    Args:
        new, old: a figure, once a round.
        spread: of others of its kind, which stands in for its own where there are fewer than three rounds.
    """
    if min(len(new), len(old)) < 2 or min(*new, *old) <= 0:
        return 1.0
    (one, one_free), (other, other_free) = spread_of([new]), spread_of([old])
    few = min(len(new), len(old)) < _OWN_SPREAD_FROM
    variance, free = spread
    first, second = (variance / len(new), variance / len(old)) if few else (one / len(new), other / len(old))
    error = first + second
    if not few:  # Welch and Satterthwaite
        free = int(error**2 / (first**2 / one_free + second**2 / other_free)) if error else one_free + other_free
    apart = abs(statistics.fmean(map(math.log, new)) - statistics.fmean(map(math.log, old)))
    if not free or not error:
        return 0.0 if free and apart else 1.0  # figures that never vary
    return _beyond(apart / math.sqrt(error), free)


def _beyond(t: float, free: int) -> float:
    """Student's distribution: the share beyond t on both sides (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(free))
    odd = free % 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for k in range(1, free // 2 + 1):
        total += term
        term *= math.cos(angle) ** 2 * (2 * k / (2 * k + 1) if odd else (2 * k - 1) / (2 * k))
    within = math.sin(angle) * total
    return max(0.0, 1 - (2 / math.pi * (angle + within) if odd else within))


def unlikely(chances: Sequence[float]) -> list[bool]:
    """Tell which of all these differences are too improbable to be chance: at most one false in 20 times (Holm)."""
    found = [False] * len(chances)
    for done, place in enumerate(sorted(range(len(chances)), key=chances.__getitem__)):
        if chances[place] > _LEVEL / (len(chances) - done):
            break
        found[place] = True
    return found

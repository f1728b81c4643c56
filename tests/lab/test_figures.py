"""What may be said about figures: intervals, the noise floor, verdicts, and that A/A finds no difference."""

from __future__ import annotations

import itertools
import math
import random
import statistics

import pytest

from asyncnet.lab.figures import (
    LEAST_FLOOR,
    Ratio,
    Verdict,
    bootstrap_median,
    chance_of,
    noise_floor,
    paired_ratio,
    spread_of,
    two_samples,
    unlikely,
)
from asyncnet.lab.histogram import Histogram
from asyncnet.lab.schedule import Schedule, WarmUp


def rounds(values: list[float]) -> dict[int, float]:
    return dict(enumerate(values, 1))


def noisy(draw: random.Random, middle: float, count: int = 5) -> dict[int, float]:
    """Rounds of a machine that drifts by 10 %, in which a measurement varies by 2 %."""
    return rounds([middle * draw.gauss(1, 0.02) for _ in range(count)])


def test_the_interval_of_a_median_holds_the_median() -> None:
    found = bootstrap_median([100.0, 90.0, 120.0, 101.0, 99.0])
    assert found.median == 100.0
    assert 90.0 <= found.low < 100.0 < found.high <= 120.0
    same = bootstrap_median([7.0] * 8)
    assert (same.low, same.median, same.high) == (7.0, 7.0, 7.0)


def test_a_difference_is_paired_by_rounds_so_that_drift_of_the_machine_cancels_out() -> None:
    base = rounds([100.0, 50.0, 200.0, 80.0, 120.0])
    twice = {number: value * 1.2 for number, value in base.items()}
    found = paired_ratio(twice, base)
    assert found is not None
    assert found.median == pytest.approx(1.2)
    assert found.verdict is Verdict.HIGHER
    reverse = paired_ratio(base, twice)
    assert reverse is not None
    assert reverse.verdict is Verdict.LOWER


def test_rounds_that_only_one_has_do_not_count() -> None:
    found = paired_ratio({1: 1.0, 2: 2.0}, {2: 1.0, 3: 5.0})
    assert found is not None
    assert (found.median, found.rounds, found.verdict) == (2.0, 1, Verdict.UNKNOWN)
    assert paired_ratio({1: 1.0}, {2: 1.0}) is None


def test_what_lies_inside_the_noise_floor_is_no_difference() -> None:
    assert Ratio(1.04, 1.03, 1.05, 5, floor=0.06).verdict is Verdict.NO_DIFFERENCE
    assert Ratio(1.04, 1.03, 1.05, 5, floor=LEAST_FLOOR).verdict is Verdict.HIGHER
    usual = noise_floor(rounds([100.0, 93.0, 96.0]), rounds([101.0, 100.0, 100.0]))
    assert usual == pytest.approx(100 / 96 - 1)  # neither the quietest round nor one that something disturbed
    assert noise_floor({}, {}) == LEAST_FLOOR


def test_a_against_a_finds_no_difference_in_19_of_20() -> None:
    draw = random.Random(8)
    verdicts = []
    for _ in range(200):
        base, again, same = (noisy(draw, 1000.0) for _ in range(3))
        found = paired_ratio(same, base, noise_floor(again, base))
        assert found is not None
        verdicts.append(found.verdict)
    assert verdicts.count(Verdict.NO_DIFFERENCE) >= 190


def test_a_real_difference_of_15_per_cent_is_found() -> None:
    draw = random.Random(8)
    found = [
        paired_ratio(noisy(draw, 1150.0), base, noise_floor(noisy(draw, 1000.0), base))
        for base in (noisy(draw, 1000.0) for _ in range(50))
    ]
    assert sum(ratio is not None and ratio.verdict is Verdict.HIGHER for ratio in found) >= 45


def test_two_samples_share_no_rounds() -> None:
    found = two_samples([80.0, 81.0, 79.0], [100.0, 101.0, 99.0, 100.0])
    assert found is not None
    assert found.verdict is Verdict.LOWER
    assert two_samples([], [1.0]) is None


@pytest.mark.parametrize(("t", "free"), [(12.706, 1), (4.303, 2), (2.571, 5), (2.306, 8), (2.086, 20)])
def test_chance_is_that_of_student(t: float, free: int) -> None:
    # Quantiles of 95 % from the tables of Student's distribution, two-sided.
    old, spread = [1.0, 1.0], (1.0, free)
    new = [math.exp(t), math.exp(t)]
    assert chance_of(new, old, spread) == pytest.approx(0.05, rel=0.01)


def test_chance_needs_rounds_and_figures() -> None:
    spread = (1e-4, 10)
    assert chance_of([2.0], [1.0, 1.0], spread) == 1.0
    assert chance_of([2.0, 2.0], [0.0, 1.0], spread) == 1.0
    assert chance_of([2.0, 2.0], [1.0, 1.0], (0.0, 0)) == 1.0
    assert chance_of([2.0, 2.0], [1.0, 1.0], spread) < 1e-6
    assert chance_of([2.0] * 3, [1.0] * 3, spread) == 0.0
    assert chance_of([1.0] * 3, [1.0] * 3, spread) == 1.0


def test_what_is_unlikely_depends_on_how_many_are_compared() -> None:
    assert unlikely([0.04]) == [True]
    assert unlikely([0.04] * 2) == [False, False]
    assert unlikely([0.5, 0.001, 0.02, 0.9]) == [False, True, False, False]  # 0.05 / 4, then 0.05 / 3
    assert unlikely([]) == []


@pytest.mark.parametrize("rounds", [2, 5])
@pytest.mark.parametrize("heavy", [False, True])
def test_hundreds_of_figures_of_the_same_thing_raise_no_alarm(rounds: int, heavy: bool) -> None:
    draw = random.Random(5)

    def sample(middle: float) -> list[float]:
        # Now and then the machine is slow for a whole run, where it is heavy.
        return [
            middle * math.exp(draw.gauss(0, 0.03)) * (1.5 if heavy and draw.random() < 0.1 else 1)
            for _ in range(rounds)
        ]

    alarms = alone = 0
    for _ in range(10):  # comparisons, of 300 figures each
        figures = [(sample(middle), sample(middle)) for middle in (1e-5, 1.0, 1e5) for _ in range(100)]
        spread = spread_of(itertools.chain.from_iterable(figures))
        chances = [chance_of(new, old, spread) for new, old in figures]
        alarms += any(unlikely(chances))
        alone += any(chance < 0.05 for chance in chances)
    assert alarms <= 2  # one in two such tests is expected at most
    assert alone == 10


def test_a_regression_of_20_per_cent_is_found_among_hundreds_of_figures() -> None:
    draw = random.Random(6)

    def sample(middle: float) -> list[float]:
        return [middle * draw.gauss(1, 0.015) for _ in range(5)]

    found = 0
    for _ in range(10):
        figures = [(sample(1.0), sample(1.0)) for _ in range(300)]
        figures[17] = sample(1.2), sample(1.0)
        spread = spread_of(itertools.chain.from_iterable(figures))
        kept = unlikely([chance_of(new, old, spread) for new, old in figures])
        assert sum(kept) - kept[17] <= 1
        found += kept[17]
    assert found >= 9


def test_a_histogram_is_exact_to_two_per_cent_and_merges() -> None:
    one, other = Histogram(), Histogram()
    for ns in range(1, 2_000_001, 1000):
        (one if ns % 2000 == 1 else other).record(ns)
    whole = Histogram.merged([one, other])
    assert whole.count == 2000
    assert whole.percentile(0.5) == pytest.approx(1e-3, rel=0.02)
    assert whole.percentile(0.99) == pytest.approx(1.98e-3, rel=0.02)
    assert whole.most == 1_999_001
    assert sum(count for _, count in whole.pairs()) == 2000
    assert Histogram().percentile(0.5) == 0.0


def test_an_open_loop_keeps_the_time_of_what_waits() -> None:
    schedule = Schedule(rate=1000.0, poisson=False, next_due=0)
    schedule.take_due(10_000_000)
    assert len(schedule.waiting) == 10
    assert list(schedule.waiting)[:2] == [0, 1_000_001]
    poisson = Schedule(rate=1000.0, poisson=True, next_due=0)
    poisson.take_due(10_000_000_000)
    assert 9_500 < len(poisson.waiting) < 10_500


def test_gaps_are_even_when_constant_and_exponential_when_poisson() -> None:
    share = {}
    for poisson in (False, True):
        schedule = Schedule(rate=1000.0, poisson=poisson, next_due=0)
        schedule.take_due(10_000_000_000)
        gaps = [later - earlier for earlier, later in itertools.pairwise(schedule.waiting)]
        share[poisson] = statistics.stdev(gaps) / statistics.fmean(gaps)
    assert share[False] == 0
    assert share[True] == pytest.approx(1.0, abs=0.05)  # the standard deviation of an exponential is its mean


def test_a_warm_up_ends_when_three_windows_are_alike_or_its_time_is_over() -> None:
    warm = WarmUp(begun=0, longest=10.0, window=1.0)
    answers = 0
    for second, rate in enumerate((10, 100, 100, 104), 1):
        answers += rate
        assert warm.is_over(second * 1_000_000_000, answers) is (second == 4)
    assert WarmUp(begun=0, longest=2.0, window=1.0).is_over(2_000_000_000, 0)

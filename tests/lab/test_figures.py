"""What may be said about figures: intervals, the noise floor, verdicts, and that A/A finds no difference."""

from __future__ import annotations

import random

import pytest

from asyncnet.lab.figures import LEAST_FLOOR, Ratio, Verdict, bootstrap_median, noise_floor, paired_ratio, two_samples
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
    assert noise_floor(rounds([100.0, 93.0]), rounds([101.0, 100.0])) == pytest.approx(100 / 93 - 1)
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


def test_a_warm_up_ends_when_three_windows_are_alike_or_its_time_is_over() -> None:
    warm = WarmUp(begun=0, longest=10.0, window=1.0)
    answers = 0
    for second, rate in enumerate((10, 100, 100, 104), 1):
        answers += rate
        assert warm.is_over(second * 1_000_000_000, answers) is (second == 4)
    assert WarmUp(begun=0, longest=2.0, window=1.0).is_over(2_000_000_000, 0)

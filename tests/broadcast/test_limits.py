"""Rates and short memories, on a clock that is a number."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from asyncnet.broadcast.limits import RateLimiter, Recent


def test_a_source_gets_its_burst_and_then_its_rate() -> None:
    limiter = RateLimiter(10, 5)
    assert [limiter.allows("a", 0.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert limiter.allows("b", 0.0)
    assert [limiter.allows("a", 0.1001) for _ in range(2)] == [True, False]
    assert [limiter.allows("a", 100.0) for _ in range(6)] == [True] * 5 + [False]


@given(st.lists(st.floats(0, 0.2), max_size=200))
def test_no_more_than_burst_and_rate_ever_pass(steps: list[float]) -> None:
    limiter, now, passed = RateLimiter(20, 4), 0.0, 0
    for step in steps:
        now += step
        passed += limiter.allows("a", now)
    assert passed <= 4 + 20 * now + 2e-3  # the limiter grants a thousandth more than it should


def test_sources_are_forgotten_when_there_are_too_many() -> None:
    limiter = RateLimiter(1, 1, max_sources=3)
    assert all(limiter.allows(number, 0.0) for number in range(1000))
    assert len(limiter) == 3


def test_a_thing_was_seen_for_a_while_and_no_more_than_so_many_are_kept() -> None:
    recent = Recent(1.0, 3)
    assert not recent.seen("a", 0.0)
    assert recent.seen("a", 0.9)
    assert not recent.seen("a", 1.0)
    for number in range(100):
        assert not recent.seen(number, 1.1)
    assert len(recent) == 3

"""The deadlines of a connection, with a clock that is a number."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncnet.tcp.deadlines import Deadline, DeadlineQueue, Timeouts, Watch


def missed(queue: DeadlineQueue, now: float) -> list[Deadline]:
    return [deadline for _, deadline in queue.expired(now)]


def test_a_first_byte_is_due_only_while_somebody_waits_for_it() -> None:
    watch = Watch(Timeouts(first_byte=5), 100.0)
    assert watch.due() is None
    watch.wait(103.0)
    assert watch.due() == (105.0, Deadline.FIRST_BYTE)
    watch.receive(104.0)
    assert watch.due() is None


def test_a_message_is_absolute_and_ends_with_the_answer() -> None:
    watch = Watch(Timeouts(message=10), 0.0)
    watch.wait(1.0)
    for now in range(2, 11):  # a trickle
        watch.receive(float(now))
        watch.waited(now)
        watch.wait(now)
        assert watch.due() == (12.0, Deadline.MESSAGE)
    watch.answer(11.0, more=False)
    assert watch.due() is None
    watch.receive(20.0)
    assert watch.due() == (30.0, Deadline.MESSAGE)
    watch.answer(21.0, more=True)  # the next one has begun already
    assert watch.due() == (31.0, Deadline.MESSAGE)


def test_time_at_work_is_not_idle_time() -> None:
    watch = Watch(Timeouts(idle=10), 0.0)
    watch.wait(0.0)
    watch.waited(4.0)  # given up by the handler, which works for a while
    assert watch.due() is None
    watch.wait(100.0)
    assert watch.due() == (106.0, Deadline.IDLE)
    watch.answer(103.0, more=False)  # bytes in either direction count
    assert watch.due() == (113.0, Deadline.IDLE)
    watch.forgive(113.0)
    assert watch.due() == (123.0, Deadline.IDLE)


def test_the_deadline_that_passes_first_is_told() -> None:
    watch = Watch(Timeouts(first_byte=5, idle=3, lifetime=4, write=1), 0.0)
    assert watch.due() == (4.0, Deadline.LIFETIME)
    watch.wait(0.0)
    assert watch.due() == (3.0, Deadline.IDLE)
    watch.stall(1.0)
    assert watch.due() == (2.0, Deadline.WRITE)
    watch.end()
    assert watch.due() is None


def test_the_queue_looks_again_instead_of_being_told_of_every_byte() -> None:
    queue = DeadlineQueue()
    watch = Watch(Timeouts(idle=10), 0.0)
    watch.wait(0.0)
    assert queue.schedule(watch)
    for now in range(1, 9):
        watch.receive(float(now))
        assert not queue.schedule(watch)
    assert len(queue) == 1
    assert missed(queue, 10.0) == []
    assert queue.next == 18.0
    assert missed(queue, 18.0) == [Deadline.IDLE]
    assert queue.next is None


def test_an_earlier_deadline_is_not_missed_because_of_a_later_one() -> None:
    queue = DeadlineQueue()
    watch = Watch(Timeouts(idle=1, lifetime=1000), 0.0)
    queue.schedule(watch)
    watch.wait(5.0)
    queue.schedule(watch)
    assert missed(queue, 6.0) == [Deadline.IDLE]
    watch.forgive(6.0)
    watch.waited(6.0)
    queue.schedule(watch)
    assert missed(queue, 1000.0) == [Deadline.LIFETIME]


def test_connections_that_are_over_do_not_stay_in_the_queue() -> None:
    queue = DeadlineQueue()
    for _ in range(100_000):
        watch = Watch(Timeouts(lifetime=3600), 0.0)
        queue.schedule(watch)
        watch.end()
    assert len(queue) <= 128


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 19), st.sampled_from(["wait", "waited", "receive", "answer", "end"])), max_size=300
    )
)
def test_no_deadline_is_missed_whatever_happens(steps: list[tuple[int, str]]) -> None:
    queue, now = DeadlineQueue(), 0.0
    watches = [Watch(Timeouts(first_byte=7, message=11, idle=5, lifetime=90), 0.0) for _ in range(20)]
    for watch in watches:
        queue.schedule(watch)
    for number, step in steps:
        now += 1.0
        watch = watches[number]
        match step:
            case "answer":
                watch.answer(now, more=False)
            case "end":
                watch.end()
            case _:
                getattr(watch, step)(now)
        queue.schedule(watch)
        for late, deadline in queue.expired(now):
            if deadline is Deadline.IDLE:
                late.forgive(now)
                queue.schedule(late)
            else:
                late.end()
        for watch in watches:
            due = watch.due()
            assert due is None or due[0] > now
            assert due is None or (queue.next or math.inf) <= due[0]


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_a_timeout_out_of_range_is_an_error_that_names_it(value: float) -> None:
    with pytest.raises(ValueError, match="idle_timeout must be above 0 seconds"):
        Timeouts(idle=value)


@pytest.mark.parametrize("value", ["5", True, [1]])
def test_what_is_no_time_is_an_error_that_names_it(value: Any) -> None:
    with pytest.raises(TypeError, match="message_timeout must be a number of seconds"):
        Timeouts(message=value)

"""The machines without sockets: rules one by one, then machine against machine over a seeded bad wire."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncnet.tftp.packets import Rollover, unwrap, wrap
from asyncnet.tftp.retransmit import RetransmitTimer, Timing
from asyncnet.tftp.transfer import Receiver, Sender, State

RTT = 0.010


def sender(window_size: int = 1, last: int | None = 100, *, opening: bool = False, **options: object) -> Sender:
    machine = Sender(window_size=window_size, last=last, opening=opening, **options)  # type: ignore[arg-type]
    machine.start(0.0)
    return machine


def receiver(window_size: int = 1, **options: object) -> Receiver:
    machine = Receiver(window_size=window_size, **options)  # type: ignore[arg-type]
    machine.start(0.0)
    assert machine.take_ack() == 0
    return machine


def feed(machine: Receiver, *blocks: int, now: float, length: int = 512) -> list[int | None]:
    return [machine.receive_data(block, length, now) for block in blocks]


# Sender


def test_in_lock_step_each_ack_sends_the_next_block() -> None:
    machine = Sender(last=3, opening=False)
    assert machine.start(0.0) == range(1, 2)
    assert machine.receive_ack(1, RTT) == range(2, 3)
    assert machine.receive_ack(2, 2 * RTT) == range(3, 4)
    assert machine.receive_ack(3, 3 * RTT) == range(0)
    assert machine.state is State.DONE
    assert machine.deadline is None


def test_in_lock_step_a_repeated_ack_sends_nothing() -> None:
    machine = sender()
    machine.receive_ack(1, RTT)
    for late in range(1, 100):
        assert not machine.receive_ack(1, RTT + late)
    assert machine.ignored == 99


def test_the_opening_packet_is_block_0_and_is_sent_alone() -> None:
    machine = Sender(window_size=16, last=100)
    assert machine.start(0.0) == range(0, 1)
    assert machine.handle_timer(1.0) == range(0, 1)
    assert not machine.receive_ack(7, 1.1)
    assert machine.receive_ack(0, 1.1) == range(1, 17)


def test_an_ack_inside_the_window_sends_again_from_there() -> None:
    machine = sender(8)
    assert machine.receive_ack(3, RTT) == range(4, 12)
    assert machine.retransmitted == 5


def test_the_ack_of_the_last_windows_end_sends_the_whole_window_again() -> None:
    machine = sender(8)
    assert machine.receive_ack(8, RTT) == range(9, 17)
    assert machine.receive_ack(8, 2 * RTT) == range(9, 17)


def test_a_repeated_ack_that_comes_too_soon_to_be_an_answer_is_ignored() -> None:
    machine = sender(8)
    machine.receive_ack(8, RTT)
    assert not machine.receive_ack(8, RTT * 1.1)
    assert machine.receive_ack(8, 2 * RTT) == range(9, 17)
    assert not machine.receive_ack(8, 2.1 * RTT)


@pytest.mark.parametrize("number", [9, 100, 40000])
def test_an_ack_for_a_block_that_was_never_sent_is_ignored(number: int) -> None:
    machine = sender(8)
    assert not machine.receive_ack(number, RTT)
    assert machine.acknowledged == 0


def test_the_ack_of_a_flight_that_was_believed_lost_is_progress() -> None:
    machine = sender(8)
    assert machine.receive_ack(3, RTT) == range(4, 12)
    assert machine.receive_ack(7, 1.2 * RTT) == range(12, 16)  # what was sent just now is on its way
    assert machine.acknowledged == 7
    assert machine.receive_ack(8, 3 * RTT) == range(16, 17)  # the end of the flight before: no gap


def test_a_gap_in_what_was_sent_again_is_filled_again() -> None:
    machine = sender(8)
    assert machine.receive_ack(3, RTT) == range(4, 12)
    assert machine.receive_ack(5, 2 * RTT) == range(6, 14)


def test_answers_to_blocks_that_were_sent_again_are_no_hints() -> None:
    """A block that the receiver has is answered by EDK2; only when all of them have been, an ACK tells of a loss."""
    machine = sender(8)
    assert machine.receive_ack(8, RTT) == range(9, 17)
    assert machine.receive_ack(8, 2 * RTT) == range(9, 17)
    for late in (0.6, 1.0, 1.9):
        assert not machine.receive_ack(8, (2 + late) * RTT)
    assert machine.receive_ack(8, 4.1 * RTT) == range(9, 17)


def test_the_window_ends_with_the_file() -> None:
    machine = sender(8, last=10)
    assert machine.receive_ack(8, RTT) == range(9, 11)
    assert not machine.receive_ack(10, 2 * RTT)
    assert machine.state is State.DONE


def test_the_end_may_become_known_late() -> None:
    machine = sender(8, last=None)
    machine.end(5)
    machine.receive_ack(5, RTT)
    assert machine.state is State.DONE


def test_silence_sends_the_window_again_with_growing_waits_and_then_gives_up() -> None:
    timing = Timing(initial=1.0, cap=8.0, max_retransmits=5, patience=0)
    machine = sender(4, timing=timing)
    waits, now = [], 0.0
    while machine.deadline is not None:
        waits.append(machine.deadline - now)
        now = machine.deadline
        assert not machine.handle_timer(now - 0.001)
        machine.handle_timer(now)
    assert waits == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert machine.state is State.TIMED_OUT
    assert machine.retransmitted == 5 * 4


def test_ignored_acks_do_not_put_the_deadline_off() -> None:
    machine = sender()
    before = machine.deadline
    machine.receive_ack(0, 0.5)
    machine.receive_ack(77, 0.6)
    assert machine.deadline == before


def test_an_ack_of_the_block_before_is_never_one_of_the_block_that_wraps_to_0() -> None:
    """Whoever lacks the block says 65535 again and again."""
    machine = sender(last=0x10010)
    now = 0.0
    for block in range(1, 0x10000):
        now += 0.001
        machine.receive_ack(block, now)
    while machine.deadline is not None:
        now = machine.deadline
        assert machine.handle_timer(now) in (range(0x10000, 0x10001), range(0))
        assert not machine.receive_ack(0xFFFF, now + 0.001)
    assert machine.acknowledged == 0xFFFF


def test_only_the_last_ack_missing_is_unconfirmed_and_no_failure() -> None:
    machine = sender(last=2)
    machine.receive_ack(1, RTT)
    while machine.deadline is not None:
        machine.handle_timer(machine.deadline)
    assert machine.state is State.UNCONFIRMED


def test_a_peer_that_never_answered_is_no_unconfirmed_success() -> None:
    machine = sender(last=1)
    while machine.deadline is not None:
        machine.handle_timer(machine.deadline)
    assert machine.state is State.TIMED_OUT


def test_progress_ends_the_backoff() -> None:
    machine = sender(last=9)
    machine.handle_timer(1.0)
    machine.handle_timer(3.0)
    machine.receive_ack(1, 3.5)
    assert machine.deadline == 3.5 + 1.0  # the block was sent three times, so its round trip was not measured


def test_a_window_that_takes_long_is_waited_for_longer() -> None:
    """Also when no round trip can be measured, because each window is sent more than once."""
    machine = sender(8, timing=Timing(initial=1.0, window_floor=0.02))
    machine.receive_ack(8, RTT)
    now = 1.0
    machine.handle_timer(now)
    machine.receive_ack(12, now + 0.1)
    assert machine.deadline == pytest.approx(now + 0.1 + 0.2)


@pytest.mark.parametrize("rollover", [0, 1])
@pytest.mark.parametrize(("window_size", "at_first", "later"), [(1, 0.010, 0.300), (8, 0.001, 0.100)])
def test_a_peer_that_becomes_slow_is_not_sent_everything_twice(
    window_size: int, at_first: float, later: float, rollover: Rollover
) -> None:
    """As one that writes to flash memory once its buffer is full."""
    last, slow_from = 100 * window_size, 50 * window_size
    machine = Sender(window_size=window_size, last=last, rollover=rollover)
    answers: list[tuple[float, int]] = []
    sent, received, now = 0, -1, 0.0
    blocks = machine.start(now)
    while machine.state is State.ACTIVE:
        sent += len(blocks)
        if blocks and blocks[-1] > received:
            received = blocks[-1]
            answers.append((now + (later if received > slow_from else at_first), received))
        assert machine.deadline is not None
        if answers and answers[0][0] <= machine.deadline:
            now, number = answers.pop(0)
            blocks = machine.receive_ack(number, now)
        else:
            now = machine.deadline
            blocks = machine.handle_timer(now)
    assert machine.state is State.DONE
    assert sent <= last + 1 + 3 * window_size


@pytest.mark.parametrize("kind", [Sender, Receiver])
def test_an_opening_packet_that_was_sent_twice_is_not_measured(kind: type[Sender] | type[Receiver]) -> None:
    """Karn's rule: nobody knows which of the two the answer belongs to."""
    machine = kind()
    machine.start(0.0)
    machine.repeat_opening()
    if isinstance(machine, Sender):
        machine.receive_ack(0, 3.0)
    else:
        machine.receive_data(1, 512, 3.0)
    assert machine.timer.smoothed is None
    assert machine.retransmitted == 1


# The retransmit timer


def test_the_timeout_follows_the_round_trip_within_its_bounds() -> None:
    timer = RetransmitTimer(Timing(initial=1.0, floor=0.25, cap=8.0))
    assert timer.timeout == 1.0
    timer.measured(0.5)
    assert timer.timeout == 0.5 + 4 * 0.25
    for _ in range(50):
        timer.measured(0.001)
    assert timer.timeout == 0.25
    for _ in range(50):
        timer.measured(100.0)
    assert timer.timeout == 8.0


def test_lock_step_waits_longer_than_a_window_does() -> None:
    deadlines = {}
    for window_size in (1, 4):
        machine = sender(window_size)
        now = 0.0
        for block in range(window_size, 40, window_size):
            now += 0.001
            machine.receive_ack(block, now)
        assert machine.deadline is not None
        deadlines[window_size] = machine.deadline - now
    assert deadlines == {1: 0.25, 4: 0.02}


def test_a_named_interval_is_the_longest_wait() -> None:
    timing = Timing(initial=1.0, cap=8.0).capped_by(3)
    assert (timing.initial, timing.cap) == (3, 3)
    assert Timing().capped_by(None) == Timing()


def test_a_forged_request_with_a_long_interval_does_not_keep_its_place() -> None:
    machine = Sender(timing=Timing().capped_by(255), unheard_retransmits=3)
    machine.start(0.0)
    now = 0.0
    while machine.deadline is not None:
        now = machine.deadline
        machine.handle_timer(now)
    assert now <= 4 * 8


def test_a_client_with_a_long_interval_that_falls_silent_does_not_keep_its_place() -> None:
    machine = Sender(timing=Timing().capped_by(255), unheard_retransmits=3)
    machine.start(0.0)
    machine.receive_ack(0, 7.9)
    now = 7.9
    while machine.deadline is not None:
        now = machine.deadline
        machine.handle_timer(now)
    assert now - 7.9 <= 60


# Receiver


def test_in_lock_step_each_block_is_acknowledged() -> None:
    machine = receiver()
    for block in (1, 2, 3):
        assert feed(machine, block, now=block * RTT) == [block]
        assert machine.take_ack() == block
        assert machine.take_ack() is None


def test_in_lock_step_a_repeated_block_is_acknowledged_again_and_not_stored() -> None:
    machine = receiver()
    feed(machine, 1, 2, now=RTT)
    machine.take_ack()
    assert feed(machine, 2, now=RTT) == [None]
    assert machine.take_ack() == 2
    assert feed(machine, 1, now=RTT) == [None]
    assert machine.take_ack() is None


def test_a_window_is_acknowledged_once_at_its_end() -> None:
    machine = receiver(4)
    assert feed(machine, 1, 2, 3, now=RTT) == [1, 2, 3]
    assert machine.take_ack() is None
    feed(machine, 4, now=RTT)
    assert machine.take_ack() == 4


def test_a_train_of_several_windows_is_acknowledged_once() -> None:
    machine = receiver(4)
    feed(machine, *range(1, 9), now=RTT)
    assert machine.take_ack() == 8
    assert machine.take_ack() is None


def test_a_gap_is_acknowledged_once() -> None:
    machine = receiver(8)
    feed(machine, 1, 2, now=RTT)
    assert feed(machine, 4, now=RTT) == [4]
    assert machine.take_ack() == 2
    feed(machine, 5, 6, 7, 8, now=RTT)
    assert machine.take_ack() is None


def test_blocks_beyond_a_gap_are_kept() -> None:
    machine = receiver(8)
    feed(machine, 1, 2, 4, 5, 6, 8, now=RTT)
    machine.take_ack()
    assert feed(machine, 3, 4, 5, 6, now=2 * RTT) == [3, None, None, None]
    assert machine.received == 6
    assert feed(machine, 7, 8, 9, 10, now=2 * RTT) == [7, None, 9, 10]
    assert machine.take_ack() == 10


def test_a_sink_that_cannot_seek_gets_its_blocks_in_order() -> None:
    machine = receiver(8, keep_beyond_gap=False)
    assert feed(machine, 1, 3, 4, 2, 3, now=RTT) == [1, None, None, 2, 3]


def test_a_window_that_came_again_is_acknowledged_once() -> None:
    machine = receiver(4)
    feed(machine, 1, 2, 3, 4, now=RTT)
    machine.take_ack()
    feed(machine, 1, now=3 * RTT)
    assert machine.take_ack() == 4
    feed(machine, 2, 3, 4, now=3 * RTT)
    assert machine.take_ack() is None


def test_a_window_that_stays_incomplete_is_acknowledged_soon_and_once() -> None:
    machine = receiver(8)
    feed(machine, *range(1, 9), now=RTT)
    machine.take_ack()
    feed(machine, 9, 10, now=2 * RTT)
    soon = machine.deadline
    assert soon == pytest.approx(2 * RTT + 4 * RTT)
    machine.handle_timer(soon or 0.0)
    assert machine.take_ack() == 10
    machine.handle_timer((soon or 0.0) + RTT)
    assert machine.take_ack() is None
    assert machine.timer.retransmits == 0


def test_the_last_block_is_acknowledged_only_when_all_is_safe() -> None:
    machine = receiver(8)
    assert feed(machine, 1, now=RTT) == [1]
    assert feed(machine, 2, now=RTT, length=0) == [2]
    assert machine.complete
    assert machine.take_ack() is None
    machine.finish(RTT)
    assert machine.take_ack() == 2


def test_the_last_ack_is_repeated_while_dallying_and_then_no_more() -> None:
    machine = receiver()
    feed(machine, 1, now=RTT, length=5)
    machine.finish(RTT)
    assert machine.take_ack() == 1
    feed(machine, 1, now=2 * RTT, length=5)
    assert machine.take_ack() == 1
    machine.handle_timer(machine.deadline or 0.0)
    assert machine.state is State.DONE
    assert machine.deadline is None


def test_a_server_dallies_until_a_client_with_a_long_timeout_has_asked_again() -> None:
    machine = receiver(dally=10.0)
    feed(machine, 1, now=RTT, length=5)
    machine.finish(RTT)
    assert machine.take_ack() == 1
    machine.handle_timer(6.0)
    feed(machine, 1, now=6.0, length=5)
    assert machine.take_ack() == 1
    assert machine.deadline == RTT + 10.0


def test_the_last_block_may_arrive_before_the_others() -> None:
    machine = receiver(4)
    machine.receive_data(3, 7, RTT)
    assert not machine.complete
    feed(machine, 1, 2, now=RTT)
    assert machine.complete


def test_a_block_beyond_the_window_is_not_kept() -> None:
    machine = receiver(4)
    assert feed(machine, 6, now=RTT) == [None]
    assert feed(machine, 4, now=RTT) == [4]


def test_a_silent_server_is_asked_again_and_then_given_up() -> None:
    machine = Receiver(timing=Timing(max_retransmits=3, patience=0))
    machine.start(0.0)
    asked = 0
    while machine.deadline is not None:
        asked += machine.take_ack() == 0
        machine.handle_timer(machine.deadline)
    assert asked == 4
    assert machine.state is State.TIMED_OUT


def test_a_repeated_oack_is_answered_until_data_comes() -> None:
    machine = receiver(4)
    for now in (RTT, 2 * RTT):
        machine.receive_oack(now)
        assert machine.take_ack() == 0
    feed(machine, 1, now=3 * RTT)
    machine.receive_oack(4 * RTT)
    assert machine.take_ack() is None


# Block numbers


@pytest.mark.parametrize(("block", "rollover", "number"), [(65535, 0, 65535), (65536, 0, 0), (65537, 0, 1),
                                                           (65535, 1, 65535), (65536, 1, 1), (131070, 1, 65535),
                                                           (131071, 1, 1), (0, 1, 0), (0, 0, 0)])  # fmt: skip
def test_wrapping(block: int, rollover: Rollover, number: int) -> None:
    assert wrap(block, rollover) == number


@given(near=st.integers(1, 10_000_000), delta=st.integers(-32000, 32000), rollover=st.sampled_from([0, 1]))
def test_unwrapping_finds_the_block_near_the_expected_one(near: int, delta: int, rollover: Rollover) -> None:
    block = near + delta
    if block >= 1:
        assert unwrap(wrap(block, rollover), near, rollover) == block


@pytest.mark.parametrize("rollover", [0, 1])
def test_a_lock_step_receiver_learns_how_the_peer_wraps(rollover: Rollover) -> None:
    machine = receiver()
    for block in range(1, 140_000):
        assert machine.receive_data(wrap(block, rollover), 512, 0.0) == block
        ack = machine.take_ack()
        assert ack is not None
        assert machine.wire_number(ack) == wrap(block, rollover)


@pytest.mark.parametrize("repeated", [None, "by the timer", "for a block that came again"])
def test_a_lock_step_receiver_knows_when_a_block_may_have_been_left_out(repeated: str | None) -> None:
    """Curl takes an ACK 65535 that comes again for the ACK of the block that wraps to 0, and goes on with block 1."""
    machine = receiver()
    for block in range(1, 0x10000):
        machine.receive_data(block, 512, 0.0)
    machine.take_ack()
    if repeated == "by the timer":
        machine.handle_timer(machine.deadline or 0.0)
    elif repeated:
        machine.receive_data(0xFFFF, 512, 0.1)
    assert machine.take_ack() == (0xFFFF if repeated else None)
    assert machine.receive_data(1, 512, 10.0) == 0x10000
    assert machine.may_lack_block is bool(repeated)


# Machine against machine


@attrs.frozen
class BadWire:
    """A wire with a seed: what it loses, doubles and delays is the same in every run."""

    seed: int = 0
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    delay: float = RTT / 2

    def deliveries(self) -> Callable[[], list[float]]:
        """Return a function that gives the delays after which copies of a datagram arrive."""
        rng = random.Random(self.seed)

        def copies() -> list[float]:
            if rng.random() < self.loss:
                return []
            count = 2 if rng.random() < self.duplicate else 1
            return [self.delay * (rng.uniform(1, 4) if rng.random() < self.reorder else 1) for _ in range(count)]

        return copies


@attrs.define
class Outcome:
    blocks: list[int]
    sent: int
    acks: int
    seconds: float
    sender: Sender
    receiver: Receiver


def transfer(
    wire: BadWire, last: int, window_size: int, *, keep: bool = True, rollover: Rollover = 0, opening: bool = True
) -> Outcome:
    """Let a sender and a receiver talk over `wire` until both are done, in simulated time."""
    events: list[tuple[float, int, str, int]] = []
    count = itertools.count()
    copies = wire.deliveries()
    tx = Sender(window_size=window_size, last=last, opening=opening, rollover=rollover)
    rx = Receiver(
        window_size=window_size, rollover=rollover if window_size > 1 else None, keep_beyond_gap=keep, block_size=2
    )
    stored: set[int] = set()
    outcome = Outcome([], 0, 0, 0.0, tx, rx)

    def send(now: float, kind: str, number: int) -> None:
        for delay in copies():
            heapq.heappush(events, (now + delay, next(count), kind, number))

    def send_blocks(now: float, blocks: range) -> None:
        for block in blocks:
            outcome.sent += 1
            if block == 0:
                send(now, "open", 0)
            else:  # the parity of the number and the length say which block it is, and whether it is the last
                send(now, "last" if block == last else "data", wrap(block, rollover))

    def send_ack(now: float) -> None:
        ack = rx.take_ack()
        if ack is not None and (ack > 0 or opening):
            outcome.acks += 1
            send(now, "ack", rx.wire_number(ack))

    now = 0.0
    send_blocks(now, tx.start(now))
    rx.start(now)
    rx.take_ack()  # the request itself
    for _ in range(400 * last + 10_000):
        deadlines = [m.deadline for m in (tx, rx) if m.deadline is not None]
        if tx.state is not State.ACTIVE and rx.state in (State.DONE, State.TIMED_OUT):
            break
        if events and (not deadlines or events[0][0] <= min(deadlines)):
            now, _, kind, number = heapq.heappop(events)
            if kind == "ack":
                send_blocks(now, tx.receive_ack(number, now))
            elif kind == "open":
                rx.receive_oack(now)
            else:
                block = rx.receive_data(number, 1 if kind == "last" else 2, now)
                if block is not None:
                    assert block not in stored, "a block is stored once"
                    stored.add(block)
                    outcome.blocks.append(block)
                if rx.complete and rx.state is State.ACTIVE:
                    outcome.seconds = now
                    rx.finish(now)
            send_ack(now)
        else:
            now = min(deadlines)
            send_blocks(now, tx.handle_timer(now))
            rx.handle_timer(now)
            send_ack(now)
    else:
        pytest.fail("the transfer does not end")
    return outcome


@pytest.mark.parametrize("window_size", [1, 2, 16, 64])
@pytest.mark.parametrize("last", [1, 2, 63, 64, 65, 1000])
def test_on_a_good_wire_nothing_is_sent_twice(window_size: int, last: int) -> None:
    outcome = transfer(BadWire(), last, window_size)
    assert outcome.blocks == list(range(1, last + 1))
    assert outcome.sent == last + 1
    assert outcome.sender.state is State.DONE
    assert outcome.acks == 1 + -(-last // window_size)


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    loss=st.sampled_from([0.0, 0.02, 0.1, 0.3]),
    duplicate=st.sampled_from([0.0, 0.1, 1.0]),
    reorder=st.sampled_from([0.0, 0.1, 0.5]),
    last=st.integers(1, 300),
    window_size=st.sampled_from([1, 2, 4, 16, 64]),
    keep=st.booleans(),
)
def test_every_block_arrives_once_over_a_bad_wire(
    seed: int, loss: float, duplicate: float, reorder: float, last: int, window_size: int, keep: bool
) -> None:
    outcome = transfer(BadWire(seed, loss, duplicate, reorder), last, window_size, keep=keep)
    if outcome.receiver.state is State.TIMED_OUT:  # six losses in a row, which a loss of 30 % allows
        assert loss == 0.3
        return
    assert sorted(outcome.blocks) == list(range(1, last + 1))
    assert outcome.sender.state in (State.DONE, State.UNCONFIRMED, State.TIMED_OUT)


@pytest.mark.parametrize("window_size", [1, 4, 16])
def test_a_wire_that_doubles_everything_does_not_double_the_windows(window_size: int) -> None:
    outcome = transfer(BadWire(duplicate=1.0), 2000, window_size)
    assert outcome.sender.state is State.DONE
    assert outcome.sent <= 2000 * 1.01 + 2


def test_a_lost_datagram_does_not_cost_a_timeout() -> None:
    """With a window, ten per cent of loss costs round trips: the mean per window stays below the shortest timeout."""
    outcome = transfer(BadWire(seed=1, loss=0.1), 4000, 16)
    assert sorted(outcome.blocks) == list(range(1, 4001))
    windows = 4000 / 16
    assert outcome.seconds / windows < 4 * RTT
    assert outcome.sent < 2.2 * 4000


@pytest.mark.parametrize("window_size", [4, 8, 64])
@pytest.mark.parametrize("answers_each", [True, False], ids=["EDK2", "U-Boot"])
@pytest.mark.parametrize("per_block", [0.00005, 0.0003])
def test_a_loss_does_not_start_a_storm(window_size: int, answers_each: bool, per_block: float) -> None:
    """EDK2 answers each block that it does not expect, U-Boot the first of them; both take their time for a block."""
    last, loss, half_trip = 2000, 0.01, 0.0001
    tx, dice = Sender(window_size=window_size, last=last), random.Random(1)
    events: list[tuple[float, int, str, int]] = []
    count = itertools.count()
    sent, expected, window_from, answered, busy = 0, 1, 0, 0, 0.0

    def send(now: float, blocks: range) -> None:
        nonlocal sent
        sent += len(blocks)
        for block in blocks:
            if not block or dice.random() >= loss:
                heapq.heappush(events, (now + half_trip, next(count), "block", block))

    now = 0.0
    send(now, tx.start(now))
    while tx.state is State.ACTIVE:
        assert sent < 5 * last, "a storm"
        if tx.deadline is not None and (not events or tx.deadline < events[0][0]):
            now = tx.deadline
            send(now, tx.handle_timer(now))
            continue
        now, _, kind, number = heapq.heappop(events)
        if kind == "ack":
            send(now, tx.receive_ack(number, now))
            continue
        busy = max(busy, now) + per_block
        is_next = number == expected
        expected += is_next
        if is_next and expected - 1 < min(window_from + window_size, last):
            continue
        if is_next or not number or answers_each or answered != expected:
            window_from, answered = expected - 1, expected
            heapq.heappush(events, (busy + half_trip, next(count), "ack", expected - 1))
    assert tx.state is State.DONE
    if window_size < 64:
        assert sent < 1.1 * last


@pytest.mark.parametrize(("window_size", "rollover"), [(1, 0), (1, 1), (64, 0), (64, 1)])
def test_two_wraps_over_a_bad_wire(window_size: int, rollover: Rollover) -> None:
    last = 2 * 65535 + 100
    outcome = transfer(BadWire(seed=3, loss=0.001), last, window_size, rollover=rollover)
    assert len(outcome.blocks) == last
    assert outcome.sender.state is State.DONE


@pytest.mark.parametrize("window_size", [1, 16])
def test_a_peer_that_has_answered_may_be_silent_for_half_a_minute(window_size: int) -> None:
    """It may write what it has to flash memory; only one that never answered is given up after a few attempts."""
    machine = sender(window_size, last=100)
    now = 0.0
    machine.start(now)
    machine.receive_ack(0, now)
    while machine.state is State.ACTIVE:
        assert machine.deadline is not None
        now = machine.deadline
        machine.handle_timer(now)
    assert machine.state is State.TIMED_OUT
    assert 30 <= now <= 60

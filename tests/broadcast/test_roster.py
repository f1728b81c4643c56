"""The table of peers, on a clock that is a number."""

from __future__ import annotations

import math
from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st

from asyncnet.broadcast.messages import NO_ID, Goodbye, Present
from asyncnet.broadcast.roster import Event, EventKind, Location, Roster

A = Location("10.0.0.1", "eth0")
B = Location("10.2.0.1", "eth1")
HELLO = Present(b"instance", b"the node", NO_ID, 1000, 0, 5.0, 631, "printer", {"room": "12"})


def later(packet: Present, by: int = 1, **changes: Any) -> Present:
    return attrs.evolve(packet, sequence=packet.sequence + by, **changes)


def number(value: int, **changes: Any) -> Present:
    """The announcement of another instance on another node."""
    names: dict[str, Any] = {"instance": value.to_bytes(8, "big"), "node": value.to_bytes(8, "little")}
    return attrs.evolve(HELLO, **names | changes)


def kinds(events: list[Event]) -> list[tuple[str, str]]:
    return [(event.kind.value, event.reason) for event in events]


def test_an_instance_joins_changes_and_leaves() -> None:
    roster = Roster()
    (joined,) = roster.hear(HELLO, A, 0.0)
    assert joined.kind is EventKind.JOINED
    assert joined.peer.addr == ("10.0.0.1", 631)
    assert joined.peer.info == {"room": "12"}
    assert roster.hear(later(HELLO), A, 1.0) == []
    (changed,) = roster.hear(later(HELLO, 2, info={"room": "13"}), A, 2.0)
    assert (changed.kind, changed.reason, changed.previous) == (EventKind.CHANGED, "info", joined.peer)
    (left,) = roster.hear(Goodbye(HELLO.instance, 1003, "printer"), A, 3.0)
    assert (left.kind, left.reason) == (EventKind.LEFT, "goodbye")
    assert roster.peers == []


def test_it_leaves_when_it_was_not_heard_within_its_expiry_and_is_asked_for_before() -> None:
    roster = Roster()
    roster.hear(HELLO, A, 0.0)
    assert roster.due == 2.5
    assert roster.expire(2.4) == []
    assert not roster.wants_question
    assert roster.expire(2.5) == []
    assert roster.wants_question
    assert kinds(roster.expire(5.0)) == [("left", "expired")]
    assert roster.due == math.inf


def test_copies_and_late_packets_change_nothing() -> None:
    roster = Roster()
    roster.hear(HELLO, A, 0.0)
    assert roster.hear(HELLO, A, 0.1) == []
    assert roster.hear(later(HELLO, 9, info={}), A, 0.2) != []
    assert roster.hear(later(HELLO, 5), A, 0.3) == []
    assert roster.hear(Goodbye(HELLO.instance, 1004, "printer"), A, 0.4) == []
    assert (roster.stats.duplicates, roster.stats.stale) == (1, 2)
    assert roster.peers[0].info == {}
    roster.hear(Goodbye(HELLO.instance, 1010, "printer"), A, 0.5)
    assert roster.hear(later(HELLO, 9), A, 0.6) == []  # from before the goodbye
    assert kinds(roster.hear(later(HELLO, 11), A, 0.7)) == [("joined", "")]


def test_a_copy_of_an_older_announcement_is_not_news_wherever_it_comes_from() -> None:
    """Neither one that took the longer way, nor one that somebody has caught and sends again."""
    roster = Roster()
    roster.hear(HELLO, A, 0.0)
    assert kinds(roster.hear(later(HELLO, info={"room": "13"}), A, 1.0)) == [("changed", "info")]
    for place in (A, B):
        assert roster.hear(HELLO, place, 1.1) == []
    assert roster.peers[0].info == {"room": "13"}
    assert list(roster.peers[0].locations) == [A]
    assert (roster.stats.duplicates, roster.stats.stale) == (2, 0)


def test_one_announcement_by_two_cards_is_one_peer_in_two_places() -> None:
    roster = Roster()
    roster.hear(HELLO, A, 0.0)
    assert kinds(roster.hear(HELLO, B, 0.0)) == [("changed", "addresses")]
    assert list(roster.peers[0].locations) == [A, B]
    assert roster.hear(later(HELLO), B, 1.0) == []
    for second in range(2, 6):
        events = roster.hear(later(HELLO, second), B, float(second)) + roster.expire(float(second))
    assert kinds(events) == [("changed", "addresses")]  # the first card was silent for the expiry
    assert list(roster.peers[0].locations) == [B]
    assert kinds(roster.drop_interface("eth1", 6.0)) == [("left", "expired")]


def test_a_new_epoch_forgets_the_old_addresses() -> None:
    roster = Roster()
    roster.hear(HELLO, A, 0.0)
    (event,) = roster.hear(later(HELLO, epoch=1), B, 0.1)
    assert (event.reason, event.peer.locations) == ("addresses", (B,))


def test_a_restart_is_one_event() -> None:
    roster = Roster()
    (joined,) = roster.hear(HELLO, A, 0.0)
    (event,) = roster.hear(later(HELLO, 50, instance=b"newborn!"), A, 1.0)
    assert (event.kind, event.reason, event.previous) == (EventKind.CHANGED, "restarted", joined.peer)
    assert len(roster) == 1
    assert roster.hear(later(HELLO, 40), A, 1.1) == []  # the old one's last words were late
    assert len(roster) == 1


def test_a_restart_of_one_that_was_confirmed_is_one_event_and_is_asked_for() -> None:
    roster = Roster()
    roster.hear(HELLO, A, 0.0, confirmed=True)
    assert kinds(roster.hear(later(HELLO, 50, instance=b"newborn!"), A, 1.0)) == [("changed", "restarted")]
    assert roster.wants_question


def test_two_living_instances_of_one_node_are_both_listed_and_do_not_take_turns() -> None:
    roster = Roster()
    other = later(HELLO, 50, instance=b"another!")
    roster.hear(HELLO, A, 0.0)
    roster.hear(other, A, 1.0)
    assert kinds(roster.hear(later(HELLO, 100), A, 1.1)) == [("joined", "")]
    for step in range(1, 20):
        assert roster.hear(later(HELLO, 100 + step), A, 1.1 + step) == []
        assert roster.hear(later(other, 100 + step), A, 1.2 + step) == []
    assert len(roster) == 2


def test_a_replay_window_refuses_old_and_future_packets() -> None:
    roster = Roster(replay_window=30.0)
    assert roster.hear(attrs.evolve(HELLO, sequence=100_000_000), A, 0.0, wall=131.0) == []
    assert roster.hear(attrs.evolve(HELLO, sequence=100_000_000), A, 0.0, wall=69.0) == []
    assert roster.stats.replayed == 2
    assert roster.hear(attrs.evolve(HELLO, sequence=100_000_000), A, 0.0, wall=129.0) != []


def test_strangers_fill_half_of_the_table_and_whoever_has_answered_takes_their_places() -> None:
    roster = Roster(max_peers=10, max_per_host=1000)
    for value in range(100):
        roster.hear(number(value, expiry=3600.0), A, 0.0)
    assert (len(roster), roster.stats.refused) == (5, 95)
    assert roster.wants_question
    for value in range(1000, 1010):
        events = roster.hear(number(value), Location(f"10.0.1.{value - 1000}", None), 0.0, confirmed=True)
        assert kinds(events)[-1] == ("joined", "")
    assert (len(roster), roster.stats.evicted) == (10, 5)
    assert roster.hear(number(2000), B, 0.0, confirmed=True) == []  # everybody here is real
    assert kinds(roster.expire(61.0)) == [("left", "expired")] * 10


def test_one_host_cannot_fill_the_table() -> None:
    roster = Roster(max_per_host=3)
    for value in range(10):
        roster.hear(number(value), A, 0.0, confirmed=True)
    assert len(roster) == 3
    assert kinds(roster.hear(number(99), B, 0.0)) == [("joined", "")]


def test_strangers_are_not_believed_for_long() -> None:
    roster = Roster()
    roster.hear(attrs.evolve(HELLO, expiry=3600.0), A, 0.0)
    assert kinds(roster.expire(60.0)) == [("left", "expired")]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 30),
            st.integers(0, 8),
            st.integers(0, 50),
            st.integers(0, 2),
            st.sampled_from([A, B, Location("10.0.0.9", "eth0")]),
            st.floats(0, 3),
            st.booleans(),
            st.booleans(),
        ),
        max_size=150,
    )
)
def test_events_and_table_agree_whatever_is_heard(
    heard: list[tuple[int, int, int, int, Location, float, bool, bool]],
) -> None:
    roster, now = Roster(max_peers=12, max_per_host=8), 0.0
    known: dict[str, object] = {}
    for value, node, sequence, epoch, location, step, confirmed, leaves in heard:
        now += step
        packet: Present | Goodbye = number(value, node=bytes([node]) * 8, sequence=sequence, epoch=epoch)
        if leaves:
            packet = Goodbye(packet.instance, sequence, "printer")
        events = roster.expire(now) + roster.hear(packet, location, now, confirmed=confirmed)
        for event in events:
            if event.kind is EventKind.JOINED:
                assert event.peer.instance not in known
            elif event.kind is EventKind.LEFT:
                del known[event.peer.instance]
                continue
            else:
                assert event.previous is not None
                del known[event.previous.instance]
            known[event.peer.instance] = event.peer
        assert known == {peer.instance: peer for peer in roster.peers}
        assert len(roster) <= 12
        assert roster.due <= now + 5.0 or not len(roster)

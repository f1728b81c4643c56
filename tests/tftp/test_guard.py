"""Whom a server admits, and how much of it a client may take."""

from __future__ import annotations

from typing import Any

import pytest

from asyncnet.tftp.guard import Guard


@pytest.mark.parametrize(("host", "admitted"), [
    ("192.168.1.5", True),
    ("192.168.1.66", False),
    ("192.168.2.5", False),
    ("::ffff:192.168.1.5", True),
    ("::ffff:192.168.1.66", False),
    ("2001:db8::1", True),
    ("2001:db9::1", False),
    ("fe80::1%eth0", False),
])  # fmt: skip
def test_deny_wins_and_with_allow_only_what_it_lists_is_admitted(host: str, admitted: bool) -> None:
    guard = Guard(allow=["192.168.1.0/24", "2001:db8::/32"], deny=["192.168.1.66"])
    assert guard.admits(host) is admitted


def test_without_lists_everybody_is_admitted_and_deny_alone_excludes() -> None:
    assert Guard().admits("192.0.2.1")
    assert Guard(deny=["10.0.0.0/8"]).admits("192.0.2.1")
    assert not Guard(deny=["10.0.0.0/8"]).admits("10.1.2.3")


def test_transfers_are_limited_in_all_and_per_client() -> None:
    guard = Guard(max_sessions=3, max_sessions_per_client=2)
    for _ in range(2):
        assert guard.has_room("10.0.0.1", 0)
        guard.enter("10.0.0.1", 100)
    assert not guard.has_room("10.0.0.1", 0)
    assert guard.has_room("10.0.0.2", 0)
    guard.enter("10.0.0.2", 0)
    assert not guard.has_room("10.0.0.3", 0)
    guard.leave("10.0.0.1", 100)
    assert guard.has_room("10.0.0.1", 0)


@pytest.mark.parametrize(("host", "limit"), [
    ("192.0.2.1", 16), ("2001:db8::1", 16), ("127.0.0.1", 100), ("127.1.2.3", 100), ("::1", 100),
    ("::ffff:127.0.0.1", 100),
])  # fmt: skip
def test_one_client_does_not_take_every_place_but_this_host_may(host: str, limit: int) -> None:
    guard = Guard(max_sessions=100)
    while guard.has_room(host, 0):
        guard.enter(host, 0)
    assert guard._total == limit
    assert guard.has_room("192.0.2.2", 0) is (limit == 16)


def test_a_limit_that_was_given_is_one_for_this_host_too() -> None:
    guard = Guard(max_sessions_per_client=1)
    guard.enter("127.0.0.1", 0)
    assert not guard.has_room("127.0.0.1", 0)


def test_an_ipv6_client_is_its_network_of_64_bits() -> None:
    guard = Guard(max_sessions_per_client=1)
    guard.enter("2001:db8::1", 0)
    assert not guard.has_room("2001:db8::ffff:2", 0)
    assert guard.has_room("2001:db8:0:1::1", 0)
    guard.enter("::ffff:10.0.0.1", 0)
    assert not guard.has_room("10.0.0.1", 0)


def test_the_memory_of_all_windows_is_limited() -> None:
    guard = Guard(max_memory=1000)
    guard.enter("10.0.0.1", 600)
    assert guard.has_room("10.0.0.2", 400)
    assert not guard.has_room("10.0.0.2", 401)
    guard.leave("10.0.0.1", 600)
    assert guard.has_room("10.0.0.2", 1000)


def test_a_source_is_sent_few_errors_and_later_some_more() -> None:
    guard = Guard(errors_per_second=2)
    assert sum(guard.may_send_error("10.0.0.1", 100.0) for _ in range(50)) == 20
    assert guard.may_send_error("10.0.0.2", 100.0)
    assert sum(guard.may_send_error("10.0.0.1", 101.0) for _ in range(50)) == 2
    assert sum(guard.may_send_error("10.0.0.1", 1000.0) for _ in range(50)) == 20


def test_many_sources_do_not_fill_the_memory() -> None:
    guard = Guard()
    for number in range(10_000):
        guard.may_send_error(f"10.0.{number >> 8}.{number & 255}", 0.0)
    assert len(guard._errors) <= 4096


@pytest.mark.parametrize("wrong", [{"allow": ["x"]}, {"deny": ["10.0.0.0/33"]}, {"max_sessions": 0}, {"max_memory": 0}])
def test_what_makes_no_sense_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"network|above 0"):
        Guard(**wrong)

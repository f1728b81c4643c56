from __future__ import annotations

import pytest

from asyncnet.errors import LocalError
from asyncnet.tftp.options import Limits, Options, accept, negotiate, request_options
from asyncnet.tftp.packets import OptionPairs


def test_options_are_echoed_as_the_client_spelled_and_ordered_them() -> None:
    asked = (("tSize", "0"), ("BLKSIZE", "1428"), ("windowsize", "4"), ("Timeout", "5"))
    options, answer = negotiate(asked, size=1000)
    assert answer == (("tSize", "1000"), ("BLKSIZE", "1428"), ("windowsize", "4"), ("Timeout", "5"))
    assert options == Options(block_size=1428, window_size=4, timeout=5, transfer_size=1000)


def test_nothing_asked_for_means_no_oack_and_the_defaults_of_rfc_1350() -> None:
    assert negotiate((), size=1000) == (Options(), ())


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        (("blksize", "65465"), ("blksize", "65464")),
        (("blksize", "99999999999999999999"), ("blksize", "65464")),
        (("blksize", "7"), None),
        (("blksize", "0"), None),
        (("blksize", "-1"), None),
        (("blksize", "+512"), None),
        (("blksize", " 512"), None),
        (("blksize", "0x200"), None),
        (("blksize", "1" * 21), None),
        (("blksize", "\u0661\u0662"), None),
        (("blksize", ""), None),
        (("windowsize", "0"), None),
        (("windowsize", "1"), ("windowsize", "1")),
        (("windowsize", "65535"), ("windowsize", "64")),
        (("timeout", "0"), None),
        (("timeout", "256"), None),
        (("timeout", "255"), ("timeout", "255")),
        (("multicast", ""), None),
        (("msftwindow", "31416"), None),
        (("rollover", "1"), None),
    ],
)
def test_a_value_is_clamped_or_left_out(asked: tuple[str, str], answered: tuple[str, str] | None) -> None:
    assert negotiate((asked,), size=5)[1] == ((answered,) if answered else ())


def test_a_size_of_zero_is_left_out_because_curl_refuses_it() -> None:
    assert negotiate((("tsize", "0"),), size=0)[1] == ()


def test_an_unknown_size_is_left_out() -> None:
    assert negotiate((("tsize", "0"),), size=None)[1] == ()


def test_the_size_of_an_upload_is_echoed() -> None:
    options, answer = negotiate((("tsize", "0"),), is_write=True)
    assert answer == (("tsize", "0"),)
    assert options.transfer_size == 0


def test_the_memory_of_a_window_is_limited() -> None:
    asked = (("windowsize", "64"), ("blksize", "65464"))
    options, _ = negotiate(asked, limits=Limits(window_bytes=1 << 20))
    assert options.window_size * options.block_size <= 1 << 20
    assert options.window_size > 1


def test_a_window_lowered_to_one_is_left_out() -> None:
    assert negotiate((("windowsize", "8"),), limits=Limits(window_size=1))[1] == ()


def test_a_client_asks_for_nothing_but_what_differs_from_the_defaults() -> None:
    assert request_options() == ()
    assert request_options(block_size=512, window_size=1, size=0) == (("tsize", "0"),)
    assert request_options(block_size=1428, window_size=16, timeout=3) == (
        ("blksize", "1428"),
        ("windowsize", "16"),
        ("timeout", "3"),
    )


@pytest.mark.parametrize("wrong", [{"block_size": 7}, {"block_size": 65465}, {"window_size": 0}, {"timeout": 0}])
def test_a_client_names_the_parameter_that_is_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        request_options(**wrong)


def test_what_the_server_leaves_out_is_the_default() -> None:
    asked = (("blksize", "1428"), ("windowsize", "16"), ("tsize", "0"))
    assert accept(asked, (("TSIZE", "77"),)) == Options(transfer_size=77)
    assert accept(asked, (("blksize", "1024"), ("windowsize", "8"))) == Options(block_size=1024, window_size=8)


def test_an_option_that_was_not_asked_for_is_ignored() -> None:
    assert accept((("tsize", "0"),), (("blksize", "512"), ("x", "y"), ("tsize", "5"))) == Options(transfer_size=5)


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ((("blksize", "1428"),), (("blksize", "1429"),)),
        ((("blksize", "1428"),), (("blksize", "7"),)),
        ((("blksize", "1428"),), (("blksize", "many"),)),
        ((("windowsize", "4"),), (("windowsize", "5"),)),
        ((("windowsize", "4"),), (("windowsize", "0"),)),
        ((("timeout", "5"),), (("timeout", "6"),)),
    ],
)
def test_an_answer_beyond_what_was_asked_is_refused_with_code_8(asked: OptionPairs, answered: OptionPairs) -> None:
    with pytest.raises(LocalError) as caught:
        accept(asked, answered)
    assert caught.value.code == 8


@pytest.mark.parametrize("limits", [{"block_size": 7}, {"block_size": 65465}, {"window_size": 0},
                                    {"window_size": 40_000}, {"window_bytes": 0}])  # fmt: skip
def test_a_limit_that_no_option_can_meet_is_named(limits: dict[str, int]) -> None:
    (name,) = limits
    with pytest.raises(ValueError, match=name):
        Limits(**limits)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="invalid_option"):
        Limits(invalid_option="warn")  # type: ignore[arg-type]

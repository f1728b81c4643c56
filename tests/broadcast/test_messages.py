"""The wire format: what is encoded is decoded, and everything else is told apart by kind."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncnet.broadcast.messages import (
    MAGIC,
    MAX_INFO_BYTES,
    VERSION,
    Answer,
    Fault,
    Goodbye,
    Packet,
    Present,
    Question,
    UndecodableError,
    Who,
    check_info,
    check_name,
    decode,
    encode,
)
from asyncnet.errors import PacketError

KEY = b"a shared secret"
PRESENT = Present(
    b"instance", b"the node", b"anybody?", 1_700_000_000_000_000, 3, 5.0, 631, "drucker-ä", {"room": "12"}
)

ids = st.binary(min_size=8, max_size=8)
names = st.text("abc-ä日 7", min_size=1, max_size=15)
numbers = st.integers(0, 2**64 - 1)
windows = st.integers(0, 60_000).map(lambda ms: ms / 1000)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
packets = st.one_of(
    st.builds(Question, ids, st.integers(0, 255), windows, st.binary(max_size=100)),
    st.builds(Answer, ids, ids, st.binary(max_size=100)),
    st.builds(Who, ids, names | st.just(""), numbers, windows),
    st.builds(Goodbye, ids, numbers, names),
    st.builds(
        Present,
        ids,
        ids,
        ids,
        numbers,
        st.integers(0, 2**32 - 1),
        st.integers(1, 3_600_000).map(lambda ms: ms / 1000),
        st.integers(1, 65535),
        names,
        st.dictionaries(texts.filter(bool), texts, max_size=5),
    ),
)


def fault_of(data: bytes, key: bytes | None = None) -> Fault | None:
    try:
        decode(data, key)
    except UndecodableError as exc:
        return exc.fault
    return None


@given(packets, st.sampled_from([None, KEY]))
def test_a_packet_comes_back_as_it_was(packet: Packet, key: bytes | None) -> None:
    assert decode(encode(packet, key), key) == packet


@given(st.binary(max_size=200), st.sampled_from([None, KEY]), st.booleans())
def test_whatever_arrives_is_a_packet_or_one_kind_of_error(data: bytes, key: bytes | None, ours: bool) -> None:
    if ours:
        data = MAGIC + bytes([VERSION]) + data
    assert fault_of(data, key) in (None, *Fault)


@given(packets, st.integers(0, 10_000), st.integers(1, 255))
def test_a_signed_packet_with_one_wrong_byte_is_no_packet(packet: Packet, place: int, change: int) -> None:
    damaged = bytearray(encode(packet, KEY))
    damaged[place % len(damaged)] ^= change
    assert fault_of(bytes(damaged), KEY) is not None


@given(packets, st.integers(0, 10_000))
def test_a_packet_that_is_cut_off_raises_nothing_else(packet: Packet, length: int) -> None:
    whole = encode(packet)
    assert fault_of(whole[: length % len(whole)]) in (None, Fault.MAGIC, Fault.MALFORMED)


def test_each_way_to_be_wrong_has_its_kind() -> None:
    good = encode(PRESENT)
    assert fault_of(b"Hi") is Fault.MAGIC
    assert fault_of(b"\0" * 100) is Fault.MAGIC
    assert fault_of(good[:4] + b"\x02" + good[5:]) is Fault.VERSION
    assert fault_of(good[:5] + b"\x63" + good[6:]) is Fault.KIND
    assert fault_of(good[:-1]) is Fault.MALFORMED
    assert fault_of(good + b"x") is Fault.MALFORMED
    assert fault_of(good, KEY) is Fault.UNSIGNED
    assert fault_of(encode(PRESENT, b"another secret"), KEY) is Fault.SIGNATURE
    assert fault_of(encode(PRESENT, KEY)) is None  # who has no key cannot tell
    assert fault_of(encode(attrs.evolve(PRESENT, port=0))) is Fault.MALFORMED
    assert fault_of(encode(attrs.evolve(PRESENT, expiry=0.0))) is Fault.MALFORMED
    assert fault_of(encode(attrs.evolve(PRESENT, name="\x1b[2J"))) is Fault.MALFORMED
    assert issubclass(UndecodableError, PacketError)


def test_the_layout_is_fixed() -> None:
    assert encode(Question(b"question", 2, 0.25, b"Hi")) == b"\xa5Net\x01\x01\x00\x02question\x00\xfaHi"
    assert encode(Goodbye(b"instance", 1, "x")) == b"\xa5Net\x01\x05\x00\x00instance" + bytes(7) + b"\x01\x01x"
    assert encode(PRESENT).hex() == (
        "a54e657401040000696e7374616e6365746865206e6f6465616e79626f64793f00060a24181e40000000000300001388"
        "02770a01647275636b65722dc3a4040002726f6f6d3132"
    )


@pytest.mark.parametrize("name", ["", "x" * 64, "a\nb", "ä" * 32])
def test_a_name_that_does_not_fit_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        check_name(name)


def test_info_that_does_not_fit_is_refused() -> None:
    check_info({"k": "v" * (MAX_INFO_BYTES - 1)})
    with pytest.raises(ValueError, match="1024"):
        check_info({"k": "v" * MAX_INFO_BYTES})
    with pytest.raises(ValueError, match="keys"):
        check_info({"": "v"})
    with pytest.raises(TypeError, match="texts"):
        check_info({"k": 1})  # type: ignore[dict-item]

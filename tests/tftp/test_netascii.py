from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncnet.tftp.netascii import Decoder, encode

texts = st.lists(st.sampled_from([b"\r", b"\n", b"\0", b"a"]), max_size=30).map(b"".join)


def decode(pieces: list[bytes]) -> bytes:
    decoder = Decoder()
    return b"".join(decoder.decode(piece) for piece in pieces) + decoder.decode(b"", final=True)


@pytest.mark.parametrize(
    ("local", "wire"),
    [(b"a\nb", b"a\r\nb"), (b"a\rb", b"a\r\0b"), (b"\r\n", b"\r\0\r\n"), (b"\r\r\n", b"\r\0\r\0\r\n"), (b"", b"")],
)
def test_line_ends(local: bytes, wire: bytes) -> None:
    assert encode(local) == wire
    assert decode([wire]) == local


@given(texts, st.data())
def test_text_survives_any_split_into_blocks(local: bytes, data: st.DataObject) -> None:
    wire = encode(local)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=5)))
    pieces = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    assert decode(pieces) == local


@pytest.mark.parametrize(("wire", "local"), [(b"a\rb", b"a\rb"), (b"a\r", b"a\r"), (b"\r\r\n", b"\r\n")])
def test_a_cr_before_anything_else_is_kept(wire: bytes, local: bytes) -> None:
    assert decode([wire]) == local

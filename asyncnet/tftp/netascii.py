r"""The netascii mode: RFC 764's text format, where a line ends in CR LF and a bare CR is CR NUL (RFC 1350 section 1).

A CR and what follows it may fall into two blocks, so the decoder keeps a CR back until it has seen the next byte. The
encoder needs no state: each byte maps to its own bytes.
"""

from __future__ import annotations

__all__ = ["Decoder", "encode"]


def encode(data: bytes) -> bytes:
    r"""Return local text (lines end in ``\n``) in netascii."""
    return data.replace(b"\r", b"\r\0").replace(b"\n", b"\r\n")


class Decoder:
    r"""Turns netascii into local text (lines end in ``\n``), piece by piece.

    A CR before anything but LF and NUL breaks the format; it is kept as it is.
    """

    def __init__(self) -> None:
        self._held = b""

    def decode(self, data: bytes, *, final: bool = False) -> bytes:
        """Return the text of `data` and of a CR kept back before; with `final` nothing is kept back."""
        data = self._held + data
        self._held = b""
        if data.endswith(b"\r") and not final:
            self._held = b"\r"
            data = data[:-1]
        return data.replace(b"\r\n", b"\n").replace(b"\r\0", b"\r")

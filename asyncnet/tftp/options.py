"""Option negotiation: RFC 2347, blksize (RFC 2348), timeout and tsize (RFC 2349), windowsize (RFC 7440).

Pure functions. Clients compare what they get with what they asked for, some of them byte by byte, so the server's
answer keeps the client's order and spelling and holds nothing that the client did not ask for.
"""

from __future__ import annotations

from typing import Final, Literal

import attrs

from asyncnet.errors import LocalError
from asyncnet.tftp.packets import DEFAULT_BLOCK_SIZE, ErrorCode, OptionPairs

__all__ = [
    "DEFAULT_LIMITS",
    "MAX_BLOCK_SIZE",
    "MAX_WINDOW_SIZE",
    "Limits",
    "Options",
    "accept",
    "negotiate",
    "request_options",
]

MIN_BLOCK_SIZE: Final = 8
MAX_BLOCK_SIZE: Final = 65464
"""Bytes of a block at most (RFC 2348)."""
MAX_WINDOW_SIZE: Final = 32767
"""Blocks of a window at most: under half the block numbers, so that none means two blocks (RFC 7440: 65535)."""


_BOUNDS: Final = {"blksize": (8, 65464), "windowsize": (1, 65535), "timeout": (1, 255), "tsize": (0, 1 << 63)}
"""What RFC 2348, RFC 7440 and RFC 2349 allow."""


def _check(name: str, value: int, lowest: int, highest: int) -> None:
    if not lowest <= value <= highest:
        raise ValueError(f"{name} must be between {lowest} and {highest}, not {value}")


@attrs.frozen
class Options:
    """What a transfer runs with."""

    block_size: int = DEFAULT_BLOCK_SIZE
    """Bytes."""
    window_size: int = 1
    """Blocks sent before an ACK is awaited."""
    timeout: int | None = None
    """Retransmission interval in seconds that the client asked for."""
    transfer_size: int | None = None
    """Bytes of the file, where the peer tells."""


@attrs.frozen
class Limits:
    """What a server grants at most.

    Raises:
        ValueError: a limit is below what the RFCs allow, or `invalid_option` is unknown.
    """

    block_size: int = MAX_BLOCK_SIZE
    """Bytes."""
    window_size: int = 64
    """Blocks."""
    window_bytes: int = 4 << 20
    """Block size times window size, which is the memory that a transfer takes."""
    invalid_option: Literal["ignore", "error"] = "ignore"
    """What an option with a value outside its RFC's bounds meets: it is left out of the answer, or ERROR 8."""

    def __attrs_post_init__(self) -> None:
        _check("block_size", self.block_size, MIN_BLOCK_SIZE, MAX_BLOCK_SIZE)
        _check("window_size", self.window_size, 1, MAX_WINDOW_SIZE)
        if self.window_bytes < 1:
            raise ValueError(f"window_bytes must be at least 1, not {self.window_bytes}")
        if self.invalid_option not in ("ignore", "error"):
            raise ValueError(f"invalid_option must be ignore or error, not {self.invalid_option!r}")


DEFAULT_LIMITS: Final = Limits()


def negotiate(
    requested: OptionPairs, *, limits: Limits = DEFAULT_LIMITS, size: int | None = None, is_write: bool = False
) -> tuple[Options, OptionPairs]:
    """Decide on the options of a request, as a server.

    A value above a limit is lowered to it. An option that is unknown, malformed or out of range is left out of the
    answer, as RFC 2347 asks.

    Args:
        requested: what the client asks for.
        limits: what this server grants.
        size: of the file to be read, in bytes; None when it is not known.
        is_write: whether the request is a WRQ.

    Returns:
        What the transfer runs with, and the OACK's options; none of them means that no OACK is sent.

    Raises:
        LocalError: code 8; a value is invalid, and the limits say that this is an error.
    """
    values: dict[str, int | None] = {}
    for name, text in requested:  # of an option that comes twice the first counts
        values.setdefault(name.lower(), _number(text))
    if limits.invalid_option == "error":
        for name, (lowest, highest) in _BOUNDS.items():
            value = values.get(name, lowest)
            if value is None or not lowest <= value <= highest:
                raise LocalError(ErrorCode.OPTION_REFUSED, f"{name} must be between {lowest} and {highest}")
    options = Options()
    accepted: dict[str, int] = {}

    asked = values.get("blksize")
    if asked is not None and asked >= MIN_BLOCK_SIZE:
        accepted["blksize"] = min(asked, limits.block_size)
        options = attrs.evolve(options, block_size=accepted["blksize"])

    asked = values.get("windowsize")
    if asked is not None and asked >= 1:
        most = min(limits.window_size, max(1, limits.window_bytes // options.block_size))
        granted = min(asked, most)
        if granted > 1 or asked == 1:
            accepted["windowsize"] = granted
            options = attrs.evolve(options, window_size=granted)

    asked = values.get("timeout")
    if asked is not None and 1 <= asked <= 255:
        accepted["timeout"] = asked
        options = attrs.evolve(options, timeout=asked)

    asked = values.get("tsize")
    if asked is not None:
        if is_write:
            accepted["tsize"] = asked
            options = attrs.evolve(options, transfer_size=asked)
        elif size:  # curl refuses a tsize of 0 on a download
            accepted["tsize"] = size
            options = attrs.evolve(options, transfer_size=size)

    spelled = {name.lower(): name for name, _ in reversed(requested)}
    names = [name for name in dict.fromkeys(name.lower() for name, _ in requested) if name in accepted]
    return options, tuple((spelled[name], str(accepted[name])) for name in names)


def request_options(
    *, block_size: int = DEFAULT_BLOCK_SIZE, window_size: int = 1, timeout: int | None = None, size: int | None = None
) -> OptionPairs:
    """Return the options of a client's request; values that are the protocol's defaults are not asked for.

    Args:
        block_size: bytes.
        window_size: blocks.
        timeout: seconds between the server's retransmissions, 1 to 255.
        size: bytes of the file in a WRQ, 0 in an RRQ to ask for it; None leaves the option out.

    Raises:
        ValueError: a value is outside what the RFCs allow.
    """
    _check("block_size", block_size, MIN_BLOCK_SIZE, MAX_BLOCK_SIZE)
    _check("window_size", window_size, 1, MAX_WINDOW_SIZE)
    pairs: list[tuple[str, int]] = []
    if block_size != DEFAULT_BLOCK_SIZE:
        pairs.append(("blksize", block_size))
    if window_size != 1:
        pairs.append(("windowsize", window_size))
    if timeout is not None:
        _check("timeout", timeout, 1, 255)
        pairs.append(("timeout", timeout))
    if size is not None:
        pairs.append(("tsize", size))
    return tuple((name, str(value)) for name, value in pairs)


def accept(asked: OptionPairs, answered: OptionPairs) -> Options:
    """Read the server's OACK, as a client.

    Args:
        asked: the options of the request.
        answered: the options of the OACK. One that was not asked for is ignored: several servers add ``blksize 512``.

    Raises:
        LocalError: code 8; an answer is malformed, or larger than what was asked for.
    """
    wanted = {name.lower(): _number(value) for name, value in asked}
    options = Options()
    for spelled, text in answered:
        name, value = spelled.lower(), _number(text)
        if name not in wanted:
            continue
        limit = wanted[name]
        if value is None or limit is None:
            raise LocalError(ErrorCode.OPTION_REFUSED, f"the server's {name} is no number")
        if name == "blksize":
            _check_answer(name, value, MIN_BLOCK_SIZE, limit)
            options = attrs.evolve(options, block_size=value)
        elif name == "windowsize":
            _check_answer(name, value, 1, limit)
            options = attrs.evolve(options, window_size=value)
        elif name == "timeout":
            _check_answer(name, value, limit, limit)
            options = attrs.evolve(options, timeout=value)
        elif name == "tsize":
            options = attrs.evolve(options, transfer_size=value)
    return options


def _number(text: str) -> int | None:
    """Return the value of a string of at most 20 decimal digits, else None."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else None


def _check_answer(name: str, value: int, lowest: int, highest: int) -> None:
    if not lowest <= value <= highest:
        raise LocalError(ErrorCode.OPTION_REFUSED, f"the server answers {name} {value}, asked was {highest}")

"""Checks of what callers pass; each error names the parameter and tells what it got."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = [
    "check_address",
    "check_count",
    "check_flag",
    "check_hostname",
    "check_path",
    "check_port",
    "check_seconds",
    "checked_sequence",
    "checked_signals",
]


def check_seconds(
    name: str, value: Any, *, or_none: bool = True, from_zero: bool = False, most: float | None = None
) -> None:
    """Check a time span.

    Args:
        name: of the parameter.
        value: seconds.
        or_none: None is allowed.
        from_zero: 0 is allowed.
        most: what the system can take; None means any finite number.

    Raises:
        TypeError: it is no number.
        ValueError: it is negative, 0, not finite, or above `most`.
    """
    wanted = ("0 seconds or more" if from_zero else "above 0 seconds") + ", and finite"
    if value is None and or_none:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds{' or None' if or_none else ''}, not {value!r}")
    if not (0 <= value < math.inf if from_zero else 0 < value < math.inf):
        raise ValueError(f"{name} must be {wanted}, not {value}")
    if most is not None and value > most:
        raise ValueError(f"{name} must be at most {most} seconds, not {value}")


def check_count(name: str, value: Any, *, or_none: bool = False, lowest: int = 1, most: int | None = None) -> None:
    """Check a number of things.

    Raises:
        TypeError: it is no integer.
        ValueError: it is below `lowest`, or above `most`.
    """
    if value is None and or_none:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer{' or None' if or_none else ''}, not {value!r}")
    if value < lowest:
        raise ValueError(f"{name} must be at least {lowest}, not {value}")
    if most is not None and value > most:
        raise ValueError(f"{name} must be at most {most}, not {value}")


def check_flag(name: str, value: Any) -> None:
    """Check a switch.

    Raises:
        TypeError: it is neither True nor False.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")


def check_port(name: str, value: Any, *, lowest: int = 0) -> None:
    """Check the number of a port.

    Raises:
        TypeError: it is no integer.
        ValueError: it is below `lowest`, or above 65535.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    if not lowest <= value <= 65535:
        raise ValueError(f"{name} must be between {lowest} and 65535, not {value}")


def check_address(name: str, value: Any) -> None:
    """Check a pair of a host and a port.

    Raises:
        TypeError: it is none.
        ValueError: the port is out of range.
    """
    if not isinstance(value, tuple | list) or len(value) != 2 or not isinstance(value[0], str):
        raise TypeError(f"{name} must be a host and a port, such as ('127.0.0.1', 0), not {value!r}")
    check_port(f"{name}: the port", value[1])


def check_hostname(name: str, value: Any) -> None:
    """Check the name that a certificate must have, or None.

    Raises:
        TypeError: it is no text.
        ValueError: no host has such a name.
    """
    if value is None:
        return
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a name, not {value!r}")
    try:
        wrong = b"\0" in value.encode("idna") or value.startswith(".")
    except UnicodeError:
        wrong = True
    if wrong:
        raise ValueError(f"{name} is malformed: {value!r}")


def checked_signals(name: str, value: Any) -> tuple[int, ...]:
    """Return the numbers of signals that a program may catch.

    Raises:
        TypeError: it is no list of integers.
        ValueError: one of them is no signal, or cannot be caught.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a list of signals, not {value!r}")
    numbers = tuple(value)
    uncaught = {getattr(signal, sure, None) for sure in ("SIGKILL", "SIGSTOP")}
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{name} must be a list of signals, not of {number!r}")
        if number not in signal.valid_signals() or number in uncaught:
            raise ValueError(f"{name}: {number} is no signal that can be caught")
    return numbers


def check_path(name: str, value: Any) -> None:
    """Check the path of a Unix socket.

    Raises:
        TypeError: it is no text.
        ValueError: it is empty, or has a NUL in it.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be the path of a Unix socket, not {value!r}")
    if not value:
        raise ValueError(f"{name} is empty: it must be the path of a Unix socket")
    if "\0" in value:
        raise ValueError(f"{name} has a NUL in it: {value!r}")


def checked_sequence(name: str, value: Any, of: str) -> Sequence[Any]:
    """Return a sequence that is no text.

    Raises:
        TypeError: it is none.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a list of {of}, not {value!r}")
    return value

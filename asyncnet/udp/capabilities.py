"""What this kernel and libc have for moving many datagrams at once."""

from __future__ import annotations

import os
import socket
import struct
import sys
from ctypes import PyDLL
from functools import cache
from typing import Final

import attrs

__all__ = ["DISABLE_VARIABLE", "SOL_UDP", "UDP_GRO", "UDP_SEGMENT", "Capabilities", "libc", "probe"]

DISABLE_VARIABLE: Final = "ASYNCNET_UDP_DISABLE"
"""Environment variable: names of `Capabilities`, separated by commas, that are not to be used."""

SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104


@attrs.frozen
class Capabilities:
    """What this kernel and libc have, less what `DISABLE_VARIABLE` switches off.

    Each missing one falls back: without ``recvmmsg`` or ``sendmmsg`` datagrams move one by one, without ``gso`` a train
    leaves as a batch, without ``gro`` it arrives as single datagrams.
    """

    recvmmsg: bool = False
    sendmmsg: bool = False
    gso: bool = False
    """UDP_SEGMENT: one call sends a train of equal-sized datagrams."""
    gro: bool = False
    """UDP_GRO: a train arrives in one slot."""


def probe() -> Capabilities:
    """Tell what this system has, which is tried out at the first call; the environment is read anew at each."""
    disabled = {name.strip() for name in os.environ.get(DISABLE_VARIABLE, "").split(",")}
    return Capabilities(**{name: name not in disabled and _has(name) for name in attrs.fields_dict(Capabilities)})


@cache
def _has(name: str) -> bool:
    """Try it out, once: a system call may be in libc and be missing, or forbidden, in the kernel."""
    if sys.platform != "linux" or struct.calcsize("P") != 8:
        return False
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            if name == "recvmmsg":
                return bool(libc().recvmmsg(sock.fileno(), None, 0, socket.MSG_DONTWAIT, None) == 0)
            if name == "sendmmsg":
                return bool(libc().sendmmsg(sock.fileno(), None, 0, socket.MSG_DONTWAIT) == 0)
            sock.setsockopt(SOL_UDP, UDP_SEGMENT if name == "gso" else UDP_GRO, 0)
    except AttributeError:
        return False
    except OSError:
        return False
    return True


def libc() -> PyDLL:
    """Return libc; its functions are called with the GIL held, which costs less than giving it up."""
    return PyDLL(None, use_errno=True)

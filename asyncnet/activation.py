"""Sockets that were opened by the parent process: systemd's protocol, sd_listen_fds(3)."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

__all__ = ["inherited_sockets"]

_FIRST = 3


def inherited_sockets(kind: int | None, *, environment: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """Return the sockets handed over to this process; a second call returns none.

    Args:
        kind: ``SOCK_DGRAM`` or ``SOCK_STREAM``; what was handed over must be of this kind. None takes both.
        environment: where ``LISTEN_PID`` and ``LISTEN_FDS`` stand; they are removed.

    Raises:
        ValueError: a descriptor is no socket of this kind.
    """
    pid, count = environment.get("LISTEN_PID", ""), environment.get("LISTEN_FDS", "")
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        environment.pop(name, None)
    found: list[socket.socket] = []
    try:
        for fd in range(_FIRST, _FIRST + int(count)):
            os.set_inheritable(fd, False)
            found.append(socket.socket(fileno=fd))
            if kind is not None and found[-1].type != kind:
                raise ValueError(f"descriptor {fd} is a socket of another kind ({found[-1].type!r})")
    except (OSError, ValueError) as exc:
        for sock in found:
            sock.close()
        raise ValueError(f"what LISTEN_FDS hands over cannot be used: {exc}") from exc
    return found

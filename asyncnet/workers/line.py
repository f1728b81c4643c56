"""What a worker says to its master: lines of JSON on a socket, of which the master believes nothing but their form.

The other way goes one byte, the order to hurry. A signal would be no order of the master's alone: systemd and a shell
send SIGTERM to all processes of a group.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
from typing import Final

import attrs

__all__ = ["Line"]

logger = logging.getLogger("asyncnet.workers")

_LONGEST_MESSAGE: Final = 1 << 16
_READ: Final = 4096


@attrs.define(eq=False)
class Line:
    """The master's end."""

    sock: socket.socket
    error: str | None = None
    """Why the worker could not start, if it has said so."""
    is_listened: bool = True
    """Whether the master waits for it."""
    has_ended: bool = False
    """Whether the worker has closed its end, or said what no worker says."""
    _received: bytes = b""  # the beginning of a message

    def read(self, pid: int) -> bool:
        """Take some of what is there; return whether the worker said that it is ready.

        Args:
            pid: of the worker, for the log.
        """
        try:
            data = self.sock.recv(_READ)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            data = b""
        self._received += data
        self.has_ended = not data or len(self._received) > _LONGEST_MESSAGE
        *messages, self._received = self._received.split(b"\n")
        is_ready = False
        for message in messages:
            is_ready |= self._take(pid, message)
        return is_ready

    def hurry(self) -> None:
        """Tell the worker to end at once."""
        with contextlib.suppress(OSError):  # it has ended already
            self.sock.send(b"h")

    def read_rest(self, pid: int) -> bool:
        """Take what a worker has left behind, as `read` does."""
        is_ready = False
        for _ in range(_LONGEST_MESSAGE // _READ):
            if not self.has_ended:
                is_ready |= self.read(pid)
        return is_ready

    def _take(self, pid: int, text: bytes) -> bool:
        try:
            message = json.loads(text)
            error = message.get("error")
            is_ready = message.get("ready") is True
        except (ValueError, AttributeError, RecursionError):
            logger.error("worker %d said what cannot be read: %r", pid, text[:80])
            return False
        if isinstance(error, str):
            self.error = error
        return is_ready

"""Whom a server admits, and how much of it one client may take; time is an argument."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from asyncnet.addresses import client_of, in_networks, parse_network

__all__ = ["Guard"]

_MAX_PER_CLIENT: Final = 16
"""Transfers at once of one client, where nothing else is said; this host itself has no such limit."""
_LOOPBACK: Final = tuple(map(parse_network, ("127.0.0.0/8", "::1")))
_MAX_SOURCES: Final = 4096
"""Sources of errors that are remembered; beyond it the one heard of longest ago is forgotten."""
_BURST_SECONDS: Final = 10.0
"""A source may cause as many ERROR packets at once as it may in this time: boot ROMs look for many files."""


class Guard:
    """Admits clients, and counts what they use.

    A client is an IPv4 address, or the /64 network of an IPv6 address.

    Args:
        allow: networks or addresses; when there are any, only their clients are admitted.
        deny: networks or addresses whose clients are not admitted, whatever `allow` says.
        max_sessions: transfers at once.
        max_sessions_per_client: transfers at once of one client; by default 16, and as many as of all for programs on
            this host, by its loopback address. Clients behind one NAT are one client.
        max_memory: bytes of all windows together; a window that is sent takes up to twice its bytes, for the next one
            is read while it travels.
        errors_per_second: ERROR packets that a source may cause in the long run; ten times as many may come at once.

    Raises:
        ValueError: a network is malformed, or a limit is not above 0.
    """

    def __init__(
        self,
        *,
        allow: Sequence[str] = (),
        deny: Sequence[str] = (),
        max_sessions: int = 1000,
        max_sessions_per_client: int | None = None,
        max_memory: int = 256 << 20,
        errors_per_second: float = 10.0,
    ) -> None:
        per_client = _MAX_PER_CLIENT if max_sessions_per_client is None else max_sessions_per_client
        for name, value in (
            ("max_sessions", max_sessions),
            ("max_sessions_per_client", per_client),
            ("max_memory", max_memory),
            ("errors_per_second", errors_per_second),
        ):
            if value <= 0:
                raise ValueError(f"{name} must be above 0, not {value}")
        self._allow = [parse_network(text) for text in allow]
        self._deny = [parse_network(text) for text in deny]
        self._max_sessions = max_sessions
        self._max_per_client = per_client
        self._unlimited = _LOOPBACK if max_sessions_per_client is None else ()
        self.max_memory = max_memory
        """Bytes of all windows together."""
        self._errors_per_second = errors_per_second
        self._sessions: dict[str, int] = {}
        self._total = 0
        self._memory = 0
        self._errors: dict[str, tuple[float, float]] = {}  # by source: tokens, and when they were counted

    @property
    def max_sessions(self) -> int:
        """Transfers at once."""
        return self._max_sessions

    def admits(self, host: str) -> bool:
        """Tell whether requests of this address are heard at all."""
        if not self._allow and not self._deny:
            return True
        if in_networks(host, self._deny):
            return False
        return not self._allow or in_networks(host, self._allow)

    def has_room(self, host: str, memory: int) -> bool:
        """Tell whether a client may begin another transfer, with a window of so many bytes."""
        return (
            self._total < self._max_sessions
            and self._memory + memory <= self.max_memory
            and (self._sessions.get(client_of(host), 0) < self._max_per_client or in_networks(host, self._unlimited))
        )

    def enter(self, host: str, memory: int) -> None:
        """Count a transfer that begins."""
        client = client_of(host)
        self._sessions[client] = self._sessions.get(client, 0) + 1
        self._total += 1
        self._memory += memory

    def leave(self, host: str, memory: int) -> None:
        """Count a transfer that is over; the arguments are those of `enter`."""
        client = client_of(host)
        left = self._sessions[client] - 1
        if left:
            self._sessions[client] = left
        else:
            del self._sessions[client]
        self._total -= 1
        self._memory -= memory

    def may_send_error(self, host: str, now: float) -> bool:
        """Tell whether a source may be sent an ERROR packet, and count it.

        Args:
            host: the source.
            now: seconds on any steady clock.
        """
        client = client_of(host)
        burst = max(1.0, _BURST_SECONDS * self._errors_per_second)
        tokens, since = self._errors.pop(client, (burst, now))
        tokens = min(burst, tokens + (now - since) * self._errors_per_second)
        allowed = tokens >= 1
        self._errors[client] = tokens - allowed, now
        if len(self._errors) > _MAX_SOURCES:
            del self._errors[next(iter(self._errors))]
        return allowed

"""What is told of transfers: a line each, as text or as JSON, hooks, counts, and metrics for Prometheus."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import Enum
from typing import Self

import attrs

from asyncnet import metrics
from asyncnet.addresses import Address, format_address
from asyncnet.errors import RemoteError
from asyncnet.tftp.packets import ErrorCode
from asyncnet.tftp.session import Report, Session
from asyncnet.tftp.storage import Request

__all__ = ["Hooks", "MetricsCollector", "Outcome", "ServerStats", "TransferRecord", "outcome_of"]


class Outcome(Enum):
    """How a request ended."""

    COMPLETE = "complete"
    UNCONFIRMED = "sent, unconfirmed"
    """Everything was sent, and the client never sent the last acknowledgement."""
    PROBE = "probe"
    """The client ended it before the first block: it wanted the size, or to see whether the file exists."""
    FAILED = "failed"
    REFUSED = "refused"


def outcome_of(session: Session) -> Outcome:
    """Tell how a transfer that is over has ended."""
    error = session.error
    if error is None:
        return Outcome.COMPLETE if session.report.confirmed else Outcome.UNCONFIRMED
    # EDK2 asks for the size and answers the OACK with ERROR 8 "User aborted", PXELINUX and iPXE with ERROR 0.
    says_no_more = isinstance(error, RemoteError) and error.code in (ErrorCode.UNDEFINED, ErrorCode.OPTION_REFUSED)
    return Outcome.PROBE if says_no_more and session.is_new else Outcome.FAILED


@attrs.frozen
class TransferRecord:
    """What is known of a request when it is over."""

    peer: Address
    name: str
    is_write: bool
    mode: str
    bytes: int
    seconds: float
    block_size: int
    """Bytes; 0 when no transfer began."""
    window_size: int
    """Blocks; 0 when no transfer began."""
    retransmitted: int
    """Packets sent again."""
    outcome: Outcome
    error: str | None
    """What went wrong."""

    @classmethod
    def of(cls, request: Request, outcome: Outcome, report: Report | None = None, error: str | None = None) -> Self:
        """Return what is known of a request; without a report no transfer began."""
        return cls(
            peer=request.peer,
            name=request.name,
            is_write=request.is_write,
            mode=request.mode,
            bytes=report.bytes if report else 0,
            seconds=report.seconds if report else 0.0,
            block_size=report.block_size if report else 0,
            window_size=report.window_size if report else 0,
            retransmitted=report.retransmitted if report else 0,
            outcome=outcome,
            error=error,
        )

    def line(self) -> str:
        """Return a line for people."""
        what = f"{format_address(self.peer)} {'write' if self.is_write else 'read'} {self.name!r}"
        if self.outcome is Outcome.REFUSED:
            return f"{what} refused: {self.error}"
        rate = self.bytes / self.seconds / 1e6 if self.seconds else 0.0
        end = self.error or self.outcome.value
        return (
            f"{what}: {self.bytes} bytes in {self.seconds:.3f} s, {rate:.1f} MB/s, "
            f"{self.retransmitted} retransmitted: {end}"
        )

    def json(self) -> str:
        """Return a line of JSON."""
        fields = attrs.asdict(self) | {"peer": format_address(self.peer), "outcome": self.outcome.name.lower()}
        return json.dumps(fields)


@attrs.define
class ServerStats:
    """What a server has counted since it was opened."""

    requests: int = 0
    """Requests that began a transfer or were refused with an ERROR."""
    active: int = 0
    """Transfers that run now."""
    completed: int = 0
    unconfirmed: int = 0
    """Completed, except that the client never sent the last acknowledgement."""
    failed: int = 0
    """Ended early, by either side."""
    probes: int = 0
    """Ended by the client before the first block: it wanted the size, or only to see whether the file exists."""
    refused: int = 0
    """Requests answered with an ERROR."""
    silenced: int = 0
    """Requests refused without an ERROR and a line in the log, because their source had been sent too many."""
    denied: int = 0
    """Requests of addresses that are not admitted; they get no answer."""
    duplicates: int = 0
    """Requests that repeated one whose transfer had begun."""
    dropped: int = 0
    """Requests that got no answer because a limit on transfers, clients or memory was reached, or because their address
    has answered nothing that it was sent."""
    malformed: int = 0
    """Datagrams on the listening socket that are no request."""
    rejected: int = 0
    """Datagrams of clients within their transfers that were no packet of it."""
    unsent: int = 0
    """Datagrams dropped on a single port because too many waited to leave."""
    sent_bytes: int = 0
    received_bytes: int = 0
    retransmitted: int = 0


@attrs.frozen
class Hooks:
    """What is called at the stages of a transfer; an exception is logged and changes nothing."""

    on_start: Callable[[Request], object] | None = None
    on_progress: Callable[[Request, int, int | None], object] | None = None
    """With the bytes so far and, where it is known, their number in all."""
    on_end: Callable[[TransferRecord], object] | None = None
    """Also for a request that is refused, unless its source has been sent too many errors (`ServerStats.silenced`)."""


class MetricsCollector(metrics.MetricsCollector):
    """A collector of prometheus_client for the counts of a TFTP server.

    Register it with ``prometheus_client.REGISTRY.register(MetricsCollector(server))``.

    Args:
        server: the server.
        prefix: of the metrics' names.

    Raises:
        ImportError: prometheus_client is not installed.
    """

    def __init__(self, server: metrics.HasStats, prefix: str = "asyncnet_tftp") -> None:
        super().__init__(server, prefix)

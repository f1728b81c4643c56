"""What a server answers a request with: the file that it names, and the session that sends or receives it."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Final

from asyncnet.errors import LocalError
from asyncnet.tftp.files import BytesSource, NetasciiSink, NetasciiSource, Sink, Source
from asyncnet.tftp.options import Limits, negotiate
from asyncnet.tftp.packets import Ack, ErrorCode, OptionAck, Rollover, encode_packet
from asyncnet.tftp.receiving import ReceiveSession
from asyncnet.tftp.retransmit import Timing
from asyncnet.tftp.sending import Outbox, SendSession
from asyncnet.tftp.session import Progress, Session
from asyncnet.tftp.storage import Request, Storage
from asyncnet.tftp.transfer import Receiver, Sender

__all__ = ["discard", "open_for", "session_for"]

_UNHEARD_RETRANSMITS: Final = 3
"""To a client that has not answered at all: its address may be forged, and what is sent there hurts somebody else."""


def open_for(request: Request, storage: Storage) -> Source | bytes | Sink | Awaitable[Any]:
    """Open what a request names; the result may have to be awaited.

    Raises:
        LocalError: the mode is unknown, or the storage refuses.
        OSError: the storage cannot open it.
    """
    if request.mode not in ("octet", "netascii"):
        raise LocalError(ErrorCode.ILLEGAL_OPERATION, "the mode must be octet or netascii")
    return storage.open_write(request) if request.is_write else storage.open_read(request)


def session_for(
    request: Request,
    opened: Any,
    *,
    limits: Limits,
    timing: Timing,
    rollover: Rollover | None,
    progress: Progress | None = None,
    outbox: Outbox | None = None,
    stays: bool = False,
) -> Session:
    """Return the session that answers a request.

    Args:
        request: what the client asks for.
        opened: what the storage has opened for it; the session owns it.
        limits: what the options may be at most.
        timing: how long to wait for acknowledgements.
        rollover: the block number that follows 65535; see `serve`.
        progress: told how far the transfer is.
        outbox: lets blocks of many sessions leave together.
        stays: whether the session of an upload may stay for longer, to repeat its last ACK (`Timing.dally`).

    Raises:
        LocalError: an option is refused.
    """
    if request.is_write:
        return _receiving(request, opened, limits, timing, rollover, progress, stays=stays)
    return _sending(request, opened, limits, timing, rollover, progress, outbox)


def _sending(
    request: Request,
    opened: Source | bytes,
    limits: Limits,
    timing: Timing,
    rollover: Rollover | None,
    progress: Progress | None,
    outbox: Outbox | None,
) -> Session:
    source: Source = BytesSource(opened) if isinstance(opened, bytes) else opened
    if request.mode == "netascii":
        source = NetasciiSource(source)
    options, accepted = negotiate(request.options, limits=limits, size=source.size)
    sender = Sender(
        opening=bool(accepted),
        rollover=rollover or 0,
        timing=timing.capped_by(options.timeout),
        unheard_retransmits=_UNHEARD_RETRANSMITS,
    )
    opening = encode_packet(OptionAck(accepted)) if accepted else b""
    return SendSession(source, sender, opening=opening, options=options, progress=progress, outbox=outbox)


def _receiving(
    request: Request,
    sink: Sink,
    limits: Limits,
    timing: Timing,
    rollover: Rollover | None,
    progress: Progress | None,
    *,
    stays: bool,
) -> Session:
    if request.mode == "netascii":
        sink = NetasciiSink(sink)
    options, accepted = negotiate(request.options, limits=limits, is_write=True)
    receiver = Receiver(
        rollover=rollover,
        keep_beyond_gap=sink.random_access,
        timing=timing.capped_by(options.timeout),
        unheard_retransmits=_UNHEARD_RETRANSMITS,
        dally=max(timing.dally, 1.5 * (options.timeout or 0)) if stays else 0.0,
    )
    opening = encode_packet(OptionAck(accepted) if accepted else Ack(0))
    return ReceiveSession(sink, receiver, opening=opening, options=options, progress=progress)


def discard(opened: object) -> None:
    """Let go of what a storage has opened."""
    for name in ("abort", "close"):
        release = getattr(opened, name, None)
        if release is not None:
            release()
            return

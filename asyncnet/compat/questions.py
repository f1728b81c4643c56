"""A question to everybody on the network, asked on any engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from time import monotonic
from typing import Any

from asyncnet.addresses import Address, interfaces
from asyncnet.broadcast.ways import LIMITED, ways_of
from asyncnet.compat.datagrams import open_endpoint
from asyncnet.compat.tasks import timeout

__all__ = ["ask"]


async def ask(
    data: bytes, port: int, *, seconds: float = 3.0, limit: int | None = None, to: Sequence[str] | None = None
) -> AsyncIterator[tuple[bytes, Address]]:
    """Send a question by broadcast, and yield the answers with their senders as they come.

    This is the plain form, one datagram to each broadcast address; `asyncnet.broadcast.ask` repeats the question and
    tells which interface an answer came by.

    Args:
        data: the question.
        port: the port that the others listen on.
        seconds: how long to wait for answers.
        limit: answers after which to stop; None for no limit.
        to: addresses to send to; by default the broadcast address of every interface that is up.

    Raises:
        OSError: the question could not be sent at all.
    """
    deadline, count = monotonic() + seconds, 0
    async with AsyncExitStack() as stack:
        endpoint: Any = await open_endpoint(broadcast=True)
        stack.push_async_callback(endpoint.aclose)
        await _send(endpoint, data, port, _targets() if to is None else to)
        while limit is None or count < limit:
            try:
                async with timeout(max(0.0, deadline - monotonic())):
                    answer, addr = await endpoint.recv()
            except TimeoutError:
                return
            except OSError:  # a host without anybody on that port
                continue
            count += 1
            yield answer, addr


def _targets() -> list[str]:
    # 255.255.255.255 needs a socket that is told the interface: `asyncnet.broadcast` has one.
    return list(dict.fromkeys(way.target for way in ways_of(interfaces()) if way.target != LIMITED))


async def _send(endpoint: Any, data: bytes, port: int, targets: Sequence[str]) -> None:
    failure: OSError | None = None
    sent = 0
    for target in targets:
        try:
            await endpoint.send(data, (target, port))
            sent += 1
        except OSError as exc:
            failure = exc
    if not sent:
        raise failure or OSError("no interface of this host is up and able to broadcast")

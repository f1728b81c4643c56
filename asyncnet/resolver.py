"""Names to addresses, alike on every event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias, cast

from asyncnet.addresses import Address, explain

__all__ = ["resolve"]

_Infos: TypeAlias = list[tuple[Any, Any, int, str, Any]]


async def resolve(
    host: str,
    port: int,
    *,
    action: str,
    kind: int,
    family: int = socket.AF_UNSPEC,
    call: Callable[[Callable[[], _Infos]], Awaitable[_Infos]] | None = None,
) -> list[tuple[int, Address]]:
    """Return the addresses of a host with their families, without repetitions, in the order of the resolver.

    A number needs no resolver, and no thread to call it in. Nor does it lose the scope of a link-local address then,
    as it does in uvloop's resolver.

    Args:
        host: a name or an address; an IPv6 address may end in ``%INTERFACE``.
        port: goes into each address.
        action: what is being tried, for the message of an error.
        kind: ``SOCK_STREAM`` or ``SOCK_DGRAM``.
        family: the family to look for.
        call: calls what blocks, where it holds up nobody; by default the running event loop asks its resolver.

    Raises:
        OSError: the name does not resolve; the message names it.
    """
    try:
        try:
            infos = socket.getaddrinfo(host, port, family=family, type=kind, flags=socket.AI_NUMERICHOST)
        except socket.gaierror:
            if call is None:
                infos = await asyncio.get_running_loop().getaddrinfo(host, port, family=family, type=kind)
            else:
                infos = await call(partial(socket.getaddrinfo, host, port, family=family, type=kind))
    except OSError as exc:
        raise explain(exc, action, (host, port)) from exc
    except ValueError as exc:  # what the codec of host names refuses
        raise explain(socket.gaierror(socket.EAI_NONAME, str(exc)), action, (host, port)) from exc
    return list(dict.fromkeys((int(info[0]), cast(Address, info[4])) for info in infos))

"""The servers of the laboratory: ``python -m asyncnet.lab.servers tcp|udp ENGINE HANDLER``.

Every engine runs the same handlers, unchanged.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from asyncnet import compat
from asyncnet.addresses import Address, format_address
from asyncnet.descriptors import allow_descriptors
from asyncnet.errors import AsyncnetError

__all__ = ["DATAGRAM_HANDLERS", "HANDLERS", "main"]

_CHUNK: Final = 65536
_BULK: Final = 8 << 20
_PATTERN: Final = bytes(range(251)) * 300
_BURN_EVERY: Final = 100
_BURN_SECONDS: Final = 0.001


async def echo(reader: Any, writer: Any) -> None:
    """Send back what arrives."""
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()


async def sleep(reader: Any, writer: Any) -> None:
    """Wait for 1 ms, then send back what has arrived."""
    while data := await reader.read(_CHUNK):
        await compat.sleep(0.001)
        writer.write(data)
        await writer.drain()


async def burn(reader: Any, writer: Any) -> None:
    """Send back what arrives; in 1 % of the requests, compute for 1 ms before."""
    while data := await reader.read(_CHUNK):
        _burn(data)
        writer.write(data)
        await writer.drain()


def _burn(data: bytes) -> None:
    # The load counts its requests in the first bytes, the number of the connection comes in the sixth. Which request
    # burns is therefore the same on every engine, also where handlers share no memory.
    if (int.from_bytes(data[:5], "little") * 31 + data[5] if len(data) > 5 else 0) % _BURN_EVERY == 1:
        end = time.thread_time() + _BURN_SECONDS
        while time.thread_time() < end:
            pass


async def bulk(reader: Any, writer: Any) -> None:
    """Answer a line with 8 MiB; byte i is i modulo 251."""
    await reader.read(_CHUNK)
    sent = 0
    while sent < _BULK:
        count = min(_CHUNK, _BULK - sent)
        writer.write(_PATTERN[sent % 251 :][:count])
        await writer.drain()
        sent += count


async def echo_datagram(data: bytes, addr: Address, endpoint: Any) -> None:
    """Send a datagram back."""
    await endpoint.send(data, addr)


async def burn_datagram(data: bytes, addr: Address, endpoint: Any) -> None:
    """Send a datagram back; in 1 % of the requests, compute for 1 ms before."""
    _burn(data)
    await endpoint.send(data, addr)


HANDLERS: Final[dict[str, Callable[[Any, Any], Coroutine[Any, Any, None]]]] = {
    "echo": echo, "sleep": sleep, "burn": burn, "bulk": bulk,
}  # fmt: skip
"""The handlers of connections by name."""
DATAGRAM_HANDLERS: Final[dict[str, Callable[[bytes, Address, Any], Coroutine[Any, Any, None]]]] = {
    "echo": echo_datagram, "burn": burn_datagram,
}  # fmt: skip
"""The handlers of datagrams by name."""


def main() -> int:
    """Serve until SIGTERM; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("protocol", choices=("tcp", "udp"))
    parser.add_argument("engine")
    parser.add_argument("handler", choices=list(HANDLERS))
    chosen = parser.parse_args()
    allow_descriptors()  # each connection is one; the load and the server in C do the same
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)

    def ready(address: Address) -> None:
        print(f"listening on {format_address(address)}", file=sys.stderr, flush=True)

    try:
        if chosen.protocol == "tcp":
            compat.serve(HANDLERS[chosen.handler], ("127.0.0.1", 0), engine=chosen.engine, ready=ready)
        else:
            handler = DATAGRAM_HANDLERS[chosen.handler]
            compat.serve_datagram(handler, ("127.0.0.1", 0), engine=chosen.engine, ready=ready)
    except (AsyncnetError, OSError) as exc:
        print(" ".join(str(exc).split()), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

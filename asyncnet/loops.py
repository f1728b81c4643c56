"""Event loops: uvloop where it is installed, asyncio everywhere, chosen by name and never by policy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, TypeVar

from asyncnet.udp.create import create_datagram_endpoint

try:
    import uvloop
except ImportError:  # Windows, and interpreters that uvloop does not support
    HAVE_UVLOOP = False
else:
    HAVE_UVLOOP = True

__all__ = ["HAVE_UVLOOP", "LOOPS", "loop_name", "new_event_loop", "run"]

LOOPS: Final = ("auto", "asyncio", "uvloop")
"""The names that `run` and `new_event_loop` take."""

T = TypeVar("T")
ProtocolT = TypeVar("ProtocolT", bound=asyncio.BaseProtocol)


class _FastDatagrams:
    """Gives a loop this package's datagram transport, and so every UDP library that runs on it."""

    async def create_datagram_endpoint(
        self, protocol_factory: Callable[[], ProtocolT], *args: Any, **kwargs: Any
    ) -> tuple[asyncio.DatagramTransport, ProtocolT]:
        return await create_datagram_endpoint(protocol_factory, *args, **kwargs)


class AsyncioLoop(_FastDatagrams, asyncio.SelectorEventLoop):
    """asyncio's loop on a selector; on Windows its default one has no `add_reader`."""


if HAVE_UVLOOP:

    class UvloopLoop(_FastDatagrams, uvloop.Loop):  # type: ignore[misc]  # its stubs differ from asyncio's
        """uvloop."""


def new_event_loop(loop: str = "auto") -> asyncio.AbstractEventLoop:
    """Return a new event loop, whose `create_datagram_endpoint` is that of `asyncnet.udp`.

    Args:
        loop: ``"uvloop"``, ``"asyncio"``, or ``"auto"`` for uvloop where it is installed.

    Raises:
        ValueError: `loop` is no such name.
        ImportError: uvloop was asked for and is not installed.
    """
    if loop not in LOOPS:
        raise ValueError(f"loop must be one of {', '.join(LOOPS)}, not {loop!r}")
    if loop == "uvloop" and not HAVE_UVLOOP:
        raise ImportError("uvloop is not installed: pip install uvloop, or use loop='asyncio'")
    if HAVE_UVLOOP and loop != "asyncio":
        return UvloopLoop()
    return AsyncioLoop()


def loop_name(loop: asyncio.AbstractEventLoop) -> str:
    """Return ``"uvloop"`` or ``"asyncio"``: the kind of `loop`."""
    return "uvloop" if HAVE_UVLOOP and isinstance(loop, uvloop.Loop) else "asyncio"


def run(main: Coroutine[Any, Any, T], *, loop: str = "auto", debug: bool | None = None) -> T:
    """Run `main` in a new event loop, as `asyncio.run` does, and return its result.

    Args:
        main: the coroutine to run.
        loop: which loop, as in `new_event_loop`.
        debug: asyncio's debug mode; None leaves it to the environment.

    Raises:
        ValueError: `loop` is no such name.
        ImportError: uvloop was asked for and is not installed.
        RuntimeError: a loop is running in this thread already.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        main.close()
        raise RuntimeError("asyncnet.run() cannot be called while a loop is running: await the coroutine")
    try:
        with asyncio.Runner(debug=debug, loop_factory=partial(new_event_loop, loop)) as runner:
            return runner.run(main)
    finally:
        main.close()

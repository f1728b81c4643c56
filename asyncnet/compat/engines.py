"""The engines by name, and one way to run a handler on each of them.

from asyncnet import compat

async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()

compat.serve(echo, ("127.0.0.1", 7788), engine="epoll")
"""

from __future__ import annotations

import inspect
import select
import selectors
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from math import inf
from types import MappingProxyType
from typing import Any, Final, Protocol

import attrs

from asyncnet.addresses import Address
from asyncnet.compat.blocking import GeventServer, ThreadServer
from asyncnet.compat.kernel import KernelServer
from asyncnet.compat.native import AsyncioServer, AsyncnetServer
from asyncnet.compat.serving import Handler, Server
from asyncnet.errors import EngineError, MissingExtraError
from asyncnet.loops import HAVE_UVLOOP

__all__ = ["ENGINES", "Engine", "create_server", "serve"]


class _Factory(Protocol):
    def __call__(self, handler: Handler, address: Address, /, *, backlog: int, grace: float) -> Server: ...


@attrs.frozen
class Engine:
    """A concurrency model that runs handlers."""

    name: str
    description: str
    """One line."""
    factory: _Factory
    """Makes a server whose listener is open."""
    unavailable: Callable[[], str | None] = lambda: None
    """Tells why the engine cannot run here; None when it can."""
    extra: str | None = None
    """The extra that installs what it needs."""


def _without(name: str) -> Callable[[], str | None]:
    return lambda: None if hasattr(select, name) else f"this system has no select.{name}"


def _kernel(selector: str) -> _Factory:
    # Looked up when the server runs: not every system has every selector.
    return partial(KernelServer, lambda: getattr(selectors, selector)())


ENGINES: Final[Mapping[str, Engine]] = MappingProxyType(
    {
        engine.name: engine
        for engine in (
            Engine(
                "epoll",
                "one thread, a scheduler of coroutines over epoll",
                _kernel("EpollSelector"),
                _without("epoll"),
            ),
            Engine("thread", "a thread per connection, on sockets that block", ThreadServer),
            Engine(
                "gevent",
                "a greenlet per connection, on gevent's sockets",
                GeventServer,
                lambda: None if find_spec("gevent") else "gevent is not installed",
                extra="compat",
            ),
            Engine("asyncio", "asyncio.start_server on asyncio's own loop", partial(AsyncioServer, "asyncio")),
            Engine(
                "uvloop",
                "asyncio.start_server on uvloop",
                partial(AsyncioServer, "uvloop"),
                lambda: None if HAVE_UVLOOP else "uvloop is not installed",
            ),
            Engine("asyncnet", "asyncnet.tcp.serve on the fastest loop there is", AsyncnetServer),
        )
    }
)
"""Every engine by its name."""


def create_server(
    handler: Handler, address: Address, *, engine: str = "epoll", backlog: int = 1024, grace: float = 5.0
) -> Server:
    """Listen on `address`, and return the server, which accepts as soon as its ``run`` is called.

    Args:
        handler: a coroutine function of a reader and a writer, as `asyncio.start_server` takes. When it returns, its
            connection is flushed and closed. An error that it raises is logged and ends nothing else.
        address: host and port; an empty host means every address, port 0 takes a free one.
        engine: a name in `ENGINES`.
        backlog: how many connections the kernel may keep waiting; the system caps it.
        grace: seconds that handlers have to finish when the server stops.

    Raises:
        TypeError: `handler` is no coroutine function.
        ValueError: a number is out of range.
        EngineError: there is no such engine, or it cannot run on this system.
        MissingExtraError: the engine needs an optional package.
        OSError: the address cannot be used; the message says why and what to do.
    """
    found = ENGINES.get(engine)
    if found is None:
        raise EngineError(f"there is no engine {engine!r}; the engines are {', '.join(ENGINES)}")
    if not _is_coroutine_function(handler):
        raise TypeError(f"the handler must be a coroutine function (async def), not {handler!r}")
    if not 0 <= address[1] <= 65535:
        raise ValueError(f"the port must be between 0 and 65535, not {address[1]}")
    if backlog < 1:
        raise ValueError(f"backlog must be at least 1, not {backlog}")
    if not 0 <= grace < inf:
        raise ValueError(f"grace must be 0 seconds or more, and finite, not {grace}")
    reason = found.unavailable()
    if reason is not None and found.extra is not None:
        raise MissingExtraError(f"The {engine} engine", found.extra)
    if reason is not None:
        raise EngineError(f"the engine {engine!r} cannot run here: {reason}")
    return found.factory(handler, address, backlog=backlog, grace=grace)


def _is_coroutine_function(handler: object) -> bool:
    while isinstance(handler, partial):
        handler = handler.func
    call = getattr(type(handler), "__call__", None)  # noqa: B004  # what it is, not whether it is
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(call)


def serve(
    handler: Handler,
    address: Address,
    *,
    engine: str = "epoll",
    backlog: int = 1024,
    grace: float = 5.0,
    ready: Callable[[Address], object] | None = None,
) -> None:
    """Serve `handler` on `address` until SIGINT or SIGTERM, let the handlers finish, and return.

    Outside the main thread, which alone receives signals, it serves for ever: use `create_server` there.

    Args:
        handler: a coroutine function, as in `create_server`.
        address: host and port, as in `create_server`.
        engine: a name in `ENGINES`.
        backlog: how many connections the kernel may keep waiting.
        grace: seconds that handlers have to finish after the signal.
        ready: called with the real address when the server listens.

    Raises:
        TypeError, ValueError, EngineError, MissingExtraError, OSError: as in `create_server`.
        RuntimeError: an event loop runs in this thread.
    """
    server = create_server(handler, address, engine=engine, backlog=backlog, grace=grace)
    try:
        with _stopped_by_signals(server):
            if ready is not None:
                ready(server.address)
            server.run()
    finally:
        server.close()


@contextmanager
def _stopped_by_signals(server: Server) -> Iterator[None]:
    before: dict[signal.Signals, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, lambda *_: server.stop())
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

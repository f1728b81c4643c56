"""The engines by name, and one way to run a handler, or a coroutine, on each of them.

from asyncnet import compat

async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()

compat.serve(echo, ("127.0.0.1", 7788), engine="epoll")
"""

from __future__ import annotations

import inspect
import os
import select
import selectors
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from math import inf
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeVar

import attrs

from asyncnet.addresses import Address
from asyncnet.compat import readiness
from asyncnet.compat.connections import Handler, StreamService
from asyncnet.compat.datagrams import DatagramHandler, DatagramService
from asyncnet.compat.greenlets import GeventServer
from asyncnet.compat.native import (
    AsyncioDatagramServer,
    AsyncioServer,
    AsyncnetDatagramServer,
    AsyncnetServer,
)
from asyncnet.compat.processes import MAX_PROCESSES, PreforkServer, ProcessServer
from asyncnet.compat.readiness import SELECT_LIMIT, KernelServer, LimitedSelector, PollingSelector
from asyncnet.compat.running import Runner, in_greenlet, in_kernel, in_process, in_this_thread, on_loop
from asyncnet.compat.serving import Server
from asyncnet.compat.threads import MAX_THREADS, POOL_SIZE, PoolServer, ThreadServer
from asyncnet.errors import EngineError, MissingExtraError
from asyncnet.loops import HAVE_UVLOOP

__all__ = [
    "ENGINES",
    "Engine",
    "create_datagram_server",
    "create_server",
    "find_engine",
    "run",
    "serve",
    "serve_datagram",
]

T = TypeVar("T")


class _Factory(Protocol):
    def __call__(self, service: Any, *, grace: float) -> Server: ...


@attrs.frozen
class Engine:
    """A concurrency model that runs handlers."""

    name: str
    description: str
    """One line."""
    limits: str
    """What it cannot do, in a line."""
    factory: _Factory
    """Makes the server of a `StreamService`."""
    datagram_factory: _Factory
    """Makes the server of a `DatagramService`."""
    runner: Runner
    """Runs one coroutine to its end."""
    max_handlers: int | None = None
    """How many handlers run at a time; None for as many as there are descriptors."""
    unavailable: Callable[[], str | None] = lambda: None
    """Tells why the engine cannot run here; None when it can."""
    extra: str | None = None
    """The extra that installs what it needs."""


def _kernel(name: str, description: str, limits: str, selector: Callable[[], Any], **more: Any) -> Engine:
    factory = partial(KernelServer, selector)
    return Engine(name, description, limits, factory, factory, partial(in_kernel, selector), **more)


def _both(name: str, description: str, limits: str, factory: _Factory, runner: Runner, **more: Any) -> Engine:
    return Engine(name, description, limits, factory, factory, runner, **more)


def _without(module: Any, name: str) -> Callable[[], str | None]:
    return lambda: None if hasattr(module, name) else f"this system has no {module.__name__}.{name}"


def _make(module: Any, name: str) -> Callable[[], Any]:
    # Looked up when the server runs: not every system has every selector.
    return lambda: getattr(module, name)()


_DESCRIPTORS: Final = "open descriptors"

ENGINES: Final[Mapping[str, Engine]] = MappingProxyType(
    {
        engine.name: engine
        for engine in (
            _kernel(
                "polling",
                "one thread that tries every socket in turn and never rests",
                "keeps a processor busy; a turn costs a call per connection",
                PollingSelector,
            ),
            _kernel(
                "select",
                "one thread, a scheduler of coroutines over select",
                f"descriptors up to {SELECT_LIMIT - 1}; a turn costs more, the more there are",
                LimitedSelector,
                max_handlers=SELECT_LIMIT - 16,
            ),
            _kernel(
                "poll",
                "one thread, a scheduler of coroutines over poll",
                "a turn costs more, the more connections there are",
                _make(selectors, "PollSelector"),
                unavailable=_without(select, "poll"),
            ),
            _kernel(
                "epoll",
                "one thread, a scheduler of coroutines over epoll",
                _DESCRIPTORS,
                _make(readiness, "LevelSelector"),
                unavailable=_without(select, "epoll"),
            ),
            _kernel(
                "epoll-et",
                "the same, edge-triggered: a socket is read until nothing is left",
                _DESCRIPTORS,
                _make(readiness, "EdgeSelector"),
                unavailable=_without(select, "epoll"),
            ),
            _both(
                "thread",
                "a thread per connection, on sockets that block",
                f"{MAX_THREADS} threads",
                ThreadServer,
                in_this_thread,
                max_handlers=MAX_THREADS,
            ),
            _both(
                "thread-pool",
                "threads that are kept and take one connection after the other",
                f"{POOL_SIZE} threads",
                PoolServer,
                in_this_thread,
                max_handlers=POOL_SIZE,
            ),
            _both(
                "process",
                "a process per connection",
                f"{MAX_PROCESSES} processes; handlers share no memory",
                ProcessServer,
                in_process,
                max_handlers=MAX_PROCESSES,
                unavailable=_without(os, "fork"),
            ),
            _both(
                "prefork",
                "processes made beforehand, each for one connection at a time",
                f"{MAX_PROCESSES} processes; handlers share no memory",
                PreforkServer,
                in_process,
                max_handlers=MAX_PROCESSES,
                unavailable=_without(os, "fork"),
            ),
            _both(
                "gevent",
                "a greenlet per connection, on gevent's sockets",
                _DESCRIPTORS,
                GeventServer,
                in_greenlet,
                unavailable=lambda: None if find_spec("gevent") else "gevent is not installed",
                extra="compat",
            ),
            Engine(
                "asyncio",
                "asyncio.start_server on asyncio's own loop",
                _DESCRIPTORS,
                partial(AsyncioServer, "asyncio"),
                partial(AsyncioDatagramServer, "asyncio"),
                partial(on_loop, "asyncio"),
            ),
            Engine(
                "uvloop",
                "asyncio.start_server on uvloop",
                _DESCRIPTORS,
                partial(AsyncioServer, "uvloop"),
                partial(AsyncioDatagramServer, "uvloop"),
                partial(on_loop, "uvloop"),
                unavailable=lambda: None if HAVE_UVLOOP else "uvloop is not installed",
            ),
            Engine(
                "asyncnet",
                "asyncnet.tcp.serve and asyncnet.udp on the fastest loop there is",
                _DESCRIPTORS,
                partial(AsyncnetServer, "asyncnet"),
                partial(AsyncnetDatagramServer, "asyncnet"),
                partial(on_loop, "asyncnet"),
            ),
        )
    }
)
"""Every engine by its name."""


def find_engine(name: str) -> Engine:
    """Return an engine that can run here.

    Raises:
        EngineError: there is no such engine, or it cannot run on this system.
        MissingExtraError: the engine needs an optional package.
    """
    found = ENGINES.get(name)
    if found is None:
        raise EngineError(f"there is no engine {name!r}; the engines are {', '.join(ENGINES)}")
    reason = found.unavailable()
    if reason is not None and found.extra is not None:
        raise MissingExtraError(f"The {name} engine", found.extra)
    if reason is not None:
        raise EngineError(f"the engine {name!r} cannot run here: {reason}")
    return found


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
    found = _check(engine, handler, address, grace)
    if backlog < 1:
        raise ValueError(f"backlog must be at least 1, not {backlog}")
    return _started(found.factory, StreamService(handler, address, backlog=backlog), grace)


def create_datagram_server(
    handler: DatagramHandler, address: Address, *, engine: str = "epoll", grace: float = 5.0
) -> Server:
    """Bind a UDP socket to `address`, and return the server, which receives as soon as its ``run`` is called.

    Args:
        handler: a coroutine function, called with each datagram, its sender's address, and the endpoint that it came
            to: ``await endpoint.send(answer, addr)`` answers. On an engine of threads, processes or greenlets, each
            datagram has its own. To go on with its sender, a handler opens another endpoint by `open_endpoint`.
        address, engine, grace: as in `create_server`.

    Raises:
        TypeError, ValueError, EngineError, MissingExtraError, OSError: as in `create_server`.
    """
    found = _check(engine, handler, address, grace)
    return _started(found.datagram_factory, DatagramService(handler, address), grace)


def _check(engine: str, handler: object, address: Address, grace: float) -> Engine:
    found = ENGINES.get(engine) or find_engine(engine)
    if not _is_coroutine_function(handler):
        raise TypeError(f"the handler must be a coroutine function (async def), not {handler!r}")
    if not 0 <= address[1] <= 65535:
        raise ValueError(f"the port must be between 0 and 65535, not {address[1]}")
    if not 0 <= grace < inf:
        raise ValueError(f"grace must be 0 seconds or more, and finite, not {grace}")
    return find_engine(found.name)


def _started(factory: _Factory, service: Any, grace: float) -> Server:
    try:
        return factory(service, grace=grace)
    except BaseException:
        service.close()
        raise


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
    _run_server(create_server(handler, address, engine=engine, backlog=backlog, grace=grace), ready)


def serve_datagram(
    handler: DatagramHandler,
    address: Address,
    *,
    engine: str = "epoll",
    grace: float = 5.0,
    ready: Callable[[Address], object] | None = None,
) -> None:
    """Serve datagrams on `address` until SIGINT or SIGTERM, as `serve` serves connections.

    Args:
        handler: a coroutine function, as in `create_datagram_server`.
        address, engine, grace, ready: as in `serve`.

    Raises:
        TypeError, ValueError, EngineError, MissingExtraError, OSError: as in `create_server`.
        RuntimeError: an event loop runs in this thread.
    """
    _run_server(create_datagram_server(handler, address, engine=engine, grace=grace), ready)


def _run_server(server: Server, ready: Callable[[Address], object] | None) -> None:
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


def run(main: Coroutine[Any, Any, T], *, engine: str = "epoll") -> T:
    """Run a coroutine to its end on an engine, and return its result: a client, for example.

    What it has spawned and not waited for is cancelled when it ends. On ``process`` and ``prefork`` it runs in a child:
    what it returns or raises comes back by `pickle`.

    Args:
        main: what to run.
        engine: a name in `ENGINES`.

    Raises:
        EngineError, MissingExtraError: as in `create_server`.
        RuntimeError: an event loop runs in this thread.
        BaseException: whatever `main` raises.
    """
    try:
        result: T = find_engine(engine).runner(main)
        return result
    finally:
        main.close()

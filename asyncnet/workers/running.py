"""`run`: checks what it is told, opens what is listened on, and runs the master."""

from __future__ import annotations

import logging
import os
import secrets
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from asyncnet.addresses import format_address
from asyncnet.arguments import check_count, check_flag, check_seconds, checked_sequence
from asyncnet.loops import LOOPS
from asyncnet.workers.admin import Admin
from asyncnet.workers.binding import Bind, Sharing, Sockets, open_sockets
from asyncnet.workers.board import MAX_COUNTERS, Board
from asyncnet.workers.child import Main
from asyncnet.workers.fleet import MAX_WORKERS, Limits
from asyncnet.workers.master import Master
from asyncnet.workers.pidfile import PidFile, control_path
from asyncnet.workers.plan import Plan
from asyncnet.workers.recycling import Recycle
from asyncnet.workers.renewal import in_trial, inherited, renew
from asyncnet.workers.report import RESERVED

__all__ = ["run"]

logger = logging.getLogger("asyncnet.workers")


def run(
    main: Main | str,
    *,
    workers: int | None = None,
    bind: Sequence[str] = (),
    reuse_port: bool = False,
    udp: Literal["each", "one"] = "each",
    broadcast: bool = False,
    backlog: int = 4096,
    grace: float = 30.0,
    boot_timeout: float = 30.0,
    heartbeat: float | None = 30.0,
    recycle: Recycle | None = None,
    counters: Sequence[str] = ("accepted", "active"),
    gauges: Sequence[str] = ("active",),
    admin: tuple[str, int] | None = None,
    pid_file: str | None = None,
    loop: str = "auto",
    ready: Callable[[list[Any]], object] | None = None,
) -> None:
    """Run `main` in several processes until SIGTERM or SIGINT, and return when all of them have drained.

    Each worker is a process with an event loop of its own, in which it runs ``await main(worker)``; see `Worker`. One
    that ends is replaced. SIGTERM and SIGINT drain, a second one hurries; SIGQUIT kills at once; SIGHUP reloads: new
    workers are ready before the old ones drain; SIGTTIN and SIGTTOU add and remove a worker; SIGUSR2 executes the
    program anew with the same listeners.

    It must be called in the main thread, and before a thread is started.

    Args:
        main: a coroutine function that takes a `Worker`; or ``"module:function"``, which each worker imports by
            itself, so that a reload runs the code as it is then.
        workers: how many; None for one on each processor that this process may use.
        bind: what to listen on: ``"HOST:PORT"`` or ``"tcp:HOST:PORT"``, ``"udp:HOST:PORT"``, ``"unix:PATH"``,
            ``"fd:NUMBER"`` for an inherited descriptor, ``"systemd"`` for those of LISTEN_FDS.
        reuse_port: each worker opens TCP listeners of its own (SO_REUSEPORT), which the kernel fills evenly. A worker
            that dies then takes the connections with it that wait in its listener.
        udp: ``"each"`` worker has its own UDP socket and a client's flow stays with it; or all share ``"one"``, and
            whoever is first takes a datagram.
        broadcast: UDP sockets may send broadcasts, and hear them beside other programs.
        backlog: connections that the kernel may keep waiting, for each listener.
        grace: seconds that a worker has to drain.
        boot_timeout: seconds until a worker must be ready.
        heartbeat: seconds within which a worker is killed whose event loop hangs; None for never.
        recycle: when workers are replaced by fresh ones.
        counters: names of what `Worker.watch` and `Worker.count` count; the first is what `recycle` compares.
        gauges: which of them are numbers of the moment, and end with their worker.
        admin: host and port where the master answers ``/health``, ``/metrics`` and ``/status`` by HTTP.
        pid_file: where the master's process is written; ``asyncnet workers`` finds it there. The master answers on a
            Unix socket beside it too.
        loop: which event loop, as in `asyncnet.run`.
        ready: called once with the addresses that are listened on, when all workers are ready.

    Raises:
        TypeError, ValueError: an argument is of a wrong type, or out of range.
        ChildProcessError: a worker cannot start; the message says why.
        OSError: an address cannot be used, or this system cannot fork.
        RuntimeError: it is not called in the main thread.
    """
    if not hasattr(os, "fork"):
        raise OSError("workers need fork(), which this system does not have: run one process, without workers")
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("workers.run must be called in the main thread")
    size = _available_processors() if workers is None else workers
    _check(main, size, backlog, loop, counters, gauges)
    check_flag("reuse_port", reuse_port)
    check_flag("broadcast", broadcast)
    check_seconds("grace", grace, or_none=False, from_zero=True)
    check_seconds("boot_timeout", boot_timeout, or_none=False)
    check_seconds("heartbeat", heartbeat)
    sharing = Sharing(udp)
    binds = [Bind.parse(text) for text in checked_sequence("bind", bind, "addresses")]
    if recycle is not None and recycle.connections is not None and not counters:
        raise ValueError("recycle.connections compares the first of counters, and there are none")
    if recycle is not None and recycle.memory is not None and sys.platform != "linux":
        raise OSError("recycle.memory reads /proc, which only Linux has: leave it out")
    plan = Plan(
        main=main,
        limits=Limits(grace=grace, boot=boot_timeout, heartbeat=heartbeat),
        recycle=recycle or Recycle(),
        counters=tuple(counters),
        gauges=tuple(gauges),
        backlog=backlog,
        loop=loop,
        ready=ready,
    )
    in_trial()  # not before the checks: what they refuse must fail in the trial
    legacy = inherited()
    if legacy is not None:
        file, places = legacy.pid_file(pid_file), legacy.admin(admin)
        sockets, board = legacy.sockets(bind), legacy.board(counters)
    else:
        open_them = partial(open_sockets, binds, workers=size, backlog=backlog, reuse_port=reuse_port, udp=sharing,
                         broadcast=broadcast)  # fmt: skip
        file, places, sockets = _open(pid_file, admin, open_them)
        board = Board(counters)
    master = Master(
        plan,
        size=size if legacy is None else legacy.size(size),
        asked=size,
        binds=tuple(bind),
        sockets=sockets,
        board=board,
        secret=secrets.token_bytes(16) if legacy is None else legacy.secret,
        admin=places,
        pid_file=file,
        renew=renew,
    )
    if legacy is not None:
        legacy.hand_to(master)
    if admin is not None and legacy is None:
        logger.info("/health and /metrics on http://%s", format_address(places.listeners[0].getsockname()[:2]))
    try:
        master.run()
    finally:
        if file is not None:
            file.remove()
        board.close()


def _open(
    pid_file: str | None, admin: tuple[str, int] | None, open_them: Callable[[], Sockets]
) -> tuple[PidFile | None, Admin, Sockets]:
    """Take the PID file first, so that a second master is refused; nothing stays open or behind on an error."""
    file = None if pid_file is None else PidFile(pid_file)
    try:
        places = Admin(admin, None if pid_file is None else control_path(pid_file))
        try:
            return file, places, open_them()
        except BaseException:
            places.close()
            raise
    except BaseException:
        if file is not None:
            file.remove()
        raise


def _check(main: Any, size: Any, backlog: Any, loop: Any, counters: Any, gauges: Any) -> None:
    if isinstance(main, str):
        module, colon, function = main.partition(":")
        if not (module and colon and function):
            raise ValueError(f"main is {main!r}: write 'module:function'")
    elif not callable(main):
        raise TypeError(f"main must be a coroutine function or 'module:function', not {main!r}")
    check_count("workers", size)
    if size > MAX_WORKERS:
        raise ValueError(f"workers must be at most {MAX_WORKERS}, not {size}")
    check_count("backlog", backlog)
    if loop not in LOOPS:
        raise ValueError(f"loop must be one of {', '.join(LOOPS)}, not {loop!r}")
    names = checked_sequence("counters", counters, "names")
    for name in [*names, *checked_sequence("gauges", gauges, "names")]:
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"counters must be names such as 'accepted', not {name!r}")
        if name in RESERVED:
            raise ValueError(f"counters: the master has a metric called {name!r} of its own, choose another name")
    if len(names) > MAX_COUNTERS or len(set(names)) != len(names):
        raise ValueError(f"counters must be at most {MAX_COUNTERS} different names")


def _available_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

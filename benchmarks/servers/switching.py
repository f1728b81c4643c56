"""Two that take turns: ``python switching.py WAY SECONDS`` prints as JSON how many switches there were in which time.

A switch is one step of one of them. Nothing else happens, so what is measured is what lets the other run: a hand-over
of a lock between threads, a call of ``switch`` or ``send``, a turn of a scheduler.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, Final

from asyncnet import compat

COUNT: Final = 2
MANY: Final = 100
BATCH: Final = 1000
"""Steps of one of them between two looks at the clock; all stop when one says so."""


class Clock:
    """Counts the steps, and says when it is over."""

    def __init__(self, seconds: float) -> None:
        self.switches = 0
        self.began = time.perf_counter()
        self.over = self.began + seconds
        self.ended = 0.0

    def is_over(self, switches: int) -> bool:
        """Add to the steps that were made; none counts after the end."""
        if self.ended == 0.0:
            self.switches += switches
            now = time.perf_counter()
            if now >= self.over:
                self.ended = now
        return self.ended > 0.0

    def wait(self) -> None:
        """Sleep until it is over."""
        while self.ended == 0.0:
            time.sleep(0.01)


def threads(clock: Clock) -> None:
    """Each waits for its own lock, and releases that of the other."""
    locks = [threading.Lock() for _ in range(COUNT)]
    for lock in locks:
        lock.acquire()

    def run(mine: threading.Lock, other: threading.Lock) -> None:
        while True:
            for _ in range(BATCH):
                mine.acquire()
                other.release()
            clock.is_over(BATCH)

    for n in range(COUNT):
        threading.Thread(target=run, args=(locks[n], locks[1 - n]), daemon=True).start()
    locks[0].release()
    clock.wait()


def events(clock: Clock) -> None:
    """The same by `threading.Event`."""
    told = [threading.Event() for _ in range(COUNT)]

    def run(mine: threading.Event, other: threading.Event) -> None:
        while True:
            for _ in range(BATCH):
                mine.wait()
                mine.clear()
                other.set()
            clock.is_over(BATCH)

    for n in range(COUNT):
        threading.Thread(target=run, args=(told[n], told[1 - n]), daemon=True).start()
    told[0].set()
    clock.wait()


def generators(clock: Clock) -> None:
    """``send``, as the kernel does, without anything around it."""

    def steps() -> Generator[None, None, None]:
        while True:
            yield

    first, second = steps(), steps()
    next(first), next(second)
    while not clock.is_over(2 * BATCH):
        for _ in range(BATCH):
            first.send(None)
            second.send(None)


def greenlets(clock: Clock) -> None:
    """``switch`` from one to the other, without a hub."""
    from greenlet import getcurrent, greenlet

    main = getcurrent()

    def run(other: Callable[[], Any]) -> None:
        while True:
            for _ in range(BATCH):
                other().switch()
            if clock.is_over(BATCH):
                main.switch()

    pair: list[Any] = []
    pair += [greenlet(lambda: run(lambda: pair[1])), greenlet(lambda: run(lambda: pair[0]))]
    pair[0].switch()


def gevent_sleep(clock: Clock) -> None:
    """``gevent.sleep(0)``: from one to the hub, and from the hub to the other."""
    import gevent

    def run() -> None:
        while True:
            for _ in range(BATCH):
                gevent.sleep(0)
            if clock.is_over(BATCH):
                return

    gevent.joinall([gevent.spawn(run) for _ in range(COUNT)])


async def take_turns(sleep: Callable[[float], Any], clock: Clock, batch: int = BATCH) -> None:
    while True:
        for _ in range(batch):
            await sleep(0)
        if clock.is_over(batch):
            return


def kernel(clock: Clock, count: int = COUNT, batch: int = BATCH) -> None:
    """``compat.sleep(0)`` on the engine epoll."""

    async def main() -> None:
        tasks = [compat.spawn(take_turns(compat.sleep, clock, batch)) for _ in range(count)]
        for task in tasks:
            await task

    compat.run(main(), engine="epoll")


def tasks(clock: Clock, count: int = COUNT, batch: int = BATCH, loop_factory: Any = None) -> None:
    """``asyncio.sleep(0)``."""

    async def main() -> None:
        await asyncio.gather(*(take_turns(asyncio.sleep, clock, batch) for _ in range(count)))

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


def tasks_on_uvloop(clock: Clock) -> None:
    """The same on uvloop."""
    import uvloop

    tasks(clock, loop_factory=uvloop.new_event_loop)


WAYS: Final[dict[str, Callable[[Clock], None]]] = {
    "threads, a lock": threads,
    "threads, threading.Event": events,
    "generators, send": generators,
    "greenlets, switch": greenlets,
    "greenlets, gevent.sleep(0)": gevent_sleep,
    "coroutines of the kernel": kernel,
    f"coroutines of the kernel, {MANY} of them": lambda clock: kernel(clock, MANY, 20),
    "tasks of asyncio": tasks,
    f"tasks of asyncio, {MANY} of them": lambda clock: tasks(clock, MANY, 20),
    "tasks of asyncio on uvloop": tasks_on_uvloop,
}

if __name__ == "__main__":
    watch = Clock(float(sys.argv[2]))
    WAYS[sys.argv[1]](watch)
    print(json.dumps({"switches": watch.switches, "seconds": watch.ended - watch.began}))

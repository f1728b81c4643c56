"""Running one coroutine to its end, in the way of each engine: what a client needs."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from asyncnet.compat.blocking import BlockingDriver, ThreadTask
from asyncnet.compat.greenlets import run_in_greenlet
from asyncnet.compat.kernel import Kernel
from asyncnet.compat.native import run_on_loop
from asyncnet.compat.serving import CANCEL_WAIT
from asyncnet.compat.tasks import Spawned

__all__ = ["Runner", "in_greenlet", "in_kernel", "in_process", "in_this_thread", "on_loop"]

_READ: Final = 65536


class Runner(Protocol):
    """Runs a coroutine to its end and returns its result."""

    def __call__(self, coro: Coroutine[Any, Any, Any], /) -> Any: ...


def in_kernel(selector: Callable[[], Any], coro: Coroutine[Any, Any, Any]) -> Any:
    """Run it as a task of a `Kernel`."""
    kernel = Kernel(selector())
    try:
        task = kernel.spawn(coro)
        task.expect()
        kernel.run(until=task)
        kernel.cancel_all()
        kernel.run(timeout=CANCEL_WAIT)
    finally:
        kernel.close()
    return _outcome(task)


def _outcome(task: Spawned) -> Any:
    if task.error is not None:
        raise task.error
    return task.result


class _Remembering(BlockingDriver):
    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[ThreadTask] = []

    def spawn(self, coro: Coroutine[Any, Any, Any]) -> Spawned:
        task = super().spawn(coro)
        assert isinstance(task, ThreadTask)
        self.tasks.append(task)
        return task


def in_this_thread(coro: Coroutine[Any, Any, Any]) -> Any:
    """Run it on sockets that block."""
    driver = _Remembering()
    try:
        return driver.run(coro)
    finally:
        for task in driver.tasks:
            task.cancel()
        for task in driver.tasks:
            task.join(CANCEL_WAIT)


def in_process(coro: Coroutine[Any, Any, Any]) -> Any:
    """Run it in a child, on sockets that block. A signal that interrupts this process interrupts the child."""
    reading, writing = os.pipe()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _be_child(coro, writing)
    os.close(writing)
    coro.close()
    try:
        answer = b""
        while block := os.read(reading, _READ):
            answer += block
    except BaseException:
        os.kill(pid, signal.SIGTERM)
        raise
    finally:
        os.close(reading)
        _, status = os.waitpid(pid, 0)
    if not answer:
        raise ChildProcessError(f"the process ended with status {os.waitstatus_to_exitcode(status)}")
    result, error = pickle.loads(answer)  # of our own child
    if error is not None:
        raise error
    return result


def _be_child(coro: Coroutine[Any, Any, Any], writing: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        try:
            answer = pickle.dumps((in_this_thread(coro), None))
        except BaseException as exc:
            answer = _pickled_error(exc)
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(answer)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(0)


def _pickled_error(exc: BaseException) -> bytes:
    try:
        answer = pickle.dumps((None, exc))
        pickle.loads(answer)
    except Exception:
        return pickle.dumps((None, RuntimeError(f"{type(exc).__name__}: {exc}")))
    return answer


def in_greenlet(coro: Coroutine[Any, Any, Any]) -> Any:
    """Run it in a greenlet, on gevent's sockets."""
    return run_in_greenlet(coro)


def on_loop(name: str, coro: Coroutine[Any, Any, Any]) -> Any:
    """Run it on a loop of asyncio."""
    return run_on_loop(name, coro)

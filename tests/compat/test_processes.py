"""Processes: the children of an engine, and servers that were made before a fork."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from asyncnet import compat
from asyncnet.compat.processes import MAX_SPARE, MIN_SPARE
from tests.compat.test_engines import NAMES, Running, receive_all, receive_exactly, running, wait_until

psutil = pytest.importorskip("psutil")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
of_processes = pytest.mark.parametrize("engine", [name for name in NAMES if name in ("process", "prefork")])


def children(server: Running) -> list[str]:
    """Return what the children of a server do; one that has ended and was not waited for is a zombie."""
    found = []
    for child in psutil.Process(server.process.pid).children():
        with suppress(psutil.NoSuchProcess):
            found.append(child.status())
    return found


@of_processes
def test_children_are_buried_when_their_clients_have_gone(engine: str, tmp_path: Path) -> None:
    with running(engine, tmp_path) as server:
        with ExitStack() as stack:
            clients = [stack.enter_context(server.connect("echo")) for _ in range(MAX_SPARE + 8)]
            for sock in clients:
                sock.sendall(b"here")
            for sock in clients:
                assert receive_exactly(sock, 4) == b"here"
            assert len(children(server)) >= len(clients)
        spare = 0 if engine == "process" else MAX_SPARE
        wait_until(lambda: len(children(server)) <= spare, "the other processes end")
        assert psutil.STATUS_ZOMBIE not in children(server)
        server.stop()


def has_failed(server: Running, times: int) -> bool:
    return server.stats()["failed"] >= times


@of_processes
def test_a_child_that_is_killed_is_counted_and_replaced(engine: str, tmp_path: Path) -> None:
    with running(engine, tmp_path) as server:
        for failed in (1, 2):
            with server.connect("pid") as sock, sock.makefile("rb") as lines:
                os.kill(int(lines.readline()), signal.SIGKILL)
                with suppress(ConnectionResetError):
                    assert receive_all(sock) == b""
            wait_until(partial(has_failed, server, failed), "its end is noticed")
            wait_until(lambda: not server.stats()["active"], "nobody is served any more")
            assert server.stats()["failed"] == failed
            assert server.ask("echo", b"next") == b"next"
        if engine == "prefork":
            wait_until(lambda: len(children(server)) >= MIN_SPARE, "others take the place of the dead")
        else:
            wait_until(lambda: not children(server), "the dead are buried")
        assert psutil.STATUS_ZOMBIE not in children(server)
        server.stop()


@of_processes
def test_a_child_that_is_cancelled_at_its_very_end_ends_all_the_same(engine: str, tmp_path: Path) -> None:
    """It must not go on as a copy of the server, which would wait for it, too."""
    with running(engine, tmp_path) as server:
        assert server.ask("cancelled_at_the_end") == b""
        server.stop()
        assert "Traceback" not in server.log()
        assert "ended with status" not in server.log()


IN_CHILDREN = """
import os, sys
from asyncnet import compat

async def tell(reader, writer):
    writer.write(b"%d" % os.getpid())

server = compat.create_server(tell, ("127.0.0.1", 0), engine=sys.argv[1])
for _ in range(2):
    if not os.fork():
        server.run()
        os._exit(0)
print(server.address[1], flush=True)
server.close()
sys.stdin.read()
"""


@pytest.mark.parametrize("engine", [name for name in NAMES if name in ("epoll", "asyncio", "uvloop", "asyncnet")])
def test_a_server_that_is_made_before_a_fork_serves_in_each_child(engine: str) -> None:
    command = [sys.executable, "-c", IN_CHILDREN, engine]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            port = int(parent.stdout.readline())

            def ask() -> int:
                with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
                    return int(receive_all(sock))

            first = ask()
            os.kill(first, signal.SIGSTOP)  # so that the other one has to answer
            others = {ask() for _ in range(3)}
            assert len(others) == 1
            assert others != {first}
        finally:
            for child in psutil.Process(parent.pid).children():
                child.kill()
            parent.kill()


async def answer(reader: Any, writer: Any) -> None:
    await compat.sleep(0.2)  # or a few processes would serve everybody before they hear of the stop
    writer.write(await reader.read(100))


@of_processes
def test_who_is_connected_when_the_server_stops_is_served(engine: str) -> None:
    """In a process each: they wait in the backlog, and shutting the listener down would reset them."""
    server = compat.create_server(answer, ("127.0.0.1", 0), engine=engine, backlog=100, grace=10)
    clients = [socket.create_connection(server.address[:2], timeout=10) for _ in range(40)]
    for client in clients:
        client.sendall(b"hello")
    server.stop()
    server.run()
    for client in clients:
        with client:
            assert receive_all(client) == b"hello"
    assert server.stats.accepted == len(clients)


@of_processes
def test_a_log_that_nobody_reads_ends_no_service(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unread(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Unread())
    server = compat.create_server(answer, ("127.0.0.1", 0), engine=engine, grace=10)
    with socket.create_connection(server.address[:2], timeout=10) as client:
        client.sendall(b"hello")
        server.stop()
        server.run()
        assert receive_all(client) == b"hello"

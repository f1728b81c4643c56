"""Masters that run in a process of their own, and what tests ask of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from asyncnet.workers.admin import Admin
from asyncnet.workers.binding import Sockets
from asyncnet.workers.board import Board
from asyncnet.workers.fleet import Limits
from asyncnet.workers.master import Master
from asyncnet.workers.pidfile import control_path
from asyncnet.workers.plan import Plan
from asyncnet.workers.recycling import Recycle

ROOT = Path(__file__).parents[2]

ECHO = """
import asyncio, os
from asyncnet import tcp

async def handler(reader, writer):
    while data := await reader.read(65536):
        writer.write(b"%d " % os.getpid() + data)
        await writer.drain()

async def main(worker):
    await worker.serve(tcp.serve(handler, sockets=worker.tcp, grace=worker.grace))
"""
"""A module whose workers echo, with their process in front."""

PROGRAM = """
import json, logging, sys
from asyncnet import workers
options = json.loads(sys.argv[1])
if "recycle" in options:
    options["recycle"] = workers.Recycle(**options["recycle"])
if "admin" in options:
    options["admin"] = tuple(options["admin"])
logging.basicConfig(level=logging.INFO, format="%(message)s")
try:
    workers.run("app:main", ready=lambda found: print("ready", json.dumps(found), flush=True), **options)
except (OSError, ValueError) as exc:
    sys.exit(f"ended: {exc}")
"""


def bare_master(size: int = 1) -> Master:
    """Return a master that listens on nothing and does not run, for what it does by itself."""
    plan = Plan(
        main="app:main", limits=Limits(), recycle=Recycle(), counters=(), gauges=(), backlog=1, loop="auto", ready=None
    )
    return Master(
        plan, size=size, asked=size, binds=(), sockets=Sockets(), board=Board([]), secret=bytes(16),
        admin=Admin(None, None), pid_file=None, renew=lambda master: None,
    )  # fmt: skip


def wait_for(condition: Callable[[], Any], seconds: float = 15.0) -> Any:
    """Return what the condition returns as soon as it is true."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.01)


class Running:
    """A master in a process.

    Args:
        folder: where its program and its module lie.
        app: the source of the module ``app``, whose ``main`` its workers run.
        options: of `workers.run`.
    """

    def __init__(self, folder: Path, app: str = ECHO, **options: Any) -> None:
        self.folder = folder
        self.write(app)
        folder.joinpath("program.py").write_text(PROGRAM)
        self.pid_file = str(folder / "pid")
        options = {"pid_file": self.pid_file, "bind": ["127.0.0.1:0"], "workers": 2, "grace": 5.0, **options}
        with folder.joinpath("log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "program.py", json.dumps(options)],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.addresses: list[Any] = []

    def write(self, app: str) -> None:
        """Replace the module."""
        self.folder.joinpath("app.py").write_text(app)

    @property
    def log(self) -> str:
        """What the master and its workers have logged."""
        return self.folder.joinpath("log").read_text()

    @property
    def pid(self) -> int:
        """The master's process."""
        return self.process.pid

    def wait_ready(self) -> None:
        """Wait until it says where it listens."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("ready "), self.log
        self.addresses = [tuple(each) if isinstance(each, list) else each for each in json.loads(line[6:])]

    def connect(self) -> socket.socket:
        """Connect to the first address."""
        return socket.create_connection(self.addresses[0], timeout=10)

    def ask(self) -> int:
        """Return the process of the worker that answers a new connection."""
        with self.connect() as sock:
            sock.sendall(b"x")
            return int(sock.recv(100).split()[0])

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """Ask on the Unix socket; return the status of the answer and what it says."""
        answer = b""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(control_path(self.pid_file))
            sock.sendall(f"GET {path} HTTP/1.1\r\n\r\n".encode())
            while data := sock.recv(65536):
                answer += data
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body)

    def report(self) -> dict[str, Any]:
        """Return its report."""
        return self.get("/status")[1]

    def workers(self, state: str | None = None) -> list[int]:
        """Return the processes of its workers."""
        return [each["pid"] for each in self.report()["workers"] if state in (None, each["state"])]

    def whole(self) -> bool:
        """Whether all workers serve, and none is left over."""
        report = self.report()
        return bool(report["serving"] == report["wanted"] == len(report["workers"]))

    def signal(self, number: int) -> None:
        """Send a signal to the master."""
        self.process.send_signal(number)

    def reload(self) -> None:
        """Reload, and wait until the new generation serves."""
        before = self.report()["settled"]
        self.signal(signal.SIGHUP)
        wait_for(lambda: self.report()["settled"] > before)


@contextlib.contextmanager
def running(folder: Path, app: str = ECHO, **options: Any) -> Iterator[Running]:
    """Run a master until the block ends; it must then end by itself, with its workers."""
    master = Running(folder, app, **options)
    try:
        master.wait_ready()
        yield master
        if master.process.poll() is None:
            known = children(master.pid)
            master.signal(signal.SIGTERM)
            assert master.process.wait(15) == 0, master.log
            assert not [pid for pid in known if is_alive(pid)]
        assert "Traceback" not in master.log, master.log
    finally:
        kill(master)


def kill(master: Running) -> None:
    """End a master whatever it does."""
    master.process.kill()
    assert master.process.stdout is not None
    master.process.stdout.close()
    master.process.wait()


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def blocked_signals(pid: int) -> int:
    """Return the signals that a process does not let in, as a number with a bit for each."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("SigBlk:")).split()[1], 16)


def children(pid: int) -> list[int]:
    """Return the children of a process, the dead that wait to be reaped included."""
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []

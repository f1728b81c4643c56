"""Reloads, deaths and hangs under load: what no client may notice, and what only some may.

The short forms run always; the long ones, marked so, are what docs/workers.md promises.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.attempts import first_good
from tests.workers.masters import ECHO, ROOT, Running, children, running, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, spreads UDP by SO_REUSEPORT")

TFTP = """
from asyncnet import tftp

async def main(worker):
    one = {single}
    await worker.serve(tftp.serve({root!r}, sockets=worker.udp, grace=worker.grace, single_port=one, paused=one))
"""


@contextlib.contextmanager
def under_load(kind: str, address: tuple[str, int], rate: float, *more: str) -> Iterator[dict[str, Any]]:
    """Run a load while the block runs; then its results are in what it yields."""
    results: dict[str, Any] = {}
    program = str(Path(__file__).with_name("loads.py"))
    process = subprocess.Popen(
        [sys.executable, program, kind, address[0], str(address[1]), str(rate), *more],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        yield results
        output, _ = process.communicate(timeout=90)
        results.update(json.loads(output))
    finally:
        process.kill()
        process.communicate()


def assert_rate(seen: dict[str, Any], rate: float, share: float = 0.5) -> None:
    """Fail when the load was no such load: a part of what was asked for must have been started, whatever else runs."""
    assert seen["rate"] >= share * rate, seen


def pause(seconds: float) -> None:
    """Let the load go on for a while."""
    time.sleep(seconds)


@pytest.mark.timeout(150)
@pytest.mark.parametrize("reloads", [3, pytest.param(20, marks=pytest.mark.long)])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_reloads_under_500_connections_a_second_refuse_and_reset_none(tmp_path: Path, reloads: int, loop: str) -> None:
    with running(tmp_path, workers=2, loop=loop) as master:
        with under_load("tcp", master.addresses[0], 500) as seen:
            for _ in range(reloads):
                master.reload()
                wait_for(master.whole)
                pause(0.1)
        assert set(seen["results"]) == {"ok"}, seen
        assert_rate(seen, 500)
        assert master.report()["reloads"] == reloads
        print(f"{reloads} reloads, {seen['results']['ok']} connections at {seen['rate']:.0f} a second: all answered")


@pytest.mark.timeout(400)
@pytest.mark.parametrize("single_port", [False, True])
@pytest.mark.parametrize(
    ("reloads", "rate", "megabytes"), [(2, 10, 4), pytest.param(20, 20, 8, marks=pytest.mark.long)]
)
def test_reloads_under_tftp_downloads_spoil_none(
    tmp_path: Path, reloads: int, rate: int, megabytes: int, single_port: bool
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    file = root / "file"
    file.write_bytes(random.Random(9).randbytes(megabytes << 20))
    app = TFTP.format(root=str(root), single=single_port)
    options: dict[str, Any] = {"counters": ["requests", "completed", "failed"], "grace": 30.0}
    with running(tmp_path, app, workers=2, bind=["udp:127.0.0.1:0"], **options) as master:
        with under_load("tftp", master.addresses[0], rate, str(file)) as seen:
            for _ in range(reloads):
                master.reload()
                wait_for(master.whole, 40)
                pause(0.2)
        assert set(seen["results"]) == {"ok"}, seen
        assert_rate(seen, rate, 0.25)  # 8 MiB at 20 a second take most of two processors
        assert master.report()["reloads"] == reloads
        print(f"{reloads} reloads, {seen['results']['ok']} downloads of {megabytes} MiB at {seen['rate']:.0f} a "
              f"second, {seen['most']} at once, {seen['left_out']} left out: all equal")  # fmt: skip


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_transfer_on_a_single_port_is_finished_by_the_worker_that_began_it(tmp_path: Path, loop: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    content = random.Random(1).randbytes(512 * 40 + 7)
    root.joinpath("file").write_bytes(content)
    app = TFTP.format(root=str(root), single=True)
    options: dict[str, Any] = {"workers": 1, "counters": ["requests"], "grace": 20.0, "loop": loop}
    with running(tmp_path, app, bind=["udp:127.0.0.1:0"], **options) as master:
        (old,) = master.workers()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(5)
            client.connect(master.addresses[0])
            client.send(b"\0\1file\0octet\0")
            received = b""
            for number in range(1, 42):
                block = client.recv(600)
                while block[:4] == b"\0\3" + (number - 1).to_bytes(2, "big"):  # sent again while a reload took its time
                    block = client.recv(600)
                assert block[:4] == b"\0\3" + number.to_bytes(2, "big")
                received += block[4:]
                if number in (10, 20, 30):  # each reload adds a worker between the client and the one that serves it
                    before = master.report()["settled"]
                    if number == 10:
                        master.reload()
                        assert master.workers("draining") == [old]
                    else:
                        master.signal(signal.SIGHUP)
                        pause(0.05)
                        assert master.report()["settled"] == before  # it waits for the one that drains
                    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                        other.settimeout(5)
                        other.connect(master.addresses[0])
                        other.send(b"\0\1file\0octet\0")
                        assert other.recv(600)[4:] == content[:512]
                        other.send(b"\0\5\0\0enough\0")
                client.send(b"\0\4" + number.to_bytes(2, "big"))
            assert received == content
        wait_for(lambda: master.whole() and old not in master.workers(), 30)


def test_a_flow_of_udp_stays_with_its_worker(tmp_path: Path) -> None:
    app = """
import os
from asyncnet import udp

async def main(worker):
    async with udp.bind(sock=worker.udp[0]) as endpoint:
        worker.ready()
        while not worker.stopping.is_set():
            data, addr = await endpoint.recv()
            worker.count("answered")
            await endpoint.send(b"%d" % worker.seat, addr)
"""
    with running(tmp_path, app, workers=2, bind=["udp:127.0.0.1:0"], counters=["answered"], grace=0.5) as master:
        seats = set()
        for _ in range(20):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(5)
                client.connect(master.addresses[0])
                answers = []
                for _ in range(5):
                    client.send(b"?")
                    answers.append(client.recv(100))
                assert len(set(answers)) == 1
                seats.add(answers[0])
                if len(seats) == 2 and answers[0] == b"0":
                    break
        assert seats == {b"0", b"1"}
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(5)
            client.connect(master.addresses[0])
            client.send(b"?")
            seat = client.recv(100)
            master.reload()  # the seat keeps its socket, and the flow its seat
            client.send(b"?")
            assert client.recv(100) == seat
            serving = [each for each in master.report()["workers"] if each["state"] == "ready"]
            os.kill(next(each["pid"] for each in serving if each["seat"] == int(seat)), signal.SIGKILL)
            client.send(b"?")  # it waits in the socket for the worker that takes the seat
            assert client.recv(100) == seat


class Holders:
    """Clients that keep their connections, each knowing which worker serves it."""

    def __init__(self, master: Running, count: int) -> None:
        self.master = master
        self.held: list[tuple[socket.socket, int]] = []
        self.lost: list[int] = []
        self.fill(count)

    def fill(self, count: int) -> None:
        """Connect until there are so many."""
        while len(self.held) < count:
            sock = self.master.connect()
            sock.sendall(b"x")
            self.held.append((sock, int(sock.recv(100).split()[0])))

    def check(self) -> None:
        """Ask on every connection; those that are lost are noted with their worker."""
        kept = []
        for sock, pid in self.held:
            try:
                sock.sendall(b"x")
                alive = sock.recv(100).startswith(b"%d " % pid)
            except OSError:
                alive = False
            if alive:
                kept.append((sock, pid))
            else:
                sock.close()
                self.lost.append(pid)
        self.held = kept

    def close(self) -> None:
        for sock, _ in self.held:
            sock.close()


def is_replaced(master: Running, victim: int) -> bool:
    """Whether a worker is gone and another one serves in its place."""
    return victim not in master.workers() and master.whole()


@pytest.mark.timeout(150)
@pytest.mark.parametrize("kills", [3, pytest.param(60, marks=pytest.mark.long)])
def test_killing_a_worker_every_second_loses_only_what_was_in_flight_there(tmp_path: Path, kills: int) -> None:
    chance = random.Random(kills)
    recoveries: list[float] = []
    killed: list[int] = []
    with running(tmp_path, workers=3) as master:
        holders = Holders(master, 12)
        with under_load("tcp", master.addresses[0], 200) as seen:
            for _ in range(kills):
                victim = chance.choice(master.workers("ready"))
                begun = time.monotonic()
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)
                assert master.ask() != victim  # a new connection succeeds at once
                wait_for(partial(is_replaced, master, victim))
                recoveries.append(time.monotonic() - begun)
                holders.check()
                holders.fill(12)
                pause(max(0.0, (1.0 if kills > 3 else 0.2) - (time.monotonic() - begun)))
        holders.close()
        assert set(holders.lost) <= set(killed)
        failed = {how: count for how, count in seen["results"].items() if how != "ok"}
        assert set(failed) <= {"ConnectionResetError", "closed", "BrokenPipeError"}, failed
        # What one worker has in hand at 200 a second, or all of them, when the machine had paused.
        assert sum(failed.values()) <= max(5, seen["most"]) * kills
        assert_rate(seen, 200)
        assert master.report()["crashes"] == kills
        assert len(children(master.pid)) == 3
        print(f"{kills} kills: median recovery {statistics.median(recoveries) * 1000:.0f} ms, "
              f"longest {max(recoveries) * 1000:.0f} ms; {seen['results']['ok']} connections answered, "
              f"{sum(failed.values())} lost in flight")  # fmt: skip


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("seconds", "reuse_port"), [(1, False), *(pytest.param(20, each, marks=pytest.mark.long) for each in (False, True))]
)
def test_workers_accept_alike_under_load(tmp_path: Path, seconds: float, reuse_port: bool) -> None:
    with running(tmp_path, workers=2, reuse_port=reuse_port) as master:

        def accepted() -> list[int]:
            with under_load("tcp", master.addresses[0], 500) as seen:
                pause(seconds)
            assert set(seen["results"]) == {"ok"}
            assert_rate(seen, 500)
            counts = sorted(seen["workers"].values())
            print(f"accepted {counts}, {counts[-1] / counts[0]:.2f} : 1")
            assert len(counts) == 2
            return counts

        counts = first_good(accepted, lambda counts: counts[1] <= 1.5 * counts[0])
        assert counts[1] <= 1.5 * counts[0]


def test_a_module_that_takes_long_to_import_does_not_interrupt_service(tmp_path: Path) -> None:
    with running(tmp_path, workers=1) as master:
        master.write("import time\ntime.sleep(3)\n" + ECHO)
        first = master.ask()
        master.signal(signal.SIGHUP)
        wait_for(lambda: len(master.workers()) == 2)
        assert master.ask() == first
        wait_for(lambda: master.whole() and master.workers() != [first])

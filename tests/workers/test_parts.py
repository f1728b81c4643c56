"""The parts of the supervisor without processes: addresses, the table, pid files, limits, arguments, other systems."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import random
import select
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from asyncnet import workers
from asyncnet.addresses import Address
from asyncnet.errors import AddressError
from asyncnet.forks import flush_streams
from asyncnet.workers import binding
from asyncnet.workers import master as masters
from asyncnet.workers.admin import Admin
from asyncnet.workers.binding import Bind, Kind, Sharing, open_sockets
from asyncnet.workers.board import Board
from asyncnet.workers.fleet import Drain, Fleet, State
from asyncnet.workers.handover import Inbox
from asyncnet.workers.line import Line
from asyncnet.workers.pidfile import PidFile, read_pid
from asyncnet.workers.recycling import Recycler
from asyncnet.workers.report import Report
from tests.workers.masters import bare_master

try:
    import fcntl
except ImportError:  # Windows
    pass

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


async def main(worker: workers.Worker) -> None:
    worker.ready()


@pytest.mark.parametrize(
    ("text", "bind"),
    [("127.0.0.1:80", Bind(Kind.TCP, ("127.0.0.1", 80))), ("tcp:[::1]:80", Bind(Kind.TCP, ("::1", 80))),
     ("udp::69", Bind(Kind.UDP, ("", 69))), ("unix:/run/x", Bind(Kind.UNIX, path="/run/x")),
     ("unix:@x", Bind(Kind.UNIX, path="@x")), ("fd:3", Bind(Kind.FD, fd=3)), ("systemd", Bind(Kind.SYSTEMD))],
)  # fmt: skip
def test_what_to_listen_on_is_parsed(text: str, bind: Bind) -> None:
    assert Bind.parse(text) == bind


@pytest.mark.parametrize("text", ["", "host", "unix:", "fd:x", "udp:1.2.3.4", "tcp:1.2.3.4:99999"])
def test_malformed_addresses_are_refused(text: str) -> None:
    with pytest.raises(AddressError):
        Bind.parse(text)


def opened(*texts: str, **options: Any) -> binding.Sockets:
    given = {"workers": 2, "backlog": 10, "reuse_port": False, "udp": Sharing.EACH, "broadcast": False, **options}
    return open_sockets([Bind.parse(text) for text in texts], **given)


def test_every_seat_has_sockets_on_the_same_port_and_they_come_and_go() -> None:
    sockets = opened("udp:127.0.0.1:0", workers=3)
    try:
        ports = {sock.getsockname() for seat in sockets.seats for sock in seat}
        assert len(sockets.seats) == 3
        assert len(ports) == 1
        sockets.resize(4)
        assert len(sockets.seats) == 4
        gone = sockets.seats[3][0]
        sockets.resize(1)
        assert gone.fileno() == -1
        assert sockets.addresses == [ports.pop()]
    finally:
        sockets.close()


@pytest.mark.skipif(sys.platform != "linux", reason="spreads UDP by SO_REUSEPORT")
def test_a_port_of_udp_is_alone_until_there_is_a_second_seat() -> None:
    sockets = opened("udp:127.0.0.1:0", workers=1)
    try:
        (address,) = sockets.addresses
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with pytest.raises(OSError, match="in use"):
                other.bind(address)
        sockets.resize(2)
        with pytest.raises(OSError, match="another program uses that port"):
            opened(f"udp:127.0.0.1:{address[1]}", workers=2)
        for _ in range(64):  # flows, half of which fall to each seat
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(b"x", address)
        for (sock,) in sockets.seats:
            assert select.select([sock], [], [], 5)[0]
    finally:
        sockets.close()


def test_every_seat_may_broadcast_when_the_first_may() -> None:
    sockets = opened("udp:127.0.0.1:0", broadcast=True, workers=2 if sys.platform == "linux" else 1)
    try:
        assert all(sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST) for sock in sockets.all)
    finally:
        sockets.close()


def test_an_empty_host_is_ipv4_and_ipv6_on_one_port() -> None:
    for kind in ("udp", "tcp"):
        sockets = opened(f"{kind}::0")
        try:
            assert len({address[1] for address in sockets.addresses}) == 1
            assert {sock.family for sock in sockets.all} <= {socket.AF_INET, socket.AF_INET6}
        finally:
            sockets.close()


def test_one_address_that_fails_leaves_no_socket_open(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no address of this host"):
        opened("127.0.0.1:0", f"unix:{tmp_path}/x", "udp:192.0.2.1:1")
    assert not (tmp_path / "x").exists()


def test_a_descriptor_is_taken_over_and_no_program_that_is_started_inherits_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        address = given.getsockname()
        fd = given.detach()
    os.set_inheritable(fd, True)
    with pytest.raises(ValueError, match="twice"):
        opened(f"fd:{fd}", f"fd:{fd}")
    sockets = opened(f"fd:{fd}")
    assert sockets.addresses == [address]
    assert not os.get_inheritable(fd)
    sockets.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_udp_for_each_worker_is_an_error_where_the_kernel_does_not_spread_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(OSError, match="does not spread datagrams"):
        opened("udp:127.0.0.1:0")
    sockets = opened("udp:127.0.0.1:0", workers=1)
    with pytest.raises(OSError, match="does not spread datagrams"):
        sockets.resize(2)
    sockets.close()


def test_a_single_port_is_an_error_where_nothing_can_be_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    board = Board(["requests"])
    with pytest.raises(OSError, match="needs Linux"):
        Inbox([], board, 0, bytes(16))
    board.close()


def test_a_system_without_fork_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fork")
    with pytest.raises(OSError, match="fork"):
        workers.run(main, workers=2, bind=["127.0.0.1:0"])


def test_a_thread_that_is_not_the_main_one_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(workers.run, main, workers=1, pid_file=str(path))
        with pytest.raises(RuntimeError, match="in the main thread"):
            running.result()
    assert not path.exists()


def test_recycling_by_memory_says_where_it_is_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(OSError, match="only Linux"):
        workers.run(main, workers=2, recycle=workers.Recycle(memory=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"workers": 0}, "workers"), ({"workers": 257}, "at most 256"), ({"grace": -1}, "grace"),
     ({"heartbeat": 0}, "heartbeat"), ({"boot_timeout": 0}, "boot_timeout"), ({"loop": "x"}, "loop"),
     ({"counters": ["age"]}, "of its own"), ({"gauges": ["started_total"]}, "of its own"),
     ({"udp": "some"}, "some"), ({"counters": ["a b"]}, "counters"), ({"counters": ["a", "a"]}, "different"),
     ({"counters": [f"c{n}" for n in range(31)]}, "at most 30"), ({"backlog": 0}, "backlog"),
     ({"recycle": workers.Recycle(connections=1), "counters": []}, "recycle.connections")],
)  # fmt: skip
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        workers.run(main, **options)
    with pytest.raises(ValueError, match="module:function"):
        workers.run("module", workers=1)
    with pytest.raises(TypeError, match="main"):
        workers.run(None, workers=1)  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize("options", [{"age": 0}, {"connections": 0}, {"memory": -1}, {"jitter": 2}])
def test_limits_of_recycling_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        workers.Recycle(**options)


@pytest.mark.parametrize("jitter", [0.0, 0.5])
def test_workers_of_one_age_are_recycled_one_after_the_other_within_the_jitter(jitter: float) -> None:
    fleet, board = Fleet(20), Board([])
    recycler = Recycler(workers.Recycle(age=100, jitter=jitter), random.Random(7))
    for pid in range(1, 21):
        recycler.started(fleet.spawned(pid, pid - 1, 1, 0.0))
        fleet.ready(pid, 0.0)
    ages: dict[int, int] = {}
    for now in range(200):
        for pid, reason in recycler.due(fleet, board, now):
            ages.setdefault(pid, now)
            assert reason == f"it is {now} s old"
    board.close()
    assert sorted(ages) == list(range(1, 21))
    if jitter:
        assert 100 <= min(ages.values()) < 110
        assert 140 < max(ages.values()) <= 151
        assert len(set(ages.values())) > 10
    else:
        assert set(ages.values()) == {100}


def test_the_table_is_shared_with_a_child() -> None:
    board = Board(["accepted", "active"])
    try:
        row = board.free_row()
        row.clear(77, 1.0)
        pid = os.fork()
        if not pid:
            row.write_beat(5.0)
            row.write_counters({"accepted": 3, "unknown": 9})
            board.write_owner(2, 77)
            os._exit(0)
        os.waitpid(pid, 0)
        assert row.beat == 5.0
        assert row.counters() == {"accepted": 3, "active": 0}
        assert board.owner(2) == 77
        assert board.row_of(77) is row
        assert board.free_row() is not row
        row.clear(0, 0.0)
        assert board.row_of(77) is None
    finally:
        board.close()


def test_a_row_keeps_the_columns_of_the_program_that_began_it() -> None:
    board = Board(["accepted", "active"])
    row = board.free_row()
    row.clear(77, 1.0)
    row.write_counters({"accepted": 3, "active": 2})
    again = Board(["requests", "accepted"], os.dup(board.fd))  # the next program
    try:
        adopted = again.row_of(77)
        assert adopted is not None
        adopted.rename(board.names_of(77))
        assert adopted.counters() == {"accepted": 3, "active": 2}
        fleet = Fleet(1)
        fleet.spawned(77, 0, 1, 0.0)
        report = Report.of(fleet, again, {"requests": 5, "accepted": 1}, [], [], 2.0)
        assert report.totals == {"requests": 5, "accepted": 4}
        assert 'asyncnet_worker_requests{seat="0",pid="77"} 0' in report.metrics()
        adopted.clear(78, 2.0)
        assert adopted.counters() == {"requests": 0, "accepted": 0}
    finally:
        again.close()
        board.close()


def test_a_listener_rests_when_there_is_no_descriptor_for_a_visitor(tmp_path: Path) -> None:
    admin = Admin(None, str(tmp_path / "socket"))
    (listener,) = admin.listeners
    with selectors.DefaultSelector() as selector, contextlib.closing(admin):
        admin.open(selector)
        with socket.socket(socket.AF_UNIX) as visitor:
            visitor.connect(str(tmp_path / "socket"))
            ((key, mask),) = selector.select(5)
            full = OSError(errno.EMFILE, "Too many open files")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(socket.socket, "accept", Mock(side_effect=full))
                key.data(mask)
            assert not selector.get_map()
            now = time.monotonic()
            assert admin.wake_at(now) < now + 60
            admin.expire(now + 60)
            assert [key.fileobj for key in selector.get_map().values()] == [listener]
            ((key, mask),) = selector.select(5)
            key.data(mask)
            assert len(selector.get_map()) == 2


def test_a_worker_that_leaves_its_seat_to_nobody_is_waited_for_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(masters, "send_signal", lambda pid, number: told.append(pid))
    master = bare_master(2)
    try:
        for pid, seat in ((101, 0), (102, 1), (103, 0)):
            master.fleet.spawned(pid, seat, 1, float(pid))
            master.fleet.ready(pid, float(pid))
        master.board.write_owner(0, 101)
        master.board.write_owner(1, 102)
        for pid in (101, 102):
            master.fleet.members[pid].state = State.DRAINING
            master._do(Drain(pid))
        assert told == [101, 102]
        assert master.board.owner(0) == 103
        assert master.board.owner(1) == 0
    finally:
        master._close()
        master.board.close()


@pytest.mark.skipif(sys.platform != "linux", reason="spreads UDP by SO_REUSEPORT")
def test_a_seat_that_is_wanted_again_at_once_keeps_its_socket() -> None:
    master = bare_master(2)
    master.sockets = opened("udp:127.0.0.1:0", workers=2)
    try:
        before = master.sockets.all
        for number in (signal.SIGTTOU, signal.SIGTTIN):
            master._on_signal(number)
        assert master.sockets.all == before  # which the worker of the seat has, too
        assert master.fleet.size == 2
    finally:
        master._close()
        master.board.close()


class Transfers:
    """A listener on which transfers run, or did."""

    def __init__(self, *peers: Address) -> None:
        self.steer: Callable[[bytes, Address], bool] | None = None
        self.peers = list(peers)

    def serves(self, data: bytes, peer: Address) -> bool:
        return peer in self.peers

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def inject(self, data: bytes, peer: Address) -> None:
        self.peers.append(peer)


@pytest.mark.skipif(sys.platform != "linux", reason="abstract names of Unix sockets")
def test_a_seat_is_handed_over_without_the_peers_of_workers_that_have_ended() -> None:
    board = Board([])
    secret = os.urandom(16)

    def inbox(pid: int, *peers: Address) -> Inbox:
        board.free_row().clear(pid, 0.0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "getpid", lambda: pid)
            return Inbox([Transfers(*peers)], board, 0, secret)

    async def hand_on() -> dict[Address, int]:
        with inbox(101, ("127.0.0.1", 1)) as first, inbox(102, ("127.0.0.1", 2)) as second, inbox(103) as third:
            for giving, pid in ((first, 102), (second, 103)):
                board.write_owner(0, pid)
                giving.hand_over()
                await {102: second, 103: third}[pid].complete.wait()
                row = board.row_of(101)
                if row is not None:
                    row.clear(0, 0.0)
            return third._elsewhere[0]

    assert asyncio.run(hand_on()) == {("127.0.0.1", 2): 102}
    board.close()


class Unwritable(io.StringIO):
    """A log on a full disk, or whose reader is gone."""

    def flush(self) -> None:
        raise BrokenPipeError


def test_a_log_that_nobody_takes_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (Unwritable(), closed, None):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        flush_streams()


def test_what_a_worker_says_ends_no_master() -> None:
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        line = Line(here)
        for text in (b"[" * 30000, b"\xff", b"7", b'{"error": 7}', b'{"error": "why", "ready": true}'):
            there.sendall(text + b"\n")
        assert any(line.read(7) for _ in range(10))
        assert line.error == "why"
        assert not line.has_ended


def test_the_first_process_of_a_container_reaps_orphans() -> None:
    if not (pid := os.fork()):  # whose children are all of this test
        with contextlib.suppress(BaseException):
            master = bare_master()
            monkey = pytest.MonkeyPatch()
            monkey.setattr(os, "getpid", lambda: 1)
            pids = []
            for status in (0, 3):
                pids.append(os.fork())
                if not pids[-1]:
                    os._exit(status)
                os.waitid(os.P_PID, pids[-1], os.WEXITED | os.WNOWAIT)
            master.fleet.spawned(pids[1], 0, 1, 0.0)
            here, there = socket.socketpair()
            there.close()
            master.lines[pids[1]] = Line(here)
            master._listen(pids[1], master.lines[pids[1]])
            master._reap()
            assert not master.fleet.members
            assert "status 3" in str(master.fleet.last_error)
            with pytest.raises(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_pid_file_is_locked_as_long_as_its_process_lives(tmp_path: Path) -> None:
    path = str(tmp_path / "pid")
    file = PidFile(path)
    assert read_pid(path) == os.getpid()
    with pytest.raises(OSError, match="belongs to the process"):
        PidFile(path)
    os.close(file.fd)
    with pytest.raises(ValueError, match="no master runs"):
        read_pid(path)
    again = PidFile(path)
    again.remove()
    assert not os.path.exists(path)
    Path(path).write_text("123\n99\n")  # shorter than the number before it, which is not cut off yet
    with pytest.raises(ValueError, match="the process 123 that"):
        read_pid(path)
    Path(path).write_text("hello")
    with pytest.raises(ValueError, match="is no pid file"):
        read_pid(path)


def test_a_pid_file_that_ends_with_its_master_while_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "pid")
    before = PidFile(path)
    flock, calls = fcntl.flock, iter([True])

    def lock(fd: int, how: int) -> None:
        if next(calls, False):
            before.remove()
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", lock)
    file = PidFile(path)
    assert read_pid(path) == os.getpid()
    file.remove()


def test_somebody_who_looks_at_a_pid_file_hinders_no_master(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pid"
    path.write_text("1\n")
    with path.open() as looker:
        fcntl.flock(looker, fcntl.LOCK_SH)
        monkeypatch.setattr("asyncnet.workers.pidfile.time.sleep", lambda seconds: fcntl.flock(looker, fcntl.LOCK_UN))
        file = PidFile(str(path))
    assert read_pid(str(path)) == os.getpid()
    file.remove()

"""Every engine serves the same handlers in the same way; the clients are plain blocking sockets."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from asyncnet import compat
from asyncnet.errors import EngineError, MissingExtraError

RUNNER = Path(__file__).with_name("engine_server.py")
NAMES = [name for name, engine in compat.ENGINES.items() if engine.unavailable() is None]
ON_ASYNCIO = ("asyncio", "uvloop", "asyncnet")
BACKLOG = 77
"""Nobody's default."""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the servers are stopped by SIGTERM")


@attrs.define
class Running:
    engine: str
    process: subprocess.Popen[str]
    port: int
    errors: Path
    output: str = ""
    connections: int = 0

    def connect(self, command: str = "") -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        self.connections += 1
        if command:
            sock.sendall(command.encode() + b"\n")
        return sock

    def ask(self, command: str, data: bytes = b"") -> bytes:
        """Send a command and `data`, end the input, and return everything that comes back."""
        with self.connect(command) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            return receive_all(sock)

    def stats(self) -> dict[str, int]:
        self.process.send_signal(signal.SIGUSR2)
        assert self.process.stdout is not None
        while not (line := self.process.stdout.readline()).startswith("stats "):
            assert line, self.log()
            self.output += line
        answer: dict[str, int] = json.loads(line.removeprefix("stats "))
        return answer

    def settled(self) -> dict[str, int]:
        """Return the counters when everybody who has connected was served, also those who have gone since."""

        def is_settled() -> bool:
            stats = self.stats()
            # Beyond Linux, a connection that is reset early may never be accepted.
            all_accepted = stats["accepted"] >= self.connections or sys.platform != "linux"
            return all_accepted and not stats["active"]

        wait_until(is_settled, "everybody who has connected is served")
        return self.stats()

    def report(self) -> str:
        """Return the next line that a handler reports."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def log(self) -> str:
        return self.errors.read_text()

    def stop(self) -> list[str]:
        """Stop the server; return the lines that it printed after the port."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> list[str]:
        """Wait until the server has ended; return the lines that it printed after the port."""
        self.output += self.process.communicate(timeout=20)[0]
        assert self.process.returncode == 0, self.log()
        # asyncio drops a connection that it accepts in the very turn in which its server is closed.
        assert self.engine == "asyncio" or "ResourceWarning" not in self.log()
        assert "never awaited" not in self.log()
        return self.output.splitlines()


@contextmanager
def running(engine: str, directory: Path, *options: str) -> Iterator[Running]:
    errors = directory / f"{engine}.log"
    with errors.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-W", "default::ResourceWarning", RUNNER, engine, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, errors.read_text()
            yield Running(engine, process, int(line), errors)
        finally:
            process.kill()


@pytest.fixture(params=NAMES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module", params=NAMES)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server per engine that serves all tests, so each also shows that those before it left nothing behind."""
    with running(request.param, tmp_path_factory.mktemp("engine"), "--backlog", str(BACKLOG)) as found:
        yield found
        found.stop()


def receive_all(sock: socket.socket) -> bytes:
    blocks = []
    while block := sock.recv(1 << 20):
        blocks.append(block)
    return b"".join(blocks)


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        block = sock.recv(size - len(data))
        assert block, f"closed after {len(data)} of {size} bytes"
        data += block
    return data


def reset(sock: socket.socket) -> None:
    """Close by a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.01)


@pytest.mark.parametrize("size", [0, 1, 1000, 65535, 65536, 65537, 10 << 20])
def test_what_is_sent_comes_back(server: Running, size: int) -> None:
    data = os.urandom(size)
    with server.connect("echo") as sock:

        def send() -> None:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        received = receive_all(sock)
        sender.join()
    assert received == data


def test_messages_go_to_and_fro_on_one_connection(server: Running) -> None:
    with server.connect("echo") as sock:
        for n in range(200):
            message = b"%d" % n * (n + 1)
            sock.sendall(message)
            assert receive_exactly(sock, len(message)) == message


def test_two_hundred_clients_are_served_at_once(server: Running) -> None:
    clients = [server.connect("echo") for _ in range(200)]
    try:
        for _ in range(3):
            for n, sock in enumerate(clients):
                sock.sendall(b"client %d" % n)
            for n, sock in enumerate(clients):
                assert receive_exactly(sock, len(b"client %d" % n)) == b"client %d" % n
    finally:
        for sock in clients:
            sock.close()


def test_a_busy_peer_does_not_starve_the_others(server: Running) -> None:
    with server.connect("echo") as busy:
        data = b"x" * (1 << 20)
        going = True

        def send() -> None:
            while going:
                busy.sendall(data)
            busy.shutdown(socket.SHUT_WR)

        threads = [threading.Thread(target=send), threading.Thread(target=receive_all, args=(busy,))]
        for thread in threads:
            thread.start()
        try:
            for n in range(20):
                assert server.ask("echo", b"%d" % n) == b"%d" % n
        finally:
            going = False
            for thread in threads:
                thread.join()


def test_a_slow_reader_gets_everything_and_holds_up_nobody(server: Running) -> None:
    with server.connect("flood") as slow:
        assert receive_exactly(slow, 1) == b"\0"
        assert server.ask("echo", b"meanwhile") == b"meanwhile"
        rest = receive_all(slow)
    assert b"\0" + rest == b"".join(bytes([n]) * 65536 for n in range(64))


def test_a_client_that_ends_its_input_still_gets_its_answer(server: Running) -> None:
    assert server.ask("total", b"x" * 200_000) == b"200000 bytes"


def test_resets_before_the_first_byte_and_within_a_message_leave_nothing_behind(server: Running) -> None:
    failed = server.settled()["failed"]
    for _ in range(20):
        reset(server.connect())
        reset(server.connect("echo"))
        sock = server.connect("echo")
        sock.sendall(b"x" * 1000)
        receive_exactly(sock, 10)
        reset(sock)
        assert server.ask("echo", b"still there") == b"still there"
    assert server.settled()["failed"] == failed


def test_what_another_host_refused_is_an_error_of_the_handler(server: Running) -> None:
    before = server.settled()
    assert server.ask("elsewhere") == b""
    wait_until(lambda: server.stats()["failed"] == before["failed"] + 1, "the failure is counted")
    assert server.stats()["disconnected"] == before["disconnected"]


def test_a_handler_that_raises_is_logged_with_its_peer_and_stops_nothing(server: Running) -> None:
    before = server.settled()
    with server.connect("fail") as sock:
        port = sock.getsockname()[1]
        assert receive_all(sock) == b""
    wait_until(lambda: server.stats()["failed"] == before["failed"] + 1, "the failure is counted")
    assert "on purpose" in server.log()
    assert f"127.0.0.1:{port}" in server.log()
    assert server.ask("echo", b"next") == b"next"


def test_reading_means_what_it_means_in_asyncio(server: Running) -> None:
    long_line = b"x" * 70_000 + b"\n"
    data = b"one\n4567" + b"until--" + long_line + b"two\n" + b"a\n\nb\n" + b"rest"
    assert json.loads(server.ask("parse", data)) == [
        "b'one\\n'",
        "b'4567'",
        "b''",
        "ValueError: readexactly size can not be less than zero",
        "b'until--'",
        "ValueError: Separator should be at least one-byte string",
        "b''",
        "ValueError: Separator is found, but chunk is longer than limit",
        "b'two\\n'",
        "line b'a\\n'",
        "line b'\\n'",
        "line b'b\\n'",
        "incomplete b'rest' 100",
        "b''",
        "incomplete b'' None",
        "b''",
        "True",
    ]


def usual_buffers() -> list[int]:
    """Return what the system gives an accepted connection that nobody has meddled with."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as sock,
    ):
        return [sock.getsockopt(socket.SOL_SOCKET, name) for name in (socket.SO_SNDBUF, socket.SO_RCVBUF)]


def test_the_writer_tells_who_is_at_both_ends(server: Running) -> None:
    with server.connect("info") as sock:
        facts = json.loads(receive_all(sock))
        assert facts == {
            "peername": list(sock.getsockname()),
            "sockname": ["127.0.0.1", server.port],
            "nodelay": True,
            "buffers": usual_buffers(),
            "other": "default",
            "eof": True,
            "closing": False,
        }


@pytest.mark.skipif(shutil.which("ss") is None, reason="asks ss of iproute2")
def test_the_backlog_reaches_the_system(server: Running) -> None:
    assert server.ask("echo", b"it listens") == b"it listens"
    command = ["ss", "--no-header", "--listening", "--tcp", "--numeric", f"sport = :{server.port}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    state, _, backlog, *_ = done.stdout.split()
    assert (state, backlog) == ("LISTEN", str(BACKLOG))


def test_a_handler_sleeps_and_waits_for_sockets_of_its_own_on_every_engine(server: Running) -> None:
    assert server.ask("nap") == b"rested"
    assert server.ask("upstream") == b"from upstream"


def test_a_timeout_ends_a_read_and_the_connection_goes_on(server: Running) -> None:
    with server.connect("patient") as sock:
        assert receive_exactly(sock, 10) == b"timed out\n"
        sock.sendall(b"go\n")
        assert receive_all(sock) == b"inner\nouter\nquick\ngot b'go\\n'\n"


def test_a_timeout_ends_a_write_that_the_peer_does_not_take(server: Running) -> None:
    with server.connect("impatient") as sock:
        assert server.report() == "the write timed out"
        receive_all(sock)


def test_a_handler_starts_others_waits_for_them_and_cancels_them(server: Running) -> None:
    assert server.ask("spawning", b"line\n") == b"7 boom cancelled line\n"


def test_what_a_spawned_task_raises_is_logged_if_nobody_waits_for_it(server: Running) -> None:
    server.ask("abandoning")
    wait_until(lambda: "nobody waited" in server.log(), "the error is in the log")


def test_what_a_handler_spawned_ends_with_its_server(engine: str, tmp_path: Path) -> None:
    with running(engine, tmp_path, "--grace", "0.1") as server:
        with server.connect("outlived") as sock:
            assert receive_all(sock) == b"handler is done"
            assert server.stop()[:-1] == ["cleaned up"]


def test_awaiting_what_belongs_to_asyncio_is_refused_by_name_elsewhere(server: Running) -> None:
    lines = server.ask("foreign").decode().splitlines()
    if server.engine in ON_ASYNCIO:
        assert lines == ["ran"] * 4
        return
    assert len(lines) == 4
    for line in lines:
        assert line.startswith("refused: the handler awaited ")
        assert "asyncio, uvloop, asyncnet" in line
    assert "asyncio.tasks.sleep" in lines[0]
    assert "asyncio.sleep(0)" in lines[1]
    assert "asyncio.taskgroups.TaskGroup.__aenter__" in lines[2]
    assert "asyncio.timeouts.Timeout.__aenter__" in lines[3]


def test_a_foreign_await_that_nobody_catches_ends_its_connection_only(server: Running) -> None:
    answer = server.ask("uncaught")
    if server.engine in ON_ASYNCIO:
        assert answer == b"ran\n"
    else:
        assert answer == b""
        assert "ForeignAwaitError" in server.log()
    assert server.ask("echo", b"next") == b"next"


def test_other_signals_stop_nothing(server: Running) -> None:
    for _ in range(3):
        server.process.send_signal(signal.SIGUSR1)
        assert server.ask("echo", b"still there") == b"still there"


@pytest.mark.parametrize("wait", ["wait_for_bytes", "wait_for_time"])
def test_stopping_ends_handlers_that_wait_and_lets_them_clean_up(engine: str, wait: str, tmp_path: Path) -> None:
    with running(engine, tmp_path, "--grace", "0.1") as server:
        waiting = [server.connect(wait) for _ in range(3)]
        try:
            for sock in waiting:
                assert receive_exactly(sock, 7) == b"waiting"
            *reports, counted = server.stop()
            for sock in waiting:
                assert receive_all(sock) == b""
        finally:
            for sock in waiting:
                sock.close()
    assert reports == ["cleaned up"] * 3
    stats = json.loads(counted)
    assert (stats["accepted"], stats["active"], stats["failed"]) == (3, 0, 0)


def test_stopping_refuses_new_connections_and_lets_handlers_finish(engine: str, tmp_path: Path) -> None:
    with running(engine, tmp_path, "--serve", "--grace", "30") as server:
        with server.connect("echo") as sock:
            sock.sendall(b"before")
            assert receive_exactly(sock, 6) == b"before"
            server.process.send_signal(signal.SIGINT)

            def refused() -> bool:
                try:
                    with server.connect():
                        return False
                except ConnectionError:
                    return True

            wait_until(refused, "new connections are refused")
            sock.sendall(b"after")
            assert receive_exactly(sock, 5) == b"after"
        assert server.wait() == ["restored"]


def test_stopping_under_load_ends_every_conversation_without_a_failure(engine: str, tmp_path: Path) -> None:
    answered = [0] * 20
    with running(engine, tmp_path, "--grace", "0.2") as server:

        def talk(n: int) -> None:
            message = b"%d" % n * 500
            try:
                with server.connect("echo") as sock:
                    while True:
                        sock.sendall(message)
                        received = b""
                        while len(received) < len(message):
                            if not (block := sock.recv(len(message))):
                                return
                            received += block
                        assert received == message
                        answered[n] += 1
            except ConnectionError:  # cut off while it was sending
                pass

        threads = [threading.Thread(target=talk, args=(n,)) for n in range(len(answered))]
        for thread in threads:
            thread.start()
        wait_until(lambda: all(answered), "every client is served")
        *_, counted = server.stop()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
    stats = json.loads(counted)
    assert (stats["accepted"], stats["active"], stats["failed"]) == (20, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of descriptors differ")
def test_running_out_of_descriptors_ends_nothing(engine: str, tmp_path: Path) -> None:
    with running(engine, tmp_path, "--nofile", "40", "--grace", "0.1") as server:
        first = server.connect("echo")
        others = [server.connect() for _ in range(60)]
        first.sendall(b"open")
        assert receive_exactly(first, 4) == b"open"

        def rests() -> bool:
            before = cpu_seconds(server.process.pid)
            time.sleep(0.3)
            return cpu_seconds(server.process.pid) - before < 0.2

        # As long as there are none, the server pauses: it does not spin, unless that is its nature.
        if engine != "polling":
            wait_until(rests, "the server pauses instead of spinning")
        for sock in others:
            sock.close()

        def served() -> bool:
            try:
                return server.ask("echo", b"again") == b"again"
            except OSError:  # also that it is not connected any more, which is no ConnectionError
                return False

        wait_until(served, "clients are served again")
        first.close()
        server.stop()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# In this process.


async def hello(reader: Any, writer: Any) -> None:
    writer.write(b"hello")


class Greeter:
    async def __call__(self, reader: Any, writer: Any) -> None:
        writer.write(b"hello")

    async def method(self, reader: Any, writer: Any) -> None:
        writer.write(b"hello")


async def greet(word: bytes, reader: Any, writer: Any) -> None:
    writer.write(word)


@contextmanager
def in_thread(server: compat.Server) -> Iterator[None]:
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield
    finally:
        server.stop()
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    "handler",
    [hello, Greeter(), Greeter().method, functools.partial(greet, b"hello"), functools.partial(Greeter())],
)
def test_anything_that_is_a_coroutine_function_may_be_the_handler(handler: compat.Handler) -> None:
    server = compat.create_server(handler, ("127.0.0.1", 0), engine="thread")
    with in_thread(server), socket.create_connection(server.address[:2], timeout=10) as sock:
        assert receive_all(sock) == b"hello"


@pytest.mark.parametrize("handler", [lambda reader, writer: None, Greeter, print, None])
def test_a_handler_that_is_no_coroutine_function_is_refused(handler: Any) -> None:
    with pytest.raises(TypeError, match="coroutine function"):
        compat.create_server(handler, ("127.0.0.1", 0), engine="thread")


def test_an_unknown_engine_is_refused_with_the_names_of_all() -> None:
    names = "polling, select, poll, epoll, epoll-et, thread, thread-pool, process, prefork, gevent, asyncio, uvloop, "
    with pytest.raises(EngineError, match=f"'warp'; the engines are {names}asyncnet"):
        compat.create_server(hello, ("127.0.0.1", 0), engine="warp")


def test_an_engine_that_cannot_run_here_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("select.epoll", raising=False)
    assert compat.ENGINES["epoll"].unavailable() == "this system has no select.epoll"
    with pytest.raises(EngineError, match=r"'epoll' cannot run here: this system has no select\.epoll"):
        compat.create_server(hello, ("127.0.0.1", 0), engine="epoll")


def test_gevent_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncnet.compat.engines.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'The gevent engine needs .*pip install "asyncnet\[compat\]"'):
        compat.create_server(hello, ("127.0.0.1", 0), engine="gevent")


def test_engines_describe_themselves_in_a_line() -> None:
    for name, engine in compat.ENGINES.items():
        assert engine.name == name
        assert engine.description
        assert "\n" not in engine.description


def test_engines_tell_their_limits_in_a_line() -> None:
    for engine in compat.ENGINES.values():
        assert engine.limits
        assert "\n" not in engine.limits
    assert "descriptors up to 1023" in compat.ENGINES["select"].limits


GEVENT_SERVES = """
import select, socket, threading, time
places = [(module, name) for module, names in (
    (socket, ("socket", "create_connection", "getaddrinfo", "socketpair")),
    (select, ("select", "poll", "epoll")),
    (threading, ("Thread", "Lock", "Event", "get_ident")),
    (time, ("sleep",)),
) for name in names if hasattr(module, name)]
before = [getattr(module, name) for module, name in places]

from asyncnet import compat

async def hello(reader, writer):
    await compat.sleep(0.001)
    writer.write(b"hello")

server = compat.create_server(hello, ("127.0.0.1", 0), engine="gevent")

def ask():
    with socket.create_connection(server.address, timeout=10) as sock:
        assert sock.recv(10) == b"hello"
    server.stop()

client = threading.Thread(target=ask)
client.start()
server.run()
client.join()

import gevent.monkey
assert [getattr(module, name) for module, name in places] == before
assert socket.socket.__module__ == "socket"
assert not [name for name in ("socket", "select", "threading", "time", "os") if gevent.monkey.is_module_patched(name)]
assert server.stats.accepted == 1
"""


@pytest.mark.skipif("gevent" not in NAMES, reason="gevent is not installed")
def test_gevent_serves_and_patches_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", GEVENT_SERVES], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


def test_an_address_in_use_is_named(engine: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"cannot bind TCP 127\.0\.0\.1:{port}: another program uses that port"):
            compat.create_server(hello, ("127.0.0.1", port), engine=engine)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_an_engine_serves_ipv6_and_is_stopped_by_another_thread(engine: str, tmp_path: Path) -> None:
    with running(engine, tmp_path, "--host", "::1", "--stop-at-end") as server:
        with socket.create_connection(("::1", server.port), timeout=10) as sock:
            sock.sendall(b"echo\nover six")
            assert receive_exactly(sock, 8) == b"over six"
        assert server.process.stdin is not None
        server.process.stdin.close()
        server.process.stdin = None
        *_, counted = server.wait()
    assert json.loads(counted)["accepted"] == 1


@pytest.mark.parametrize(("port", "backlog", "grace"), [(70000, 1, 1.0), (0, 0, 1.0), (0, 1, -1.0)])
def test_numbers_out_of_range_are_refused(engine: str, port: int, backlog: int, grace: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        compat.create_server(hello, ("127.0.0.1", port), engine=engine, backlog=backlog, grace=grace)


@pytest.mark.parametrize("engine", ["polling", "select", "poll", "epoll", "epoll-et", "thread", "thread-pool"])
def test_who_is_connected_when_the_server_stops_is_served(engine: str) -> None:
    """More than are accepted at a time: the others wait in the backlog, and closing the listener would reset them."""
    asked: list[bytes] = []
    crowded: compat.Server

    async def handler(reader: Any, writer: Any) -> None:
        asked.append(await reader.read(100))
        if len(asked) == 1:
            crowded.stop()
        writer.write(asked[0])

    crowded = compat.create_server(handler, ("127.0.0.1", 0), engine=engine, backlog=200, grace=10)
    clients = [socket.create_connection(crowded.address[:2], timeout=10) for _ in range(150)]
    for client in clients:
        client.sendall(b"hello")
    with in_thread(crowded):
        for client in clients:
            with client:
                assert client.recv(100) == b"hello"


@pytest.mark.parametrize("engine", [name for name in NAMES if name != "gevent"])
def test_a_server_that_was_stopped_before_it_runs_returns_at_once(engine: str) -> None:
    server = compat.create_server(hello, ("127.0.0.1", 0), engine=engine)
    for _ in range(3):
        server.stop()
    server.run()
    server.stop()
    with pytest.raises(ConnectionError):
        socket.create_connection(server.address[:2], timeout=10)
    with pytest.raises(ConnectionError, match="create another"):
        server.run()


def test_a_server_that_never_runs_can_be_closed(engine: str) -> None:
    server = compat.create_server(hello, ("127.0.0.1", 0), engine=engine)
    server.close()
    server.close()
    with pytest.raises(ConnectionError):
        socket.create_connection(server.address[:2], timeout=10)


@pytest.mark.parametrize("engine", [name for name in NAMES if name not in ("gevent", "asyncnet")])
def test_running_inside_an_event_loop_is_refused(engine: str) -> None:
    async def main() -> None:
        server = compat.create_server(hello, ("127.0.0.1", 0), engine=engine)
        with pytest.raises(RuntimeError, match="loop"):
            server.run()

    asyncio.run(main())

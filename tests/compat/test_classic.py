"""The classic listings, each a process that is driven by sockets."""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import pytest

from asyncnet import cli, compat
from asyncnet.compat import classic
from tests.interop.peers import content, digest, start_server

ENGINES: Final = {
    "tcp-nonblocking": "polling",
    "tcp-thread": "thread",
    "tcp-process": "process",
    "tcp-select": "select",
    "tcp-poll": "poll",
    "tcp-epoll": "epoll-et",
    "tcp-gevent": "gevent",
    "coroutine": "epoll",
}
"""The classic servers, and the engine that works as each does."""

LISTINGS: Final = ("udp-client", "udp-receiver", "tftp-client", "broadcast", "tcp-client", *ENGINES)
FOLDER: Final = Path(classic.__file__).parent
LOOPBACK: Final = "127.0.0.1:0"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="not every listing runs on Windows")
every_server = pytest.mark.parametrize("name", ENGINES)


class Program:
    """A process that says ``listening on`` and stops on a signal."""

    def __init__(self, *command: str | Path) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `end`
        self.process = subprocess.Popen(
            [sys.executable, *command], stdin=subprocess.DEVNULL, stdout=self._output, stderr=subprocess.PIPE, text=True
        )
        self.address = ("", 0)

    def wait_ready(self) -> Program:
        """Read the line that tells where it listens."""
        assert self.process.stderr is not None
        assert select.select([self.process.stderr], [], [], 15)[0], "the server does not say that it listens"
        line = self.process.stderr.readline()
        assert line.startswith("listening on "), line + self.process.stderr.read()
        host, _, port = line.removeprefix("listening on ").rpartition(":")
        self.address = (host, int(port))
        return self

    def connect(self) -> socket.socket:
        """Return a connection to it."""
        return socket.create_connection(self.address, timeout=10)

    def stop(self, number: int = signal.SIGTERM) -> list[str]:
        """Send a signal, and return the lines that it printed until it ended, which it must do well."""
        self.process.send_signal(number)
        self.check_end()
        self._output.seek(0)
        return self._output.read().decode().splitlines()

    def check_end(self) -> None:
        """Wait until it has stopped, after a signal."""
        _, errors = self.process.communicate(timeout=15)
        assert (self.process.returncode, errors) == (0, "")

    def end(self) -> None:
        """Leave nothing behind."""
        self.process.kill()
        self.process.communicate()
        self._output.close()


@contextlib.contextmanager
def running(commands: Iterable[Iterable[str | Path]]) -> Iterator[list[Program]]:
    """Start servers side by side, and yield them when all are ready."""
    programs: list[Program] = []
    try:
        for command in commands:
            programs.append(Program(*command))  # noqa: PERF401  # one that started is ended whatever comes after it
        yield [program.wait_ready() for program in programs]
    finally:
        for program in programs:
            program.end()


def stop_all(programs: list[Program]) -> None:
    for program in programs:  # all are told before the first is waited for
        program.process.send_signal(signal.SIGTERM)
    for program in programs:
        program.check_end()


def listing(name: str, *arguments: str | Path) -> list[str | Path]:
    return ["-m", "asyncnet", "classic", name, *arguments]


def patched(code: str, name: str) -> list[str | Path]:
    """Return the command of a listing that starts after some code."""
    main = f"import sys\nfrom asyncnet.cli import main\nsys.exit(main(['classic', {name!r}, '--bind', {LOOPBACK!r}]))"
    return ["-c", f"{code}\n{main}"]


def run(name: str, *arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *listing(name, *arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, **options)  # type: ignore[call-overload,no-any-return]


SMALL_BUFFERS = """
{module}
listen = socket.socket.listen
def listen_with_small_buffers(self, backlog):
    self.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 131072)
    self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 131072)
    listen(self, backlog)
socket.socket.listen = listen_with_small_buffers
"""
"""Accepted sockets inherit the sizes, so that a message need not be huge to be more than the buffers hold."""


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Program]]:
    """Every classic server; they are told to stop when their tests have ended."""
    modules = {name: "from gevent import socket" if name == "tcp-gevent" else "import socket" for name in ENGINES}
    with running(patched(SMALL_BUFFERS.format(module=modules[name]), name) for name in ENGINES) as programs:
        yield dict(zip(ENGINES, programs, strict=True))
        stop_all(programs)


def answer_to(name: str, message: bytes) -> bytes:
    """What a server says to a message that arrives in one piece."""
    return b"hahaha" if name == "tcp-nonblocking" else message


def receive(client: socket.socket, size: int) -> bytes:
    """Receive so many bytes, or less at the end of the stream."""
    received = b""
    while len(received) < size and (data := client.recv(size - len(received))):
        received += data
    return received


def receive_all(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(65536), b""))


def check_exchange(name: str, client: socket.socket, message: bytes = b"a message") -> None:
    client.sendall(message)
    assert receive(client, len(answer_to(name, message))) == answer_to(name, message)


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


# The listings as files


def test_each_listing_is_a_file_of_its_own_under_80_lines_that_needs_nothing_of_the_package() -> None:
    files = {path.stem.replace("_", "-"): path for path in FOLDER.glob("*.py") if path.stem != "__init__"}
    assert set(files) == set(LISTINGS)
    for name, path in files.items():
        assert len(path.read_text().splitlines()) < 80, name
        imported = {
            word.partition(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            for word in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            )
        }  # fmt: skip
        allowed = sys.stdlib_module_names | ({"gevent"} if name == "tcp-gevent" else set())
        assert imported <= allowed, name


def test_the_help_lists_every_listing_and_each_has_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in [
        ([], LISTINGS),
        *(([name], [name, "--bind" if name == "coroutine" else "default"]) for name in LISTINGS),
    ]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["classic", *arguments, "--help"])
        assert ended.value.code == 0
        printed = capsys.readouterr().out
        assert all(word in printed for word in words)


def test_a_listing_is_imported_when_it_is_used() -> None:
    code = "import sys\nfrom asyncnet.cli import main\ntry: main(['classic', '--help'])\nexcept SystemExit: pass\n"
    code += "print([name for name in sys.modules if name.startswith(('asyncnet.compat', 'gevent', 'asyncio'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    heavy = done.stdout.splitlines()[-1]
    assert "asyncnet.compat" not in heavy
    assert "gevent" not in heavy


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["tcp-select", "--bind", "127.0.0.1:65536"], ["tcp-select", "surplus"], ["udp-client", "Hi"]],
)
def test_usage_errors_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["classic", *arguments])
    assert ended.value.code == 2
    assert "usage: asyncnet" in capsys.readouterr().err


def test_errors_that_a_user_can_mend_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        tcp_place, udp_place = (f"127.0.0.1:{sock.getsockname()[1]}" for sock in (tcp, udp))
        cases = [
            *(([name, "--bind", tcp_place], f"cannot bind TCP {tcp_place}: another") for name in ENGINES),
            (["udp-receiver", "--bind", udp_place], f"cannot bind UDP {udp_place}: another"),
            (["tcp-client", "127.0.0.1:1"], "cannot talk by TCP to 127.0.0.1:1: connection refused"),
            (["udp-client", "no-such-host.invalid:1", "x"], "does not resolve"),
            (["udp-client", "127.0.0.1:1", "x" * 70_000], "the datagram is too large"),
            (["tftp-client", "127.0.0.1:1", "x", str(tmp_path / "no" / "folder")], "No such file or directory"),
            (["tftp-client", "127.0.0.1:1"], "standard input ends before the name of a file"),
        ]
        for arguments, text in cases:
            if "tcp-gevent" in arguments:  # which would leave its loop in this process
                done = run(*arguments)
                status, errors = done.returncode, done.stderr
            else:
                status, errors = cli.main(["classic", *arguments]), capsys.readouterr().err
            assert status == 1, errors
            assert errors.startswith("asyncnet: ")
            assert text in errors
            assert errors.count("\n") == 1


# The servers


@every_server
def test_a_server_answers_several_clients(servers: dict[str, Program], name: str) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(servers[name].connect()) for _ in range(5)]
        for turn in range(3):
            for number, client in enumerate(clients):
                check_exchange(name, client, b"%d says %d" % (number, turn))


@every_server
def test_a_client_that_closes_its_half_gets_its_answer_and_the_end(servers: dict[str, Program], name: str) -> None:
    for message in (b"", b"the last words"):
        with servers[name].connect() as client:
            client.sendall(message)
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == (answer_to(name, message) if message else b"")


@every_server
def test_a_reset_ends_one_client_and_no_other(servers: dict[str, Program], name: str) -> None:
    with servers[name].connect() as neighbour:
        check_exchange(name, neighbour)
        client = servers[name].connect()
        reset(client)  # before anything was said
        client = servers[name].connect()
        check_exchange(name, client)
        reset(client)  # while the server waits
        client = servers[name].connect()
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            client.send(bytes(1 << 20))
        reset(client)  # while it answers
        check_exchange(name, neighbour)
        with servers[name].connect() as another:
            check_exchange(name, another)


@every_server
def test_nothing_of_a_big_message_is_lost_on_a_slow_reader(servers: dict[str, Program], name: str) -> None:
    message = memoryview(b"".join(b"%015d\n" % number for number in range(1 << 17)))
    with socket.socket() as client, servers[name].connect() as neighbour:
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            client.setsockopt(socket.SOL_SOCKET, option, 131072)
        client.connect(servers[name].address)
        client.setblocking(False)
        sent = 0
        while sent < len(message) and select.select([], [client], [], 0.1)[1]:  # until no buffer takes any more
            sent += client.send(message[sent:])
        assert sent < len(message) or name == "tcp-nonblocking", "the answer filled no buffer"
        check_exchange(name, neighbour)
        received, ended = bytearray(), False
        while not ended:
            if sent == len(message):
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_WR)
            readable, writable, _ = select.select([client], [client] if sent < len(message) else [], [], 10)
            assert readable or writable
            if writable:
                sent += client.send(message[sent:])
            if readable:
                data = client.recv(65536)
                received += data
                ended = not data
    if name == "tcp-nonblocking":
        assert len(received) >= len(message) // 1024 * 6
        assert received == b"hahaha" * (len(received) // 6)
    else:
        assert received == message


PARTS = """
import random, socket
class Part(socket.socket):
    def send(self, data, *flags):
        self.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return super().send(data[:random.randint(1, 4)], *flags)
socket.socket = Part
"""


def test_a_send_that_takes_a_part_only_is_continued() -> None:
    names = ["tcp-nonblocking", "tcp-select", "tcp-poll", "tcp-epoll", "coroutine"]
    with running(patched(PARTS, name) for name in names) as programs:
        for name, program in zip(names, programs, strict=True):
            with program.connect() as client:
                for turn in range(10):
                    check_exchange(name, client, b"a message, in more than %d pieces" % turn)
                client.shutdown(socket.SHUT_WR)
                assert receive_all(client) == b""


@pytest.mark.skipif(sys.platform != "linux", reason="sets the limit of another process, and counts what it has open")
@every_server
def test_a_server_outlives_a_lack_of_descriptors(servers: dict[str, Program], name: str) -> None:
    import resource

    process = servers[name].process.pid
    before = resource.prlimit(process, resource.RLIMIT_NOFILE)
    with servers[name].connect() as first:
        check_exchange(name, first)
        resource.prlimit(process, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{process}/fd")), before[1]))
        try:
            waiting = servers[name].connect()
            with contextlib.suppress(ConnectionError):
                waiting.sendall(b"is anybody there?")
            check_exchange(name, first)
        finally:
            resource.prlimit(process, resource.RLIMIT_NOFILE, before)
    with waiting, servers[name].connect() as another:
        check_exchange(name, another)
        try:
            answer = waiting.recv(100)
        except ConnectionResetError:
            answer = b""
    # A new process needs more descriptors than an accepted client does, so that server may have refused this one.
    assert answer == answer_to(name, b"is anybody there?") or (name, answer) == ("tcp-process", b"")


MANY_DESCRIPTORS = """
import os, resource
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (2048, hard))
while os.dup(0) < 1020:
    pass
"""


def test_select_refuses_a_client_whose_descriptor_it_cannot_take() -> None:
    with running([patched(MANY_DESCRIPTORS, "tcp-select")]) as (program,), contextlib.ExitStack() as stack:
        served = []
        for _ in range(10):
            client = stack.enter_context(program.connect())
            client.sendall(b"Hi")
            try:
                answer = client.recv(100)
            except ConnectionResetError:
                answer = b""
            if answer:
                served.append(client)
        assert 0 < len(served) < 5
        for client in served:
            check_exchange("tcp-select", client)
        program.stop()


def test_a_server_with_nothing_to_do_does_nothing(servers: dict[str, Program]) -> None:
    psutil = pytest.importorskip("psutil")
    with contextlib.ExitStack() as stack:
        processes = {}
        for name, server in servers.items():
            check_exchange(name, stack.enter_context(server.connect()))
            processes[name] = psutil.Process(server.process.pid)
        before = {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}
        select.select([], [], [], 0.3)  # not for anything to happen, but for nothing
        spent = {name: sum(process.cpu_times()[:2]) - before[name] for name, process in processes.items()}
    assert all(seconds < 0.1 for seconds in spent.values()), spent


@pytest.mark.parametrize(
    ("number", "names"),
    # One of those with a loop in one thread stands for all of them.
    [(signal.SIGTERM, tuple(ENGINES)), (signal.SIGINT, ("tcp-epoll", "tcp-thread", "tcp-process", "tcp-gevent"))],
    ids=["SIGTERM", "SIGINT"],
)
def test_a_signal_ends_a_server_also_when_its_clients_stay(number: int, names: tuple[str, ...]) -> None:
    with running(listing(name, "--bind", LOOPBACK) for name in names) as programs, contextlib.ExitStack() as stack:
        for name, program in zip(names, programs, strict=True):
            client = stack.enter_context(program.connect())
            check_exchange(name, client)
            host, port = client.getsockname()
            lines = program.stop(number)
            expected = f"({host!r}, {port}):a message"
            assert lines[0] == (expected if name == "tcp-nonblocking" else f"recv[({host!r}, {port})]:a message")
            assert client.recv(1) == b""
            with pytest.raises(ConnectionRefusedError):
                program.connect()


def test_the_default_is_every_address() -> None:
    with running([listing("tcp-epoll", "--bind", ":0"), listing("udp-receiver", "--bind", "0")]) as programs:
        assert [program.address[0] for program in programs] == ["0.0.0.0", "0.0.0.0"]


@pytest.fixture(scope="module")
def matches() -> Iterator[dict[str, Program]]:
    """For each classic server its handler on the engine that works alike, where there is one."""
    there = [name for name, engine in ENGINES.items() if compat.ENGINES[engine].unavailable() is None]
    script = Path(__file__).parent / "matching_server.py"
    handlers = {name: "hahaha" if name == "tcp-nonblocking" else "echo" for name in there}
    with running([script, ENGINES[name], handlers[name]] for name in there) as programs:
        yield dict(zip(there, programs, strict=True))
        stop_all(programs)


@every_server
def test_a_server_gives_the_same_bytes_as_its_engine(
    servers: dict[str, Program], matches: dict[str, Program], name: str
) -> None:
    if name not in matches:
        pytest.skip("its engine cannot run here")
    for seed in range(3):
        chance = random.Random(seed)
        # Each read is answered by "hahaha": such a message must fit one, and the next waits for the answer.
        largest = 1024 if name == "tcp-nonblocking" else 20_000
        messages = [chance.randbytes(chance.choice([1, 2, 1023, 1024, chance.randint(1, largest)])) for _ in range(10)]
        answers = []
        for program in (servers[name], matches[name]):
            with program.connect() as client:
                given = []
                for message in messages:
                    client.sendall(message)
                    given.append(receive(client, len(answer_to(name, message))))
                client.shutdown(socket.SHUT_WR)
                given.append(receive_all(client))
                answers.append(given)
        assert answers[0] == answers[1]
        assert answers[0] == [*(answer_to(name, message) for message in messages), b""]


# The other listings


def test_the_tcp_client_prints_the_whole_response(servers: dict[str, Program]) -> None:
    host, port = servers["tcp-nonblocking"].address
    assert run("tcp-client", f"{host}:{port}").stdout == "hahaha\n"
    host, port = servers["tcp-thread"].address
    text = "Grüße und Küsse " * 1000
    assert run("tcp-client", f"{host}:{port}", text).stdout == f"{text}\n"


def test_the_udp_receiver_prints_what_the_udp_client_sends() -> None:
    with running([listing("udp-receiver", "--bind", LOOPBACK)]) as (receiver,):
        host, port = receiver.address
        done = run("udp-client", f"{host}:{port}")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        for text in ("grüß dich", "x" * 2000):
            assert cli.main(["classic", "udp-client", f"{host}:{port}", text]) == 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"no \xff text", receiver.address)
            stranger.sendto(b"", receiver.address)
        # What arrived before a signal need not be read before it, so the last text is waited for.
        while b"no \\xff text\n\n" not in os.pread(receiver._output.fileno(), 10_000, 0):
            select.select([], [], [], 0.01)
        assert receiver.stop() == ["Hi", "grüß dich", "x" * 1024, r"no \xff text", ""]


@pytest.mark.skipif(sys.platform != "linux", reason="127.255.255.255 is a broadcast address on Linux only")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_broadcast_prints_every_answer_until_it_is_told_to_stop(number: int) -> None:
    with contextlib.ExitStack() as stack:
        answerers = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2)]
        port = 0
        for answerer in answerers:
            answerer.settimeout(10)
            answerer.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            answerer.bind(("127.255.255.255", port))
            port = answerer.getsockname()[1]
        speaker = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        speaker.bind(("127.0.0.1", 0))
        command = [sys.executable, *listing("broadcast", f"127.255.255.255:{port}")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            for number_of_answerer, answerer in enumerate(answerers):
                data, asker = answerer.recvfrom(100)
                assert data == b"Hi"
                speaker.sendto(b"answer %d" % number_of_answerer, ("127.0.0.1", asker[1]))
                line = process.stdout.readline()
                assert line == f"Received from {speaker.getsockname()}: answer {number_of_answerer}\n"
            process.send_signal(number)
            assert process.communicate(timeout=10) == ("", "")
            assert process.returncode == 0
        finally:
            process.kill()
            process.communicate()


def test_two_generators_take_turns() -> None:
    done = run("coroutine")
    assert done.returncode == 0
    turns = [f"{name}: turn {turn}" for turn in (1, 2, 3) for name in ("first", "second")]
    assert done.stdout.splitlines() == turns


# The TFTP client


def test_the_tftp_client_downloads_from_tftpd_hpa(tmp_path: Path) -> None:
    """Files around one block, one whose block numbers pass 65535, and one that is not there, all at once."""
    sizes = [65536 * 512 + 100, 0, 1, 511, 512, 513]
    old = tmp_path / "missing"
    old.write_text("what was there before")
    with start_server("tftpd-hpa") as server, contextlib.ExitStack() as stack:
        clients = {}
        for name in [*map(str, sizes), "missing", "gone"]:
            if name.isdigit():
                server.offer(name, content(int(name)))
            command = [sys.executable, *listing("tftp-client", "{}:{}".format(*server.address))]
            clients[name] = stack.enter_context(
                subprocess.Popen(
                    command,
                    cwd=tmp_path,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(clients[name].kill)
        results = {name: client.communicate(f"{name}\n", timeout=30) for name, client in reversed(clients.items())}
    for name in ("missing", "gone"):
        assert clients[name].returncode == 1
        assert results[name][1] == f"asyncnet: {name}: there is no such file on the server\n"
    assert old.read_text() == "what was there before"
    for size in sizes:
        output, errors = results[str(size)]
        assert (clients[str(size)].returncode, errors) == (0, "")
        # A block that was sent again, as its acknowledgement was late, is there twice.
        numbers = [number for number, _ in itertools.groupby(output.removeprefix("the name of the file: ").split())]
        assert numbers == [str(block % 65536) for block in range(1, size // 512 + 2)]
        assert digest((tmp_path / str(size)).read_bytes()) == digest(content(size))
    assert {path.name for path in tmp_path.iterdir()} == {*map(str, sizes), "missing"}


@contextlib.contextmanager
def downloading(local: Path, lost: int = 0) -> Iterator[tuple[subprocess.Popen[str], socket.socket, tuple[str, int]]]:
    """Start a download, and lose its first requests; yield its process, the server's socket, the client's address."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as port,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end,
    ):
        for sock in (port, end):
            sock.bind(("127.0.0.1", 0))
            sock.settimeout(10)
        command = [sys.executable, *listing("tftp-client", "{}:{}".format(*port.getsockname()), "grüße", local)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            for _ in range(1 + lost):
                request, client = port.recvfrom(1000)
                assert request == b"\0\1" + "grüße".encode() + b"\0octet\0"
            yield process, end, client
        finally:
            process.kill()
            process.communicate()


def exchange_block(end: socket.socket, client: tuple[str, int], block: int, data: bytes, written: int) -> None:
    """Send a block and take its acknowledgement; the client repeats the last one after a second of silence."""
    end.sendto(struct.pack("!HH", 3, block) + data, client)
    while (answer := end.recv(100)) != struct.pack("!HH", 4, block):
        assert answer == struct.pack("!HH", 4, written)


def test_the_tftp_client_writes_each_block_once_and_hears_no_strangers(tmp_path: Path) -> None:
    first, second, last = b"1" * 512, b"2" * 512, b"3" * 100
    with downloading(tmp_path / "local", lost=1) as (process, end, client):
        written = 0
        for block, data in [(1, first), (1, first), (3, b"from the future"), (2, second), (1, first)]:
            exchange_block(end, client, block, data, written)  # every block is acknowledged, also a repeated one
            written += block == written + 1
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(struct.pack("!HH", 5, 0) + b"go away\0", client)
            stranger.sendto(struct.pack("!HH", 3, 3) + b"forged", client)
        end.sendto(b"\0", client)
        exchange_block(end, client, 3, last, written)
        output, errors = process.communicate(timeout=10)
        assert (process.returncode, errors) == (0, "")
        assert output.split() == ["1", "1", "3", "2", "1", "3"]
    assert (tmp_path / "local").read_bytes() == first + second + last


def test_the_tftp_client_removes_what_an_error_cuts_off(tmp_path: Path) -> None:
    with downloading(tmp_path / "local") as (process, end, client):
        end.sendto(struct.pack("!HH", 3, 1) + bytes(512), client)
        assert end.recv(100) == struct.pack("!HH", 4, 1)
        assert len(list(tmp_path.iterdir())) == 1
        end.sendto(struct.pack("!HH", 5, 3) + b"the disk burns\0", client)
        _, errors = process.communicate(timeout=10)
        assert process.returncode == 1
        assert errors.endswith("the server says: the disk burns\n")
        assert errors.count("\n") == 1
    assert not list(tmp_path.iterdir())

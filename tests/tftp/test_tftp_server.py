"""What the server can be told: where it listens and answers from, what it serves, whom it tells."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import logging
import random
import socket
import sys
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from asyncnet.errors import LocalError, RemoteError
from asyncnet.tftp import Client, Directory, Guard, Hooks, Limits, Request, Roots, Server, Timing, serve
from asyncnet.tftp.files import BytesSink, BytesSource
from asyncnet.tftp.packets import Ack, Data, Error, OptionAck, ReadRequest, WriteRequest, decode_packet, encode_packet

CONTENT = random.Random(2).randbytes(100_000)
PATIENT = Timing(initial=30.0, floor=30.0, cap=30.0)
"""A machine that pauses must not see a packet twice."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    served = tmp_path / "served"
    served.mkdir()
    (served / "file").write_bytes(CONTENT)
    return served


@asynccontextmanager
async def client_socket(host: str = "127.0.0.1") -> AsyncIterator[socket.socket]:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        sock.settimeout(5)
        yield sock


async def answer_to(sock: socket.socket, packet: Any, address: Any) -> tuple[Any, Any]:
    sock.sendto(encode_packet(packet), address)
    data, addr = await asyncio.to_thread(sock.recvfrom, 65536)
    return decode_packet(data), addr


# Where it listens, and where it answers from.


@pytest.mark.parametrize("single_port", [False, True])
async def test_one_server_listens_on_ipv4_and_ipv6(root: Path, single_port: bool) -> None:
    async with serve(root, "", 0, single_port=single_port) as server:
        assert [address[0] for address in server.addresses] == ["0.0.0.0", "::"]
        assert len({address[1] for address in server.addresses}) == 1
        for host in ("127.0.0.1", "::1", "localhost"):
            async with Client(host, server.address[1]) as client:
                assert await client.read("file") == CONTENT


async def test_one_server_listens_on_several_addresses(root: Path) -> None:
    async with serve(root, "127.0.0.1", 0, addresses=[("127.0.0.2", 0), ("127.0.0.3", 0)]) as server:
        assert len(server.addresses) == 3
        for address in server.addresses:
            async with Client(*address[:2]) as client:
                assert await client.read("file") == CONTENT
        assert server.stats.completed == 3


@pytest.mark.parametrize("single_port", [False, True])
async def test_answers_leave_from_the_address_that_was_asked(root: Path, single_port: bool) -> None:
    async with (
        serve(root, "0.0.0.0", 0, single_port=single_port, timing=PATIENT) as server,
        client_socket() as sock,
    ):
        for host in ("127.0.0.1", "127.0.0.9"):
            answer, addr = await answer_to(sock, ReadRequest("file", "octet", ()), (host, server.address[1]))
            assert addr[0] == host
            assert (addr[1] == server.address[1]) is single_port
            assert answer == Data(1, CONTENT[:512])
            assert await answer_to(sock, Ack(1), addr) == (Data(2, CONTENT[512:1024]), addr)
            sock.sendto(encode_packet(Error(0, "enough")), addr)
        missing, addr = await answer_to(sock, ReadRequest("nothing", "octet", ()), ("127.0.0.9", server.address[1]))
        assert isinstance(missing, Error)
        assert addr[0] == "127.0.0.9"


async def test_windows_leave_from_the_address_that_was_asked(root: Path, tmp_path: Path) -> None:
    async with (
        serve(root, "0.0.0.0", 0, single_port=True) as server,
        Client("127.0.0.9", server.address[1], window_size=16) as client,
    ):
        assert await client.read("file") == CONTENT


async def test_transfers_use_the_ports_of_the_range(root: Path) -> None:
    # Two neighbouring ports that are free now, of those that no program is given by chance.
    for low in random.sample(range(20_000, 32_000, 2), 50):
        with contextlib.ExitStack() as stack:
            try:
                for port in (low, low + 1):
                    sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                    sock.bind(("127.0.0.1", port))
            except OSError:
                continue
        break
    else:
        pytest.skip("no two neighbouring ports are free")
    async with serve(root, "127.0.0.1", 0, ports=(low, low + 1), timing=PATIENT) as server:
        async with client_socket() as one, client_socket() as two, client_socket() as three:
            used = set()
            for sock in (one, two):
                _, addr = await answer_to(sock, ReadRequest("file", "octet", ()), server.address)
                used.add(addr[1])
            assert used == {low, low + 1}
            three.sendto(encode_packet(ReadRequest("file", "octet", ())), server.address)
            while server.stats.requests < 3 or server.stats.failed < 1:
                await asyncio.sleep(0.001)
            for sock, port in ((one, low), (two, low), (one, low + 1), (two, low + 1)):
                sock.sendto(encode_packet(Error(0, "enough")), ("127.0.0.1", port))


async def upload(sock: socket.socket, name: str, server: Server) -> Any:
    """Send a short file, and return where the last ACK came from."""
    answer, addr = await answer_to(sock, WriteRequest(name, "octet", ()), server.address)
    assert answer == Ack(0)
    assert await answer_to(sock, Data(1, b"content"), addr) == (Ack(1), addr)
    return addr


async def send_for_ever(sock: socket.socket, packet: Any) -> None:
    """Send until a refusal, which is an error of what is sent next, ends it."""
    async with asyncio.timeout(5):
        while True:
            sock.send(encode_packet(packet))
            await asyncio.sleep(0.001)


async def test_the_last_ack_of_an_upload_comes_again_as_long_as_there_is_room(root: Path) -> None:
    guard = Guard(max_sessions=2)
    async with (
        serve(root, "127.0.0.1", 0, write="create", guard=guard) as server,
        client_socket() as one,
        client_socket() as two,
        client_socket() as three,
    ):
        addresses = [await upload(sock, f"new{sock.fileno()}", server) for sock in (one, two, three)]
        assert server.stats.active == 0
        for sock, addr in ((two, addresses[1]), (three, addresses[2])):
            assert await answer_to(sock, Data(1, b"content"), addr) == (Ack(1), addr)
        one.connect(addresses[0])  # the oldest has made room
        with pytest.raises(ConnectionRefusedError):
            await send_for_ever(one, Data(1, b"content"))


async def test_a_single_port_repeats_the_last_ack_and_hears_a_new_request(root: Path) -> None:
    async with (
        serve(root, "127.0.0.1", 0, write="create", single_port=True) as server,
        client_socket() as sock,
    ):
        addr = await upload(sock, "one", server)
        repeated, request = Data(1, b"content"), WriteRequest("two", "octet", ())
        assert await answer_to(sock, repeated, addr) == (Ack(1), addr)
        (listener,) = server.listeners
        assert listener.serves(encode_packet(repeated), sock.getsockname())
        assert not listener.serves(encode_packet(request), sock.getsockname())
        await upload(sock, "two", server)


async def test_a_transfer_takes_the_port_of_one_that_only_repeats_its_last_ack(root: Path) -> None:
    async with client_socket() as sock:
        port = sock.getsockname()[1]
    async with (
        serve(root, "127.0.0.1", 0, write="create", ports=(port, port)) as server,
        client_socket() as one,
        client_socket() as two,
    ):
        assert await upload(one, "one", server) == await upload(two, "two", server) == ("127.0.0.1", port)


async def test_requests_that_no_port_is_left_for_leave_nothing_behind() -> None:
    kept: weakref.WeakSet[BytesSource] = weakref.WeakSet()

    class Remembered:
        def open_read(self, request: Request) -> BytesSource:
            source = BytesSource(b"content")
            kept.add(source)
            return source

        def open_write(self, request: Request) -> BytesSink:
            raise LocalError(2, "read-only")

    async with client_socket() as taken, client_socket() as sock:
        port = taken.getsockname()[1]
        async with serve(Remembered(), "127.0.0.1", 0, ports=(port, port)) as server:
            for number in range(5):
                sock.sendto(encode_packet(ReadRequest(f"name{number}", "octet", ())), server.address)
                while server.stats.failed <= number:
                    await asyncio.sleep(0.001)
            async with asyncio.timeout(5):
                while kept:
                    await asyncio.sleep(0)
                    gc.collect()
            assert server.stats.active == 0


async def test_two_servers_share_a_port(root: Path) -> None:
    async with serve(root, "127.0.0.1", 0, reuse_port=True) as one:
        async with serve(root, *one.address, reuse_port=True) as two:
            for _ in range(40):
                async with Client(*one.address, block_size=8192) as client:
                    assert await client.read("file") == CONTENT
            assert one.stats.completed + two.stats.completed == 40
            assert one.stats.completed
            assert two.stats.completed


async def test_a_socket_can_be_handed_over(root: Path) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    async with serve(root, sockets=[sock]) as server:
        assert server.address == sock.getsockname()
        async with Client(*server.address) as client:
            assert await client.read("file") == CONTENT


async def test_a_socket_that_was_handed_over_is_closed_when_the_root_is_no_directory(root: Path) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    with pytest.raises(NotADirectoryError):
        await serve(root / "file", sockets=[sock])
    assert sock.fileno() < 0


async def test_the_directory_is_looked_at_by_the_user_who_reads_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncnet.tftp.serving.drop_privileges", lambda user: (root / "later").mkdir())
    async with serve(root / "later", "127.0.0.1", 0, user="nobody"):
        pass


async def test_one_socket_for_both_families_can_be_handed_over(root: Path, tmp_path: Path) -> None:
    """As systemd opens it: IPv4 clients appear as mapped addresses, and count as what they are."""
    (tmp_path / "file").write_bytes(b"for IPv4")
    roots = Roots(Directory(root), {"127.0.0.0/8": Directory(tmp_path)})
    for single_port in (False, True):
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", 0))
        guard = Guard(allow=["127.0.0.0/8", "::1"])
        async with serve(roots, sockets=[sock], single_port=single_port, guard=guard) as server:
            async with Client("127.0.0.9", server.address[1]) as client:
                assert await client.read("file") == b"for IPv4"
            async with Client("::1", server.address[1]) as client:
                assert await client.read("file") == CONTENT


async def test_nothing_is_heard_before_the_user_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[str] = []

    class Told(Made):
        def open_read(self, request: Request) -> bytes:
            events.append(request.name)
            return b""

    monkeypatch.setattr("asyncnet.tftp.serving.drop_privileges", events.append)
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
    async with client_socket() as sock:
        for number, listening in enumerate(sockets):
            listening.bind(("127.0.0.1", 0))
            sock.sendto(encode_packet(ReadRequest(f"early{number}", "octet", ())), listening.getsockname())
        async with serve(Told(), sockets=sockets, user="somebody", grace=0) as server:
            while server.stats.requests < 3:
                await asyncio.sleep(0.001)
    assert events == ["somebody", "early0", "early1", "early2"]


@pytest.mark.skipif(sys.platform != "linux", reason="the option is Linux's")
async def test_a_single_port_sends_blocks_in_fragments_like_the_others(root: Path) -> None:
    """With path MTU discovery a block larger than a packet is lost where a router says nothing."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    async with serve(root, sockets=[sock], single_port=True):
        assert sock.getsockopt(socket.IPPROTO_IP, 10) == 0  # IP_MTU_DISCOVER is IP_PMTUDISC_DONT


async def test_many_clients_share_a_single_port(root: Path) -> None:
    async with serve(root, "127.0.0.1", 0, write="create", single_port=True) as server:
        async with Client(*server.address, block_size=1000, window_size=4) as client:
            contents = await asyncio.gather(*(client.read("file") for _ in range(30)))
            assert contents == [CONTENT] * 30
            await asyncio.gather(*(client.write(f"up{number}", CONTENT[number:]) for number in range(30)))
        assert server.stats.completed == 60
        assert all((root / f"up{number}").read_bytes() == CONTENT[number:] for number in range(30))


async def test_on_a_single_port_strangers_get_no_answer(root: Path) -> None:
    async with serve(root, "127.0.0.1", 0, single_port=True) as server, client_socket() as sock:
        for packet in (Ack(0), Ack(1), Data(1, b"x"), Error(0, "x"), OptionAck((("blksize", "8"),))):
            sock.sendto(encode_packet(packet), server.address)
        answer, _ = await answer_to(sock, ReadRequest("nothing", "octet", ()), server.address)
        assert isinstance(answer, Error)
        assert server.stats.malformed == 5


async def test_what_is_no_packet_of_a_transfer_is_counted(root: Path) -> None:
    async with serve(root, "127.0.0.1", 0) as server, client_socket() as sock:
        _, addr = await answer_to(sock, ReadRequest("file", "octet", ()), server.address)
        for garbage in (b"", b"\0", b"\0\7\0\0", encode_packet(Data(1, b"x"))):
            sock.sendto(garbage, addr)
        sock.sendto(encode_packet(Error(0, "enough")), addr)
        while server.stats.active:
            await asyncio.sleep(0.001)
        assert server.stats.rejected == 4


# What it serves.


class Made:
    """Generated content, and uploads kept in memory."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.uploads: dict[str, BytesSink] = {}

    def open_read(self, request: Request) -> bytes:
        self.requests.append(request)
        if request.name == "broken":
            raise LookupError("a mistake in the storage")
        if request.name != "hello":
            raise LocalError(1, "no such thing")
        return f"hello {request.peer[0]}".encode()

    def open_write(self, request: Request) -> BytesSink:
        self.uploads[request.name] = BytesSink(limit=1000)
        return self.uploads[request.name]


class MadeLater(Made):
    async def open_read(self, request: Request) -> bytes:  # type: ignore[override]  # a storage may be either
        await asyncio.sleep(0)
        return super().open_read(request)

    async def open_write(self, request: Request) -> BytesSink:  # type: ignore[override]  # a storage may be either
        await asyncio.sleep(0)
        return super().open_write(request)


@pytest.mark.parametrize("kind", [Made, MadeLater])
@pytest.mark.parametrize("single_port", [False, True])
async def test_content_can_be_made(kind: type[Made], single_port: bool, caplog: pytest.LogCaptureFixture) -> None:
    made = kind()
    async with serve(made, "127.0.0.1", 0, single_port=single_port) as server, Client(*server.address) as client:
        assert await client.read("hello") == b"hello 127.0.0.1"
        await client.write("up", b"data")
        assert bytes(made.uploads["up"].data) == b"data"
        with pytest.raises(RemoteError, match="no such thing") as refused:
            await client.read("other")
        assert refused.value.code == 1
        with pytest.raises(RemoteError, match="internal error"):
            await client.read("broken")
        assert "a mistake in the storage" in caplog.text
        with pytest.raises(RemoteError, match="larger than 1000"):
            await client.write("big", bytes(2000))
    request = made.requests[0]
    assert (request.name, request.mode, request.is_write, request.local_addr) == ("hello", "octet", False, "127.0.0.1")
    assert ("tsize", "0") in request.options
    assert request.interface == (0 if single_port else socket.if_nametoindex("lo") if sys.platform == "linux" else 0)
    assert server.stats.active == 0


async def test_a_request_that_is_repeated_while_its_content_is_made_begins_once() -> None:
    opened = 0
    ready = asyncio.Event()

    class Slow:
        async def open_read(self, request: Request) -> bytes:
            nonlocal opened
            opened += 1
            await ready.wait()
            return b"content"

        async def open_write(self, request: Request) -> BytesSink:
            raise LocalError(2, "read-only")

    async with serve(Slow(), "127.0.0.1", 0) as server, client_socket() as sock:
        for _ in range(3):
            sock.sendto(encode_packet(ReadRequest("x", "octet", ())), server.address)
        while server.stats.duplicates < 2:
            await asyncio.sleep(0.001)
        ready.set()
        data, addr = await asyncio.to_thread(sock.recvfrom, 1000)
        assert decode_packet(data) == Data(1, b"content")
        sock.sendto(encode_packet(Ack(1)), addr)
        while server.stats.completed < 1:
            await asyncio.sleep(0.001)
        assert opened == 1


class Pending:
    """Content that is never ready."""

    def __init__(self) -> None:
        self.waiting = 0

    async def open_read(self, request: Request) -> bytes:
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]
        finally:
            self.waiting -= 1

    async def open_write(self, request: Request) -> BytesSink:
        raise LocalError(2, "read-only")


async def test_content_that_nobody_waits_for_is_not_made_on() -> None:
    """A client that asks for one name after the other from one port makes the server work for the last alone."""
    pending = Pending()
    async with serve(pending, "127.0.0.1", 0, grace=0) as server, client_socket() as sock:
        for number in range(50):
            sock.sendto(encode_packet(ReadRequest(f"name{number}", "octet", ())), server.address)
        while server.stats.requests < 50 or pending.waiting > 1:
            await asyncio.sleep(0.001)
        assert server.stats.active == 1
    assert pending.waiting == 0
    assert server.stats.active == 0


async def test_closing_leaves_nothing_of_content_that_is_being_made() -> None:
    """Not even of what was asked for right before."""
    pending = Pending()
    server = await serve(pending, "127.0.0.1", 0)
    async with client_socket() as sock:
        sock.sendto(encode_packet(ReadRequest("x", "octet", ())), server.address)
        while not server.stats.requests:
            await asyncio.sleep(0)
        await server.aclose(0)
    assert (pending.waiting, server.stats.active) == (0, 0)


async def test_content_that_is_ready_just_when_the_server_ends_begins_no_transfer() -> None:
    class Content(BytesSource):
        closed = False

        def close(self) -> None:
            self.closed = True

    content = Content(b"content")

    class ReadyAtTheEnd(asyncio.Future[BytesSource]):
        def cancel(self, msg: Any = None) -> bool:
            if not self.done():
                self.set_result(content)
            return False

    class Late:
        def open_read(self, request: Request) -> asyncio.Future[BytesSource]:
            return ReadyAtTheEnd()

        def open_write(self, request: Request) -> BytesSink:
            raise LocalError(2, "read-only")

    begun: list[Request] = []
    server = await serve(Late(), "127.0.0.1", 0, hooks=Hooks(on_start=begun.append))
    async with client_socket() as sock:
        sock.sendto(encode_packet(ReadRequest("x", "octet", ())), server.address)
        while not server.stats.requests:
            await asyncio.sleep(0)
        await server.aclose(0)
        for _ in range(3):
            await asyncio.sleep(0)
    assert not begun
    assert content.closed
    assert server.stats.active == 0


async def test_invalid_options_are_left_out_or_refused(root: Path) -> None:
    wrong = ReadRequest("file", "octet", (("blksize", "7"), ("timeout", "0"), ("windowsize", "2")))
    async with serve(root, "127.0.0.1", 0) as server, client_socket() as sock:
        answer, addr = await answer_to(sock, wrong, server.address)
        assert answer == OptionAck((("windowsize", "2"),))
        sock.sendto(encode_packet(Error(0, "enough")), addr)
    async with serve(root, "127.0.0.1", 0, limits=Limits(invalid_option="error")) as server, client_socket() as sock:
        answer, _ = await answer_to(sock, wrong, server.address)
        assert isinstance(answer, Error)
        assert answer.code == 8


# Whom it admits, and how much.


async def test_who_is_not_admitted_gets_no_answer(root: Path) -> None:
    guard = Guard(allow=["127.0.0.0/24"], deny=["127.0.0.7"])
    async with serve(root, "0.0.0.0", 0, guard=guard) as server:
        for host, answered in (("127.0.0.1", True), ("127.0.0.7", False), ("127.0.1.1", False)):
            async with client_socket(host) as sock:
                sock.sendto(encode_packet(ReadRequest("nothing", "octet", ())), ("127.0.0.1", server.address[1]))
                before = server.stats.refused, server.stats.denied
                while (server.stats.refused, server.stats.denied) == before:
                    await asyncio.sleep(0.001)
                assert (server.stats.refused > before[0]) is answered


async def test_the_memory_of_windows_is_limited(root: Path) -> None:
    guard = Guard(max_memory=100_000)
    async with serve(root, "127.0.0.1", 0, guard=guard) as server:
        async with client_socket() as one, client_socket() as two:
            large = ReadRequest("file", "octet", (("blksize", "1000"), ("windowsize", "60")))
            _, addr = await answer_to(one, large, server.address)
            two.sendto(encode_packet(large), server.address)
            while not server.stats.dropped:
                await asyncio.sleep(0.001)
            one.sendto(encode_packet(Error(0, "enough")), addr)
            while server.stats.active:
                await asyncio.sleep(0.001)
            answer, addr = await answer_to(two, large, server.address)
            assert isinstance(answer, OptionAck)
            two.sendto(encode_packet(Error(0, "enough")), addr)


@pytest.mark.parametrize(("block_size", "granted"), [("1000", ("1000", "10")), ("60000", ("10000", None))])
async def test_a_window_beyond_the_memory_for_all_is_made_smaller(
    root: Path, block_size: str, granted: tuple[str, str | None]
) -> None:
    """To leave the request without an answer would not help: there will never be room."""
    async with serve(root, "127.0.0.1", 0, guard=Guard(max_memory=10_000)) as server, client_socket() as sock:
        large = ReadRequest("file", "octet", (("blksize", block_size), ("windowsize", "60")))
        answer, addr = await answer_to(sock, large, server.address)
        assert isinstance(answer, OptionAck)
        options = dict(answer.options)
        assert (options["blksize"], options.get("windowsize")) == granted
        sock.sendto(encode_packet(Error(0, "enough")), addr)


async def test_without_descriptors_requests_get_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    """Boot ROMs ask again then; an ERROR would make them give up."""

    class Exhausted(Made):
        def open_read(self, request: Request) -> bytes:
            raise OSError(errno.EMFILE, "Too many open files")

    async with serve(Exhausted(), "127.0.0.1", 0) as server, client_socket() as sock:
        sock.sendto(encode_packet(ReadRequest("x", "octet", ())), server.address)
        while not server.stats.dropped:
            await asyncio.sleep(0.001)
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(100)
        assert (server.stats.requests, server.stats.active) == (0, 0)
    assert "Too many open files" in caplog.text


async def test_a_single_port_answers_without_a_descriptor_to_spare(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Exhausted(socket.socket):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

    async with serve(root, "0.0.0.0", 0, single_port=True) as server, client_socket() as sock:
        monkeypatch.setattr("asyncnet.tftp.ports.socket.socket", Exhausted)
        answer, addr = await answer_to(sock, ReadRequest("file", "octet", ()), ("127.0.0.1", server.address[1]))
        monkeypatch.undo()
        assert answer == Data(1, CONTENT[:512])
        sock.sendto(encode_packet(Error(0, "enough")), addr)


async def test_a_source_gets_few_errors_and_few_lines_in_the_log(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "asyncnet.tftp")
    async with serve(root, "127.0.0.1", 0, guard=Guard(errors_per_second=1.0)) as server, client_socket() as sock:
        for number in range(100):
            sock.sendto(encode_packet(ReadRequest(f"nothing{number}", "octet", ())), server.address)
        while server.stats.refused + server.stats.silenced < 100:
            await asyncio.sleep(0.001)
        assert 1 <= server.stats.refused <= 20
        assert len([line for line in records(caplog) if "refused" in line]) == server.stats.refused


@pytest.mark.parametrize("single_port", [False, True])
@pytest.mark.parametrize("request_", [
    ReadRequest("file", "octet", ()),
    ReadRequest("file", "octet", (("blksize", "1428"), ("windowsize", "16"))),
    WriteRequest("new", "octet", ()),
])  # fmt: skip
async def test_a_client_that_never_answers_gets_four_datagrams(root: Path, single_port: bool, request_: Any) -> None:
    timing = Timing(initial=0.01, floor=0.01, cap=0.02, max_retransmits=20, patience=0)
    received = []
    async with serve(root, "127.0.0.1", 0, write="create", timing=timing, single_port=single_port) as server:
        async with client_socket() as sock:
            sock.sendto(encode_packet(request_), server.address)
            while not server.stats.failed:
                await asyncio.sleep(0.001)
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    received.append(sock.recv(65536))
    assert len(received) == 4
    assert len(set(received)) == 1


# Whom it tells.


def records(caplog: pytest.LogCaptureFixture) -> Iterator[str]:
    return (record.getMessage() for record in caplog.records if record.name == "asyncnet.tftp")


async def test_each_transfer_is_one_line(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "asyncnet.tftp")
    async with serve(root, "127.0.0.1", 0) as server, Client(*server.address) as client:
        await client.read("file")
        with pytest.raises(RemoteError):
            await client.read("nothing")
    good, bad = records(caplog)
    assert all(part in good for part in ("127.0.0.1", "file", "100000 bytes", "MB/s", "complete"))
    assert "nothing" in bad
    assert "No such file" in bad


async def test_the_lines_can_be_json(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "asyncnet.tftp")
    async with (
        serve(root, "127.0.0.1", 0, log_format="json") as server,
        Client(*server.address, block_size=1428) as client,
    ):
        await client.read("file")
    (line,) = records(caplog)
    record = json.loads(line)
    assert (record["name"], record["bytes"], record["block_size"]) == ("file", 100_000, 1428)


async def test_hooks_are_told_and_cannot_break_a_transfer(root: Path) -> None:
    events: list[Any] = []

    def end(record: Any) -> None:
        events.append((record.name, record.bytes, record.outcome.name))
        raise LookupError("a mistake in the hook")

    hooks = Hooks(
        on_start=lambda request: events.append(request.name),
        on_progress=lambda request, done, total: events.append((done, total)),
        on_end=end,
    )
    async with serve(root, "127.0.0.1", 0, hooks=hooks) as server:
        async with Client(*server.address, block_size=50_000, window_size=1) as client:
            assert await client.read("file") == CONTENT
        assert isinstance(server, Server)
    assert events[0] == "file"
    assert events[-1] == ("file", 100_000, "COMPLETE")
    assert (50_000, 100_000) in events


class Refuses:
    """A storage whose reasons are no text for a packet."""

    def open_read(self, request: Request) -> bytes:
        raise LocalError(2, "no\0way\n" + "字" * 1000)

    open_write: Any = open_read


async def test_the_reason_of_a_storage_fits_into_an_error() -> None:
    async with serve(Refuses(), "127.0.0.1", 0) as server, client_socket() as sock:
        sock.sendto(encode_packet(ReadRequest("file", "octet", ())), server.address)
        data = await asyncio.to_thread(sock.recv, 65536)
        assert len(data) <= 512
        answer = decode_packet(data)
        assert isinstance(answer, Error)
        assert answer.code == 2
        assert answer.text.startswith("no?way?字字")


@pytest.mark.parametrize("request_packet", [ReadRequest, WriteRequest])
async def test_the_timeout_that_a_client_names_is_the_longest_wait(root: Path, request_packet: Any) -> None:
    timing = Timing(initial=30.0, cap=30.0)
    async with serve(root, "127.0.0.1", 0, write="create", timing=timing) as server, client_socket() as sock:
        answer, _ = await answer_to(
            sock,
            request_packet("new" if request_packet is WriteRequest else "file", "octet", (("timeout", "1"),)),
            server.address,
        )
        assert answer == OptionAck((("timeout", "1"),))
        assert decode_packet(await asyncio.to_thread(sock.recv, 65536)) == answer  # within the 5 s of the socket

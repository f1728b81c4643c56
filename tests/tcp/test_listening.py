"""Where a server listens, and what is set on its connections."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from asyncnet import tcp
from tests.tcp.clients import Reader, Writer, client, echo, exchange, until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs Unix sockets")


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("s") / "socket")  # the name of a test would be too long for one


async def check(path: str) -> None:
    stream = await tcp.connect(path=path)
    assert await exchange(stream, b"data") == b"data"
    stream[1].close()
    await stream[1].wait_closed()


async def test_a_path_is_served_and_goes_with_the_server(path: str) -> None:
    async with tcp.serve(echo, path=path) as server:
        assert server.addresses == (path,)
        assert stat.S_ISSOCK(os.stat(path).st_mode)
        await check(path)
        await until(lambda: server.stats.completed == 1)
    assert not os.path.exists(path)


async def test_a_socket_left_behind_is_replaced_and_one_in_use_is_not(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(path)
    async with tcp.serve(echo, path=path):
        await check(path)
        with pytest.raises(OSError, match=f"cannot bind unix socket {path}: "):
            await tcp.serve(echo, path=path)
        await check(path)


async def test_a_file_in_the_way_stays(path: str) -> None:
    Path(path).write_text("precious")
    with pytest.raises(OSError, match=f"cannot bind unix socket {path}: "):
        await tcp.serve(echo, path=path)
    assert Path(path).read_text() == "precious"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has an abstract namespace")
async def test_a_name_in_the_abstract_namespace() -> None:
    name = f"@asyncnet-test-{os.getpid()}-{id(asyncio.get_running_loop())}"
    async with tcp.serve(echo, path=name) as server:
        assert server.address == name
        await check(name)


async def test_a_unix_socket_that_was_handed_over_stays(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        for _ in range(2):  # whoever keeps the socket, such as systemd, starts the server again
            async with tcp.serve(echo, fd=os.dup(listener.fileno())):
                await check(path)
            assert os.path.exists(path)


async def test_an_inherited_descriptor() -> None:
    with socket.create_server(("127.0.0.1", 0)) as inherited:
        async with tcp.serve(echo, fd=os.dup(inherited.fileno())) as server:
            assert server.address == inherited.getsockname()
            async with client(server) as stream:
                assert await exchange(stream, b"data") == b"data"


@pytest.mark.parametrize("kind", ["a file", "a connection", "closed"])
async def test_a_descriptor_that_does_not_listen_is_named(kind: str, tmp_path: Path) -> None:
    near, far = socket.socketpair()
    with near, far, open(tmp_path / "file", "w") as file:
        fd = {"a file": file.fileno(), "a connection": near.fileno(), "closed": 99_999}[kind]
        with pytest.raises((OSError, ValueError), match=rf"descriptor {fd}"):
            await tcp.serve(echo, fd=fd)
        os.fstat(near.fileno())  # still open


ACTIVATED = """
import asyncio, os, sys
from asyncnet import tcp

async def greet(reader, writer):
    writer.write(b"from %d" % len(server.addresses))
    server.close()

async def main():
    global server
    async with tcp.serve(greet, fd="systemd", grace=5) as server:
        await server.serve_forever()

os.environ["LISTEN_PID"] = str(os.getpid())
asyncio.run(main())
"""


async def test_sockets_of_systemd() -> None:
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        # The process finds them as descriptors 3 and 4, as systemd hands them.
        given = "; ".join(f"os.dup2({sock.fileno()}, {9 + n})" for n, sock in enumerate((first, second)))
        program = f"import os; {given}; os.dup2(9, 3); os.dup2(10, 4)\n" + ACTIVATED
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            program,
            env=os.environ | {"LISTEN_FDS": "2"},
            pass_fds=(first.fileno(), second.fileno()),
            stderr=subprocess.PIPE,
        )
        try:
            reader, writer = await tcp.connect(*second.getsockname(), timeout=10)
            async with asyncio.timeout(20):
                assert await reader.read() == b"from 2"
            writer.close()
            async with asyncio.timeout(20):
                _, errors = await process.communicate()
            assert (process.returncode, errors) == (0, b"")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def test_systemd_that_hands_nothing_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LISTEN_FDS", raising=False)
    with pytest.raises(ValueError, match="LISTEN_FDS hands no socket"):
        await tcp.serve(echo, fd="systemd")


async def test_everything_at_once(path: str) -> None:
    given = socket.create_server(("127.0.0.1", 0))
    places = [("127.0.0.1", 0), ("localhost", 0)]
    async with tcp.serve(echo, ["127.0.0.1"], 0, path=path, sockets=[given], addresses=places) as server:
        assert len(server.addresses) >= 5
        for address in server.addresses:
            if isinstance(address, str):
                await check(address)
                continue
            stream = await tcp.connect(*address[:2], timeout=10)
            assert await exchange(stream, b"data") == b"data"
            stream[1].close()
        await until(lambda: server.stats.completed == len(server.addresses))
    assert given.fileno() == -1


async def test_nothing_stays_open_when_one_place_cannot_be_used(path: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(OSError, match="cannot bind TCP"):
            await tcp.serve(echo, path=path, addresses=[taken.getsockname()])
    async with tcp.serve(echo, path=path):  # nobody listens on it any more
        await check(path)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux keeps one more than the backlog waiting")
@pytest.mark.parametrize("kind", [socket.AF_INET, socket.AF_UNIX])
async def test_no_more_wait_than_the_backlog_holds(kind: socket.AddressFamily, path: str) -> None:
    places: dict[str, Any] = {"path": path} if kind == socket.AF_UNIX else {"host": "127.0.0.1", "port": 0}
    async with tcp.serve(echo, **places, backlog=3, max_connections=1, grace=0) as server:
        socks = [socket.socket(kind) for _ in range(12)]
        try:
            for sock in socks:
                sock.setblocking(False)
            socks[0].connect_ex(server.address)
            await until(lambda: server.stats.active == 1)
            for sock in socks[1:]:
                sock.connect_ex(server.address)
            await until(lambda: sum(map(_is_connected, socks)) >= 5)
            assert sum(map(_is_connected, socks)) == 5  # the one that is served, and four that wait
            assert server.stats.accepted == 1
        finally:
            for sock in socks:
                sock.close()


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="needs SO_REUSEPORT")
async def test_two_servers_share_a_port_when_both_ask_for_it() -> None:
    async with tcp.serve(echo, "127.0.0.1", 0, reuse_port=True) as first:
        host, port = first.address
        async with tcp.serve(echo, host, port, reuse_port=True) as second:
            for _ in range(200):  # the kernel spreads them by their ports
                async with client(first) as stream:
                    assert await exchange(stream, b"x") == b"x"
                if first.stats.accepted and second.stats.accepted:
                    break
            assert first.stats.accepted
            assert second.stats.accepted


@pytest.mark.skipif(sys.platform != "linux", reason="names of Linux")
async def test_options_are_set_on_every_connection() -> None:
    wanted = {
        (socket.IPPROTO_TCP, socket.TCP_NODELAY): 1,
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 40,
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): 10,
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): 4,
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT): 2500,
    }
    seen: list[dict[tuple[int, int], int]] = []

    def look(writer: Writer) -> None:
        sock = writer.get_extra_info("socket")
        seen.append({option: sock.getsockopt(*option) for option in wanted})

    async def handle(reader: Reader, writer: Writer) -> None:
        look(writer)

    options = tcp.SocketOptions(keepalive=40, user_timeout=2.5)
    async with tcp.serve(handle, "127.0.0.1", 0, keepalive=40, user_timeout=2.5) as server:
        async with client(server, options=options) as (reader, writer):
            await reader.read()
            look(writer)
    assert seen == [wanted, wanted]
    async with tcp.serve(handle, "127.0.0.1", 0, nodelay=False) as server, client(server) as (reader, _):
        await reader.read()
    assert seen[-1][socket.IPPROTO_TCP, socket.TCP_NODELAY] == 0

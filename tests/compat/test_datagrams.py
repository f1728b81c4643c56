"""Every engine serves datagrams by the same handler; the clients are plain sockets."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncnet import compat
from asyncnet.compat.elsewhere import MAX_CALLS, call_elsewhere
from asyncnet.compat.readiness import SELECT_LIMIT
from asyncnet.compat.serving import FULL_PAUSE
from asyncnet.compat.transfers import Client
from asyncnet.errors import ClosedError, EngineError
from tests.compat.test_engines import NAMES, Running, running, wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the servers are stopped by SIGTERM")


@pytest.fixture(params=NAMES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module", params=NAMES)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(request.param, tmp_path_factory.mktemp("engine"), "--datagram") as found:
        yield found
        found.stop()


@pytest.fixture
def client(server: Running) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.connect(("127.0.0.1", server.port))
        yield sock


def ask(sock: socket.socket, data: bytes) -> bytes:
    sock.send(data)
    return sock.recv(65536)


@pytest.mark.parametrize("size", [0, 1, 1000, 9000, 65000])
def test_a_datagram_comes_back(server: Running, client: socket.socket, size: int) -> None:
    data = b"echo " + os.urandom(size)
    assert ask(client, data) == data[5:]


def test_two_hundred_peers_each_get_their_own_answer(server: Running) -> None:
    socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(200)]
    try:
        for n, sock in enumerate(socks):
            sock.settimeout(10)
            sock.sendto(b"echo %d" % n, ("127.0.0.1", server.port))
            assert sock.recv(100) == b"%d" % n
    finally:
        for sock in socks:
            sock.close()


def test_handlers_wait_at_the_same_time(server: Running) -> None:
    """Eight of them wait for each other's time; on prefork, so many processes are made first."""
    socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(8)]
    try:
        for sock in socks:
            sock.settimeout(10)
            sock.sendto(b"nap", ("127.0.0.1", server.port))
        assert [sock.recv(100) for sock in socks] == [b"rested"] * 8
    finally:
        for sock in socks:
            sock.close()


def test_a_handler_goes_on_from_an_endpoint_of_its_own(server: Running, client: socket.socket) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.sendto(b"transfer", ("127.0.0.1", server.port))
        said, addr = sock.recvfrom(100)
        assert said == b"here"
        assert addr[1] != server.port
        for word in (b"one", b"", b"three"):
            sock.sendto(word, addr)
            assert sock.recvfrom(100) == (word.upper(), addr)
        sock.sendto(b"end", addr)
        assert sock.recvfrom(100) == (b"timed out", addr)  # the next datagram does not come
    assert ask(client, b"echo still there") == b"still there"


def test_a_handler_that_raises_is_logged_and_stops_nothing(server: Running, client: socket.socket) -> None:
    before = server.stats()
    client.send(b"fail")
    assert ask(client, b"echo next") == b"next"
    wait_until(lambda: server.stats()["failed"] == before["failed"] + 1, "the failure is counted")
    assert "on purpose" in server.log()
    assert f"127.0.0.1:{client.getsockname()[1]}" in server.log()


def test_answers_to_somebody_who_has_left_disturb_nobody(server: Running, client: socket.socket) -> None:
    for _ in range(5):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.1", server.port))
            sock.send(b"echo gone")
    for n in range(20):
        assert ask(client, b"echo %d" % n) == b"%d" % n


def test_stopping_ends_handlers_that_wait_and_lets_them_clean_up(engine: str, tmp_path: Path) -> None:
    with running(engine, tmp_path, "--datagram", "--grace", "0.1") as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(10)
            sock.sendto(b"wait_for_time", ("127.0.0.1", server.port))
            assert sock.recv(100) == b"waiting"
            assert server.stop()[:-1] == ["cleaned up"]


def test_serving_ends_by_a_signal_when_the_handlers_are_done(engine: str, tmp_path: Path) -> None:
    with running(engine, tmp_path, "--datagram", "--serve", "--grace", "30") as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(10)
            sock.sendto(b"transfer", ("127.0.0.1", server.port))
            said, addr = sock.recvfrom(100)
            assert said == b"here"
            server.process.send_signal(signal.SIGINT)
            sock.sendto(b"more", addr)
            assert sock.recv(100) == b"MORE"
            sock.sendto(b"end", addr)
            assert sock.recv(100) == b"timed out"
        assert server.wait() == ["restored"]


# A client: `compat.run` and `open_endpoint`.


async def ping(port: int) -> tuple[str, bytes]:
    async with await compat.open_endpoint(remote_addr=("127.0.0.1", port)) as endpoint:
        await endpoint.send(b"echo ping")
        async with compat.timeout(10):
            data, _ = await endpoint.recv()
        return type(endpoint).__module__, data


def test_a_client_runs_on_every_engine(server: Running) -> None:
    module, data = compat.run(ping(server.port), engine=server.engine)
    assert data == b"ping"
    assert module == ("asyncnet.udp.endpoint" if server.engine in ("asyncio", "uvloop", "asyncnet") else
                      "asyncnet.compat.datagrams")  # fmt: skip


async def raises() -> None:
    raise LookupError("what for")


def test_what_a_client_raises_arrives(engine: str) -> None:
    with pytest.raises(LookupError, match="what for"):
        compat.run(raises(), engine=engine)


async def leaves_something_behind() -> str:
    async def lingers() -> None:
        await compat.sleep(3600)

    compat.spawn(lingers())
    await compat.sleep(0)
    return "done"


def test_what_a_client_leaves_behind_is_cancelled(engine: str) -> None:
    began = time.monotonic()
    assert compat.run(leaves_something_behind(), engine=engine) == "done"
    assert time.monotonic() - began < 60


async def finds_nobody() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    endpoint = await compat.open_endpoint(remote_addr=("127.0.0.1", port))
    try:
        async with compat.timeout(10):
            await endpoint.send(b"anybody?")
            await endpoint.recv()
    except ConnectionRefusedError:
        return "refused"
    finally:
        endpoint.close()
    return "answered"


def test_a_refusal_reaches_who_waits(engine: str) -> None:
    assert compat.run(finds_nobody(), engine=engine) == "refused"


async def uses_it_after_close() -> list[str]:
    endpoint: Any = await compat.open_endpoint(("127.0.0.1", 0))
    endpoint.close()
    endpoint.close()
    seen = []
    try:
        await endpoint.recv()
    except ClosedError:
        seen.append("recv")
    try:
        await endpoint.send(b"x", ("127.0.0.1", 9))
    except ClosedError:
        seen.append("send")
    return seen + [str(data) async for data, _ in endpoint]


def test_an_endpoint_that_is_closed_says_so(engine: str) -> None:
    assert compat.run(uses_it_after_close(), engine=engine) == ["recv", "send"]


async def takes_a_foreign_address() -> None:
    await compat.open_endpoint(("192.0.2.1", 0))


def test_an_address_that_cannot_be_used_is_named(engine: str) -> None:
    with pytest.raises(OSError, match=r"cannot bind UDP 192\.0\.2\.1"):
        compat.run(takes_a_foreign_address(), engine=engine)


async def sends_what_cannot_be_sent() -> list[str]:
    seen = []
    async with await compat.open_endpoint(("127.0.0.1", 0)) as endpoint:
        for data, addr in ((b"to everybody", ("127.255.255.255", 9)), (b"x" * 70_000, ("127.0.0.1", 9))):
            try:
                await endpoint.send(data, addr)
            except (OSError, ValueError) as exc:
                seen.append(f"{type(exc).__name__}: {exc}")
    return seen


def test_what_the_system_does_not_send_is_an_error_that_names_the_address(engine: str) -> None:
    refused, too_large = compat.run(sends_what_cannot_be_sent(), engine=engine)
    assert refused.startswith("PermissionError")
    assert "127.255.255.255:9" in refused
    assert too_large == "ValueError: a datagram carries 65507 bytes at most, not 70000"


# A resolver that takes its time.


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Resolve the name ``slow.example`` to this host, once the event is set."""
    released, look_up = threading.Event(), socket.getaddrinfo

    def slow(host: str, port: int, *, flags: int = 0, **options: Any) -> Any:
        if host == "slow.example" and not flags & socket.AI_NUMERICHOST:
            assert released.wait(10)
            host = "127.0.0.1"
        return look_up(host, port, flags=flags, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    yield released
    released.set()


async def opens_an_endpoint(released: threading.Event) -> Any:
    opening = compat.spawn(open_slowly())
    await compat.sleep(0.001)  # it has its turn now, and then this one goes on
    released.set()
    return await opening


async def open_slowly() -> Any:
    async with await compat.open_endpoint(("", 0), ("slow.example", 9)) as endpoint:
        return endpoint.remote_addr


KERNELS = [name for name in NAMES if name in ("polling", "select", "poll", "epoll", "epoll-et", "gevent")]


@pytest.mark.parametrize("name", KERNELS)
def test_a_name_that_resolves_slowly_holds_up_nobody(name: str, released: threading.Event) -> None:
    assert compat.run(opens_an_endpoint(released), engine=name) == ("127.0.0.1", 9)


async def gives_up(what: Coroutine[Any, Any, Any]) -> str:
    try:
        async with compat.timeout(0.01):
            await what
    except TimeoutError:
        return "timed out"
    return "resolved"


@pytest.mark.parametrize("name", KERNELS)
def test_a_name_that_resolves_slowly_is_given_up_by_a_timeout(name: str, released: threading.Event) -> None:
    assert compat.run(gives_up(open_slowly()), engine=name) == "timed out"
    assert compat.run(gives_up(Client("slow.example", 9).read("x")), engine=name) == "timed out"


@pytest.mark.parametrize("name", KERNELS)
def test_a_name_that_does_not_resolve_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(socket.gaierror, match=r"cannot connect UDP to slow\.example:9: the name 'slow\.example'"):
        compat.run(open_slowly(), engine=name)


async def calls_often(released: threading.Event) -> list[int]:
    """Return how many calls had begun before one could end, and after all have ended."""
    begun: list[None] = []

    def work() -> None:
        begun.append(None)
        assert released.wait(10)

    tasks = [compat.spawn(call_elsewhere(work)) for _ in range(2 * MAX_CALLS)]
    while len(begun) < MAX_CALLS:
        await compat.sleep(0.001)
    await compat.sleep(2 * FULL_PAUSE)  # whoever has no room looks again
    at_once = len(begun)
    released.set()
    for task in tasks:
        await task
    return [at_once, len(begun)]


@pytest.mark.parametrize("name", [name for name in KERNELS if name in ("epoll", "gevent")])
def test_calls_that_block_take_a_bounded_number_of_threads(name: str, released: threading.Event) -> None:
    assert compat.run(calls_often(released), engine=name) == [MAX_CALLS, 2 * MAX_CALLS]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of descriptors differ")
def test_a_call_that_select_cannot_wait_for_is_made_all_the_same() -> None:
    fill = [os.dup(0) for _ in range(SELECT_LIMIT)]

    def takes_a_while() -> str:  # longer than it takes to be refused
        time.sleep(0.05)
        return "done"

    async def calls() -> str:
        return await call_elsewhere(takes_a_while)

    try:
        assert compat.run(calls(), engine="select") == "done"
    finally:
        for fd in fill:
            os.close(fd)


def test_a_datagram_handler_must_be_a_coroutine_function() -> None:
    handler: Any = lambda data, addr, endpoint: None  # noqa: E731
    with pytest.raises(TypeError, match="coroutine function"):
        compat.create_datagram_server(handler, ("127.0.0.1", 0))


def test_running_on_an_unknown_engine_is_refused() -> None:
    with pytest.raises(EngineError, match="no engine 'warp'"):
        compat.run(raises(), engine="warp")


def test_running_inside_an_event_loop_is_refused(engine: str) -> None:
    if engine in ("process", "prefork", "gevent"):
        pytest.skip("a child has no loop of ours, and gevent is for a process of its own")

    async def main() -> None:
        with pytest.raises(RuntimeError, match="event loop"):
            compat.run(raises(), engine=engine)

    asyncio.run(main())

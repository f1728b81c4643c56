"""A server in a process of its own: ``engine_server.py ENGINE [--grace S] [--nofile N] [--backlog N] [--serve] ...``.

The first line of a connection names one of the handlers below, with ``--datagram`` the first word of a datagram. On
standard output it prints the port, then what handlers report, on SIGUSR2 a line with the counters, and at the end the
counters as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import logging
import os
import signal
import socket
import sys
import threading
from typing import Any

import attrs

from asyncnet import compat
from asyncnet.errors import ForeignAwaitError


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def total(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer after the end of the input."""
    data = await reader.read()
    assert reader.at_eof()
    writer.write(b"%d bytes" % len(data))
    writer.write_eof()


async def fail(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    raise ZeroDivisionError("on purpose")


async def foreign(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say what awaiting asyncio's own things gives, each at its line."""

    async def in_a_group() -> None:
        async with asyncio.TaskGroup():
            pass

    async def in_a_timeout() -> None:
        async with asyncio.timeout(None):
            pass

    for way in (asyncio.sleep(0.001), asyncio.sleep(0), in_a_group(), in_a_timeout()):
        try:
            await way
            writer.write(b"ran\n")
        except ForeignAwaitError as exc:
            writer.write(f"refused: {exc}\n".encode())


async def elsewhere(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    raise ConnectionRefusedError("another host, not this peer")


async def uncaught(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(0)
    writer.write(b"ran\n")


async def parse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Use every way to read, and write down what each gave."""
    seen: list[str] = []

    async def note(read: object) -> None:
        try:
            seen.append(repr(await read))  # type: ignore[misc]
        except asyncio.IncompleteReadError as exc:
            seen.append(f"incomplete {exc.partial!r} {exc.expected}")
        except (asyncio.LimitOverrunError, ValueError) as exc:
            kind = "ValueError" if isinstance(exc, ValueError) else type(exc).__name__  # a subclass will do
            seen.append(f"{kind}: {exc}")

    await note(reader.readline())
    await note(reader.readexactly(4))
    await note(reader.readexactly(0))
    await note(reader.readexactly(-1))
    await note(reader.readuntil(b"--"))
    await note(reader.readuntil(b""))
    await note(reader.read(0))
    await note(reader.readline())  # too long, its end is there
    await note(reader.readline())
    async for line in reader:
        seen.append(f"line {line!r}")
        if line == b"b\n":
            break
    await note(reader.readexactly(100))
    await note(reader.readline())
    await note(reader.readuntil())
    await note(reader.read(10))
    seen.append(str(reader.at_eof()))
    writer.writelines([json.dumps(seen).encode(), b"\n"])
    await writer.drain()
    writer.close()
    await writer.wait_closed()


async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Write more than the sockets hold, and close without waiting."""
    for n in range(64):
        writer.write(bytes([n]) * 65536)
    writer.close()


async def info(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    facts = {
        "peername": writer.get_extra_info("peername"),
        "sockname": writer.get_extra_info("sockname"),
        "nodelay": bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)),
        "buffers": [sock.getsockopt(socket.SOL_SOCKET, name) for name in (socket.SO_SNDBUF, socket.SO_RCVBUF)],
        "other": writer.get_extra_info("nonsense", "default"),
        "eof": writer.can_write_eof(),
        "closing": writer.is_closing(),
    }
    writer.write(json.dumps(facts).encode())


async def nap(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await compat.sleep(0.001)
    await compat.sleep(0)
    writer.write(b"rested")


async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Wait for a socket of the handler's own."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        await compat.wait_writable(theirs)
        theirs.send(b"from upstream")
        await compat.wait_readable(ours)
        writer.write(ours.recv(100))


async def patient(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Wait too long, and then long enough."""
    try:
        async with compat.timeout(0.02):
            await reader.readline()
    except TimeoutError:
        writer.write(b"timed out\n")
    said = []
    try:
        async with compat.timeout(60):
            try:
                async with compat.timeout(0.01):
                    await compat.sleep(60)
            except TimeoutError:
                said.append(b"inner\n")
            line = await reader.readline()
        async with compat.timeout(0.01):
            async with compat.timeout(60):
                try:
                    await compat.sleep(60)
                except OSError:
                    said.append(b"a timeout is no OSError within its block\n")
    except TimeoutError:
        said.append(b"outer\n")
    async with compat.timeout(None), compat.timeout(60):
        said.append(b"quick\n")
    writer.writelines([*said, b"got %r\n" % line])


async def impatient(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        async with compat.timeout(0.05):
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
    except TimeoutError:
        report("the write timed out")


async def spawning(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async def add(a: int, b: int) -> int:
        await compat.sleep(0.001)
        return a + b

    async def explode() -> None:
        raise ValueError("boom")

    async def sleep_for_ever() -> str:
        try:
            await compat.sleep(3600)
        except asyncio.CancelledError:
            return "cancelled"
        return "awake"

    line = compat.spawn(reader.readline())
    answers = [str(await compat.spawn(add(3, 4)))]
    try:
        await compat.spawn(explode())
    except ValueError as exc:
        answers.append(str(exc))
    sleeper = compat.spawn(sleep_for_ever())
    await compat.sleep(0.01)
    assert not sleeper.done()
    sleeper.cancel()
    answers.append(await sleeper)
    assert sleeper.done()
    writer.write(" ".join(answers).encode() + b" " + await line)


async def full_duplex(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Write much to a slow client, while reads from it time out."""

    async def write() -> None:
        for _ in range(80):
            writer.write(b"x" * 100_000)
            await writer.drain()

    writing = compat.spawn(write())
    while not writing.done():
        try:
            async with compat.timeout(0.01):
                await reader.read(10)
        except TimeoutError:
            pass
    await writing


async def pid(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Tell which process serves, and stay."""
    writer.write(b"%d\n" % os.getpid())
    await reader.read(1)


async def cancelled_at_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """In a process of its own: have it cancelled when it has served, while it flushes what it printed."""

    class Output(io.StringIO):
        def flush(self) -> None:
            os.kill(os.getpid(), signal.SIGUSR1)

    sys.stdout = Output()


async def abandoning(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async def explode() -> None:
        raise ValueError("nobody waited")

    task = compat.spawn(explode())
    while not task.done():
        await compat.sleep(0.001)


async def outlived(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async def linger() -> None:
        try:
            await compat.sleep(3600)
        finally:
            report("cleaned up")

    compat.spawn(linger())
    await compat.sleep(0.01)
    writer.write(b"handler is done")


def report(line: str) -> None:
    os.write(1, f"{line}\n".encode())  # print() writes a line in parts, and another thread may come between


async def wait_for_bytes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        writer.write(b"waiting")
        await reader.read(1)
    finally:
        await compat.sleep(0)  # a handler may wait while it cleans up
        report("cleaned up")


async def wait_for_time(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        writer.write(b"waiting")
        await compat.sleep(3600)
    finally:
        report("cleaned up")


def count() -> dict[str, int]:
    return {
        field.name: getattr(server.stats, field.name)
        for field in attrs.fields(compat.Stats)
        if not field.name.startswith("_")
    }


def stop_at_end() -> None:
    """Stop the server from this thread when standard input ends."""
    sys.stdin.read()
    server.stop()


HANDLERS = {
    handler.__name__: handler
    for handler in (
        echo, total, fail, elsewhere, foreign, uncaught, parse, flood, info, nap, upstream, wait_for_bytes,
        wait_for_time, patient, impatient, spawning, full_duplex, pid, abandoning, outlived, cancelled_at_the_end,
    )
}  # fmt: skip


async def dispatch_datagram(data: bytes, addr: Any, endpoint: Any) -> None:
    """Do what the first word says."""
    word, _, rest = data.partition(b" ")
    if word == b"echo":
        await endpoint.send(rest, addr)
    elif word == b"fail":
        raise ZeroDivisionError("on purpose")
    elif word == b"nap":
        await compat.sleep(0.05)
        await endpoint.send(b"rested", addr)
    elif word == b"transfer":
        await transfer(addr)
    elif word == b"wait_for_time":
        try:
            await endpoint.send(b"waiting", addr)
            await compat.sleep(3600)
        finally:
            report("cleaned up")


async def transfer(peer: Any) -> None:
    """Go on with a peer from an endpoint of one's own."""
    async with await compat.open_endpoint(("127.0.0.1", 0)) as endpoint:
        await endpoint.send(b"here", peer)
        async for data, addr in endpoint:
            if data == b"end":
                break
            await endpoint.send(data.upper(), addr)
        try:
            async with compat.timeout(0.01):
                await endpoint.recv()
        except TimeoutError:
            await endpoint.send(b"timed out", peer)


async def dispatch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    name = await reader.readline()
    if name:
        await HANDLERS[name.decode().strip()](reader, writer)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("engine")
    parser.add_argument("--grace", type=float, default=5.0)
    parser.add_argument("--nofile", type=int)
    parser.add_argument("--backlog", type=int)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--datagram", action="store_true")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--stop-at-end", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(level="INFO")
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.signal(signal.SIGUSR2, lambda *_: report("stats " + json.dumps(count())))
    if args.serve:
        before = signal.getsignal(signal.SIGTERM)
        serve: Any = compat.serve_datagram if args.datagram else compat.serve
        serve(
            dispatch_datagram if args.datagram else dispatch,
            ("127.0.0.1", 0),
            engine=args.engine,
            grace=args.grace,
            ready=lambda address: print(address[1], flush=True),
        )
        print("restored" if signal.getsignal(signal.SIGTERM) == before else "not restored")
    else:
        create: Any = compat.create_datagram_server if args.datagram else compat.create_server
        handler = dispatch_datagram if args.datagram else dispatch
        more = {"backlog": args.backlog} if args.backlog else {}
        server = create(handler, (args.host, 0), engine=args.engine, grace=args.grace, **more)
        signal.signal(signal.SIGTERM, lambda *_: server.stop())
        if args.nofile:
            import resource

            resource.setrlimit(resource.RLIMIT_NOFILE, (args.nofile, args.nofile))
        print(server.address[1], flush=True)
        if args.stop_at_end:
            threading.Thread(target=stop_at_end, daemon=True).start()
        server.run()
        print(json.dumps(count()))

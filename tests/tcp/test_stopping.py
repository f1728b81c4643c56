"""How a server stops: told by hand, by signals, in a hurry, and under load."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys

import pytest

from asyncnet import tcp
from asyncnet.loops import loop_name
from tests.tcp.clients import Reader, Writer, client, echo, ends, raw_client, until

needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="needs signals")


async def hold(reader: Reader, writer: Writer) -> None:
    writer.write(b"here")
    await reader.read()


async def test_the_report_tells_how_many_went_which_way() -> None:
    stubborn_until = asyncio.Event()

    async def handle(reader: Reader, writer: Writer) -> None:
        kind = await reader.readline()
        writer.write(b"ok\n")
        if kind == b"finishes\n":
            await server.closing.wait()
        elif kind == b"is cancelled\n":
            await reader.read()
        else:
            while not stubborn_until.is_set():
                try:
                    await stubborn_until.wait()
                except asyncio.CancelledError:
                    pass

    server = await tcp.serve(handle, "127.0.0.1", 0)
    streams = []
    for kind in (b"finishes\n",) * 3 + (b"is cancelled\n",) * 2 + (b"is stubborn\n",):
        stream = await tcp.connect(*server.address)
        streams.append(stream)
        stream[1].write(kind)
        assert await stream[0].readline() == b"ok\n"
    report = await server.aclose(grace=0.1)
    assert report == tcp.StopReport(finished=3, cancelled=2, aborted=1)
    stubborn_until.set()
    for reader, writer in streams:
        assert await ends(reader)
        writer.close()
    await until(lambda: server.stats.active == 0)


async def test_in_a_hurry_nobody_waits_for_the_grace() -> None:
    async with tcp.serve(hold, "127.0.0.1", 0, grace=3600) as server, client(server) as (reader, _):
        assert await reader.readexactly(4) == b"here"
        stopping = asyncio.create_task(server.aclose())
        await server.closing.wait()
        assert not stopping.done()
        server.hurry()
        async with asyncio.timeout(10):
            assert await stopping == tcp.StopReport(finished=0, cancelled=1, aborted=0)
        assert await ends(reader)


async def test_a_hurry_before_the_stop_counts_too() -> None:
    async with tcp.serve(hold, "127.0.0.1", 0, grace=3600) as server, client(server) as (reader, _):
        assert await reader.readexactly(4) == b"here"
        server.hurry()
        async with asyncio.timeout(10):
            assert (await server.aclose()).cancelled == 1


@needs_signals
async def test_the_first_signal_stops_and_the_second_one_hurries() -> None:
    async with tcp.serve(hold, "127.0.0.1", 0, grace=3600) as server, client(server) as (reader, _):
        assert await reader.readexactly(4) == b"here"
        serving = asyncio.create_task(server.serve_forever(signals=(signal.SIGUSR1,)))
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGUSR1)
        async with asyncio.timeout(10):
            await server.closing.wait()
            assert not serving.done()
            os.kill(os.getpid(), signal.SIGUSR1)
            await serving
        assert server.stats.cancelled == 1
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


WORKER = """
import asyncio, json, signal, sys
from asyncnet import loops, tcp

begun = 0

async def work(reader, writer):
    global begun
    while not server.closing.is_set():
        try:
            request = await reader.readexactly(1000)
        except asyncio.IncompleteReadError:
            return
        begun += 1
        await asyncio.sleep(0.002)
        writer.write(request)
        await writer.drain()

async def main():
    global server
    async with tcp.serve(work, "127.0.0.1", 0, grace=10) as server:
        print(server.address[1], flush=True)
        await server.serve_forever(signals=(signal.SIGTERM,))
    print(json.dumps({"begun": begun, "completed": server.stats.completed, "accepted": server.stats.accepted}))

loops.run(main(), loop=sys.argv[1])
"""


@needs_signals
async def test_every_request_that_was_begun_is_answered_when_the_server_is_terminated() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WORKER, loop_name(asyncio.get_running_loop()),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    answers = 0
    cut: list[bytes] = []

    async def ask(port: int, number: int) -> None:
        nonlocal answers
        reader, writer = await tcp.connect("127.0.0.1", port)
        request = number.to_bytes(4, "big") * 250
        try:
            while True:
                writer.write(request)
                assert await reader.readexactly(1000) == request
                answers += 1
        except asyncio.IncompleteReadError as exc:
            cut.append(exc.partial)
        except ConnectionError:
            pass
        writer.close()

    try:
        async with asyncio.timeout(30):
            port = int(await process.stdout.readline())
            asking = [asyncio.create_task(ask(port, number)) for number in range(50)]
            await until(lambda: answers > 300)
            process.send_signal(signal.SIGTERM)
            await asyncio.gather(*asking)
            told, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    result = json.loads(told)
    assert errors == b""
    assert b"".join(cut) == b""
    assert result == {"begun": answers, "completed": 50, "accepted": 50}


async def test_nobody_is_turned_away_who_had_connected_before_the_stop() -> None:
    loop = asyncio.get_running_loop()
    async with tcp.serve(echo, "127.0.0.1", 0, grace=5) as server:
        waiting = [raw_client(server) for _ in range(20)]  # in the backlog: the loop has had no turn
        assert server.stats.accepted == 0
        server.close()
        with pytest.raises(OSError, match="cannot connect"):
            await tcp.connect(*server.address)
        for sock in waiting:
            sock.setblocking(False)
            await loop.sock_sendall(sock, b"last words")
            assert await loop.sock_recv(sock, 100) == b"last words"
            sock.close()
        report = await server.aclose()
    assert report == tcp.StopReport(finished=20, cancelled=0, aborted=0)

"""A disk that takes its time, or fails at the end of an upload: `fsync` waits for the test."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from asyncnet.errors import RemoteError
from asyncnet.tftp import Client, Server, Timing, serve
from asyncnet.tftp.packets import Ack, Data, Error, ErrorCode, WriteRequest, decode_packet, encode_packet

CONTENT = os.urandom(20_000)
PATIENT = Timing(initial=30.0, floor=30.0, cap=30.0)
QUICK = Timing(initial=0.05, floor=0.05, cap=0.1, max_retransmits=100, patience=0)


class Disk:
    def __init__(self) -> None:
        self.asked = threading.Event()
        self.ready = threading.Event()
        self.error: OSError | None = None

    def fsync(self, fd: int) -> None:
        self.asked.set()
        assert self.ready.wait(20)
        if self.error is not None:
            raise self.error

    async def is_asked(self) -> None:
        await asyncio.to_thread(self.asked.wait, 20)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk()
    monkeypatch.setattr(os, "fsync", disk.fsync)
    yield disk
    disk.ready.set()


@asynccontextmanager
async def serving(root: Path, *, single_port: bool = False, timing: Timing = QUICK) -> AsyncIterator[Server]:
    async with serve(
        root, "127.0.0.1", 0, write="overwrite", single_port=single_port, grace=0, timing=timing
    ) as server:
        yield server


@pytest.mark.parametrize("single_port", [False, True])
@pytest.mark.parametrize("window_size", [1, 8])
async def test_an_upload_that_waits_for_the_disk_holds_up_nobody(
    tmp_path: Path, disk: Disk, single_port: bool, window_size: int
) -> None:
    (tmp_path / "other").write_bytes(CONTENT)
    async with (
        serving(tmp_path, single_port=single_port) as server,
        Client(*server.address[:2], window_size=window_size, timing=QUICK) as client,
    ):
        upload = asyncio.create_task(client.write("new", CONTENT))
        await disk.is_asked()
        assert await client.read("other") == CONTENT
        assert not upload.done()
        assert not (tmp_path / "new").exists()
        disk.ready.set()
        assert (await upload).confirmed
        assert (tmp_path / "new").read_bytes() == CONTENT


async def test_the_last_acknowledgement_waits_for_the_disk_whatever_the_client_sends(
    tmp_path: Path, disk: Disk
) -> None:
    loop = asyncio.get_running_loop()
    async with serving(tmp_path, timing=PATIENT) as server:
        heard: asyncio.Queue[tuple[bytes, tuple[str, int]]] = asyncio.Queue()

        class Hears(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
                heard.put_nowait((data, addr))

        transport, _ = await loop.create_datagram_endpoint(Hears, local_addr=("127.0.0.1", 0))
        try:
            transport.sendto(encode_packet(WriteRequest("new", "octet", ())), server.address[:2])
            data, peer = await heard.get()
            assert decode_packet(data) == Ack(0)
            transport.sendto(encode_packet(Data(1, b"all")), peer)
            await disk.is_asked()
            transport.sendto(encode_packet(Data(1, b"all")), peer)
            transport.sendto(encode_packet(Error(ErrorCode.UNDEFINED, "I do not like to wait")), peer)
            async with Client(*server.address[:2]) as client:  # when it is answered, what came before has been heard
                with pytest.raises(RemoteError):
                    await client.read("nothing")
            assert heard.empty()
            disk.ready.set()
            data, _ = await heard.get()
            assert decode_packet(data) == Ack(1)
            assert (tmp_path / "new").read_bytes() == b"all"
            assert server.stats.completed == 1
        finally:
            transport.close()


async def test_a_disk_that_fails_at_the_end_fails_the_upload(tmp_path: Path, disk: Disk) -> None:
    (tmp_path / "file").write_bytes(b"as it was")
    disk.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    disk.ready.set()
    async with serving(tmp_path) as server, Client(*server.address[:2]) as client:
        with pytest.raises(RemoteError, match="No space left") as caught:
            await client.write("file", CONTENT)
        assert caught.value.code == ErrorCode.DISK_FULL
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"as it was"


async def test_an_upload_that_no_thread_has_put_in_its_place_is_not_acknowledged(tmp_path: Path) -> None:
    """As when the loop's executor is shut down."""

    class Idle(ThreadPoolExecutor):
        def __init__(self) -> None:
            super().__init__(1)
            self.submitted: list[Future[Any]] = []

        def submit(self, *_: Any, **__: Any) -> Future[Any]:
            self.submitted.append(Future())
            return self.submitted[-1]

    executor = Idle()
    asyncio.get_running_loop().set_default_executor(executor)
    async with serving(tmp_path) as server, Client(*server.address[:2], timing=QUICK) as client:
        upload = asyncio.create_task(client.write("new", CONTENT))
        while not executor.submitted:
            await asyncio.sleep(0.001)
        executor.submitted[0].cancel()
        with pytest.raises(RemoteError, match="cancelled"):
            await upload
        assert server.stats.completed == 0
    assert not list(tmp_path.iterdir())


async def test_a_server_that_closes_waits_for_the_disk(tmp_path: Path, disk: Disk) -> None:
    async with serving(tmp_path) as server, Client(*server.address[:2], timing=QUICK) as client:
        upload = asyncio.create_task(client.write("new", CONTENT))
        await disk.is_asked()
        closing = asyncio.create_task(server.aclose())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not closing.done()
        disk.ready.set()
        await closing
        assert (tmp_path / "new").read_bytes() == CONTENT
        assert server.stats.completed == 1
        assert (await upload).confirmed

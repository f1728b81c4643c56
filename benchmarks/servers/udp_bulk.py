"""Both ends of a bulk transfer over UDP.

``udp_bulk.py receive WAY SIZE`` counts what arrives, and answers the datagram ``?`` with its counts as JSON.
``udp_bulk.py send WAY SIZE PORT SECONDS`` sends as fast as it can, then prints its counts.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import uvloop

import asyncnet
from asyncnet import udp

HOST = "127.0.0.1"
SO_MEMINFO = 55  # the last of nine numbers is the kernel's count of drops
BATCH = 45
RECEIVE_BUFFER = 4 << 20  # the system grants less; every way asks for the same


class Sink(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.datagrams = self.bytes = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if data == b"?":
            self.answer(addr)
            return
        self.datagrams += 1
        self.bytes += len(data)

    def answer(self, addr: Any) -> None:
        memory = self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36)
        counts = {"datagrams": self.datagrams, "bytes": self.bytes, "kernel_dropped": struct.unpack("=9I", memory)[8]}
        self.transport.sendto(json.dumps(counts).encode(), addr)


class BatchSink(Sink):
    def datagrams_received(self, batch: Any) -> None:
        if batch[-1][0] == b"?":
            self.answer(batch.pop()[1])
        self.datagrams += len(batch)
        self.bytes += sum(map(len, map(itemgetter(0), batch)))


class TrainSink(Sink):
    def trains_received(self, batch: Any) -> None:
        for data, size, addr in batch:
            if len(data) == 1:
                self.answer(addr)
                continue
            self.datagrams += -(-len(data) // size)
            self.bytes += len(data)


async def receive(way: str) -> None:
    loop = asyncio.get_running_loop()
    transport: Any
    if way.startswith("asyncnet"):
        sink = TrainSink if way.endswith("trains") else BatchSink
        transport, _ = await udp.create_datagram_endpoint(sink, (HOST, 0), trains="GRO" in way)
    else:
        transport, _ = await loop.create_datagram_endpoint(Sink, (HOST, 0))
    address = transport.get_extra_info("sockname")
    print(f"listening on {address[0]}:{address[1]}", file=sys.stderr, flush=True)
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    transport.close()


class Source(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.may_send = asyncio.Event()
        self.may_send.set()

    def pause_writing(self) -> None:
        self.may_send.clear()

    def resume_writing(self) -> None:
        self.may_send.set()


async def send(way: str, size: int, port: int, seconds: float) -> None:
    transport: Any
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(Source, remote_addr=(HOST, port))
    payload = bytes(size)
    train = payload * BATCH
    batch = [(payload, None)] * BATCH
    count = 0
    begin, cpu = time.perf_counter(), time.process_time()
    while (now := time.perf_counter()) < begin + seconds:
        await protocol.may_send.wait()
        if "segments" in way:
            transport.send_segments(train, size)
        elif "batch" in way:
            transport.send_batch(batch)
        else:
            for _ in range(BATCH):
                transport.sendto(payload)
        count += BATCH
        await asyncio.sleep(0)
    cpu = time.process_time() - cpu
    transport.close()
    result = {"datagrams": count, "bytes": count * size, "seconds": now - begin, "cpu_seconds": cpu}
    print(json.dumps(result))


if __name__ == "__main__":
    role, way, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
        "asyncnet": asyncnet.new_event_loop,
        "uvloop": uvloop.new_event_loop,
        "asyncio": asyncio.SelectorEventLoop,
    }
    factory = factories[way.split()[0]]
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(receive(way) if role == "receive" else send(way, size, int(sys.argv[4]), float(sys.argv[5])))

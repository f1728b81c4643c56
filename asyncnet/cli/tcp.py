"""``asyncnet tcp echo | connect``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import threading
from asyncio import StreamReader, StreamWriter
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING

from asyncnet import compat, tcp
from asyncnet.addresses import explain
from asyncnet.cli.common import Subparsers, address_argument, announce, engine_argument, positive_float
from asyncnet.cli.supervised import add_worker_options, bind_address, check_worker_options, run_workers, worker_binds
from asyncnet.loops import run

if TYPE_CHECKING:
    from asyncnet.workers import Worker

__all__ = ["add_parser", "echo"]

_CHUNK = 65536


def add_parser(subparsers: Subparsers) -> None:
    """Add the runners to the command line."""
    commands = subparsers.add_parser("tcp", help="an echo server on any engine, and a client").add_subparsers(
        dest="command", required=True, metavar="COMMAND"
    )
    server = commands.add_parser("echo", help="send everything back")
    server.add_argument("--bind", metavar="HOST:PORT", required=True,
                        help="where to listen; with --workers also unix:PATH, fd:NUMBER or systemd")  # fmt: skip
    engine_argument(server, "the server")
    add_worker_options(server, reuse_port=True)
    server.set_defaults(run=_echo)

    client = commands.add_parser("connect", help="send standard input, print what comes back, both at once")
    client.add_argument("address", type=address_argument(), metavar="HOST:PORT")
    client.add_argument("--timeout", type=positive_float, default=10.0, metavar="SECONDS",
                        help="how long connecting may take (default: 10)")  # fmt: skip
    client.set_defaults(run=lambda arguments: run(_connect(arguments)))


async def echo(reader: StreamReader, writer: StreamWriter) -> None:
    """Send back what arrives: the handler that every engine runs unchanged."""
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()


def _echo(arguments: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    check_worker_options(arguments)
    if arguments.workers is None:
        address = bind_address(arguments, "127.0.0.1")
        compat.serve(echo, address, engine=arguments.engine, ready=announce)
        return 0
    if arguments.engine != "asyncnet":
        arguments.parser.error("--workers runs the engine asyncnet; leave --engine out")

    async def main(worker: Worker) -> None:
        await worker.serve(tcp.serve(echo, sockets=worker.tcp, grace=worker.grace))

    binds = worker_binds(arguments, "tcp", "127.0.0.1")
    return run_workers(arguments, main, binds, tcp.ServerStats, first="accepted")


async def _connect(arguments: argparse.Namespace) -> int:
    reader, writer = await tcp.connect(*arguments.address, timeout=arguments.timeout)
    sending = threading.Thread(target=_send_input, args=(asyncio.get_running_loop(), writer), daemon=True)
    sending.start()
    try:
        while data := await _read(reader, arguments.address):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
    finally:
        writer.close()
    return 0


async def _read(reader: StreamReader, address: tuple[str, int]) -> bytes:
    try:
        return await reader.read(_CHUNK)
    except OSError as exc:
        raise explain(exc, "read from", address) from exc


def _send_input(loop: asyncio.AbstractEventLoop, writer: StreamWriter) -> None:
    """Send standard input as it comes, in a thread of its own: a terminal can be read in no other way everywhere."""

    async def send(data: bytes) -> None:
        if data:
            writer.write(data)
            await writer.drain()
        elif writer.can_write_eof():
            writer.write_eof()

    data = b"-"
    while data:
        data = os.read(sys.stdin.fileno(), _CHUNK)
        sending = send(data)
        try:
            asyncio.run_coroutine_threadsafe(sending, loop).result()
        except (OSError, RuntimeError, CancelledError):  # it is over, and the other direction says why
            sending.close()
            return

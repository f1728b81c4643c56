"""``asyncnet udp send | recv | echo``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from typing import TYPE_CHECKING, Final

from asyncnet import udp
from asyncnet.addresses import Address, format_address
from asyncnet.cli.common import (
    Subparsers,
    address_argument,
    announce,
    describe,
    engine_argument,
    positive_float,
)
from asyncnet.cli.supervised import add_worker_options, bind_address, check_worker_options, run_workers, worker_binds
from asyncnet.errors import ClosedError
from asyncnet.loops import run

if TYPE_CHECKING:
    from asyncnet.workers import Worker

__all__ = ["add_parser"]

_SECONDS_BETWEEN_ERRORS: Final = 1.0  # or whoever sends from an address that takes no answer fills the log


def add_parser(subparsers: Subparsers) -> None:
    """Add the runners to the command line."""
    commands = subparsers.add_parser("udp", help="send, receive and echo datagrams").add_subparsers(
        dest="command", required=True, metavar="COMMAND"
    )
    send = commands.add_parser("send", help="send one datagram")
    send.add_argument("address", type=address_argument(any_port=False), metavar="HOST:PORT")
    send.add_argument("text", metavar="TEXT")
    send.add_argument(
        "--wait", type=positive_float, metavar="SECONDS", help="wait this long for an answer and print it"
    )
    send.set_defaults(run=lambda arguments: run(_send(arguments)))

    recv = commands.add_parser("recv", help="print every datagram that arrives")
    recv.add_argument("--bind", type=address_argument("", None), metavar="HOST:PORT", default=("", 8080),
                      help="where to listen (default: port 8080 of every address)")  # fmt: skip
    recv.set_defaults(run=lambda arguments: run(_receive(arguments, echo=False)))

    echo = commands.add_parser("echo", help="send every datagram back")
    echo.add_argument("--bind", metavar="HOST:PORT", required=True,
                      help="where to listen; with --workers also fd:NUMBER or systemd")  # fmt: skip
    engine_argument(echo, "the server")
    add_worker_options(echo)
    echo.set_defaults(run=_echo)


def _echo(arguments: argparse.Namespace) -> int:
    check_worker_options(arguments)
    if arguments.workers is None:
        arguments.bind = bind_address(arguments, "")
        return run(_receive(arguments, echo=True)) if arguments.engine == "asyncnet" else _echo_on_engine(arguments)
    if arguments.engine != "asyncnet":
        arguments.parser.error("--workers runs the engine asyncnet; leave --engine out")

    async def main(worker: Worker) -> None:
        async with contextlib.AsyncExitStack() as stack:
            endpoints = [await stack.enter_async_context(udp.bind(sock=sock)) for sock in worker.udp]
            for endpoint in endpoints:
                worker.watch(endpoint)
            worker.ready()
            async with asyncio.TaskGroup() as group:
                for endpoint in endpoints:
                    group.create_task(_send_back(endpoint))
                await worker.stopping.wait()
                for endpoint in endpoints:
                    endpoint.close()

    return run_workers(arguments, main, worker_binds(arguments, "udp", ""), udp.EndpointStats, first="received")


def _echo_on_engine(arguments: argparse.Namespace) -> int:
    from asyncnet import compat

    async def handler(data: bytes, addr: Address, endpoint: compat.Endpoint) -> None:
        await endpoint.send(data, addr)

    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    compat.serve_datagram(handler, arguments.bind, engine=arguments.engine, ready=announce)
    return 0


async def _send(arguments: argparse.Namespace) -> int:
    async with udp.connect(*arguments.address, broadcast=True) as endpoint:
        await endpoint.send(arguments.text.encode())
        if arguments.wait is None:
            return 0
        try:
            async with asyncio.timeout(arguments.wait):
                data, _ = await endpoint.recv()
        except TimeoutError:
            raise TimeoutError(f"no answer within {arguments.wait:g} s") from None
        print(_printable(data, keep="\n\t"))
    return 0


async def _receive(arguments: argparse.Namespace, *, echo: bool) -> int:
    loop = asyncio.get_running_loop()
    async with udp.bind(*arguments.bind) as endpoint:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                loop.add_signal_handler(number, endpoint.close)
            except NotImplementedError:  # Windows
                break
        announce(endpoint.local_addr)
        if echo:
            await _send_back(endpoint)
        else:
            async for data, addr in endpoint:
                print(f"{format_address(addr)}: {_printable(data)}", flush=True)
        lost, errors = endpoint.stats.kernel_dropped, endpoint.stats.errors
    if lost:
        print(f"asyncnet: the system dropped {lost} datagrams that came faster than they were taken", file=sys.stderr)
    if errors > 1:
        print(f"asyncnet: {errors} datagrams could not be sent back", file=sys.stderr)
    return 0


async def _send_back(endpoint: udp.Endpoint) -> None:
    """Echo what arrives, until the endpoint is closed."""
    loop, told = asyncio.get_running_loop(), float("-inf")
    async for data, addr in endpoint:
        try:
            await endpoint.send(data, addr)
        except ClosedError:
            break
        except OSError as exc:  # one peer that cannot be reached is no reason to stop
            if loop.time() > told + _SECONDS_BETWEEN_ERRORS:
                told = loop.time()
                print(f"asyncnet: {describe(exc)}", file=sys.stderr)


def _printable(data: bytes, keep: str = "") -> str:
    """Return what came from the network as text that can do nothing to a terminal, on one line."""
    text = data.decode(errors="backslashreplace")
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)

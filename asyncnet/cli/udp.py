"""``asyncnet udp send | recv | echo``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys

from asyncnet import udp
from asyncnet.addresses import format_address
from asyncnet.cli.common import Subparsers, address_argument, announce, describe, positive_float
from asyncnet.cli.supervised import add_worker_options, bind_address, check_worker_options, run_workers, worker_binds
from asyncnet.errors import ClosedError
from asyncnet.loops import run
from asyncnet.workers import Worker

__all__ = ["add_parser"]


def add_parser(subparsers: Subparsers) -> None:
    """Add the runners to the command line."""
    commands = subparsers.add_parser("udp", help="send, receive and echo datagrams").add_subparsers(
        dest="command", required=True, metavar="COMMAND"
    )
    send = commands.add_parser("send", help="send one datagram")
    send.add_argument("address", type=address_argument(), metavar="HOST:PORT")
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
    add_worker_options(echo)
    echo.set_defaults(run=_echo)


def _echo(arguments: argparse.Namespace) -> int:
    check_worker_options(arguments)
    if arguments.workers is None:
        arguments.bind = bind_address(arguments, "")
        return run(_receive(arguments, echo=True))

    async def main(worker: Worker) -> None:
        async with contextlib.AsyncExitStack() as stack:
            endpoints = [await stack.enter_async_context(udp.bind(sock=sock)) for sock in worker.udp]
            for endpoint in endpoints:
                worker.watch(endpoint)
            worker.ready()
            async with asyncio.TaskGroup() as group:
                for endpoint in endpoints:
                    group.create_task(_pump(endpoint, echo=True))
                await worker.stopping.wait()
                for endpoint in endpoints:
                    endpoint.close()

    return run_workers(arguments, main, worker_binds(arguments, "udp", ""), udp.EndpointStats, first="received")


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
        print(data.decode(errors="backslashreplace"))
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
        await _pump(endpoint, echo=echo)
    return 0


async def _pump(endpoint: udp.Endpoint, *, echo: bool) -> None:
    """Echo or print what arrives, until the endpoint is closed."""
    while True:
        try:
            data, addr = await endpoint.recv()
            if echo:
                await endpoint.send(data, addr)
            else:
                print(f"{format_address(addr)}: {data.decode(errors='backslashreplace')}", flush=True)
        except ClosedError:
            return
        except BrokenPipeError:
            raise
        except OSError as exc:  # one peer that cannot be reached is no reason to stop
            print(f"asyncnet: {describe(exc)}", file=sys.stderr)

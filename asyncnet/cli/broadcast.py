"""``asyncnet broadcast ask | answer``."""

from __future__ import annotations

import argparse
import sys

from asyncnet import broadcast
from asyncnet.addresses import Address, format_address
from asyncnet.cli.common import Subparsers, non_negative_float, positive_int, serve_until_signal
from asyncnet.cli.supervised import add_worker_options, check_worker_options, run_workers
from asyncnet.loops import run
from asyncnet.workers import Worker

__all__ = ["add_parser"]


def add_parser(subparsers: Subparsers) -> None:
    """Add the runners to the command line."""
    commands = subparsers.add_parser("broadcast", help="ask everybody on the network, and answer").add_subparsers(
        dest="command", required=True, metavar="COMMAND"
    )
    ask = commands.add_parser("ask", help="send a question by broadcast and print the answers")
    ask.add_argument("port", type=positive_int, metavar="PORT")
    ask.add_argument("text", metavar="TEXT")
    ask.add_argument("--timeout", type=non_negative_float, default=3.0, metavar="SECONDS",
                     help="how long to wait for answers (default: 3)")  # fmt: skip
    ask.add_argument("--limit", type=positive_int, metavar="N", help="stop after N answers")
    ask.add_argument("--to", action="append", metavar="ADDRESS",
                     help="a broadcast address to send to, such as 127.255.255.255; may be repeated "
                          "(default: those of all interfaces)")  # fmt: skip
    ask.set_defaults(run=lambda arguments: run(_ask(arguments)))

    answer = commands.add_parser("answer", help="print questions that come by broadcast and answer them")
    answer.add_argument("port", type=int, metavar="PORT")
    answer.add_argument("text", metavar="TEXT")
    add_worker_options(answer)
    answer.set_defaults(run=_answer)


async def _ask(arguments: argparse.Namespace) -> int:
    count = 0
    async for reply in broadcast.ask(
        arguments.text.encode(), arguments.port, timeout=arguments.timeout, limit=arguments.limit, to=arguments.to
    ):
        count += 1
        by = f" ({reply.interface})" if reply.interface else ""
        text = reply.data.decode(errors="backslashreplace")
        print(f"Received from {format_address(reply.addr)}{by}: {text}", flush=True)
    if not count:
        print(f"asyncnet: nobody answered within {arguments.timeout:g} s", file=sys.stderr)
    return 0 if count else 1


def _answer(arguments: argparse.Namespace) -> int:
    reply: bytes = arguments.text.encode()

    def handler(data: bytes, addr: Address) -> bytes:
        print(f"{format_address(addr)} asks: {data.decode(errors='backslashreplace')}", flush=True)
        return reply

    async def alone() -> int:
        await serve_until_signal(broadcast.answer(handler, arguments.port))
        return 0

    async def main(worker: Worker) -> None:
        await worker.serve(broadcast.answer(handler, sock=worker.udp[0]))

    check_worker_options(arguments)
    if arguments.workers is None:
        return run(alone())
    # A broadcast reaches every socket of a port: the workers share one, so that a question is answered once.
    return run_workers(
        arguments,
        main,
        [f"udp:0.0.0.0:{arguments.port}"],
        broadcast.AnswererStats,
        first="questions",
        udp="one",
        broadcast=True,
    )

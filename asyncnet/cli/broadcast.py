"""``asyncnet broadcast ask | answer``."""

from __future__ import annotations

import argparse
import sys

from asyncnet import broadcast
from asyncnet.addresses import Address, format_address
from asyncnet.cli.common import (
    Subparsers,
    engine_argument,
    non_negative_float,
    positive_int,
    serve_until_signal,
)
from asyncnet.loops import run

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
    engine_argument(ask, "the asker")
    ask.set_defaults(run=_ask_on_engine)

    answer = commands.add_parser("answer", help="print questions that come by broadcast and answer them")
    answer.add_argument("port", type=int, metavar="PORT")
    answer.add_argument("text", metavar="TEXT")
    answer.set_defaults(run=lambda arguments: run(_answer(arguments)))


def _ask_on_engine(arguments: argparse.Namespace) -> int:
    if arguments.engine == "asyncnet":
        return run(_ask(arguments))
    from asyncnet import compat

    return compat.run(_ask_plainly(arguments), engine=arguments.engine)


async def _ask_plainly(arguments: argparse.Namespace) -> int:
    """Ask on any engine: each question once, and nothing known of interfaces."""
    from asyncnet.compat.questions import ask

    count = 0
    async for data, addr in ask(
        arguments.text.encode(), arguments.port, seconds=arguments.timeout, limit=arguments.limit, to=arguments.to
    ):
        count += 1
        print(f"Received from {format_address(addr)}: {data.decode(errors='backslashreplace')}", flush=True)
    if not count:
        print(f"asyncnet: nobody answered within {arguments.timeout:g} s", file=sys.stderr)
    return 0 if count else 1


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


async def _answer(arguments: argparse.Namespace) -> int:
    reply: bytes = arguments.text.encode()

    def handler(data: bytes, addr: Address) -> bytes:
        print(f"{format_address(addr)} asks: {data.decode(errors='backslashreplace')}", flush=True)
        return reply

    await serve_until_signal(broadcast.answer(handler, arguments.port))
    return 0

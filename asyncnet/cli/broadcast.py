"""``asyncnet broadcast ask | answer | announce | browse``."""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from asyncnet import broadcast
from asyncnet.addresses import Address, format_address
from asyncnet.cli.browse import browse
from asyncnet.cli.common import (
    Subparsers,
    engine_argument,
    non_negative_float,
    positive_float,
    positive_int,
    serve_until_signal,
)
from asyncnet.cli.supervised import add_worker_options, check_worker_options, run_workers
from asyncnet.loops import run
from asyncnet.opening import Opening

if TYPE_CHECKING:
    from asyncnet.workers import Worker

__all__ = ["add_parser"]


def add_parser(subparsers: Subparsers) -> None:
    """Add the runners to the command line."""
    commands = subparsers.add_parser(
        "broadcast", help="ask everybody on the network, answer, announce a service, browse for one"
    ).add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_ask(commands.add_parser("ask", help="send a question by broadcast and print the answers"))
    _add_answer(commands.add_parser("answer", help="print questions that come by broadcast and answer them"))
    _add_announce(commands.add_parser("announce", help="let everybody on the network know of a service"))
    _add_browse(commands.add_parser("browse", help="show who announces a service, as it changes"))


def _add_ask(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("port", type=_port, metavar="PORT")
    parser.add_argument("text", metavar="TEXT")
    parser.add_argument("--timeout", type=non_negative_float, default=3.0, metavar="SECONDS",
                        help="how long to wait for answers (default: 3)")  # fmt: skip
    parser.add_argument("--limit", type=positive_int, metavar="N", help="stop after N answers")
    _add_targets(parser)
    parser.add_argument("--window", type=non_negative_float, metavar="SECONDS",
                        help="spread the answers over so long; only 'broadcast answer' understands it "
                             "(default: send TEXT as it is, for any program)")  # fmt: skip
    parser.add_argument("--local-port", type=_port_or_zero, default=0, metavar="PORT",
                        help="ask from this port (default: any free one)")  # fmt: skip
    parser.add_argument("--own", action="store_true", help="print the question too when it comes back")
    parser.add_argument("--verbose", action="store_true",
                        help="say on standard error what was sent by which interface, and left out")  # fmt: skip
    _add_reach(parser)
    engine_argument(parser, "the asker")
    parser.set_defaults(run=lambda arguments: _ask_on_engine(parser, arguments))


def _add_answer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("port", type=_port_or_zero, metavar="PORT")
    parser.add_argument("text", metavar="TEXT")
    parser.add_argument("--delay", type=non_negative_float, default=0.1, metavar="SECONDS",
                        help="answer broadcasts after a random part of it, unless the asker names a window "
                             "(default: 0.1)")  # fmt: skip
    parser.add_argument("--max-rate", type=non_negative_float, default=100.0, metavar="N",
                        help="questions a second of one source that are answered; 0 for no limit "
                             "(default: 100)")  # fmt: skip
    _add_reach(parser)
    add_worker_options(parser)
    parser.set_defaults(run=_answer)


def _add_announce(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("port", type=_port, metavar="PORT", help="of the service")
    parser.add_argument("--info", action="append", type=_pair, default=[], metavar="KEY=VALUE",
                        help="a text that goes with it; may be repeated")  # fmt: skip
    parser.add_argument("--interval", type=positive_float, default=1.0, metavar="SECONDS",
                        help="between announcements (default: 1)")  # fmt: skip
    parser.add_argument("--expiry", type=positive_float, metavar="SECONDS",
                        help="how long others believe in it without hearing of it (default: 5 intervals)")  # fmt: skip
    parser.add_argument("--node", metavar="TEXT",
                        help="what is the same after a restart (default: host, card, name and port)")  # fmt: skip
    _add_presence(parser)
    _add_reach(parser)
    parser.set_defaults(run=lambda arguments: run(_announce(arguments)))


def _add_browse(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="of the service; '*' for every one")
    parser.add_argument("--timeout", type=positive_float, metavar="SECONDS", help="stop after so long")
    parser.add_argument("--json", action="store_true", help="print each event as a line of JSON")
    parser.add_argument("--max-peers", type=positive_int, default=4096, metavar="N",
                        help="instances to remember (default: 4096)")  # fmt: skip
    _add_presence(parser)
    _add_reach(parser)
    parser.set_defaults(run=lambda arguments: run(_browse(arguments)))


def _add_reach(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--group", metavar="ADDRESS", help="a multicast group to use as well")
    parser.add_argument("--ipv6", action="store_true", help="use IPv6 (ff02::1) as well")


def _add_targets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", action="append", metavar="ADDRESS",
                        help="a broadcast address to send to, such as 127.255.255.255; may be repeated "
                             "(default: those of all interfaces)")  # fmt: skip


def _add_presence(parser: argparse.ArgumentParser) -> None:
    _add_targets(parser)
    parser.add_argument("--key-file", type=Path, metavar="FILE",
                        help="a file with a secret that all share: packets are signed with it")  # fmt: skip
    parser.add_argument("--discovery-port", type=_port, default=broadcast.DISCOVERY_PORT, metavar="PORT",
                        help=f"where services are announced (default: {broadcast.DISCOVERY_PORT})")  # fmt: skip


def _port_or_zero(text: str) -> int:
    """Convert for argparse: a port, or 0."""
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is no port: a number up to 65535")
    return int(text)


def _port(text: str) -> int:
    """Convert for argparse: a port."""
    port = _port_or_zero(text)
    if not port:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: a number from 1 to 65535")
    return port


def _pair(text: str) -> tuple[str, str]:
    """Convert for argparse: KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def _key(arguments: argparse.Namespace) -> bytes | None:
    if arguments.key_file is None:
        return None
    file: Path = arguments.key_file
    key = file.read_bytes().strip()
    if len(key) < 8:
        raise ValueError(f"{file}: a key must be 8 bytes or more, not {len(key)}")
    return key


def _ask_on_engine(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if arguments.engine == "asyncnet":
        return run(_ask(arguments))
    for name in ("window", "local_port", "own", "verbose", "group", "ipv6"):
        if getattr(arguments, name) != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')} is for --engine asyncnet alone")
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
    asking = broadcast.ask(
        arguments.text.encode(),
        arguments.port,
        timeout=arguments.timeout,
        limit=arguments.limit,
        to=arguments.to,
        window=arguments.window,
        local_port=arguments.local_port,
        own=arguments.own,
        group=arguments.group,
        ipv6=arguments.ipv6,
    )
    async for reply in asking:
        count += 1
        by = f" ({reply.interface})" if reply.interface else ""
        text = reply.data.decode(errors="backslashreplace")
        print(f"Received from {format_address(reply.addr)}{by}: {text}", flush=True)
    if arguments.verbose:
        for report in asking.ways:
            way, error = report.way, f", {report.failed} failed: {report.error}" if report.failed else ""
            print(f"asyncnet: {way.interface or '-'} {way.target}: {report.sent} sent{error}", file=sys.stderr)
        stats = asking.stats
        print(f"asyncnet: {stats.replies} answers, {stats.duplicates} duplicates, {stats.own} own", file=sys.stderr)
    if not count:
        print(f"asyncnet: nobody answered within {arguments.timeout:g} s", file=sys.stderr)
    return 0 if count else 1


def _answer(arguments: argparse.Namespace) -> int:
    reply: bytes = arguments.text.encode()

    def handler(data: bytes, addr: Address) -> bytes:
        print(f"{format_address(addr)} asks: {data.decode(errors='backslashreplace')}", flush=True)
        return reply

    def opening(sock: socket.socket | None = None) -> Opening[broadcast.Answerer]:
        return broadcast.answer(
            handler,
            arguments.port,
            delay=arguments.delay,
            max_rate=arguments.max_rate or None,
            group=arguments.group,
            ipv6=arguments.ipv6,
            sock=sock,
        )

    async def alone() -> int:
        await serve_until_signal(opening())
        return 0

    async def main(worker: Worker) -> None:
        await worker.serve(opening(worker.udp[0]))

    check_worker_options(arguments)
    if arguments.workers is None:
        return run(alone())
    if arguments.ipv6 or arguments.group is not None:
        arguments.parser.error("--workers share one IPv4 socket: leave --ipv6 and --group out")
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


async def _announce(arguments: argparse.Namespace) -> int:
    opening = broadcast.announce(
        arguments.name,
        arguments.port,
        dict(arguments.info),
        interval=arguments.interval,
        expiry=arguments.expiry,
        key=_key(arguments),
        node=arguments.node,
        discovery_port=arguments.discovery_port,
        to=arguments.to,
        group=arguments.group,
        ipv6=arguments.ipv6,
    )
    await serve_until_signal(opening)
    return 0


async def _browse(arguments: argparse.Namespace) -> int:
    opening = broadcast.browse(
        arguments.name,
        key=_key(arguments),
        max_peers=arguments.max_peers,
        discovery_port=arguments.discovery_port,
        to=arguments.to,
        group=arguments.group,
        ipv6=arguments.ipv6,
    )
    try:
        async with asyncio.timeout(arguments.timeout):
            await browse(opening, as_json=arguments.json)
    except TimeoutError:
        pass
    return 0

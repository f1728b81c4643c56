"""``asyncnet tftp serve | get | put``."""

from __future__ import annotations

import argparse
import logging
import sys

from asyncnet import tftp
from asyncnet.cli.common import (
    Subparsers,
    human_bytes,
    positive_int,
    progress_bar,
    serve_until_signal,
)
from asyncnet.cli.tftp_serve import add_serve_parser
from asyncnet.loops import run

__all__ = ["add_parser"]


def add_parser(subparsers: Subparsers) -> None:
    """Add the runners to the command line."""
    commands = subparsers.add_parser("tftp", help="serve, fetch and send files by TFTP").add_subparsers(
        dest="command", required=True, metavar="COMMAND"
    )
    add_serve_parser(commands)
    get = commands.add_parser("get", help="fetch a file")
    get.add_argument("url", metavar="URL", help="tftp://HOST[:PORT]/FILE[;mode=octet|netascii]")
    get.add_argument("file", metavar="FILE", nargs="?", help="where to put it (default: its name, here)")
    _add_options(get)
    get.set_defaults(run=lambda arguments: run(_get(arguments)))

    put = commands.add_parser("put", help="send a file")
    put.add_argument("file", metavar="FILE")
    put.add_argument("url", metavar="URL", help="tftp://HOST[:PORT]/FILE, or .../ for the same name")
    _add_options(put)
    put.set_defaults(run=lambda arguments: run(_put(arguments)))


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--block-size", type=positive_int, default=1428, metavar="N",
                        help="bytes of a block, 8 to 65464 (default: 1428; 512 asks for no option)")  # fmt: skip
    parser.add_argument("--window-size", type=positive_int, default=16, metavar="N",
                        help="blocks before an acknowledgement (default: 16; 1 asks for no option)")  # fmt: skip
    parser.add_argument("--timeout", type=positive_int, metavar="N",
                        help="seconds between the server's retransmissions to ask for, 1 to 255")  # fmt: skip


async def _serve(arguments: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    host, port = arguments.bind
    await serve_until_signal(
        tftp.serve(arguments.directory, host, port, write=arguments.write, max_sessions=arguments.max_sessions)
    )
    return 0


async def _get(arguments: argparse.Namespace) -> int:
    name = tftp.parse_url(arguments.url).file
    with progress_bar(name) as progress:
        report = await tftp.get(
            arguments.url,
            arguments.file,
            block_size=arguments.block_size,
            window_size=arguments.window_size,
            timeout=arguments.timeout,
            progress=progress,
        )
    _summarise(name, report)
    return 0


async def _put(arguments: argparse.Namespace) -> int:
    with progress_bar(arguments.file) as progress:
        report = await tftp.put(
            arguments.file,
            arguments.url,
            block_size=arguments.block_size,
            window_size=arguments.window_size,
            timeout=arguments.timeout,
            progress=progress,
        )
    _summarise(arguments.file, report)
    return 0


def _summarise(name: str, report: tftp.Report) -> None:
    rate = report.bytes / report.seconds / 1e6 if report.seconds else 0.0
    unconfirmed = "" if report.confirmed else "; the last acknowledgement never came"
    print(
        f"{name}: {human_bytes(report.bytes)} in {report.seconds:.2f} s, {rate:.1f} MB/s, "
        f"{report.retransmitted} retransmitted{unconfirmed}",
        file=sys.stderr,
    )

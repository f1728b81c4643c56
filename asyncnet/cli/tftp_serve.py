"""``asyncnet tftp serve``."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from asyncnet import tftp
from asyncnet.activation import inherited_sockets
from asyncnet.addresses import Address, explain, format_address
from asyncnet.cli.common import (
    Subparsers,
    address_argument,
    announce,
    engine_argument,
    non_negative_float,
    positive_int,
    serve_until_signal,
)
from asyncnet.cli.supervised import add_worker_options, check_worker_options, run_workers
from asyncnet.descriptors import allow_descriptors
from asyncnet.loops import run
from asyncnet.opening import Opening
from asyncnet.privileges import drop_privileges

if TYPE_CHECKING:
    from asyncnet.workers import Worker

__all__ = ["add_serve_parser"]

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def add_serve_parser(commands: Subparsers) -> None:
    """Add ``serve`` to the commands of ``tftp``."""
    serve = commands.add_parser(
        "serve",
        help="serve a directory",
        description="Serve a directory by TFTP. SIGTERM finishes running transfers first. "
        "Without --bind, sockets that systemd hands over (LISTEN_FDS) are used.",
    )
    serve.add_argument("directory", metavar="DIR")
    _add_addresses(serve.add_argument_group("where it listens and answers"))
    _add_files(serve.add_argument_group("what it serves"))
    _add_limits(serve.add_argument_group("whom, and how much"))
    _add_output(serve.add_argument_group("what it tells"))
    engine_argument(serve.add_argument_group("how it runs"), "the server")
    add_worker_options(serve, grace=False)
    serve.set_defaults(run=lambda arguments: _serve(serve, arguments))


def _add_addresses(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--bind", type=address_argument("127.0.0.1", 69), action="append", metavar="HOST:PORT",
                       help="where to listen (default: 127.0.0.1:69); may be repeated; 0.0.0.0:69 serves the network "
                            "by IPv4, [::]:69 by IPv6, :69 by both")  # fmt: skip
    group.add_argument("--single-port", action="store_true",
                       help="answer from the listening port, which passes NAT, Docker and Kubernetes")  # fmt: skip
    group.add_argument("--ports", type=_port_range, metavar="FIRST-LAST", help="ports of transfers, for a firewall")
    group.add_argument("--reuse-port", action="store_true", help="share the port with other servers")
    group.add_argument("--user", metavar="NAME", help="become this user once the port is open")


def _add_files(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--write", choices=[policy.value for policy in tftp.WritePolicy], default="none",
                       help="what clients may write (default: none)")  # fmt: skip
    group.add_argument("--max-file-size", type=_size, metavar="SIZE", help="of an upload: 500M, 2G")
    group.add_argument("--root", action="append", default=[], type=_root, metavar="NETWORK=DIR",
                       help="clients of a network look in this directory first; may be repeated")  # fmt: skip
    group.add_argument("--remap", action="append", default=[], type=_rule, metavar="REGEX=REPLACEMENT",
                       help="rewrite file names; the first rule that matches counts; may be repeated")  # fmt: skip
    group.add_argument("--remap-test", metavar="NAME", help="say what the rules make of a name, and exit")


def _add_limits(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--allow", action="append", default=[], metavar="NETWORK",
                       help="admit only clients of this network; may be repeated")  # fmt: skip
    group.add_argument("--deny", action="append", default=[], metavar="NETWORK",
                       help="admit no client of this network; may be repeated")  # fmt: skip
    group.add_argument("--max-sessions", type=positive_int, default=1000, metavar="N",
                       help="transfers at once; further requests get no answer until there is room "
                            "(default: 1000)")  # fmt: skip
    group.add_argument("--max-sessions-per-client", type=positive_int, metavar="N",
                       help="transfers at once of one client, or of all behind one NAT (default: 16, and no limit for "
                            "this host)")  # fmt: skip
    group.add_argument("--max-memory", type=_size, metavar="SIZE", help="of all windows together: 64M")
    group.add_argument("--max-block-size", type=positive_int, default=65464, metavar="BYTES",
                       help="grant no larger blocks (default: 65464)")  # fmt: skip
    group.add_argument("--max-window-size", type=positive_int, default=64, metavar="BLOCKS",
                       help="grant no larger windows (default: 64)")  # fmt: skip
    group.add_argument("--invalid-option", choices=("ignore", "error"), default="ignore",
                       help="what an option with an invalid value meets (default: ignore)")  # fmt: skip
    group.add_argument("--rollover", type=int, choices=(0, 1), help="the block number that follows 65535 (default: 0)")
    group.add_argument("--grace", type=non_negative_float, default=5.0, metavar="SECONDS",
                       help="that running transfers get at the end (default: 5)")  # fmt: skip


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--log", choices=("text", "json"), default="text", help="how each transfer's line looks")
    group.add_argument("--quiet", action="store_true", help="log no transfers")
    group.add_argument("--metrics", type=address_argument("127.0.0.1", None), metavar="HOST:PORT",
                       help="serve Prometheus metrics by HTTP")  # fmt: skip


def _serve(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if arguments.remap_test is not None:
        print(tftp.explain_remap(arguments.remap, arguments.remap_test))
        return 0
    level = logging.WARNING if arguments.quiet else logging.INFO
    style = "%(message)s" if arguments.log == "json" else "%(asctime)s %(message)s"
    logging.basicConfig(level=level, format=style, stream=sys.stderr)
    check_worker_options(arguments)
    if arguments.engine != "asyncnet":
        return _serve_on_engine(parser, arguments)
    if arguments.workers is not None:
        return _serve_by_workers(arguments)
    return run(_serve_until_signal(arguments, inherited_sockets(socket.SOCK_DGRAM) if not arguments.bind else []))


_OWN_OPTIONS = (
    "single_port",
    "ports",
    "reuse_port",
    "max_sessions",
    "max_sessions_per_client",
    "max_memory",
    "metrics",
    "workers",
)
"""What only the server of the engine asyncnet has."""


def _serve_on_engine(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    for name in _OWN_OPTIONS:
        if getattr(arguments, name) != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')} is for --engine asyncnet alone")
    if len(arguments.bind or []) > 1:
        parser.error("several --bind are for --engine asyncnet alone")
    from asyncnet import compat
    from asyncnet.compat.transfers import TftpService

    def ready(address: Address) -> None:
        if arguments.user is not None:
            drop_privileges(arguments.user)
        announce(address)

    service = TftpService(
        _storage(arguments),
        limits=_limits(arguments),
        rollover=arguments.rollover,
        admits=tftp.Guard(allow=arguments.allow, deny=arguments.deny).admits,
        log_format=arguments.log,
    )
    allow_descriptors(4096)
    compat.serve_datagram(
        service.handle,
        arguments.bind[0] if arguments.bind else ("127.0.0.1", 69),
        engine=arguments.engine,
        grace=arguments.grace,
        ready=ready,
    )
    return 0


def _serve_by_workers(arguments: argparse.Namespace) -> int:
    if arguments.reuse_port:
        arguments.parser.error("--reuse-port is for servers without --workers, whose workers share ports by themselves")
    if arguments.metrics is not None and arguments.admin is not None:
        arguments.parser.error("with --workers, --metrics and --admin are the same: give one of them")
    arguments.admin = arguments.admin or arguments.metrics
    by_systemd = not arguments.bind and os.environ.get("LISTEN_PID") == str(os.getpid())
    if by_systemd and arguments.single_port and arguments.workers > 1:
        raise ValueError("one socket of systemd cannot be a single port of several workers: give --bind, or one worker")
    places = arguments.bind or [("127.0.0.1", 69)]
    binds = ["systemd"] if by_systemd else [f"udp:{format_address((host, port))}" for host, port in places]

    async def main(worker: Worker) -> None:
        async def open_() -> tftp.Server:
            allow_descriptors(3 * arguments.max_sessions + 100)
            server = await _opening(arguments, worker.udp, paused=arguments.single_port)
            if arguments.user is not None:
                worker.stay_with_master()
            return server

        await worker.serve(Opening(open_))

    return run_workers(arguments, main, binds, tftp.ServerStats, first="requests")


async def _serve_until_signal(arguments: argparse.Namespace, sockets: list[socket.socket]) -> int:
    allow_descriptors(3 * arguments.max_sessions + 100)
    opening = _opening(arguments, sockets)
    with ExitStack() as stack:

        async def open_() -> tftp.Server:
            server = await opening
            try:
                if arguments.metrics is not None:
                    stack.enter_context(_metrics(server, *arguments.metrics))
            except BaseException:
                await server.aclose(0)
                raise
            return server

        await serve_until_signal(Opening(open_))
    return 0


@contextmanager
def _metrics(server: tftp.Server, host: str, port: int) -> Iterator[None]:
    """Answer Prometheus by HTTP, in a thread."""
    collector = tftp.MetricsCollector(server)
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry()
    registry.register(collector)
    try:
        http, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as exc:
        raise explain(exc, "bind TCP", (host, port)) from exc
    logging.getLogger("asyncnet.tftp").info("metrics on http://%s/metrics", format_address(http.server_address[:2]))
    try:
        yield
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def _storage(arguments: argparse.Namespace) -> tftp.Storage:
    write = tftp.WritePolicy(arguments.write)

    def directory(path: str) -> tftp.Directory:
        return tftp.Directory(path, write=write, max_size=arguments.max_file_size)

    storage: tftp.Storage = directory(arguments.directory)
    if arguments.root:
        storage = tftp.Roots(storage, {network: directory(path) for network, path in arguments.root})
    if arguments.remap:
        storage = tftp.Remapped(storage, arguments.remap)
    return storage


def _limits(arguments: argparse.Namespace) -> tftp.Limits:
    return tftp.Limits(
        block_size=arguments.max_block_size,
        window_size=arguments.max_window_size,
        invalid_option=arguments.invalid_option,
    )


def _opening(
    arguments: argparse.Namespace, sockets: list[socket.socket], *, paused: bool = False
) -> Opening[tftp.Server]:
    bounds = {"max_sessions_per_client": arguments.max_sessions_per_client, "max_memory": arguments.max_memory}
    guard = tftp.Guard(
        allow=arguments.allow,
        deny=arguments.deny,
        max_sessions=arguments.max_sessions,
        **{name: value for name, value in bounds.items() if value is not None},
    )
    (host, port), *more = arguments.bind or [("127.0.0.1", 69)]
    is_plain = not arguments.root and not arguments.remap
    return tftp.serve(
        arguments.directory if is_plain else _storage(arguments),
        host,
        port,
        write=arguments.write,
        max_file_size=arguments.max_file_size,
        addresses=more,
        sockets=sockets,
        paused=paused,
        single_port=arguments.single_port,
        ports=arguments.ports,
        reuse_port=arguments.reuse_port,
        user=arguments.user,
        guard=guard,
        limits=_limits(arguments),
        rollover=arguments.rollover,
        grace=arguments.grace,
        log_format=arguments.log,
    )


def _port_range(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    try:
        low, high = int(first), int(last if dash else first)
    except ValueError:
        low = high = 0
    if not 1 <= low <= high <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no range of ports: write 40000-40999")
    return low, high


def _size(text: str) -> int:
    number, unit = (text[:-1], text[-1].lower()) if text[-1:].isalpha() else (text, "")
    if not number.isdecimal() or unit not in _UNITS or int(number) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 500000, 64K, 500M or 2G")
    return int(number) * _UNITS[unit]


def _root(text: str) -> tuple[str, str]:
    network, equals, path = text.partition("=")
    if not equals or not network or not os.path.isdir(path):
        raise argparse.ArgumentTypeError(
            f"{text!r}: write NETWORK=DIR, 192.168.1.0/24=/srv/a; the directory must exist"
        )
    return network, path


def _rule(text: str) -> tftp.RemapRule:
    try:
        return tftp.RemapRule.parse(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None

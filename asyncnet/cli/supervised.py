"""What the servers of the command line share when they run in several processes: the flags, and how they start."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

import asyncnet
from asyncnet.addresses import format_address, parse_address
from asyncnet.cli.common import address_argument, announce, non_negative_float, positive_float, positive_int
from asyncnet.errors import AddressError

if TYPE_CHECKING:
    from asyncnet.workers.child import Main

__all__ = ["add_worker_options", "bind_address", "check_worker_options", "run_workers", "worker_binds"]

_GAUGES: Final = ("active",)
_OPTIONS: Final = ("worker_reuse_port", "pid_file", "admin", "worker_grace", "heartbeat", "boot_timeout",
                   "recycle_age", "recycle_connections", "recycle_memory", "recycle_jitter")  # fmt: skip


def add_worker_options(parser: argparse.ArgumentParser, *, reuse_port: bool = False, grace: bool = True) -> None:
    """Add ``--workers`` and what goes with it.

    Args:
        parser: of the server's command.
        reuse_port: it listens by TCP.
        grace: it has no ``--grace`` of its own.
    """
    group = parser.add_argument_group("several processes")
    group.add_argument("--workers", type=positive_int, metavar="N",
                       help="serve by N processes under a master that replaces those that die; SIGHUP reloads them, "
                            "SIGTTIN and SIGTTOU add and remove one, SIGUSR2 executes the program anew")  # fmt: skip
    if reuse_port:
        group.add_argument("--reuse-port", dest="worker_reuse_port", action="store_true", default=None,
                           help="each worker opens its own listener (SO_REUSEPORT), which the kernel fills evenly; "
                                "a worker that dies takes what waits there with it")  # fmt: skip
    if grace:
        group.add_argument("--grace", dest="worker_grace", type=non_negative_float, metavar="SECONDS",
                           help="that a worker gets to finish its work (default: 30)")  # fmt: skip
    group.add_argument("--pid-file", metavar="FILE", help="where the master's process is written, for asyncnet workers")
    group.add_argument("--admin", type=address_argument("127.0.0.1", None), metavar="HOST:PORT",
                       help="where the master answers /health, /metrics and /status by HTTP")  # fmt: skip
    group.add_argument("--heartbeat", type=positive_float, metavar="SECONDS",
                       help="after which a worker is killed whose event loop hangs (default: 30)")  # fmt: skip
    group.add_argument("--boot-timeout", type=positive_float, metavar="SECONDS",
                       help="that a worker has to start (default: 30)")  # fmt: skip
    group.add_argument("--recycle-age", type=positive_float, metavar="SECONDS", help="replace workers of this age")
    group.add_argument("--recycle-connections", type=positive_int, metavar="N",
                       help="replace workers that have served so many connections or requests")  # fmt: skip
    group.add_argument("--recycle-memory", type=_size, metavar="SIZE", help="replace workers of this size: 200M, 1G")
    group.add_argument("--recycle-jitter", type=non_negative_float, metavar="SHARE",
                       help="make these limits larger by a random share up to this (default: 0.1)")  # fmt: skip
    parser.set_defaults(parser=parser)


def check_worker_options(arguments: argparse.Namespace) -> None:
    """Refuse flags that mean nothing without ``--workers``."""
    for name in _OPTIONS:
        if arguments.workers is None and getattr(arguments, name, None) is not None:
            flag = name.removeprefix("worker_").replace("_", "-")
            arguments.parser.error(f"--{flag} is for several processes: give --workers too")


def bind_address(arguments: argparse.Namespace, default_host: str) -> tuple[str, int]:
    """Return where one process listens."""
    address = ("", 0)
    try:
        address = parse_address(arguments.bind, default_host=default_host)
    except AddressError as exc:
        arguments.parser.error(f"argument --bind: {exc}")
    return address


def worker_binds(arguments: argparse.Namespace, kind: str, default_host: str) -> list[str]:
    """Return where workers listen."""
    if arguments.bind == "systemd" or arguments.bind.partition(":")[0] in ("unix", "fd"):
        if kind == "udp" and arguments.bind.startswith("unix:"):
            arguments.parser.error("argument --bind: a Unix socket carries no UDP")
        return [arguments.bind]
    return [f"{kind}:{format_address(bind_address(arguments, default_host))}"]


def run_workers(
    arguments: argparse.Namespace,
    main: Main,
    binds: Sequence[str],
    stats: type[Any],
    *,
    first: str,
    udp: Literal["each", "one"] = "each",
    broadcast: bool = False,
) -> int:
    """Run a server in several processes until a signal.

    Args:
        arguments: with those of `add_worker_options`.
        main: of each worker.
        binds: what to listen on.
        stats: the class of what the server counts.
        first: the counter that ``--recycle-connections`` compares.
        udp: how UDP sockets come to workers.
        broadcast: they hear broadcasts.
    """
    logging.getLogger("asyncnet.workers").setLevel(logging.INFO)
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
    names = [field.name for field in attrs.fields(stats)]
    jitter = arguments.recycle_jitter
    given = {
        "reuse_port": getattr(arguments, "worker_reuse_port", None),
        "grace": getattr(arguments, "worker_grace", None) if hasattr(arguments, "worker_grace") else arguments.grace,
        "heartbeat": arguments.heartbeat,
        "boot_timeout": arguments.boot_timeout,
        "pid_file": arguments.pid_file,
        "admin": arguments.admin,
    }
    asyncnet.workers.run(  # loaded only now: most servers have no workers
        main,
        workers=arguments.workers,
        bind=binds,
        udp=udp,
        broadcast=broadcast,
        recycle=asyncnet.workers.Recycle(
            age=arguments.recycle_age,
            connections=arguments.recycle_connections,
            memory=arguments.recycle_memory,
            **({} if jitter is None else {"jitter": jitter}),
        ),
        counters=[first, *(name for name in names if name != first)],
        gauges=[name for name in names if name in _GAUGES],
        ready=_announce_all,
        **{name: value for name, value in given.items() if value is not None},
    )
    return 0


def _announce_all(addresses: list[Any]) -> None:
    for address in addresses:
        announce(address)


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+)([KMG]?)", text.upper())
    if found is None or int(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 500000, 64K, 500M or 2G")
    return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2]]

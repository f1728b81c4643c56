"""``asyncnet info``: what this host has, for bug reports and for choosing."""

from __future__ import annotations

import argparse
import os
import platform
import socket
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import attrs

from asyncnet import compat
from asyncnet.addresses import Interface, InterfaceFlags, interfaces
from asyncnet.cli.common import Subparsers
from asyncnet.loops import loop_name, new_event_loop
from asyncnet.udp import probe
from asyncnet.udp.capabilities import DISABLE_VARIABLE

__all__ = ["add_parser"]

_PACKAGES = ("asyncnet", "attrs", "uvloop", "gevent", "rich", "prometheus-client", "psutil", "matplotlib")


def add_parser(subparsers: Subparsers) -> None:
    """Add the runner to the command line."""
    parser = subparsers.add_parser("info", help="interfaces, limits, engines and versions of this host")
    parser.set_defaults(run=_info)


def _info(arguments: argparse.Namespace) -> int:
    print("Interfaces")
    _print_table(("index", "name", "MTU", "address", "broadcast", "flags"), list(_interface_rows(interfaces())))
    print("\nEngines (one handler runs on each of them)")
    _print_table(
        ("name", "", "description", "limits"),
        [
            (name, f"not here: {reason}" if (reason := engine.unavailable()) else "", engine.description, engine.limits)
            for name, engine in compat.ENGINES.items()
        ],
    )
    print(f"\nUDP in batches ({DISABLE_VARIABLE}=NAME,... switches one off)")
    known = attrs.asdict(probe())
    rows = [(name, "yes" if have else "no") for name, have in known.items()]
    named = (name.strip() for name in os.environ.get(DISABLE_VARIABLE, "").split(","))
    rows += [(name, f"no such thing, but {DISABLE_VARIABLE} names it") for name in named if name and name not in known]
    _print_table(("", ""), rows)
    print("\nLimits")
    _print_table(("", ""), list(_limits()))
    print("\nVersions")
    loop = new_event_loop()
    try:
        kind = loop_name(loop)
    finally:
        loop.close()
    rows = [("system", platform.platform()), ("Python", platform.python_version()), ("default loop", kind)]
    _print_table(("", ""), rows + [(package, _version(package)) for package in _PACKAGES])
    return 0


def _print_table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    lines = [headings, *rows] if any(headings) else rows
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True) if width)
        print("  " + "  ".join(cells).rstrip())


def _interface_rows(found: list[Interface]) -> Iterator[tuple[str, ...]]:
    for interface in found:
        head = (str(interface.index), interface.name, str(interface.mtu or "-"))
        flags = " ".join(_flag_words(interface.flags))
        for address in interface.addresses:
            yield (*head, f"{address.address}/{address.prefix}", address.broadcast or "-", flags)
            head, flags = ("", "", ""), ""
        if not interface.addresses:
            yield (*head, "-", "-", flags)


def _flag_words(flags: InterfaceFlags) -> Iterator[str]:
    yield "up" if InterfaceFlags.UP in flags else "down"
    for flag in InterfaceFlags:
        if flag in flags and flag is not InterfaceFlags.UP and flag.name:
            yield flag.name.lower().replace("_", "-")


def _limits() -> Iterator[tuple[str, str]]:
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        yield "open descriptors", f"{soft} (up to {hard})"
    for label, name in (
        ("receive buffer at most", "net/core/rmem_max"),
        ("send buffer at most", "net/core/wmem_max"),
        ("listen backlog at most", "net/core/somaxconn"),
        ("first port for anyone", "net/ipv4/ip_unprivileged_port_start"),
        ("ports picked by the system", "net/ipv4/ip_local_port_range"),
    ):
        try:
            yield label, "-".join((Path("/proc/sys") / name).read_text().split())
        except OSError:
            continue
    yield "IPv6", "yes" if socket.has_ipv6 else "no"
    yield "SO_REUSEPORT", "yes" if hasattr(socket, "SO_REUSEPORT") else "no"
    yield "processor cores", str(os.cpu_count())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"

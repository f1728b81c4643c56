"""``asyncnet classic NAME``: the listings of `asyncnet.compat.classic`."""

from __future__ import annotations

import argparse
import importlib
import io
import select
import signal
import sys
from typing import Final

import attrs

from asyncnet.addresses import explain
from asyncnet.cli.common import Subparsers, address_argument
from asyncnet.errors import EngineError, MissingExtraError

__all__ = ["add_parser"]


@attrs.frozen
class _Listing:
    """What is known of a listing before its module is imported; its ``main`` takes host, port and words."""

    help: str
    action: str
    """What fails when the system refuses."""
    host: str
    """An empty one is every address of this host: this listing waits to be spoken to."""
    port: int
    words: tuple[tuple[str, str, str], ...] = ()
    """Arguments after the address: name, value when it is left out, help."""
    needs: str = "select"
    """What the module `select` must have."""
    endless: bool = True
    """Whether a signal is how it ends."""
    optional: bool = False
    """Whether it binds only when it is told to."""


_LISTINGS: Final = {
    "udp-client": _Listing("send one datagram", "send UDP to", "127.0.0.1", 8080,
                           (("TEXT", "Hi", "what to send"),), endless=False),
    "udp-receiver": _Listing("print every datagram that arrives", "bind UDP", "", 8080),
    "tftp-client": _Listing("download a file block by block", "get a file by TFTP from", "127.0.0.1", 69,
                            (("NAME", "", "the file on the server (default: it asks)"),
                             ("PATH", "", "where to store it (default: its name, in this directory)")), endless=False),
    "broadcast": _Listing("send a text to everybody, and print every answer", "send UDP to", "<broadcast>", 7788,
                          (("TEXT", "Hi", "what to send"),)),
    "tcp-nonblocking": _Listing('a server that tries each socket in turn, answers "hahaha"', "bind TCP", "", 8899),
    "tcp-client": _Listing("send a text to a server, and print the response", "talk by TCP to", "127.0.0.1", 8899,
                           (("TEXT", "haha", "what to send"),), endless=False),
    "tcp-process": _Listing("an echo server with a process for each client", "bind TCP", "", 7788),
    "tcp-thread": _Listing("an echo server with a thread for each client", "bind TCP", "", 7788),
    "tcp-select": _Listing("an echo server on select", "bind TCP", "", 7788),
    "tcp-poll": _Listing("an echo server on poll", "bind TCP", "", 7788, needs="poll"),
    "tcp-epoll": _Listing("an echo server on epoll, edge-triggered", "bind TCP", "", 7788, needs="epoll"),
    "coroutine": _Listing("two generators that take turns, or an echo server of them", "bind TCP", "", 7788,
                          optional=True),
    "tcp-gevent": _Listing("an echo server with a greenlet for each client", "bind TCP", "", 7788),
}  # fmt: skip


def add_parser(subparsers: Subparsers) -> None:
    """Add the listings to the command line."""
    about = "the listings of a course in network programming, each in its own form, mended"
    commands = subparsers.add_parser("classic", help=about, description=f"{_sentence(about)}").add_subparsers(
        dest="listing", required=True, metavar="NAME"
    )
    for name, listing in _LISTINGS.items():
        parser = commands.add_parser(name, help=listing.help, description=_sentence(listing.help))
        default = (None if listing.optional else listing.host, listing.port)
        place = f"where to send (default: {listing.host}:{listing.port})"
        if listing.host:
            # Without a default port, a text that is put in the place of the address is told from one.
            parser.add_argument("address", nargs="?", type=address_argument(listing.host), metavar="HOST:PORT",
                                default=default, help=place)  # fmt: skip
        else:
            place = f"where to listen (default: port {listing.port} of every address)"
            parser.add_argument("--bind", type=address_argument("", listing.port), metavar="HOST:PORT", default=default,
                                dest="address", help="where to serve" if listing.optional else place)  # fmt: skip
        for word, value, meaning in listing.words:
            parser.add_argument(word.lower(), nargs="?", metavar=word, default=value,
                                help=f"{meaning} (default: {value})" if value else meaning)  # fmt: skip
        parser.set_defaults(run=_run)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _run(arguments: argparse.Namespace) -> int:
    listing = _LISTINGS[arguments.listing]
    if not hasattr(select, listing.needs):
        raise EngineError(f"{arguments.listing} cannot run here: this system has no select.{listing.needs}")
    try:
        module = importlib.import_module(f"asyncnet.compat.classic.{arguments.listing.replace('-', '_')}")
    except ModuleNotFoundError:
        raise MissingExtraError(f"The listing {arguments.listing}", "compat") from None
    if isinstance(
        sys.stdout, io.TextIOWrapper
    ):  # what a listing prints is seen at once, whatever the terminal can show
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    # The listings end at Ctrl+C; a shell's background jobs do not hear it, and a service manager sends SIGTERM.
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    host, port = arguments.address
    try:
        module.main(host, port, *(getattr(arguments, word.lower()) for word, _, _ in listing.words))
    except KeyboardInterrupt:  # while it began or tidied up
        return 0 if listing.endless else 130
    except EOFError:
        raise ValueError("standard input ends before the name of a file") from None
    except OSError as exc:
        if exc.filename is not None:
            raise
        raise explain(exc, listing.action, (host, port)) from exc
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0

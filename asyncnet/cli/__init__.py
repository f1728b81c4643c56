"""The command line: ``asyncnet`` or ``python -m asyncnet``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final

import asyncnet
from asyncnet.cli.common import describe
from asyncnet.errors import AsyncnetError

__all__ = ["main"]

_COMPONENTS: Final = ("info", "demo", "udp", "broadcast", "tcp", "tftp", "workers", "compare", "classic")
"""The first words; each is a module of this package."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        arguments: the words after the program's name; None for those of this process.

    Returns:
        0 for success, 1 for an error that the user can mend, which is one line on standard error, 130 after Ctrl+C.

    Raises:
        SystemExit: status 2 for a usage error, 0 after ``--help`` and ``--version``.
    """
    parser = argparse.ArgumentParser(prog="asyncnet", description=asyncnet.__doc__)
    parser.add_argument("--version", action="version", version=f"asyncnet {asyncnet.__version__}")
    subparsers = parser.add_subparsers(dest="component", required=True, metavar="COMMAND")
    words = sys.argv[1:] if arguments is None else arguments
    # The component that is named is the only one whose modules are needed; otherwise the help lists them all.
    needed = words[:1] if words and words[0] in _COMPONENTS else () if "--version" in words[:1] else _COMPONENTS
    for component in needed:
        importlib.import_module(f"asyncnet.cli.{component}").add_parser(subparsers)
    chosen = parser.parse_args(arguments)
    try:
        status: int = chosen.run(chosen)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (AsyncnetError, OSError, ValueError) as exc:
        print(f"asyncnet: {describe(exc)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status

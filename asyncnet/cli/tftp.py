"""``asyncnet tftp serve | get | put``."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import attrs

from asyncnet import tftp
from asyncnet.cli.common import (
    ProgressCallback,
    Subparsers,
    address_argument,
    describe,
    engine_argument,
    human_bytes,
    positive_int,
    progress_bars,
)
from asyncnet.cli.tftp_serve import add_serve_parser
from asyncnet.errors import AsyncnetError
from asyncnet.loops import run
from asyncnet.tftp.client import ClientOptions

__all__ = ["add_parser"]


@attrs.frozen
class _Job:
    """A file to fetch or to send."""

    name: str
    run: Callable[[ProgressCallback | None], Awaitable[tftp.Report]]


def add_parser(subparsers: Subparsers) -> None:
    """Add the runners to the command line."""
    commands = subparsers.add_parser("tftp", help="serve, fetch and send files by TFTP").add_subparsers(
        dest="command", required=True, metavar="COMMAND"
    )
    add_serve_parser(commands)
    get = commands.add_parser(
        "get",
        help="fetch files",
        usage="asyncnet tftp get [options] URL [FILE | DIR | -]\n       asyncnet tftp get [options] URL URL... [DIR]",
        description="Fetch files. A file takes its name when all of it has arrived; until then nothing is changed.",
    )
    get.add_argument("urls", metavar="URL", nargs="+",
                     help="tftp://HOST[:PORT]/FILE[;mode=octet|netascii]; at last perhaps the file or directory to "
                          "write to, or - for standard output (default: the file's own name, here)")  # fmt: skip
    get.add_argument("--sha256", metavar="HEX", help="take the file only if it has this digest")
    _add_options(get)
    get.set_defaults(run=partial(_get, get))

    put = commands.add_parser(
        "put",
        help="send files",
        usage="asyncnet tftp put [options] FILE URL\n       asyncnet tftp put [options] - URL\n"
        "       asyncnet tftp put [options] FILE FILE... URL/",
        description="Send files.",
    )
    put.add_argument("files", metavar="FILE", nargs="+", help="what to send; - is standard input")
    put.add_argument("url", metavar="URL", help="tftp://HOST[:PORT]/FILE[;mode=octet|netascii], or .../ for the same name")  # noqa: E501  # fmt: skip
    _add_options(put)
    put.set_defaults(run=partial(_put, put))


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--block-size", type=positive_int, metavar="N",
                        help="bytes of a block, 8 to 65464 (default: what fits the packets of the route)")  # fmt: skip
    parser.add_argument("--window-size", type=positive_int, default=16, metavar="N",
                        help="blocks before an acknowledgement (default: 16; 1 asks for no option)")  # fmt: skip
    parser.add_argument("--timeout", type=positive_int, metavar="N",
                        help="seconds between the server's retransmissions to ask for, 1 to 255")  # fmt: skip
    parser.add_argument("--mode", choices=("octet", "netascii"), help="bytes as they are, or text (default: octet)")
    parser.add_argument("--no-options", action="store_true", help="plain RFC 1350: blocks of 512 bytes, one by one")
    parser.add_argument("--rollover", type=int, choices=(0, 1), help="the block number that follows 65535")
    parser.add_argument("--bind", type=address_argument(None, 0), metavar="HOST[:PORT]",
                        help="the address of this host to send from")  # fmt: skip
    parser.add_argument("--parallel", type=positive_int, default=4, metavar="N",
                        help="files at once (default: 4; one by one on other engines than asyncnet)")  # fmt: skip
    engine_argument(parser, "the client")


def _options(arguments: argparse.Namespace) -> ClientOptions:
    options = ClientOptions(
        block_size=arguments.block_size,
        window_size=arguments.window_size,
        timeout=arguments.timeout,
        use_options=not arguments.no_options,
        local_addr=arguments.bind,
        rollover=arguments.rollover,
    )
    if arguments.mode is not None:
        options["mode"] = arguments.mode
    return options


def _get(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    urls: list[str] = arguments.urls
    target = urls.pop() if len(urls) > 1 and not urls[-1].startswith("tftp://") else None
    if len(urls) > 1 and target is not None and not os.path.isdir(target):
        parser.error(f"{target!r} is no directory: several files need one")
    if len(urls) > 1 and arguments.sha256 is not None:
        parser.error("--sha256 is about one file")
    options = _options(arguments)
    with _spooled_output() if target == "-" else _no_spool(target) as local:
        jobs = []
        for url in urls:
            name = tftp.parse_url(url).file
            path = os.path.join(local, os.path.basename(name)) if local and os.path.isdir(local) else local
            jobs.append(_Job(name, partial(_fetch, url, path, arguments.sha256, arguments.engine, options)))
        return _run_jobs(jobs, arguments)


async def _fetch(
    url: str,
    path: str | None,
    sha256: str | None,
    engine: str,
    options: ClientOptions,
    progress: ProgressCallback | None,
) -> tftp.Report:
    return await tftp.get(url, path, sha256=sha256, progress=progress, client=_client_for(engine), **options)


def _client_for(engine: str) -> type[tftp.Client]:
    if engine == "asyncnet":
        return tftp.Client
    from asyncnet.compat.transfers import Client

    return Client


def _run_jobs(jobs: Sequence[_Job], arguments: argparse.Namespace) -> int:
    if arguments.engine == "asyncnet":
        return run(_run_all(jobs, arguments.parallel))
    from asyncnet import compat

    return compat.run(_run_in_turn(jobs), engine=arguments.engine)


def _put(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    files: list[str] = arguments.files
    url = arguments.url
    named_after = tftp.parse_url(url).file.endswith("/")
    if len(files) > 1 and not named_after:
        parser.error(f"several files need a URL that ends with a slash, not {url!r}")
    if "-" in files and (len(files) > 1 or named_after):
        parser.error("standard input has no name: say - and the whole URL, and nothing else")
    options = _options(arguments)
    with _spooled_input() if files == ["-"] else _no_spool(None) as spooled:
        jobs = [_Job(file, partial(_send, spooled or file, url, arguments.engine, options)) for file in files]
        return _run_jobs(jobs, arguments)


async def _send(
    path: str, url: str, engine: str, options: ClientOptions, progress: ProgressCallback | None
) -> tftp.Report:
    return await tftp.put(path, url, progress=progress, client=_client_for(engine), **options)


@contextmanager
def _no_spool(path: str | None) -> Iterator[str | None]:
    yield path


# A pipe whose other end is slow would hold up acknowledgements until the server gives up, and what is wrong with a
# file may be known only at its end. So standard input and output go by way of a temporary file.


@contextmanager
def _spooled_output() -> Iterator[str]:
    """Yield a path; what is written there goes to standard output."""
    with tempfile.TemporaryDirectory(prefix="asyncnet-") as folder:
        path = Path(folder, "output")
        yield str(path)
        if path.exists():
            with path.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)


@contextmanager
def _spooled_input() -> Iterator[str]:
    """Yield the path of a file with what standard input holds."""
    with tempfile.NamedTemporaryFile(prefix="asyncnet-") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        yield file.name


async def _run_all(jobs: Sequence[_Job], parallel: int) -> int:
    """Run all jobs, some at once; an error of one does not keep the others from their end."""
    room = asyncio.Semaphore(parallel)

    async def run_one(job: _Job, begin_bar: Callable[[str], ProgressCallback | None]) -> tftp.Report | Exception:
        async with room:
            return await _run_one(job, begin_bar)

    with progress_bars() as begin_bar:
        results = await asyncio.gather(*(run_one(job, begin_bar) for job in jobs))
    return _summarise_all(jobs, results)


async def _run_in_turn(jobs: Sequence[_Job]) -> int:
    """Run all jobs one after the other, on any engine."""
    with progress_bars() as begin_bar:
        results = [await _run_one(job, begin_bar) for job in jobs]
    return _summarise_all(jobs, results)


async def _run_one(job: _Job, begin_bar: Callable[[str], ProgressCallback | None]) -> tftp.Report | Exception:
    try:
        return await job.run(begin_bar(job.name))
    except (AsyncnetError, OSError, ValueError) as exc:
        return exc


def _summarise_all(jobs: Sequence[_Job], results: Sequence[tftp.Report | Exception]) -> int:
    for job, result in zip(jobs, results, strict=True):
        if isinstance(result, tftp.Report):
            _summarise(job.name, result)
        elif len(jobs) == 1:
            raise result
        else:
            print(f"asyncnet: {job.name}: {describe(result)}", file=sys.stderr)
    return 1 if any(isinstance(result, Exception) for result in results) else 0


def _summarise(name: str, report: tftp.Report) -> None:
    rate = report.bytes / report.seconds / 1e6 if report.seconds else 0.0
    unconfirmed = "" if report.confirmed else "; the last acknowledgement never came"
    print(
        f"{name}: {human_bytes(report.bytes)} in {report.seconds:.2f} s, {rate:.1f} MB/s, "
        f"{report.retransmitted} retransmitted{unconfirmed}",
        file=sys.stderr,
    )

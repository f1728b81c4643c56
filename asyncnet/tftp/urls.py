"""`get` and `put`: one file by its URL (RFC 3617)."""

from __future__ import annotations

import os
from typing import Literal, Unpack, cast
from urllib.parse import unquote, urlsplit

import attrs

from asyncnet.errors import AddressError
from asyncnet.tftp.client import DEFAULT_PORT, Client, ClientOptions
from asyncnet.tftp.session import Progress, Report

__all__ = ["TftpUrl", "get", "parse_url", "put"]


@attrs.frozen
class TftpUrl:
    """A URL of RFC 3617: ``tftp://host[:port]/file[;mode=octet|netascii]``."""

    host: str
    port: int
    file: str
    mode: Literal["octet", "netascii"]


def parse_url(url: str) -> TftpUrl:
    """Take a TFTP URL apart. The slash after the host is no part of the file's name (RFC 3617 section 3).

    Raises:
        AddressError: it is no such URL.
    """
    try:
        parts = urlsplit(url, allow_fragments=False)
        port = DEFAULT_PORT if parts.port is None else parts.port
    except ValueError as exc:
        raise AddressError(f"{url!r} is no URL: {exc}") from None
    path, _, parameter = parts.path.partition(";")
    name, _, mode = parameter.partition("=") if parameter else ("mode", "", "octet")
    file = unquote(path.removeprefix("/"), errors="surrogateescape")
    is_mode = name == "mode" and mode in ("octet", "netascii")
    if parts.scheme != "tftp" or not parts.hostname or not file or not is_mode or parts.query:
        raise AddressError(f"{url!r} is no TFTP URL: write tftp://HOST[:PORT]/FILE[;mode=octet|netascii]")
    return TftpUrl(unquote(parts.hostname), port, file, cast('Literal["octet", "netascii"]', mode))


async def get(
    url: str,
    local: str | os.PathLike[str] | None = None,
    *,
    sha256: str | None = None,
    progress: Progress | None = None,
    client: type[Client] = Client,
    **options: Unpack[ClientOptions],
) -> Report:
    """Download the file at a TFTP URL.

    Args:
        url: ``tftp://host[:port]/file[;mode=octet|netascii]``.
        local: the path to write to; by default the last component of the file's name, in the current directory.
        sha256, progress: as in `Client.download`.
        client: which kind of client; `asyncnet.compat.transfers.Client` needs no event loop.
        **options: those of `Client`; a mode given here counts more than that of the URL.

    Raises:
        AddressError: the URL is malformed, or names no file to write to.
        RemoteError, LocalError, TimeoutError, OSError, ValueError: as in `Client.download`.
    """
    where = parse_url(url)
    target = local or where.file.rpartition("/")[2]
    if not target:
        raise AddressError(f"{url!r} ends with a slash: say which file to write")
    options.setdefault("mode", where.mode)
    async with client(where.host, where.port, **options) as opened:
        return await opened.download(where.file, target, sha256=sha256, progress=progress)


async def put(
    local: str | os.PathLike[str],
    url: str,
    *,
    progress: Progress | None = None,
    client: type[Client] = Client,
    **options: Unpack[ClientOptions],
) -> Report:
    """Upload a file to a TFTP URL.

    Args:
        local: the path to read from.
        url: ``tftp://host[:port]/file[;mode=octet|netascii]``; a file name that ends in ``/`` gets the local name.
        progress: as in `Client.upload`.
        client: as in `get`.
        **options: those of `Client`; a mode given here counts more than that of the URL.

    Raises:
        AddressError: the URL is malformed.
        RemoteError, LocalError, TimeoutError, OSError, ValueError: as in `Client.upload`.
    """
    where = parse_url(url)
    name = where.file + os.path.basename(local) if where.file.endswith("/") else where.file
    options.setdefault("mode", where.mode)
    async with client(where.host, where.port, **options) as opened:
        return await opened.upload(local, name, progress=progress)

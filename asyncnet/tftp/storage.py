"""What is served: a directory, or any object that opens what a request names.

A directory is confined: a name is taken apart and each component is opened below the one before, without following
symbolic links, so there is no path to compare and no moment between a check and its use.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Final, Protocol

import attrs

from asyncnet.addresses import Address
from asyncnet.errors import LocalError
from asyncnet.tftp.files import BINARY, NO_FOLLOW, NON_BLOCKING, FileSink, FileSource, Sink, Source
from asyncnet.tftp.packets import ErrorCode, OptionPairs

__all__ = ["Directory", "Request", "Storage", "WritePolicy", "error_packet_fields"]

_DRIVE: Final = re.compile("^[A-Za-z]:(?=/)")
_HAS_DIR_FD: Final = os.open in os.supports_dir_fd


@attrs.frozen
class Request:
    """What a client asks for."""

    peer: Address
    name: str
    """As the client spells it."""
    is_write: bool = False
    mode: str = "octet"
    options: OptionPairs = ()
    """As the client sent them."""
    local_addr: str | None = None
    """The address of this host that it was sent to, where the system tells."""
    interface: int = 0
    """Index of the interface that it came by; 0 when that is not known."""


class Storage(Protocol):
    """What a server reads from and writes to; its methods may be coroutines.

    Both raise `LocalError` or `OSError` to refuse a request: the client gets an ERROR packet with the code that fits.
    """

    def open_read(self, request: Request) -> Source | bytes | Awaitable[Source | bytes]:
        """Open what the client downloads."""

    def open_write(self, request: Request) -> Sink | Awaitable[Sink]:
        """Open what the client uploads to."""


class WritePolicy(Enum):
    """What clients may write."""

    NONE = "none"
    CREATE = "create"
    OVERWRITE = "overwrite"


class Directory:
    """A directory that is served: regular files below it, and nothing outside.

    Args:
        root: the directory.
        write: what clients may write.
        max_size: bytes of an upload at most.
        sync: whether an upload is acknowledged only when it has reached the disk.

    Raises:
        OSError: `root` is no directory, or cannot be read.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        write: WritePolicy = WritePolicy.NONE,
        max_size: int | None = None,
        sync: bool = True,
    ) -> None:
        self.root = Path(root)
        self.write = write
        self._max_size = max_size
        self._sync = sync
        os.close(self._open_root()) if _HAS_DIR_FD else os.listdir(root)

    def open_read(self, request: Request) -> Source:
        """Open the file that a client asks for.

        Raises:
            LocalError: codes 1 and 2; the name leads outside, or to something that is no regular file.
            OSError: there is no such file, or it cannot be read.
        """
        with self._parent_of(request.name) as (parent, leaf, dir_fd):
            flags = os.O_RDONLY | BINARY | NO_FOLLOW | NON_BLOCKING
            return FileSource(os.open(os.path.join(parent, leaf), flags, dir_fd=dir_fd))

    def open_write(self, request: Request) -> Sink:
        """Open the file that a client asks for, for writing.

        Raises:
            LocalError: code 2; nothing may be written, or the name leads outside. Code 3; the size that the client
                announces is above the limit, or there is no room for it.
            OSError: the file exists and may not be replaced, or it cannot be written.
        """
        if self.write is WritePolicy.NONE:
            raise LocalError(ErrorCode.ACCESS_VIOLATION, "this server is read-only")
        size = _announced_size(request)
        if self._max_size is not None and size > self._max_size:
            raise LocalError(ErrorCode.DISK_FULL, f"the file is larger than {self._max_size} bytes")
        with self._parent_of(request.name) as (parent, leaf, dir_fd):
            if dir_fd is not None and size > _free_bytes(dir_fd):
                raise LocalError(ErrorCode.DISK_FULL, "there is no room for the file")
            own_fd = None if dir_fd is None else os.dup(dir_fd)
            replace = self.write is WritePolicy.OVERWRITE
            sink = FileSink(os.path.join(parent, leaf), dir_fd=own_fd, replace=replace, sync=self._sync)
        return sink if self._max_size is None else _LimitedSink(sink, self._max_size)

    @contextmanager
    def _parent_of(self, name: str) -> Iterator[tuple[str, str, int | None]]:
        """Yield a path prefix, the last component, and the directory that both start from."""
        *parents, leaf = _components(name)
        if not _HAS_DIR_FD:
            parent = self._resolved_parent(parents)
            if os.path.islink(os.path.join(parent, leaf)):  # here, opening may not be able to refuse it
                raise LocalError(ErrorCode.ACCESS_VIOLATION, "the name leads outside the served directory")
            yield parent, leaf, None
            return
        fd = self._open_root()
        try:
            for component in parents:
                below = os.open(component, os.O_RDONLY | os.O_DIRECTORY | NO_FOLLOW, dir_fd=fd)
                os.close(fd)
                fd = below
            yield "", leaf, fd
        finally:
            os.close(fd)

    def _open_root(self) -> int:
        return os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)

    def _resolved_parent(self, parents: list[str]) -> str:
        root = self.root.resolve()
        parent = root.joinpath(*parents).resolve()
        if not parent.is_relative_to(root):
            raise LocalError(ErrorCode.ACCESS_VIOLATION, "the name leads outside the served directory")
        return str(parent)


class _LimitedSink:
    """Refuses what lies beyond a number of bytes."""

    def __init__(self, sink: Sink, limit: int) -> None:
        self.random_access = sink.random_access
        self.commit_blocks = getattr(sink, "commit_blocks", False)
        self.commit, self.abort = sink.commit, sink.abort
        self._sink = sink
        self._limit = limit

    def store(self, payloads: Sequence[memoryview], offset: int) -> None:
        """See `Sink`."""
        if offset + sum(map(len, payloads)) > self._limit:
            raise LocalError(ErrorCode.DISK_FULL, f"the file is larger than {self._limit} bytes")
        self._sink.store(payloads, offset)


def _announced_size(request: Request) -> int:
    """Return the tsize of an upload, 0 without one."""
    sizes = [value for name, value in request.options if name.lower() == "tsize"]
    return int(sizes[0]) if sizes and sizes[0].isdecimal() and sizes[0].isascii() and len(sizes[0]) <= 20 else 0


def _free_bytes(fd: int) -> int:
    status = os.fstatvfs(fd)
    return status.f_bavail * status.f_frsize


def _components(name: str) -> list[str]:
    """Take a client's file name apart: backslashes are slashes, and a leading slash or drive means the root.

    Some boot ROMs append a byte 0xFF to the name; it is left out.
    """
    path = _DRIVE.sub("", name.rstrip("\udcff").replace("\\", "/"))
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts:
        raise LocalError(ErrorCode.FILE_NOT_FOUND, "the name is empty")
    for part in parts:
        if part == ".." or any(ord(c) < 32 or ord(c) == 127 for c in part) or (os.name == "nt" and ":" in part):
            raise LocalError(ErrorCode.ACCESS_VIOLATION, "the name leads outside the served directory")
    return parts


_CODES: Final = {
    errno.ENOENT: ErrorCode.FILE_NOT_FOUND,
    errno.ENOTDIR: ErrorCode.FILE_NOT_FOUND,
    errno.EISDIR: ErrorCode.FILE_NOT_FOUND,
    errno.ENAMETOOLONG: ErrorCode.FILE_NOT_FOUND,
    errno.ENXIO: ErrorCode.FILE_NOT_FOUND,
    errno.EACCES: ErrorCode.ACCESS_VIOLATION,
    errno.EPERM: ErrorCode.ACCESS_VIOLATION,
    errno.ELOOP: ErrorCode.ACCESS_VIOLATION,
    errno.EROFS: ErrorCode.ACCESS_VIOLATION,
    errno.ENOSPC: ErrorCode.DISK_FULL,
    errno.EFBIG: ErrorCode.DISK_FULL,
    getattr(errno, "EDQUOT", errno.ENOSPC): ErrorCode.DISK_FULL,
    errno.EEXIST: ErrorCode.FILE_EXISTS,
}


def error_packet_fields(exc: BaseException) -> tuple[int, str]:
    """Return the code and text of the ERROR packet that tells a peer of `exc`; paths of this host are not in it."""
    if isinstance(exc, LocalError):
        return exc.code, exc.text
    if isinstance(exc, OSError) and exc.errno is not None:
        return _CODES.get(exc.errno, ErrorCode.UNDEFINED), os.strerror(exc.errno)
    return ErrorCode.UNDEFINED, "internal error"

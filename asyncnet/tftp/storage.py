"""A directory that is served.

It is confined: a name is taken apart and each component is opened below the one before, without following symbolic
links, so there is no path to compare and no moment between a check and its use.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Final

from asyncnet.errors import LocalError
from asyncnet.tftp.files import BINARY, NO_FOLLOW, NON_BLOCKING, FileSink, FileSource, Sink, Source
from asyncnet.tftp.packets import ErrorCode

__all__ = ["Directory", "WritePolicy", "error_packet_fields"]

_HAS_DIR_FD: Final = os.open in os.supports_dir_fd


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

    Raises:
        OSError: `root` is no directory, or cannot be read.
    """

    def __init__(self, root: str | os.PathLike[str], *, write: WritePolicy = WritePolicy.NONE) -> None:
        self.root = Path(root)
        self.write = write
        os.close(self._open_root()) if _HAS_DIR_FD else os.listdir(root)

    def open_read(self, name: str) -> Source:
        """Open the file that a client calls `name`.

        Raises:
            LocalError: codes 1 and 2; the name leads outside, or to something that is no regular file.
            OSError: there is no such file, or it cannot be read.
        """
        with self._parent_of(name) as (parent, leaf, dir_fd):
            flags = os.O_RDONLY | BINARY | NO_FOLLOW | NON_BLOCKING
            return FileSource(os.open(os.path.join(parent, leaf), flags, dir_fd=dir_fd))

    def open_write(self, name: str) -> Sink:
        """Open the file that a client calls `name` for writing.

        Raises:
            LocalError: code 2; nothing may be written, or the name leads outside.
            OSError: the file exists and may not be replaced, or it cannot be written.
        """
        if self.write is WritePolicy.NONE:
            raise LocalError(ErrorCode.ACCESS_VIOLATION, "this server is read-only")
        with self._parent_of(name) as (parent, leaf, dir_fd):
            own_fd = None if dir_fd is None else os.dup(dir_fd)
            replace = self.write is WritePolicy.OVERWRITE
            return FileSink(os.path.join(parent, leaf), dir_fd=own_fd, replace=replace)

    @contextmanager
    def _parent_of(self, name: str) -> Iterator[tuple[str, str, int | None]]:
        """Yield a path prefix, the last component, and the directory that both start from."""
        *parents, leaf = _components(name)
        if not _HAS_DIR_FD:
            yield self._resolved_parent(parents), leaf, None
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


def _components(name: str) -> list[str]:
    """Take a client's file name apart: backslashes are slashes, and a leading slash means the root."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
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

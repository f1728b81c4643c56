"""What transfers read from and write to: files, and bytes in memory.

A `Source` fills the gaps that the sender's window leaves for payloads, and a `Sink` stores payloads where they belong,
so bytes move once between file and wire layout. Writing goes to a temporary file beside the target; `commit` puts it
in the target's place in one step, and `abort` removes it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final, Protocol

from asyncnet.errors import LocalError
from asyncnet.tftp import netascii
from asyncnet.tftp.packets import ErrorCode

__all__ = [
    "BytesSink",
    "BytesSource",
    "CheckedSink",
    "FileSink",
    "FileSource",
    "NetasciiSink",
    "NetasciiSource",
    "Sink",
    "Source",
]

BINARY: Final = getattr(os, "O_BINARY", 0)
NO_FOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
NON_BLOCKING: Final = getattr(os, "O_NONBLOCK", 0)  # opening a FIFO must not wait for its other end


class Source(Protocol):
    """What a sender reads."""

    @property
    def size(self) -> int | None:
        """Bytes in all; None when that is not known."""

    def fill(self, buffers: Sequence[memoryview], offset: int) -> int:
        """Fill the buffers in their order with the bytes from `offset` on; return how many, fewer only at the end.

        The buffers are parts of the sender's window, and valid during the call only: keep no reference to them.
        """

    def close(self) -> None:
        """Release what is open."""


class Sink(Protocol):
    """What a receiver writes.

    A sink whose attribute ``commit_blocks`` is true waits for a disk in `commit`: a server calls that in a thread.
    """

    @property
    def random_access(self) -> bool:
        """Whether payloads may be stored out of order."""

    def store(self, payloads: Sequence[memoryview], offset: int) -> None:
        """Store payloads that follow each other from `offset` on.

        They are views of what was received, and valid during the call only: copy (``bytes(payload)``) what is kept.
        """

    def commit(self) -> None:
        """Make what was stored the file's content."""

    def abort(self) -> None:
        """Throw away what was stored; after `commit` it does nothing."""


class FileSource:
    """A regular file.

    Args:
        fd: a descriptor open for reading; the source owns it.

    Raises:
        LocalError: code 1; the descriptor is no regular file's.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise LocalError(ErrorCode.FILE_NOT_FOUND, "not a regular file")
        self._size = status.st_size

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> FileSource:
        """Open the file at `path`, which is trusted."""
        return cls(os.open(path, os.O_RDONLY | BINARY | NON_BLOCKING))

    @property
    def size(self) -> int | None:
        """Bytes that the file had when it was opened."""
        return self._size

    def fill(self, buffers: Sequence[memoryview], offset: int) -> int:
        """See `Source`."""
        wanted = sum(map(len, buffers))
        done = _preadv(self._fd, buffers, offset)
        while 0 < done < wanted:  # a short read: the end of the file, or a signal
            rest = list(_skip(buffers, done))
            more = _preadv(self._fd, rest, offset + done)
            if not more:
                break
            done += more
        return done

    def close(self) -> None:
        """See `Source`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _preadv(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(fd, buffers[:_IOV_MAX], offset)
    os.lseek(fd, offset, os.SEEK_SET)
    data = os.read(fd, len(buffers[0]))
    buffers[0][: len(data)] = data
    return len(data)


def _pwritev(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
    if hasattr(os, "pwritev"):
        return os.pwritev(fd, buffers, offset)
    os.lseek(fd, offset, os.SEEK_SET)
    return os.write(fd, buffers[0])


_IOV_MAX: Final = 1024


def _skip(buffers: Sequence[memoryview], count: int) -> Iterator[memoryview]:
    """Yield what is left of the buffers behind the first `count` bytes."""
    for buffer in buffers:
        if count < len(buffer):
            yield buffer[count:]
        count = max(0, count - len(buffer))


class BytesSource:
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int | None:
        """Bytes in all."""
        return len(self._data)

    def fill(self, buffers: Sequence[memoryview], offset: int) -> int:
        """See `Source`."""
        start = offset
        for buffer in buffers:
            piece = self._data[offset : offset + len(buffer)]
            buffer[: len(piece)] = piece
            offset += len(piece)
        return offset - start

    def close(self) -> None:
        """See `Source`."""


class NetasciiSource:
    """Another source's bytes as netascii; it is read once, from front to back.

    The sender keeps the encoded window, so nothing is ever asked for again.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._read = 0
        self._encoded = bytearray()
        self._chunk = memoryview(bytearray(65536))

    @property
    def size(self) -> int | None:
        """None: the encoded size is not known before the end."""
        return None

    def fill(self, buffers: Sequence[memoryview], offset: int) -> int:
        """See `Source`."""
        wanted = sum(map(len, buffers))
        while len(self._encoded) < wanted:
            count = self._source.fill([self._chunk], self._read)
            if not count:
                break
            self._read += count
            self._encoded += netascii.encode(bytes(self._chunk[:count]))
        done = BytesSource(bytes(self._encoded[:wanted])).fill(buffers, 0)
        del self._encoded[:done]
        return done

    def close(self) -> None:
        """See `Source`."""
        self._source.close()


class FileSink:
    """A file written under a temporary name beside its target.

    Args:
        path: the target.
        dir_fd: the directory that a relative `path` starts from, as in `os.open`; the sink owns it.
        replace: whether a target that exists is replaced; otherwise it is an error.
        sync: whether `commit` waits until the data has reached the disk.

    Raises:
        OSError: the target exists and may not be replaced, or the temporary file cannot be made.
    """

    random_access = True

    def __init__(
        self, path: str | os.PathLike[str], *, dir_fd: int | None = None, replace: bool = True, sync: bool = False
    ) -> None:
        self.commit_blocks = sync
        self._dir_fd = dir_fd
        self._sync = sync
        self._target = os.fspath(path)
        self._replace = replace
        self._fd = -1
        head, name = os.path.split(self._target)
        known = os.fsencode(name)[:200].decode(errors="ignore")  # file systems limit names to 255 bytes
        self._temporary = os.path.join(head, f".{known}.{secrets.token_hex(6)}.part")
        try:
            mode = self._mode_of_target()
            if mode is not None and not replace:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY | NO_FOLLOW
            self._fd = os.open(self._temporary, flags, 0o666, dir_fd=dir_fd)
            if mode is not None and hasattr(os, "fchmod"):
                with suppress(OSError):
                    os.fchmod(self._fd, mode)
        except OSError as exc:
            self.abort()
            exc.filename = self._target  # the temporary name would tell nobody anything
            raise
        except BaseException:
            self.abort()
            raise

    def _mode_of_target(self) -> int | None:
        try:
            status = os.stat(self._target, dir_fd=self._dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self._target)
        if not stat.S_ISREG(status.st_mode):  # renaming over /dev/null would replace the device
            raise OSError(errno.ELOOP, "not a regular file", self._target)
        return stat.S_IMODE(status.st_mode)

    def store(self, payloads: Sequence[memoryview], offset: int) -> None:
        """See `Sink`."""
        rest = [payload for payload in payloads if payload]
        while rest:
            wanted = sum(map(len, rest[:_IOV_MAX]))
            done = _pwritev(self._fd, rest[:_IOV_MAX], offset)
            offset += done
            rest = rest[_IOV_MAX:] if done == wanted else list(_skip(rest, done))

    def commit(self) -> None:
        """Put the file in its target's place, in one step.

        Raises:
            OSError: the target came into being meanwhile and may not be replaced, or the system refuses.
        """
        fd, self._fd = self._fd, -1
        try:
            if self._sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        if self._replace:
            os.replace(self._temporary, self._target, src_dir_fd=self._dir_fd, dst_dir_fd=self._dir_fd)
            self._temporary = ""
        elif not self._link():
            if self._mode_of_target() is not None:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self._target)
            os.rename(self._temporary, self._target, src_dir_fd=self._dir_fd, dst_dir_fd=self._dir_fd)
            self._temporary = ""
        if self._sync and self._dir_fd is not None:
            with suppress(OSError):  # some file systems cannot
                os.fsync(self._dir_fd)  # the name too
        self.abort()

    def _link(self) -> bool:
        """Give the file its name, unless another has it; False where the file system (FAT) has no second names."""
        if not hasattr(os, "link"):
            return False
        try:
            os.link(self._temporary, self._target, src_dir_fd=self._dir_fd, dst_dir_fd=self._dir_fd)
        except OSError as exc:
            if exc.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                raise
            return False
        return True

    def abort(self) -> None:
        """See `Sink`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._temporary:
            with suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._dir_fd)
            self._temporary = ""
        if self._dir_fd is not None:
            os.close(self._dir_fd)
            self._dir_fd = None


class BytesSink:
    """Bytes in memory; `data` holds them.

    Args:
        limit: bytes that are taken at most.
    """

    random_access = True

    def __init__(self, limit: int = 1 << 30) -> None:
        self.data = bytearray()
        self._limit = limit

    def store(self, payloads: Sequence[memoryview], offset: int) -> None:
        """See `Sink`.

        Raises:
            LocalError: code 3; the file is larger than the limit.
        """
        end = offset + sum(map(len, payloads))
        if end > self._limit:
            raise LocalError(ErrorCode.DISK_FULL, f"the file is larger than {self._limit} bytes")
        if offset > len(self.data):
            self.data.extend(bytes(offset - len(self.data)))
        self.data[offset:end] = b"".join(payloads)

    def commit(self) -> None:
        """See `Sink`."""

    def abort(self) -> None:
        """See `Sink`."""


class CheckedSink:
    """Another sink that commits only what has the right digest; payloads come in order.

    Args:
        sink: what stores.
        digest: the SHA-256 digest of the whole.
    """

    random_access = False

    def __init__(self, sink: Sink, digest: bytes) -> None:
        self.commit_blocks = getattr(sink, "commit_blocks", False)
        self._sink = sink
        self._wanted = digest
        self._hash = hashlib.sha256()

    def store(self, payloads: Sequence[memoryview], offset: int) -> None:
        """See `Sink`."""
        self._sink.store(payloads, offset)
        for payload in payloads:
            self._hash.update(payload)

    def commit(self) -> None:
        """See `Sink`.

        Raises:
            LocalError: code 0; the digest is another one.
        """
        if self._hash.digest() != self._wanted:
            raise LocalError(
                ErrorCode.UNDEFINED, f"the SHA-256 digest is {self._hash.hexdigest()}, not {self._wanted.hex()}"
            )
        self._sink.commit()

    def abort(self) -> None:
        """See `Sink`."""
        self._sink.abort()


class NetasciiSink:
    """Turns netascii into local text for another sink; payloads come in order."""

    random_access = False

    def __init__(self, sink: Sink) -> None:
        self.commit_blocks = getattr(sink, "commit_blocks", False)
        self._sink = sink
        self._decoder = netascii.Decoder()
        self._written = 0

    def store(self, payloads: Sequence[memoryview], offset: int) -> None:
        """See `Sink`."""
        self._write(self._decoder.decode(b"".join(payloads)))

    def _write(self, text: bytes) -> None:
        self._sink.store([memoryview(text)], self._written)
        self._written += len(text)

    def commit(self) -> None:
        """See `Sink`."""
        self._write(self._decoder.decode(b"", final=True))
        self._sink.commit()

    def abort(self) -> None:
        """See `Sink`."""
        self._sink.abort()

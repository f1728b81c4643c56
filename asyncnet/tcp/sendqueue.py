"""What a connection has not sent yet: bytes, and parts of files that the kernel sends itself."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Final

__all__ = ["Buffer", "FileEnded", "FilePart", "SendQueue"]

_OF_THE_FILE: Final = frozenset((errno.EBADF, errno.EINVAL, errno.EIO, errno.ENOSYS, errno.EOVERFLOW, errno.ESPIPE))
"""Errors of sendfile(2) that say nothing of the connection."""

Buffer = bytes | bytearray | memoryview
FileEnded = Callable[[int, OSError | None], object]
"""Told how many bytes of a file were sent, and what went wrong."""

JOINED: Final = 65536
"""Bytes that are copied together for one call of send; more go by sendmsg, without a copy."""
PIECES: Final = 64
"""Pieces in one call of sendmsg."""
SMALL: Final = 4096
"""Bytes of a piece that is copied to the one before it."""
FILE_PART: Final = 1 << 20
"""Bytes of a file that are sent at a time, so that others get a turn."""


class FilePart:
    """A part of a file that is to be sent.

    Args:
        fd: of a regular file; it may be closed afterwards.
        offset: of the first byte.
        count: bytes.
        ended: called when they have left, or fewer at the end of the file.

    Raises:
        OSError: the system lacks a descriptor.
    """

    __slots__ = ("begin", "end_offset", "ended", "fd", "offset")

    def __init__(self, fd: int, offset: int, count: int, ended: FileEnded) -> None:
        self.fd = os.dup(fd)  # the caller may close its own at any time
        self.begin = self.offset = offset
        self.end_offset = offset + count
        self.ended = ended

    def end(self, exc: OSError | None) -> None:
        """Let go of the file, and tell."""
        os.close(self.fd)
        self.ended(self.offset - self.begin, exc)


class SendQueue:
    """Pieces in order. Its memory is that of the bytes in it: small pieces are put together.

    Attributes:
        size: unsent bytes, without those of files.
    """

    __slots__ = ("_pieces", "size")

    def __init__(self) -> None:
        self._pieces: list[Buffer | FilePart] = []
        self.size = 0

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def append(self, data: Buffer) -> None:
        """Add bytes, which must not change any more."""
        pieces = self._pieces
        self.size += len(data)
        if not pieces or len(data) > SMALL:
            pieces.append(data)
        elif type(last := pieces[-1]) is bytearray and len(last) < JOINED:
            last += data
        else:
            pieces.append(bytearray(data))

    def append_file(self, part: FilePart) -> None:
        """Add a part of a file."""
        self._pieces.append(part)

    def send(self, sock: socket.socket) -> int:
        """Send what the socket takes in one call, and return the number of bytes; 0 when it takes none.

        Raises:
            OSError: the connection is lost.
        """
        first = self._pieces[0]
        try:
            if isinstance(first, FilePart):
                return self._send_file(sock, first)
            return self._send_bytes(sock, first)
        except (BlockingIOError, InterruptedError):
            return 0

    def _send_bytes(self, sock: socket.socket, first: Buffer) -> int:
        run: list[Buffer] = []
        size = 0
        for piece in self._pieces[:PIECES]:
            if isinstance(piece, FilePart):
                break
            run.append(piece)
            size += len(piece)
        if len(run) == 1:
            sent = sock.send(first)
        elif size <= JOINED:
            self._pieces[: len(run)] = [b"".join(run)]
            sent = sock.send(self._pieces[0])  # type: ignore[arg-type]
        else:
            sent = sock.sendmsg(run)
        self._drop(sent)
        return sent

    def _drop(self, sent: int) -> None:
        self.size -= sent
        pieces = self._pieces
        done = 0
        for piece in pieces:
            if isinstance(piece, FilePart) or len(piece) > sent:
                break
            sent -= len(piece)
            done += 1
        del pieces[:done]
        if sent:
            first = pieces[0]
            if type(first) is bytearray:
                del first[:sent]  # a view of it would keep it from growing
            else:
                pieces[0] = memoryview(first)[sent:]  # type: ignore[arg-type]

    def _send_file(self, sock: socket.socket, part: FilePart) -> int:
        exc: OSError | None = None
        sent = 0
        try:
            sent = os.sendfile(sock.fileno(), part.fd, part.offset, min(part.end_offset - part.offset, FILE_PART))
        except OSError as failure:
            if failure.errno not in _OF_THE_FILE:
                raise
            exc = failure
        part.offset += sent
        if not sent or part.offset == part.end_offset:
            self._pieces.pop(0)
            part.end(exc)
        return sent

    def clear(self, exc: OSError | None) -> None:
        """Forget everything, and tell those who wait for a file."""
        pieces, self._pieces, self.size = self._pieces, [], 0
        for piece in pieces:
            if isinstance(piece, FilePart):
                piece.end(exc or ConnectionAbortedError("the connection was closed before the file was sent"))

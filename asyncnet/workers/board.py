"""What workers tell the master without a system call: a table in shared memory, one row for each process.

A worker writes its own row and nothing else, each field in one aligned store; the master reads. The table is an
anonymous file, so that it outlives a re-execution of the master.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from collections.abc import Mapping, Sequence
from typing import Final

__all__ = ["MAX_COUNTERS", "Board", "Row"]

ROWS: Final = 512
"""Twice the most workers there may be."""
MAX_COUNTERS: Final = 30
_HEAD: Final = struct.Struct("=qd")  # the process, 0 for a free row; the heartbeat
_PID: Final = struct.Struct("=q")
_BEAT: Final = struct.Struct("=d")
_SIZE: Final = _HEAD.size + 8 * MAX_COUNTERS
_OWNERS: Final = ROWS * _SIZE
"""Behind the rows: for each seat the process that serves it."""
SIZE: Final = _OWNERS + 8 * ROWS


class Row:
    """The row of one worker."""

    def __init__(self, board: Board, number: int) -> None:
        self.number = number
        self._memory = board.memory
        self._start = number * _SIZE
        self._board = board
        self.rename(board.counters)

    def rename(self, names: Sequence[str]) -> None:
        """Say what its process counts when that is not what the table does: it was forked by another program."""
        self.names = tuple(names)
        self._values = struct.Struct(f"={len(self.names)}Q")

    @property
    def pid(self) -> int:
        """The process that writes it; 0 when it is free."""
        return int(_PID.unpack_from(self._memory, self._start)[0])

    def clear(self, pid: int, now: float) -> None:
        """Begin a row for a process, or with 0 free it."""
        self.rename(self._board.counters)
        self._memory[self._start : self._start + _SIZE] = bytes(_SIZE)
        _HEAD.pack_into(self._memory, self._start, pid, now)

    @property
    def beat(self) -> float:
        """When the worker's loop last turned."""
        return float(_BEAT.unpack_from(self._memory, self._start + 8)[0])

    def write_beat(self, now: float) -> None:
        """Say that the loop turns."""
        _BEAT.pack_into(self._memory, self._start + 8, now)

    def counters(self) -> dict[str, int]:
        """Return what the worker has counted."""
        return dict(zip(self.names, self._values.unpack_from(self._memory, self._start + _HEAD.size), strict=True))

    def write_counters(self, values: Mapping[str, int]) -> None:
        """Replace all counters; a name that is missing is 0."""
        numbers = (max(0, int(values.get(name, 0))) for name in self.names)
        self._values.pack_into(self._memory, self._start + _HEAD.size, *numbers)


class Board:
    """The table.

    Args:
        counters: their names, the same in every row that is not renamed.
        fd: of the file that a program before this one has made; None makes one.

    Raises:
        ValueError: there are too many counters.
    """

    def __init__(self, counters: Sequence[str], fd: int | None = None) -> None:
        if len(counters) > MAX_COUNTERS:
            raise ValueError(f"counters: at most {MAX_COUNTERS} names, not {len(counters)}")
        self.counters = tuple(counters)
        self.fd = _anonymous_file() if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, SIZE)
        self.memory = mmap.mmap(self.fd, SIZE)
        self.rows = [Row(self, number) for number in range(ROWS)]

    def free_row(self) -> Row:
        """Return a row that nobody has; there are more than processes."""
        return next(row for row in self.rows if not row.pid)

    def row_of(self, pid: int) -> Row | None:
        """Return the row of a process."""
        return next((row for row in self.rows if row.pid == pid), None)

    def names_of(self, pid: int) -> list[str]:
        """Return what a process counts."""
        row = self.row_of(pid)
        return [] if row is None else list(row.names)

    def owner(self, seat: int) -> int:
        """Return the process that serves a seat; 0 for none."""
        return int(_PID.unpack_from(self.memory, _OWNERS + 8 * seat)[0])

    def write_owner(self, seat: int, pid: int) -> None:
        """Say which process serves a seat."""
        _PID.pack_into(self.memory, _OWNERS + 8 * seat, pid)

    def close(self) -> None:
        """Let go of the memory."""
        self.memory.close()
        os.close(self.fd)


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("asyncnet-workers")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())

"""The file that says which process the master is; a lock on it says whether it still runs."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from asyncnet.arguments import check_path

__all__ = ["PidFile", "control_path", "read_pid"]

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_ATTEMPTS: Final = 6
_PAUSE: Final = 0.01


def control_path(path: str) -> str:
    """Return the path of the Unix socket on which the master answers, beside its pid file."""
    return f"{path}.sock"


def read_pid(path: str) -> int:
    """Return the process of a running master.

    Raises:
        OSError: there is no such file.
        ValueError: no master runs, or the file is no pid file.
    """
    with open(path, encoding="ascii", errors="replace") as file:
        text = file.read(32).partition("\n")[0].strip()  # a longer number may be behind it for a moment
        if not text.isdecimal():
            raise ValueError(f"{path} is no pid file")
        if fcntl is not None:
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(text)
    raise ValueError(f"no master runs: the process {text} that {path} names has ended")


class PidFile:
    """Writes the process down, and holds the lock as long as it lives.

    Args:
        path: of the file; one that a program has left behind is replaced.
        fd: of the file when a program before this one has locked it.

    Raises:
        OSError: the file cannot be written, or another master holds it.
    """

    def __init__(self, path: str, fd: int | None = None) -> None:
        check_path("pid_file", path)
        self.path = os.path.abspath(path)
        self.fd = _locked(self.path) if fd is None else fd
        os.set_inheritable(self.fd, False)
        text = f"{os.getpid()}\n".encode()
        os.pwrite(self.fd, text, 0)
        os.ftruncate(self.fd, len(text))  # afterwards, so that the file is never empty

    def leave(self) -> None:
        """Close it in a child, which keeps the lock otherwise."""
        os.close(self.fd)

    def remove(self) -> None:
        """Remove the file and give up the lock."""
        Path(self.path).unlink(missing_ok=True)
        os.close(self.fd)


def _locked(path: str) -> int:
    """Return the file at a path, locked; a master that ends may remove it in between, and then it is another file."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(fd, path)
            if _is_at(path, fd):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _lock(fd: int, path: str) -> None:
    for left in range(_ATTEMPTS - 1, -1, -1):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if left:  # `read_pid` has it for a moment
                time.sleep(_PAUSE)
        else:
            return
    other = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
    raise OSError(f"{path} belongs to the process {other}, which runs: stop it, or name another file")


def _is_at(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False

"""The file that says which process the master is; a lock on it says whether it still runs."""

from __future__ import annotations

import os
from pathlib import Path

from asyncnet.arguments import check_path

__all__ = ["PidFile", "control_path", "read_pid"]

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


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
        text = file.read(32).strip()
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
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644) if fd is None else fd
        os.set_inheritable(self.fd, False)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.read(self.fd, 32).decode("ascii", "replace").strip()
            os.close(self.fd)
            raise OSError(f"{path} belongs to the process {other}, which runs: stop it, or name another file") from None
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, f"{os.getpid()}\n".encode(), 0)

    def leave(self) -> None:
        """Close it in a child, which keeps the lock otherwise."""
        os.close(self.fd)

    def remove(self) -> None:
        """Remove the file and give up the lock."""
        Path(self.path).unlink(missing_ok=True)
        os.close(self.fd)

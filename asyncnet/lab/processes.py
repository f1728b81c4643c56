"""Servers and loads in processes of their own: start, pin, stop, and what they have used."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Final

import attrs

from asyncnet.addresses import parse_address

__all__ = [
    "STEADY_HEAP",
    "Cpu",
    "ServerProcess",
    "cores",
    "cpu_of",
    "give_way",
    "kernel_tcp_bytes",
    "memory_of",
    "pin",
    "started",
    "stolen_seconds",
    "tree_of",
]

START_WITHIN: Final = 15.0
STOP_WITHIN: Final = 10.0
_TICK: Final = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_PAGE: Final = 4096
STEADY_HEAP: Final = {"MALLOC_MMAP_THRESHOLD_": str(4 << 20), "MALLOC_TRIM_THRESHOLD_": str(16 << 20)}
"""For mallopt(3): what a server reads comes from its heap, in each process alike. By default it hangs on how the heap
happens to lie whether asyncio's reads of 256 KiB map and unmap memory each time, at 2.5 times the cost."""


@attrs.frozen
class Cpu:
    """Processor seconds, those of ended threads and children included."""

    total: float
    """As exact as the system tells."""
    user: float
    """In ticks of the system's clock, as is `system`."""
    system: float

    def since(self, before: Cpu) -> tuple[float, float]:
        """Return user and system seconds since an earlier moment: the exact total, divided as the ticks are."""
        total, user, system = self.total - before.total, self.user - before.user, self.system - before.system
        share = user / (user + system) if user + system > 0 else 0.5
        return max(0.0, total * share), max(0.0, total * (1 - share))


@attrs.define
class ServerProcess:
    """A server that listens."""

    process: subprocess.Popen[bytes]
    host: str
    port: int
    log: IO[bytes]
    status: str | None = None
    """What went wrong when it stopped."""

    @property
    def pid(self) -> int:
        """The process that was started."""
        return self.process.pid

    def stop(self) -> float:
        """Stop it as its user would, by SIGTERM; return how many seconds that took, and set `status`."""
        began = time.monotonic()
        self.process.terminate()
        try:
            self.process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            self.status = f"the server did not stop within {STOP_WITHIN:g} s of SIGTERM"
        else:
            # A server in C has no handler for the signal, and dies of it.
            if self.process.returncode not in (0, -15):
                self.status = f"the server exited with status {self.process.returncode}"
        return time.monotonic() - began


def cores() -> list[int]:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def pin(pid: int, place: int) -> None:
    """Give the server the first core and the load the second, where there are two."""
    mine = cores()
    if len(mine) >= 2 and hasattr(os, "sched_setaffinity"):
        try:
            os.sched_setaffinity(pid, {mine[place]})
        except OSError:
            pass  # the process has ended, which is reported where its output is read


def give_way(pid: int) -> None:
    """Let a process run when its core has nothing else to do: one whose own punctuality does not matter (sched(7))."""
    if hasattr(os, "SCHED_IDLE"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))


@contextlib.contextmanager
def started(command: Sequence[str]) -> Iterator[ServerProcess]:
    """Run a server on the first core until the end of the block; it is stopped then, if it still runs.

    What it says after it listens goes to a file, so that it never waits for us to read.

    Raises:
        RuntimeError: it does not listen; the message is its own.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stderr=log, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=STEADY_HEAP | os.environ
        )
        server = ServerProcess(process, "", 0, log)
        try:
            pin(process.pid, 0)
            server.host, server.port = _wait_until_listening(process, log)
            yield server
        finally:
            if process.poll() is None:
                server.stop()


def _wait_until_listening(process: subprocess.Popen[bytes], log: IO[bytes]) -> tuple[str, int]:
    deadline = time.monotonic() + START_WITHIN
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        text = os.pread(log.fileno(), 65536, 0).decode(errors="replace")
        for line in text.splitlines(keepends=True):
            if line.startswith("listening on ") and line.endswith("\n"):
                return parse_address(line.strip().removeprefix("listening on "))
        if ended:
            lines = text.strip().splitlines()
            raise RuntimeError(lines[-1].removeprefix("asyncnet: ") if lines else "the server ended at once")
        time.sleep(0.005)  # a file cannot be waited for
    raise RuntimeError(f"the server was not ready within {START_WITHIN:g} s")


def tree_of(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    found = [pid]
    for parent in found:
        for task in _listed(Path(f"/proc/{parent}/task")):
            with contextlib.suppress(OSError):
                found.extend(map(int, (task / "children").read_text().split()))
    return found


def _listed(path: Path) -> list[Path]:
    try:
        return list(path.iterdir())
    except OSError:
        return []


def cpu_of(pid: int) -> Cpu | None:
    """Return what a server has used so far: its processes, its ended threads, its ended children; None without /proc.

    The kernel's clock of a process counts nanoseconds; how they divide into user and system, and what ended children
    have used, is told in ticks (proc(5)).
    """
    total = user = system = 0.0
    for member in tree_of(pid):
        try:
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            exact = time.clock_gettime((~member << 3) | 2)  # CPUCLOCK_SCHED of another process: clock_getcpuclockid(3)
        except OSError:
            if member == pid:
                return None
            continue  # a child that has ended meanwhile is in its parent's sum the next time
        own_user, own_system, gone_user, gone_system = (int(field) / _TICK for field in fields[11:15])
        total += exact + gone_user + gone_system
        user += own_user + gone_user
        system += own_system + gone_system
    return Cpu(total, user, system)


def memory_of(pid: int) -> int | None:
    """Return the memory (PSS) of a server and its children in bytes; None where the system does not tell."""
    total = 0
    for member in tree_of(pid):
        try:
            text = Path(f"/proc/{member}/smaps_rollup").read_text()
        except OSError:
            if member == pid:
                return None
            continue
        total += int(text.partition("\nPss:")[2].split()[0]) * 1024
    return total


def kernel_tcp_bytes() -> int:
    """Return what the kernel's TCP buffers take, of all connections of this machine; 0 where it does not tell."""
    try:
        text = Path("/proc/net/sockstat").read_text()
    except OSError:
        return 0
    fields = text.partition("TCP: ")[2].partition("\n")[0].split()
    return int(fields[fields.index("mem") + 1]) * _PAGE if "mem" in fields else 0


def stolen_seconds() -> float:
    """Return the time that the hypervisor has taken from the cores of server and load; 0 where it does not tell."""
    names = {f"cpu{core}" for core in cores()[:2]}
    try:
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
        return sum(int(fields[8]) for fields in lines if fields and fields[0] in names) / _TICK
    except (OSError, IndexError):
        return 0.0

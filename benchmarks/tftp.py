"""How fast do files travel? TFTP servers and clients, ours and other people's, over loopback.

The servers run on the first core, the clients on the second. With many clients, a server that forks, starts threads or
has workers may use both. The load is a C program that compares every byte with the file; pairs of client and server are
whole programs. Processor time is that of the server with its threads and children; memory is the most that they shared
out (PSS) during the run.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from asyncnet.lab.processes import memory_of
from benchmarks._command import Benchmark, Part, Runs
from benchmarks._harness import FOLDER, Server, compared, load_command, median_of, pin, running, server
from benchmarks._report import Table

PEERS: Final = FOLDER.parent / ".cache" / "peers"
OURS: Final = "asyncnet"
SINGLE: Final = "asyncnet --single-port"
SPREAD: Final = "asyncnet --workers 2"
"""On both cores, as servers are that fork or start threads."""
HPA: Final = "tftp-hpa"
C_SERVERS: Final = (HPA, "atftpd", "dnsmasq")
PYTHON_SERVERS: Final = ("tftpy", "partftpy", "fbtftp", "py3tftp")
MIB: Final = 1 << 20
_MEMORY: Final = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""Where files are: not on a disk."""
Plans: TypeAlias = dict[str, tuple[Sequence[str], dict[str, Any]]]
"""Titles, each with the names of what is measured and the sizes of it."""
LIMIT: Final = 90.0
"""Seconds after which a measurement is cut off; what has arrived until then counts."""


# Servers.


def our_command(root: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "asyncnet", "tftp", "serve", str(root), "--bind", "127.0.0.1:0", "--quiet", *more]


@contextlib.contextmanager
def start(name: str, root: Path, *, spread: bool) -> Iterator[Server]:
    """Start a server of that name on a directory; with `spread` what it forks may run on both cores."""
    if name in (OURS, SINGLE, SPREAD):
        with server(our_command(root, *name.split()[1:]), core=None if name == SPREAD else 0) as found:
            yield found
    elif name in PYTHON_SERVERS:
        with server([sys.executable, str(FOLDER / "servers" / "tftp_serve.py"), name, str(root)]) as found:
            _wait_for_answer(found.host, found.port)
            yield found
    else:
        host, port, command = _c_server(name, root)
        with running(command) as process:
            if spread:
                os.sched_setaffinity(process.pid, os.sched_getaffinity(0))
            _wait_for_answer(host, port)
            yield Server(process.pid, host, port)


def _c_server(name: str, root: Path) -> tuple[str, int, list[str]]:
    host, port = "127.0.0.1", _free_port()
    if name == HPA:
        listen = ["--foreground", "--address", f"{host}:{port}", "--secure", "--user", "nobody"]
        return host, port, [str(PEERS / "in.tftpd"), *listen, str(root)]
    if name == "atftpd":
        listen = ["--daemon", "--no-fork", "--bind-address", host, "--port", str(port), "--maxthread", "2000"]
        return host, port, [str(PEERS / "atftpd"), *listen, "--logfile", "/dev/null", "--verbose=0", str(root)]
    host = f"127.70.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"  # dnsmasq knows port 69 alone
    files = ["--conf-file=/dev/null", "--pid-file=", "--log-facility=/dev/null", "--user=root"]
    tftp = ["--port=0", "--enable-tftp", f"--tftp-root={root}", f"--listen-address={host}", "--bind-interfaces"]
    return host, 69, ["dnsmasq", "--keep-in-foreground", *files, *tftp, "--tftp-max=2000"]


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for_answer(host: str, port: int) -> None:
    deadline = time.monotonic() + 10
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.2)
        while time.monotonic() < deadline:
            client.sendto(b"\0\1ready\0octet\0", (host, port))
            with contextlib.suppress(TimeoutError, ConnectionRefusedError):
                _, peer = client.recvfrom(516)
                client.sendto(struct.pack("!HH", 4, 1), peer)
                return
    raise RuntimeError(f"no TFTP server answers on {host}:{port}")


class MemoryWatch(threading.Thread):
    """Looks at a server's memory now and then, and at the end, in PSS; `most` is the highest, in bytes."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self._pid = pid
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.3):
            self._look()

    def _look(self) -> None:
        self.most = max(self.most, memory_of(self._pid) or 0)

    def stop(self) -> int:
        self._over.set()
        self.join()
        self._look()  # a transfer may have been over before the first look
        return self.most


# Measurements.


def storm(
    name: str,
    *,
    size: int,
    clients: int,
    block: int,
    window: int,
    limit: float = LIMIT,
    relay: bool = False,
) -> dict[str, Any]:
    """Let many clients download one file at once."""
    file = file_of(size)
    with start(name, file.parent, spread=clients > 1) as target, contextlib.ExitStack() as stack:
        asked = target
        if relay:
            program = [sys.executable, str(FOLDER / "servers" / "lossy_relay.py")]
            asked = stack.enter_context(server([*program, target.host, str(target.port), "0.05", "1"], core=1))
        watch = MemoryWatch(target.pid)
        watch.start()
        before = target.tree_seconds()
        command = load_command(asked, "tftp", file.name, file, clients, block, window, limit)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        pin(process.pid, 1)
        output, _ = process.communicate(timeout=limit + 30)
        used = target.tree_seconds() - before
        memory = watch.stop()
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result | _figures(result["bytes"], result["seconds"], used) | {"memory": memory}


def _figures(count: int, seconds: float, used: float) -> dict[str, float]:
    return {"rate": count / seconds, "cpu_per_gb": used / count * 1e9 if count else 0.0}


def pair(name: str, *, size: int, block: int, window: int) -> dict[str, Any]:
    """Let one whole program download a file from another."""
    client, _, target_name = name.partition(" from ")
    file = file_of(size)
    with tempfile.TemporaryDirectory(dir=_MEMORY) as folder, start(target_name, file.parent, spread=False) as target:
        local = str(Path(folder) / "got")
        Path(local).write_bytes(bytes(size))  # a virtual machine gets pages slowly that it has not used for a while
        os.unlink(local)
        url = f"tftp://{target.host}:{target.port}/{file.name}"
        sizes = ["--block-size", str(block), "--window-size", str(window)]
        command = {
            "asyncnet": [sys.executable, "-m", "asyncnet", "tftp", "get", url, local, *sizes],
            "curl": ["curl", "-s", "--tftp-blksize", str(block), "-o", local, url],
            "atftp": [*["atftp", "--get", "-r"], file.name, "-l", local, "--option", f"blksize {block}", "--option"],
        }[client]
        command += [f"windowsize {window}", target.host, str(target.port)] if client == "atftp" else []
        watch = MemoryWatch(target.pid)
        watch.start()
        before = target.tree_seconds()
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        pin(process.pid, 1)
        _, errors = process.communicate(timeout=LIMIT)
        seconds = time.perf_counter() - begin
        memory = watch.stop()
        if process.returncode or Path(local).stat().st_size != size:
            raise RuntimeError(f"{' '.join(command)}: {errors}")
        used = target.tree_seconds() - before
    return {"done": 1, "failed": 0, "wrong": 0, "resent": 0, "gaps": 0, "memory": memory} | _figures(
        size, seconds, used
    )


# The tables.


@functools.cache
def root() -> Path:
    """Return a directory for files, which is deleted at the end."""
    folder = tempfile.TemporaryDirectory(prefix="asyncnet-bench-", dir=_MEMORY)
    atexit.register(folder.cleanup)
    path = Path(folder.name)
    path.chmod(0o755)
    (path / "ready").write_bytes(b"ready")
    return path


def file_of(size: int) -> Path:
    """Return a file of so many bytes, which is made when it is first wanted."""
    file = root() / f"file{size}"
    if not file.exists():
        file.write_bytes(random.Random(size).randbytes(size // 2) * 2)
    return file


def table(title: str, runs: Runs) -> Table:
    names = sorted({run["name"] for run in runs}, key=lambda name: -median_of(runs, name, "rate"))
    ours = OURS if OURS in names else f"{OURS} from {OURS}"
    rows = []
    for name in names:
        mine = [run for run in runs if run["name"] == name]
        row = [name, f"{median_of(runs, name, 'rate') / 1e6:.1f}"]
        row.append(compared(runs, ours, name, "rate"))
        # The children of in.tftpd leave no trace of what they used.
        row.append(f"{median_of(runs, name, 'cpu_per_gb'):.2f}" if not name.endswith(HPA) else "-")
        row.append(f"{median_of(runs, name, 'memory') / 1e6:.0f}" if mine[0]["memory"] else "-")
        spread = [f"{median_of(runs, name, key):.2f}" for key in ("p50", "p99") if key in mine[0]]
        row.append(" - ".join(spread) or "-")
        row.append(str(min(run["done"] for run in mine)))
        row.append(str(sum(run["resent"] for run in mine)))
        rows.append(row)
    headings = ["server", "MB/s", "ours ÷ it", "CPU s/GB", "MB of memory", "p50 - p99 s", "complete", "sent again"]
    return Table(title[0].upper() + title[1:], headings, rows)


def parts() -> dict[str, Part]:
    """Return what is measured, by titles."""
    one = (OURS, SINGLE)
    downloads: Plans = {}
    for block, window, size, names in (
        (512, 1, 4, (*one, *C_SERVERS)),
        (1428, 1, 4, (*one, *C_SERVERS, *PYTHON_SERVERS)),
        (1428, 16, 64, (*one, *C_SERVERS)),  # of which tftp-hpa and dnsmasq stay in lock-step
        (1428, 64, 64, (*one, *C_SERVERS)),
        (8192, 64, 64, (*one, "atftpd")),
        (65464, 4, 64, (*one, "atftpd")),
    ):
        sizes = {"size": size * MIB, "clients": 1, "block": block, "window": window}
        downloads[f"one client, {size} MiB, block {block}, window {window}"] = names, sizes
    pairs: Plans = {
        "one program from another, 16 MiB, block 1428, lock-step": (  # curl knows no windows
            ("asyncnet from asyncnet", "curl from asyncnet", "asyncnet from tftp-hpa", "curl from tftp-hpa"),
            {"size": 16 * MIB, "block": 1428, "window": 1},
        ),
        "one program from another, 256 MiB, block 1428, window 64": (
            ("asyncnet from asyncnet", "atftp from atftpd", "asyncnet from atftpd", "atftp from asyncnet"),
            {"size": 256 * MIB, "block": 1428, "window": 64},
        ),
    }
    many: Plans = {
        "20 clients, 16 MiB each, block 1428, window 64": (
            (*one, SPREAD, "atftpd"),
            {"size": 16 * MIB, "clients": 20, "block": 1428, "window": 64},
        ),
        "100 clients, 1 MiB each, block 1428, lock-step": (
            (*one, SPREAD, *C_SERVERS, *PYTHON_SERVERS),
            {"size": MIB, "clients": 100, "block": 1428, "window": 1},
        ),
        "1000 clients, 1 MiB each, block 1428, lock-step": (
            (*one, SPREAD, *C_SERVERS),
            {"size": MIB, "clients": 1000, "block": 1428, "window": 1},
        ),
    }
    lossy = {"clients": 1, "block": 1428, "relay": True, "limit": 20.0}
    lossy_ones: Plans = {
        "5 % loss, one client, 64 MiB, block 1428, window 16": (
            (*one, *C_SERVERS),
            {"size": 64 * MIB, "window": 16, **lossy},
        ),
        "5 % loss, one client, 512 KiB, block 1428, lock-step": (
            (*one, *C_SERVERS),
            {"size": MIB // 2, "window": 1, **lossy},
        ),
    }
    plans: list[tuple[Callable[..., dict[str, Any]], Plans]] = [
        (storm, downloads),
        (pair, pairs),
        (storm, many),
        (storm, lossy_ones),
    ]
    return {
        title: Part(names, functools.partial(measure, **sizes), functools.partial(table, title))
        for measure, found in plans
        for title, (names, sizes) in found.items()
    }


BENCHMARK: Final = Benchmark("tftp", parts(), rounds=3, seconds=None)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main(__doc__))

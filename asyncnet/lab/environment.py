"""What a reader needs to know about the machine and the programs behind figures."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import asyncnet
from asyncnet.lab.processes import cores

__all__ = ["environment"]

_PACKAGES: Final = ("uvloop", "gevent", "attrs")
_SYSCTLS: Final = (
    "net/core/somaxconn",
    "net/core/rmem_max",
    "net/core/wmem_max",
    "net/ipv4/tcp_rmem",
    "net/ipv4/tcp_wmem",
    "net/ipv4/tcp_tw_reuse",
    "net/ipv4/ip_local_port_range",
)


def environment() -> dict[str, Any]:
    """Return the machine, the system, its settings and the versions, as JSON takes them."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": platform.platform(),
        "kernel": platform.release(),
        "cpu": _cpu_model(),
        "cores": len(cores()),
        "cores_of_machine": os.cpu_count(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "mitigations": {path.name: _read(path) for path in _files("/sys/devices/system/cpu/vulnerabilities")},
        "sysctls": {name: _read(f"/proc/sys/{name}") for name in _SYSCTLS},
        "versions": {"asyncnet": asyncnet.__version__} | {name: _version(name) for name in _PACKAGES},
        "compiler": _compiler(),
    }


def _cpu_model() -> str | None:
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.processor() or None


def _files(folder: str) -> list[Path]:
    try:
        return sorted(Path(folder).iterdir())
    except OSError:
        return []


def _read(path: str | Path) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _compiler() -> str | None:
    try:
        done = subprocess.run([os.environ.get("CC", "cc"), "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.partition("\n")[0] or None

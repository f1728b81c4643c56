"""Load generator and ceilings in C, compiled on first use into the user's cache directory."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

__all__ = ["native_tool"]

_FLAGS: Final = ("-O2", "-Wall")
_LIBRARIES: Final = ("-lm",)


def native_tool(name: str) -> Path:
    """Return the path of a compiled tool, compiling it when its source or the compiler has changed.

    Args:
        name: ``"load"``, the load generator, or ``"echo"``, the echo servers that are the ceiling.

    Raises:
        FileNotFoundError: there is no C compiler; ``CC`` names another one than ``cc``, with options if need be.
        OSError: the cache (``XDG_CACHE_HOME``, else ``~/.cache``) cannot be written.
        RuntimeError: the source does not compile here.
    """
    source = Path(__file__).with_name(f"{name}.c")
    command = shlex.split(os.environ.get("CC") or "cc")
    compiler = shutil.which(command[0])
    if compiler is None:
        raise FileNotFoundError("no C compiler found: on Debian, apt-get install gcc libc6-dev, or set CC")
    compile_by = [compiler, *command[1:], *_FLAGS]
    version = subprocess.run([compiler, *command[1:], "--version"], capture_output=True, check=False).stdout
    key = hashlib.sha256(source.read_bytes() + version + " ".join((*compile_by, *_LIBRARIES)).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "asyncnet"
    target = cache / f"{name}-{key}"
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        made = Path(folder) / name
        done = subprocess.run(
            [*compile_by, "-o", str(made), str(source), *_LIBRARIES], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{compiler} cannot compile {source}: {done.stderr.strip()}")
        made.replace(target)
    return target

"""Hosts of their own: network namespaces made and removed by the tests. They need root and iproute2."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from typing import Self

import attrs
import pytest

__all__ = ["Host"]


@attrs.frozen
class Host:
    """A network namespace with its own interfaces, routes and ports."""

    name: str

    @classmethod
    def make(cls) -> Self:
        """Make one, or skip the test where that is not possible."""
        if not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("ip") is None:
            pytest.skip("network namespaces need root and the program ip (iproute2)")
        name = f"asyncnet-{secrets.token_hex(4)}"
        made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip(f"this system makes no network namespace: {made.stderr.strip()}")
        return cls(name)

    def remove(self) -> None:
        """Remove it, with its interfaces."""
        subprocess.run(["ip", "netns", "delete", self.name], check=True)

    def run(self, *command: str) -> str:
        """Run a program in it; return what it printed."""
        whole = ["ip", "netns", "exec", self.name, *command]
        done = subprocess.run(whole, capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def python(self, script: str, *arguments: str) -> str:
        """Run a script with this interpreter in it."""
        return self.run(sys.executable, "-W", "error", "-c", script, *arguments)

"""Hosts of their own: network namespaces made and removed by the tests. They need root and iproute2."""

from __future__ import annotations

import subprocess
import sys

import attrs

__all__ = ["Host"]


@attrs.frozen
class Host:
    """A network namespace with its own interfaces, routes and ports."""

    name: str

    def run(self, *command: str) -> str:
        """Run a program in it; return what it printed."""
        whole = ["ip", "netns", "exec", self.name, *command]
        done = subprocess.run(whole, capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def python(self, script: str, *arguments: str) -> str:
        """Run a script with this interpreter in it."""
        return self.run(sys.executable, "-W", "error", "-c", script, *arguments)

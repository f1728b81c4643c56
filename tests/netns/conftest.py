"""Makes the hosts of these tests, and removes them."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.netns.hosts import Host


@pytest.fixture
def host() -> Iterator[Host]:
    """A host with nothing but its loopback interface, which is up."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the program ip (iproute2)")
    name = f"asyncnet-{secrets.token_hex(4)}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"this system makes no network namespace: {made.stderr.strip()}")
    try:
        found = Host(name)
        found.run("ip", "link", "set", "lo", "up")
        yield found
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)

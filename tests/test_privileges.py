"""Becoming another user, and sockets handed over by systemd."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from asyncnet.activation import inherited_sockets
from asyncnet.privileges import drop_privileges

DROP = """
import os, pwd, sys
from asyncnet.privileges import drop_privileges
drop_privileges("nobody")
entry = pwd.getpwnam("nobody")
assert os.getresuid() == (entry.pw_uid,) * 3, os.getresuid()
assert os.getresgid() == (entry.pw_gid,) * 3, os.getresgid()
assert 0 not in os.getgroups()
try:
    os.setuid(0)
except PermissionError:
    pass
else:
    raise AssertionError("root again")
try:
    drop_privileges("root")
except PermissionError as exc:
    assert "only root may" in str(exc)
else:
    raise AssertionError("became root")
"""

INHERIT = """
import os, socket, sys
from asyncnet.activation import inherited_sockets
os.dup2(int(sys.argv[2]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
kind = getattr(socket, sys.argv[1])
try:
    (sock,) = inherited_sockets(kind)
except ValueError as exc:
    print(exc)
else:
    print(sock.getsockname()[1], os.get_inheritable(sock.fileno()), "LISTEN_FDS" in os.environ, inherited_sockets(kind))
    sock.close()
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_root_becomes_another_user_for_good() -> None:
    subprocess.run([sys.executable, "-c", DROP], check=True, timeout=30)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such users")
def test_a_user_that_does_not_exist_is_named() -> None:
    with pytest.raises(OSError, match="no user 'no-such-user'"):
        drop_privileges("no-such-user")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows hands no descriptors over")
@pytest.mark.parametrize(("kind", "fits"), [("SOCK_DGRAM", True), ("SOCK_STREAM", False)])
def test_a_socket_that_was_handed_over_is_found_once(kind: str, fits: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-c", INHERIT, kind, str(sock.fileno())],
            env=os.environ | {"LISTEN_FDS": "1"},
            pass_fds=[sock.fileno()],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    if fits:
        assert done.stdout.strip() == f"{port} False False []"
    else:
        assert "descriptor 3 is a socket of another kind" in done.stdout


def test_nothing_is_inherited_without_or_with_another_process_in_mind() -> None:
    assert inherited_sockets(socket.SOCK_DGRAM, environment={}) == []
    environment = {"LISTEN_PID": "1", "LISTEN_FDS": "1"}
    assert inherited_sockets(socket.SOCK_DGRAM, environment=environment) == []
    assert environment

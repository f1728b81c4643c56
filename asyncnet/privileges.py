"""Become another user once the privileged port is open."""

from __future__ import annotations

import os
import sys

__all__ = ["drop_privileges"]


def drop_privileges(user: str) -> None:
    """Make this process run as another user, for good.

    Args:
        user: the user's name; its groups come with it.

    Raises:
        PermissionError: this process may not become another user.
        OSError: there is no such user, or this system has no users of this kind.
    """
    if sys.platform == "win32":
        raise OSError("this system cannot change the user of a running process")
    import pwd

    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise OSError(f"this host has no user {user!r}") from None
    try:
        os.initgroups(user, entry.pw_gid)
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    except PermissionError as exc:
        raise PermissionError(
            exc.errno, f"cannot become {user!r}: only root may; start as root, or as {user!r}"
        ) from exc
    if entry.pw_uid and (os.getuid(), os.geteuid()) != (entry.pw_uid, entry.pw_uid):
        raise PermissionError(f"this process did not become {user!r}")

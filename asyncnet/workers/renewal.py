"""SIGUSR2: the master becomes a new program, with the same process, listeners and workers.

First a trial: the same command is started as a child that ends when it gets as far as `run`, or with its master. A
program that cannot even be imported thus changes nothing. Then the master executes itself. Its descriptors stay open,
its children stay its children, signals stay blocked meanwhile, and a description of all that waits in a file without a
name. The new program adopts the workers, starts a generation of its own, and drains the old one when that is ready.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import attrs

from asyncnet.forks import flush_streams
from asyncnet.workers.admin import Admin
from asyncnet.workers.binding import Sockets
from asyncnet.workers.board import Board
from asyncnet.workers.child import die_with_parent
from asyncnet.workers.fleet import Member, Phase, State
from asyncnet.workers.line import Line
from asyncnet.workers.master import Master
from asyncnet.workers.pidfile import PidFile, control_path
from asyncnet.workers.plan import SIGNALS, Other

__all__ = ["Legacy", "in_trial", "inherited", "renew"]

logger = logging.getLogger("asyncnet.workers")

_TRIAL: Final = "ASYNCNET_WORKERS_TRIAL"
"""The trial's own process: what it starts is no trial, and it is one though its master has died."""
_STATE: Final = "ASYNCNET_WORKERS_STATE"
_FORMAT: Final = 1
"""Of what is left to the next program; another number when that, the table or what workers are told changes."""
_TRIAL_OK: Final = 85 + _FORMAT
"""The exit status of a trial that got as far as `run`, in a program that understands this one."""
_FIELDS: Final = ("pid", "seat", "generation", "started", "ready_at", "beat", "deadline", "replaced", "hurried")


def in_trial() -> None:
    """End this process if it is a trial: it has got far enough."""
    if os.environ.get(_TRIAL) == str(os.getpid()):
        os._exit(_TRIAL_OK)


def renew(master: Master) -> None:
    """Try whether the program can start, and if so become it."""
    if master.others:
        logger.warning("the program is being renewed already")
        return

    def ended(status: int) -> None:
        if master.fleet.phase is not Phase.RUNNING:
            logger.info("the new program is not started: this one has been told to stop")
        elif status != _TRIAL_OK:
            logger.error("the new program does not start (its trial ended with status %d): this one goes on", status)
        else:
            _become(master)

    flush_streams()
    parent = os.getpid()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _become_trial(parent, before)
    except OSError as exc:
        logger.error("the new program cannot be started: %s", exc.strerror)
        return
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    master.others[pid] = Other(time.monotonic() + master.plan.limits.boot, ended)


def _become_trial(parent: int, mask: Any) -> NoReturn:
    """What the child does."""
    try:
        signal.set_wakeup_fd(-1)
        die_with_parent(parent)  # the kernel remembers it when another program is executed
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.execve(sys.executable, _command(), {**os.environ, _TRIAL: str(os.getpid())})
    except OSError as exc:
        logger.error("the new program cannot be executed: %s", exc.strerror)
    finally:
        os._exit(1)


def _command() -> list[str]:
    return [sys.executable, *sys.orig_argv[1:]]


def _become(master: Master) -> None:
    fleet, sockets = master.fleet, master.sockets
    state: dict[str, Any] = {
        "members": [
            {
                "state": m.state.value,
                "line": master.lines[m.pid].sock.fileno(),
                "counters": master.board.names_of(m.pid),
                **{f: getattr(m, f) for f in _FIELDS},
            }
            for m in fleet.members.values()
        ],
        "settled": fleet.settled,
        "newest": fleet.newest,
        "size": fleet.size,
        "asked": master.asked,
        "totals": {name: getattr(fleet, name) for name in _TOTALS},
        "shared": [sock.fileno() for sock in sockets.shared],
        "places": [sock.fileno() for sock in sockets.places],
        "seats": [[sock.fileno() for sock in seat] for seat in sockets.seats],
        "paths": sockets.paths,
        "admin": [sock.fileno() for sock in master.admin.listeners],
        "admin_address": master.admin.address,
        "pid_file": None if master.pid_file is None else master.pid_file.fd,
        "pid_path": None if master.pid_file is None else master.pid_file.path,
        "board": master.board.fd,
        "retired": master.retired,
        "secret": master.secret.hex(),
        "binds": list(master.binds),
    }
    descriptors = [
        *state["shared"], *state["places"], *(fd for seat in state["seats"] for fd in seat), *state["admin"],
        *(m["line"] for m in state["members"]), state["board"],
    ]  # fmt: skip
    if state["pid_file"] is not None:
        descriptors.append(state["pid_file"])
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    master.keep_signals()
    state["blocked"] = [int(number) for number in before]
    store = -1
    try:
        store = os.memfd_create("asyncnet-workers-state") if hasattr(os, "memfd_create") else _unnamed_file()
        os.write(store, json.dumps(state).encode())
        for fd in (*descriptors, store):
            os.set_inheritable(fd, True)
        flush_streams()
        os.execve(sys.executable, _command(), {**os.environ, _STATE: f"{os.getpid()}:{store}"})
    except OSError as exc:
        for fd in descriptors:
            os.set_inheritable(fd, False)
        if store >= 0:
            os.close(store)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        logger.error("the new program cannot be executed: %s", exc.strerror)


_TOTALS: Final = ("started", "crashes", "hung", "reloads", "failed_reloads")


def _unnamed_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


@attrs.define
class Legacy:
    """What a program leaves to the one that it becomes."""

    state: dict[str, Any]

    @property
    def secret(self) -> bytes:
        """That the workers share."""
        return bytes.fromhex(self.state["secret"])

    def size(self, asked: int) -> int:
        """How many workers: as many as there were, unless the command asks for another number now."""
        return int(self.state["size"]) if self.state["asked"] == asked else asked

    def sockets(self, binds: Sequence[str]) -> Sockets:
        """Return the sockets."""
        if list(binds) != self.state["binds"]:
            logger.warning("bind has changed: the addresses stay what they were until the master is started anew")
        return Sockets(
            [_socket(fd) for fd in self.state["shared"]],
            [_socket(fd) for fd in self.state["places"]],
            [[_socket(fd) for fd in seat] for seat in self.state["seats"]],
            list(self.state["paths"]),
        )

    def admin(self, address: tuple[str, int] | None) -> Admin:
        """Return the places where the master answers."""
        old = self.state["admin_address"]
        if (None if address is None else list(address)) != old:
            logger.warning("admin has changed: it stays what it was until the master is started anew")
        path = self.state["pid_path"]
        return Admin(
            None if old is None else (old[0], old[1]),
            None if path is None else control_path(path),
            [_socket(fd) for fd in self.state["admin"]],
        )

    def pid_file(self, path: str | None) -> PidFile | None:
        """Return the pid file."""
        old = self.state["pid_path"]
        if (None if path is None else os.path.abspath(path)) != old:
            logger.warning("pid_file has changed: it stays what it was until the master is started anew")
        return None if old is None else PidFile(old, self.state["pid_file"])

    def board(self, counters: Sequence[str]) -> Board:
        """Return the table: the same one, where workers look for their successors, though other things are counted."""
        os.set_inheritable(self.state["board"], False)
        board = Board(counters, self.state["board"])
        for each in self.state["members"]:
            row = board.row_of(each["pid"])
            if row is not None:
                row.rename(each["counters"])
        return board

    def hand_to(self, master: Master) -> None:
        """Give the workers to their new master, and let in the signals that it does not handle."""
        handled = [getattr(signal, name) for name in SIGNALS]
        signal.pthread_sigmask(signal.SIG_SETMASK, [*self.state["blocked"], *handled])
        master.announced = self.state["settled"] > 0
        logger.info("the program is renewed; its workers follow")
        for name in _TOTALS:
            setattr(master.fleet, name, self.state["totals"][name])
        for name, value in self.state["retired"].items():
            if name in master.retired:
                master.retired[name] = value
        members = []
        for each in self.state["members"]:
            member = Member(each["pid"], each["seat"], each["generation"], each["started"], State(each["state"]))
            for name in _FIELDS:
                setattr(member, name, each[name])
            members.append(member)
            master.lines[member.pid] = Line(_socket(each["line"]))
        master.fleet.adopt(members, self.state["settled"], self.state["newest"])


def _socket(fd: int) -> socket.socket:
    os.set_inheritable(fd, False)
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    return sock


def inherited() -> Legacy | None:
    """Return what the program before this one has left to this process, once."""
    pid, _, fd = os.environ.pop(_STATE, "").partition(":")
    if pid != str(os.getpid()):
        return None
    with os.fdopen(int(fd), "rb") as file:
        file.seek(0)
        return Legacy(json.loads(file.read()))

"""The master: forks, hears signals and workers, and does what `fleet` decides. It has no event loop and no threads.

A fork copies the whole process, so there must be nothing in it that a child could take for its own: no loop, no
thread, no lock that somebody holds. Signals arrive as bytes in a socket (`signal.set_wakeup_fd`); all are blocked
around a fork, so that none is handled by a child with the master's handlers.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import selectors
import signal
import socket
import time
from collections.abc import Callable
from typing import Any, NoReturn

from asyncnet.forks import flush_streams
from asyncnet.workers import fleet as fleets
from asyncnet.workers.admin import Admin
from asyncnet.workers.binding import Sockets, open_own_listeners
from asyncnet.workers.board import Board
from asyncnet.workers.child import DUMP_SIGNAL, Worker, become_worker, do_nothing, reap_all, send_signal
from asyncnet.workers.fleet import Drain, Dump, Fleet, Hurry, Kill, Member, Phase, Spawn, State
from asyncnet.workers.line import Line
from asyncnet.workers.pidfile import PidFile
from asyncnet.workers.plan import SIGNALS, Other, Plan
from asyncnet.workers.recycling import Recycler
from asyncnet.workers.report import Report

__all__ = ["Master"]

logger = logging.getLogger("asyncnet.workers")


class Master:
    """A running master.

    Args:
        plan: what it runs.
        size: how many workers.
        asked: how many the command asks for.
        binds: what it listens on, as it was written.
        sockets: what workers inherit.
        board: the table in shared memory.
        secret: that its workers share.
        admin: answers questions by HTTP.
        pid_file: where its process is written down; None for nowhere.
        renew: called on SIGUSR2.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        size: int,
        asked: int,
        binds: tuple[str, ...],
        sockets: Sockets,
        board: Board,
        secret: bytes,
        admin: Admin,
        pid_file: PidFile | None,
        renew: Callable[[Master], object],
    ) -> None:
        self.plan = plan
        self.asked = asked
        self.binds = binds
        self.admin = admin
        admin.report = self.report
        self.fleet = Fleet(size, plan.limits)
        self.sockets = sockets
        self.board = board
        self.secret = secret
        self.pid_file = pid_file
        self.lines: dict[int, Line] = {}
        self.retired: dict[str, int] = dict.fromkeys(plan.counters, 0)
        """What workers that have ended have counted."""
        self.others: dict[int, Other] = {}
        """Children that are no workers."""
        self.addresses = sockets.addresses
        self._renew = renew
        self._recycler = Recycler(plan.recycle, random.Random())
        self._selector = selectors.DefaultSelector()
        self._wakeup, self._wakeup_end = socket.socketpair()
        self._handlers: dict[int, Any] = {}
        self.announced = False
        self._told: tuple[object, ...] = ()
        self._renewal_waits = False

    # The loop.

    def run(self) -> None:
        """Run until told to stop.

        Raises:
            ChildProcessError: a worker cannot start.
        """
        try:
            self._open()
            while not self.fleet.is_over or self.others:
                self._turn()
        except BaseException:
            self.fleet.abort()
            self._finish()
            raise
        finally:
            self._close()
        if self.fleet.failure is not None:
            raise ChildProcessError(f"a worker cannot start: {self.fleet.failure}")

    def _turn(self) -> None:
        now = time.monotonic()
        for pid in list(self.fleet.members):
            row = self.board.row_of(pid)
            if row is not None:
                self.fleet.heard(pid, row.beat)
        self._recycle(now)
        self._renew_when_there_is_room()
        actions = self.fleet.decide(now)
        if self.fleet.phase is Phase.RUNNING:
            # Only now, when the workers of seats that are no more have been told to leave: one that is wanted again
            # before that has its socket still.
            self.sockets.resize(self.fleet.size)
        if self.fleet.generation == self.fleet.settled:
            self._write_owners()
        for action in actions:
            self._do(action)
        self._end_late_children(now)
        if not self.announced and self.fleet.settled:
            self.announced = True
            if self.plan.ready is not None:
                self.plan.ready(self.addresses)
        self._log_changes()
        now = time.monotonic()
        wait = min(self.fleet.wake_at(now), self.admin.wake_at(now)) - now
        for key, mask in self._selector.select(max(0.0, wait)):
            key.data(mask)
        self.admin.expire(time.monotonic())
        self._reap()

    def _open(self) -> None:
        for end in (self._wakeup, self._wakeup_end):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wakeup_end.fileno(), warn_on_full_buffer=False)
        for name in SIGNALS:
            number = getattr(signal, name)
            self._handlers[number] = signal.signal(number, do_nothing)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._handlers)
        self._selector.register(self._wakeup, selectors.EVENT_READ, self._on_signals)
        self.admin.open(self._selector)
        for line in list(self.lines.items()):
            self._listen(*line)
        self.sockets.resize(self.fleet.size)
        gc.collect()
        gc.freeze()  # what exists now is shared with the workers as long as nobody writes to it

    def _close(self) -> None:
        gc.unfreeze()
        self.admin.close()
        for line in self.lines.values():
            line.sock.close()
        self.sockets.close()
        self._selector.close()
        signal.set_wakeup_fd(-1)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._wakeup.close()
        self._wakeup_end.close()

    def _end_late_children(self, now: float) -> None:
        for pid, other in self.others.items():
            if now >= other.deadline or self.fleet.phase is not Phase.RUNNING:
                send_signal(pid, signal.SIGKILL)

    def _finish(self) -> None:
        """Kill and reap every worker; called when the master itself has failed."""
        for pid in [*self.fleet.members, *self.others]:
            send_signal(pid, signal.SIGKILL)
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                pass

    def _log_changes(self) -> None:
        told = (self.fleet.reloads, self.fleet.failed_reloads, self.fleet.generation)
        if told == self._told:
            return
        before, self._told = self._told, told
        if not before:
            return
        if told[1] != before[1]:
            logger.error("the reload is given up, the workers before it serve on: %s", self.fleet.last_error)
        elif told[0] != before[0]:
            logger.info("reloaded: generation %d serves", self.fleet.settled)

    # Signals.

    def _on_signals(self, mask: int) -> None:
        for number in self._read_signals():
            self._on_signal(number)

    def _read_signals(self) -> bytes:
        try:
            return self._wakeup.recv(4096)
        except (BlockingIOError, InterruptedError):
            return b""

    def keep_signals(self) -> None:
        """Have signals that nobody has taken yet wait in the kernel for another program; all are blocked."""
        for number in set(self._read_signals()):
            os.kill(os.getpid(), number)

    def _on_signal(self, number: int) -> None:
        fleet = self.fleet
        if number in (signal.SIGTERM, signal.SIGINT):
            fleet.stop()
            # Nobody must wait in a backlog that no worker reads any more.
            self.sockets.close()
        elif number == signal.SIGQUIT:
            fleet.abort()
        elif number == signal.SIGHUP:
            fleet.reload()
        elif number in (signal.SIGTTIN, signal.SIGTTOU):
            self._resize(1 if number == signal.SIGTTIN else -1)
        elif number == signal.SIGUSR2 and fleet.phase is Phase.RUNNING:
            self._renewal_waits = True
            if fleet.room <= 0:
                logger.info("the new program is tried when there is room for another process")

    def _renew_when_there_is_room(self) -> None:
        """The trial of a new program is one process more: a reload may have taken its room, and must leave it then."""
        self.fleet.guests = len(self.others)
        if self._renewal_waits and self.fleet.phase is Phase.RUNNING and self.fleet.room > 0:
            self._renewal_waits = False
            self._renew(self)
            self.fleet.guests = len(self.others)

    def _resize(self, by: int) -> None:
        fleet = self.fleet
        if fleet.phase is not Phase.RUNNING:
            return
        before = fleet.size
        fleet.resize(by)
        try:
            self.sockets.resize(max(before, fleet.size))
        except OSError as exc:
            fleet.size = before
            logger.error("there is no room for another worker: %s", exc)
        else:
            logger.info("%d workers wanted", fleet.size)

    # Actions.

    def _do(self, action: fleets.Action) -> None:
        if isinstance(action, Spawn):
            self._spawn(action)
        elif isinstance(action, Drain):
            self._write_successor(action.pid)
            send_signal(action.pid, signal.SIGTERM)
        elif isinstance(action, Hurry):
            self.lines[action.pid].hurry()
        elif isinstance(action, Dump):
            logger.error("worker %d: %s; its stacks follow", action.pid, action.reason)
            if DUMP_SIGNAL is not None:
                send_signal(action.pid, DUMP_SIGNAL)
        elif isinstance(action, Kill):
            if action.reason:
                logger.error("worker %d: %s; it is killed", action.pid, action.reason)
            send_signal(action.pid, signal.SIGKILL)

    def _write_owners(self) -> None:
        """Say who has the seats now, for those who hand over."""
        for member in self.fleet.members.values():
            if member.state is State.READY and member.generation == self.fleet.generation and not member.replaced:
                self.board.write_owner(member.seat, member.pid)

    def _write_successor(self, pid: int) -> None:
        """Say who has the seat of a worker that leaves; if nobody, who comes next must not wait for its word."""
        seat = self.fleet.members[pid].seat
        others = [m for m in self.fleet.members.values() if m.seat == seat and m.is_serving and not m.replaced]
        if others:
            self.board.write_owner(seat, max(others, key=lambda member: member.started).pid)
        elif self.board.owner(seat) == pid:
            self.board.write_owner(seat, 0)

    def _spawn(self, action: Spawn) -> None:
        try:
            here, there = socket.socketpair()
        except OSError as exc:
            self._cannot_fork(action, exc)
            return
        here.setblocking(False)
        there.setblocking(False)
        row = self.board.free_row()
        predecessor = self.board.owner(action.seat)
        if predecessor and self.board.row_of(predecessor) is None:
            predecessor = 0
        flush_streams()
        parent = os.getpid()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                here.close()
                self._become_worker(action, there, row.number, predecessor, parent, before)
        except OSError as exc:
            here.close()
            self._cannot_fork(action, exc)
            return
        finally:
            there.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        now = time.monotonic()
        row.clear(pid, now)
        member = self.fleet.spawned(pid, action.seat, action.generation, now)
        self._recycler.started(member)
        self.lines[pid] = line = Line(here)
        self._listen(pid, line)

    def _cannot_fork(self, action: Spawn, exc: OSError) -> None:
        self.fleet.spawn_failed(f"cannot fork: {exc.strerror}", action.seat, time.monotonic())
        logger.error("cannot fork: %s", exc.strerror)

    def _become_worker(
        self, action: Spawn, control: socket.socket, row: int, predecessor: int, parent: int, mask: Any
    ) -> NoReturn:
        """What the child does."""

        def made() -> Worker:
            sockets = self._leave_master(action.seat)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            sockets += open_own_listeners(self.sockets.places, self.plan.backlog)
            for place in self.sockets.places:
                place.close()
            limits = self.plan.limits
            return Worker(
                action.seat,
                action.generation,
                sockets,
                limits.grace,
                board=self.board,
                row=self.board.rows[row],
                control=control,
                interval=min(0.25, (limits.heartbeat or 30.0) / 10),
                secret=self.secret,
                predecessor=predecessor,
                parent=parent,
            )

        signals = [getattr(signal, name) for name in SIGNALS]
        become_worker(made, self.plan.main, self.plan.loop, control=control, parent=parent, signals=signals)

    def _leave_master(self, seat: int) -> list[socket.socket]:
        """Close in a child what is the master's; return the sockets of the seat."""
        self._selector.close()
        self._wakeup.close()
        self._wakeup_end.close()
        for line in self.lines.values():
            line.sock.close()
        self.admin.leave()
        if self.pid_file is not None:
            self.pid_file.leave()
        for number, seats in enumerate(self.sockets.seats):
            if number != seat:
                for sock in seats:
                    sock.close()
        mine = self.sockets.seats[seat] if self.sockets.seats else []
        return [*self.sockets.shared, *mine]

    # Workers.

    def _listen(self, pid: int, line: Line) -> None:
        self._selector.register(line.sock, selectors.EVENT_READ, lambda mask: self._on_line(pid, line))

    def _on_line(self, pid: int, line: Line) -> None:
        if line.read(pid):
            self.fleet.ready(pid, time.monotonic())
        if line.has_ended:
            self._unlisten(line)

    def _unlisten(self, line: Line) -> None:
        if line.is_listened:
            line.is_listened = False
            self._selector.unregister(line.sock)

    def _reap(self) -> None:
        # The first process of a container inherits every orphan in it.
        reaped = reap_all() if os.getpid() == 1 else {}
        for pid in [*self.fleet.members, *self.others]:
            raw = reaped.get(pid)
            if raw is None:
                try:
                    found, raw = os.waitpid(pid, os.WNOHANG)
                except ChildProcessError:
                    found, raw = pid, 0
                if not found:
                    continue
            status = os.waitstatus_to_exitcode(raw)
            other = self.others.pop(pid, None)
            if other is not None:
                other.ended(status)
            else:
                self._ended(pid, status)

    def _ended(self, pid: int, status: int) -> None:
        line = self.lines.pop(pid)
        if line.read_rest(pid):  # it may have said its last word right before
            self.fleet.ready(pid, time.monotonic())
        self._unlisten(line)
        line.sock.close()
        row = self.board.row_of(pid)
        if row is not None:
            for name, value in row.counters().items():
                if name in self.retired and name not in self.plan.gauges:
                    self.retired[name] += value
            row.clear(0, 0.0)
        self._recycler.ended(pid)
        member = self.fleet.exited(pid, status, time.monotonic(), line.error)
        if member is not None:
            self._log_death(member, status, line.error)

    def _log_death(self, member: Member, status: int, error: str | None) -> None:
        how = f"signal {-status}" if status < 0 else f"status {status}"
        if member.state is State.DRAINING and member.has_crashed(status):
            logger.warning("worker %d crashed while it drained (%s)", member.pid, how)
        elif self.fleet.phase is not Phase.RUNNING:
            return
        elif member.state is State.READY:
            logger.warning("worker %d ended by itself (%s); another one takes its place", member.pid, how)
        elif member.state is State.BOOTING and self.fleet.failure is None:
            reason = error or self.fleet.last_error
            logger.error("worker %d could not start: %s", member.pid, reason)

    def _recycle(self, now: float) -> None:
        for pid, reason in self._recycler.due(self.fleet, self.board, now):
            if self.fleet.replace(pid):
                logger.info("worker %d is replaced: %s", pid, reason)

    # What people ask.

    def report(self, memory: bool) -> Report:
        """Return the state of all workers, with the memory that each takes or without."""
        now, gauges = time.monotonic(), self.plan.gauges
        return Report.of(self.fleet, self.board, self.retired, gauges, self.addresses, now, memory=memory)

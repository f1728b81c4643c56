"""Which processes there should be, without forking one: what has happened goes in, what to do comes out.

The master reports facts (a worker is ready, has ended, has written its heartbeat; a signal came) and asks `decide`
what to do now. Every decision follows from the table of members alone, so whatever order signals and deaths come in,
the same table leads to the same end. `now` is an argument.

Each worker has a seat, 0 to N - 1, which stands for its UDP sockets. A reload fills all seats with a new generation,
waits until all of it is ready, and only then drains the old one; a new generation that cannot start is given up, and
the old one stays. Two workers to a seat at most: there are never more than 2 N processes.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from asyncnet.workers.members import (
    BOOT_FAILED,
    DUMP_WAIT,
    HURRY_WAIT,
    MAX_WORKERS,
    STEADY,
    Action,
    Drain,
    Dump,
    Hurry,
    Kill,
    Limits,
    Member,
    Phase,
    Spawn,
    State,
)

__all__ = [
    "BOOT_FAILED",
    "MAX_WORKERS",
    "Action",
    "Drain",
    "Dump",
    "Fleet",
    "Hurry",
    "Kill",
    "Limits",
    "Member",
    "Phase",
    "Spawn",
    "State",
]


@attrs.define
class _Rest:
    """How long a seat stays empty after a death."""

    deaths: int = 0
    """In a row, each soon after the start."""
    until: float = 0.0


@attrs.define(eq=False)
class Fleet:
    """All workers of a master.

    Args:
        size: how many should serve.
        limits: how long things may take.
    """

    size: int
    limits: Limits = attrs.field(factory=Limits)
    members: dict[int, Member] = attrs.field(factory=dict)
    phase: Phase = Phase.RUNNING
    generation: int = 1
    """Of the workers that are started now."""
    settled: int = 0
    """The generation that last served with all its workers; 0 before the first."""
    newest: int = 1
    """The last generation that was begun."""
    failure: str | None = None
    """Why the master gives up."""
    last_error: str | None = None
    """Why a worker could not start."""
    crashes: int = 0
    hung: int = 0
    started: int = 0
    reloads: int = 0
    failed_reloads: int = 0
    guests: int = 0
    """Processes of the master that are no workers; each takes the room of one."""
    _reload_again: bool = False
    _boot_failures: dict[int, int] = attrs.field(factory=dict)  # by seat: all seats may fail at once, once
    _rests: dict[int, _Rest] = attrs.field(factory=dict)  # by seat: one that fails again and again delays no other

    # What the master reports.

    def spawned(self, pid: int, seat: int, generation: int, now: float) -> Member:
        """A worker was forked."""
        self.started += 1
        member = Member(pid, seat, generation, now, beat=now)
        self.members[pid] = member
        return member

    def spawn_failed(self, reason: str, seat: int, now: float) -> None:
        """The system would not fork."""
        self.last_error = reason
        self._count_failure(seat, now)
        self._check_breaker()

    def adopt(self, members: Iterable[Member], settled: int, newest: int) -> None:
        """Take over the workers of the program that this one replaces; the next generation is a new one.

        Args:
            members: the workers.
            settled: the generation that served there.
            newest: the last generation that was begun there.
        """
        self.members = {member.pid: member for member in members}
        self.settled = settled
        self.generation = self.newest = newest + 1

    def ready(self, pid: int, now: float) -> None:
        """A worker serves."""
        member = self.members.get(pid)
        if member is None or member.state is not State.BOOTING:
            return
        member.state = State.READY
        member.ready_at = member.beat = now
        member.dumped_at = None
        self._boot_failures.clear()

    def heard(self, pid: int, beat: float) -> None:
        """The loop of a worker turned at a time."""
        member = self.members.get(pid)
        if member is not None and beat > member.beat:
            member.beat = beat

    def exited(self, pid: int, status: int, now: float, error: str | None = None) -> Member | None:
        """A worker has ended.

        Args:
            pid: of the worker.
            status: its exit status, or minus the number of the signal.
            now: the time.
            error: why it could not start, in its own words.
        """
        member = self.members.pop(pid, None)
        if member is None:
            return None
        if (member.state is State.BOOTING or member.failed_start) and self.phase is Phase.RUNNING:
            self._boot_failed(member, status, now, error or member.failed_start)
            return member
        self.crashes += member.has_crashed(status)
        if member.state is State.READY:
            self._forgive(member, now)
            self._back_off(member.seat, now)
        return member

    # What people ask for.

    def reload(self) -> None:
        """Replace all workers; while that is being done already, do it once more afterwards."""
        if self.phase is not Phase.RUNNING:
            return
        if self.generation != self.settled:
            self._reload_again = True
            return
        self.newest += 1
        self.generation = self.newest
        self._boot_failures.clear()
        self._rests.clear()

    def resize(self, by: int) -> None:
        """Want more workers, or fewer; at least one, and not more than `MAX_WORKERS`."""
        self.size = min(max(self.size + by, 1), MAX_WORKERS)

    def replace(self, pid: int) -> bool:
        """Replace one worker, as by a reload; False when another one is being replaced or the fleet is not whole."""
        member = self.members.get(pid)
        if member is None or not self.is_whole or any(each.replaced for each in self.members.values()):
            return False
        member.replaced = True
        return True

    def stop(self) -> None:
        """Drain all workers and end; asked again, end at once."""
        if self.phase is Phase.RUNNING:
            self.phase = Phase.STOPPING
        elif self.phase is Phase.STOPPING:
            self.phase = Phase.HURRYING

    def abort(self) -> None:
        """Kill all workers and end."""
        self.phase = Phase.ABORTING

    # What there is.

    @property
    def is_over(self) -> bool:
        """Whether the master may end."""
        return self.phase is not Phase.RUNNING and not self.members

    @property
    def serving(self) -> int:
        """How many take new work."""
        return sum(member.is_serving for member in self.members.values())

    @property
    def room(self) -> int:
        """How many further processes there may be."""
        return 2 * self.size - len(self.members) - self.guests

    @property
    def is_whole(self) -> bool:
        """Whether every seat is served by the generation that should, and no reload waits."""
        current = [member for member in self._current() if member.is_serving]
        return self.generation == self.settled and len(current) == self.size and not self._reload_again

    def _current(self) -> list[Member]:
        return [
            member
            for member in self.members.values()
            if member.generation == self.generation
            and member.state in (State.BOOTING, State.READY)
            and not member.replaced
            and member.seat < self.size
        ]

    # What to do.

    def decide(self, now: float) -> list[Action]:
        """Return what to do now; the states of members are changed as if it were done."""
        actions: list[Action] = []
        if self.phase is Phase.RUNNING:
            self._settle(now, actions)
        if self.phase is Phase.RUNNING:
            self._fill(now, actions)
        else:
            self._end(now, actions)
        self._watch(now, actions)
        return actions

    def _settle(self, now: float, actions: list[Action]) -> None:
        """When all seats are served by the new, drain the old."""
        self._make_room(now, actions)
        current = self._current()
        for member in current:
            self._forgive(member, now)
        if sum(member.is_serving for member in current) < self.size:
            return
        if self.generation != self.settled:
            self.reloads += self.settled > 0
            self.settled = self.generation
        kept = {member.pid for member in current}
        for member in list(self.members.values()):
            if member.pid not in kept:
                self._retire(member, now, actions)
        if self._reload_again:
            self._reload_again = False
            self.reload()

    def _make_room(self, now: float, actions: list[Action]) -> None:
        """End at once what nobody waits for, so that there is always room for a whole new generation."""
        renewed = {m.seat for m in self.members.values() if m.is_serving and not m.replaced}
        for member in list(self.members.values()):
            is_late = member.state is State.BOOTING and member.generation != self.generation
            is_late = is_late or member.generation not in (self.generation, self.settled)
            if is_late or member.seat >= self.size or (member.replaced and member.seat in renewed):
                self._retire(member, now, actions)

    def _fill(self, now: float, actions: list[Action]) -> None:
        taken = {member.seat for member in self._current()}
        taken |= {seat for seat, rest in self._rests.items() if now < rest.until}
        room = self.room
        for seat in range(self.size):
            if seat not in taken and room > 0:
                room -= 1
                actions.append(Spawn(seat, self.generation))

    def _end(self, now: float, actions: list[Action]) -> None:
        for member in list(self.members.values()):
            if self.phase is Phase.ABORTING:
                self._kill(member, "", actions)
            else:
                self._retire(member, now, actions)
            if self.phase is Phase.HURRYING and member.state is State.DRAINING and not member.hurried:
                member.hurried = True
                member.deadline = now + HURRY_WAIT
                actions.append(Hurry(member.pid))

    def _retire(self, member: Member, now: float, actions: list[Action]) -> None:
        """Drain a worker that serves; one that does not serve yet has nothing to finish."""
        if member.state is State.BOOTING:
            self._kill(member, "", actions)
        elif member.state is State.READY:
            member.state = State.DRAINING
            member.deadline = now + self.limits.grace + HURRY_WAIT
            actions.append(Drain(member.pid))

    def _kill(self, member: Member, reason: str, actions: list[Action]) -> None:
        if member.state is not State.DYING:
            if member.state is State.BOOTING and reason:
                member.failed_start = reason
            member.state = State.DYING
            actions.append(Kill(member.pid, reason))

    def _watch(self, now: float, actions: list[Action]) -> None:
        """End what hangs: in its start, in its service, or in its end."""
        for member in list(self.members.values()):
            if member.state is State.BOOTING:
                limit = self.limits.boot
                self._watch_silence(member, now, now - member.started, limit, f"not ready within {limit:g} s", actions)
            elif member.state is State.READY and self.limits.heartbeat is not None:
                limit = self.limits.heartbeat
                self._watch_silence(member, now, now - member.beat, limit, "its event loop hangs", actions)
            elif member.state is State.DRAINING and now >= member.deadline:
                self._kill(member, "it does not end within its grace", actions)

    def _watch_silence(
        self, member: Member, now: float, silence: float, limit: float, reason: str, actions: list[Action]
    ) -> None:
        if silence < 0.75 * limit:
            member.dumped_at = None
        elif member.dumped_at is None:
            member.dumped_at = now
            actions.append(Dump(member.pid, reason))
        elif silence >= 0.9 * limit and now - member.dumped_at >= min(DUMP_WAIT, 0.1 * limit):
            self.hung += member.state is State.READY
            self._kill(member, reason, actions)

    def wake_at(self, now: float) -> float:
        """Return when to decide again if nothing happens."""
        step = 0.5
        if self.limits.heartbeat is not None:
            step = min(step, self.limits.heartbeat / 20)
        times = [now + step, now + self.limits.boot / 20]
        if self.phase is Phase.RUNNING:
            times += [rest.until for rest in self._rests.values() if rest.until > now]
        times += [m.deadline for m in self.members.values() if m.state is State.DRAINING]
        return max(min(times), now + 0.01)

    # Failures.

    def _boot_failed(self, member: Member, status: int, now: float, error: str | None) -> None:
        reason = error or f"a worker ended before it was ready, {_how(status)}"
        self.last_error = reason
        if member.generation != self.generation:
            return
        self._count_failure(member.seat, now)
        is_reload = 0 < self.settled != self.generation
        hopeless = status == BOOT_FAILED or self._failed_in_a_row >= self.limits.breaker
        if is_reload and self.serving and hopeless:
            self._give_up_reload()
        elif status == BOOT_FAILED and not self.settled:
            self._give_up(reason)
        else:
            self._check_breaker()

    def _count_failure(self, seat: int, now: float) -> None:
        self._boot_failures[seat] = self._boot_failures.get(seat, 0) + 1
        self._back_off(seat, now)

    @property
    def _failed_in_a_row(self) -> int:
        return max(self._boot_failures.values(), default=0)

    def _give_up_reload(self) -> None:
        """The old generation serves on; `_settle` retires what the new one has."""
        self.failed_reloads += 1
        self.generation = self.settled
        self._boot_failures.clear()
        self._rests.clear()

    def _check_breaker(self) -> None:
        if self._failed_in_a_row >= self.limits.breaker and not self.serving:
            self._give_up(f"{self.last_error} ({self._failed_in_a_row} failed starts in a row)")

    def _give_up(self, reason: str) -> None:
        if self.failure is None:
            self.failure = reason
        self.phase = Phase.STOPPING

    def _back_off(self, seat: int, now: float) -> None:
        first, longest = self.limits.backoff
        rest = self._rests.setdefault(seat, _Rest())
        rest.until = max(rest.until, now + min(first * 2.0 ** min(rest.deaths, 30), longest))
        rest.deaths += 1

    def _forgive(self, member: Member, now: float) -> None:
        """Forget the deaths in the seat of a worker that has served for a while."""
        if member.is_serving and now - member.ready_at >= STEADY:
            self._rests.pop(member.seat, None)


def _how(status: int) -> str:
    return f"by signal {-status}" if status < 0 else f"with status {status}"

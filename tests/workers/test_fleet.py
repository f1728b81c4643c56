"""Which processes there should be: the table of workers with a clock that is a number, and no process at all."""

from __future__ import annotations

import random

import pytest

from asyncnet.workers.fleet import (
    BOOT_FAILED,
    Action,
    Drain,
    Dump,
    Fleet,
    Hurry,
    Kill,
    Limits,
    Phase,
    Spawn,
    State,
)

LIMITS = Limits(grace=10, boot=5, heartbeat=4)


class Simulation:
    """Does what a fleet decides, in a world of numbers."""

    def __init__(self, size: int, limits: Limits = LIMITS) -> None:
        self.fleet = Fleet(size, limits)
        self.now = 100.0
        self.next_pid = 1
        self.alive: set[int] = set()
        self.told: list[Action] = []
        self.most = 0

    def step(self, seconds: float = 0.0) -> list[Action]:
        self.now += seconds
        actions = self.fleet.decide(self.now)
        self.told += actions
        for action in actions:
            if isinstance(action, Spawn):
                self.fleet.spawned(self.next_pid, action.seat, action.generation, self.now)
                self.alive.add(self.next_pid)
                self.next_pid += 1
        self.most = max(self.most, len(self.alive) + self.fleet.guests)
        return actions

    def renew(self) -> Fleet:
        """Replace the program: a new table takes over the workers."""
        before = self.fleet
        self.fleet = Fleet(before.size, before.limits)
        self.fleet.adopt(before.members.values(), before.settled, before.newest)
        return self.fleet

    def ready(self, *pids: int) -> None:
        for pid in pids or [m.pid for m in self.fleet.members.values() if m.state is State.BOOTING]:
            self.fleet.ready(pid, self.now)

    def end(self, pid: int, status: int = 0, error: str | None = None) -> None:
        self.alive.discard(pid)
        self.fleet.exited(pid, status, self.now, error)

    def beat(self, *pids: int) -> None:
        for pid in pids:
            self.fleet.heard(pid, self.now)

    def pids(self, state: State) -> list[int]:
        return [m.pid for m in self.fleet.members.values() if m.state is state]


def served(size: int = 2, limits: Limits = LIMITS) -> Simulation:
    simulation = Simulation(size, limits)
    simulation.step()
    simulation.ready()
    assert simulation.step() == []
    return simulation


def test_every_seat_gets_a_worker_and_counts_when_it_is_ready() -> None:
    simulation = Simulation(3)
    assert simulation.step() == [Spawn(0, 1), Spawn(1, 1), Spawn(2, 1)]
    assert simulation.fleet.serving == 0
    simulation.ready(1, 2)
    assert simulation.step() == []
    assert (simulation.fleet.serving, simulation.fleet.settled) == (2, 0)
    simulation.ready(3)
    simulation.step()
    assert simulation.fleet.settled == 1
    assert simulation.fleet.is_whole


def test_a_dead_worker_is_replaced_in_its_seat_after_a_pause_that_doubles_up_to_10_seconds() -> None:
    simulation = served(1, Limits(heartbeat=None))
    pauses = []
    for _ in range(10):
        (pid,) = simulation.alive
        simulation.end(pid, -9)
        assert not simulation.step()
        begun = simulation.now
        while not simulation.step(0.05):
            pass
        pauses.append(simulation.now - begun)
        simulation.ready()
    assert pauses[:4] == pytest.approx([0.1, 0.2, 0.4, 0.8], abs=0.06)
    assert pauses[-1] == pytest.approx(10, abs=0.06)
    simulation.step(5)  # it served for a while: the next death is the first again
    (pid,) = simulation.alive
    simulation.end(pid, -9)
    assert simulation.step() == []
    assert [type(action) for action in simulation.step(0.11)] == [Spawn]


def test_a_seat_whose_workers_die_soon_backs_off_though_another_one_serves_and_delays_none() -> None:
    simulation = served(2, Limits(heartbeat=None))
    victim, pauses = 2, []
    for _ in range(9):
        simulation.step(0.5)
        simulation.end(victim, -9)
        begun = simulation.now
        while not simulation.step(0.05):
            pass
        pauses.append(simulation.now - begun)
        (victim,) = simulation.alive - {1}
        simulation.ready()
        simulation.step()
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10], abs=0.06)
    simulation.end(victim, -9)
    simulation.end(1, -9)
    simulation.step()
    assert simulation.step(0.11) == [Spawn(0, 1)]


def test_a_process_that_is_no_worker_takes_the_room_of_one() -> None:
    simulation = served(2)
    simulation.fleet.guests = 1
    simulation.fleet.reload()
    assert simulation.step() == [Spawn(0, 2)]
    assert simulation.fleet.room == 0
    simulation.fleet.guests = 0
    assert simulation.step() == [Spawn(1, 2)]


def test_a_start_that_says_why_it_failed_ends_the_first_start_at_once() -> None:
    simulation = Simulation(2)
    simulation.step()
    simulation.end(1, BOOT_FAILED, "ModuleNotFoundError: no module named 'x'")
    assert simulation.fleet.failure == "ModuleNotFoundError: no module named 'x'"
    assert simulation.step() == [Kill(2, "")]
    simulation.end(2, -9)
    assert simulation.fleet.is_over


def test_starts_that_fail_without_a_word_end_it_after_five() -> None:
    simulation = Simulation(1)
    for number in range(5):
        assert simulation.fleet.failure is None
        while not simulation.alive:
            simulation.step(0.05)
        simulation.end(number + 1, -11)
    assert simulation.fleet.failure is not None
    assert "by signal 11" in simulation.fleet.failure
    assert simulation.now < 105


def test_many_seats_that_fail_at_once_are_tried_again_as_often_as_one() -> None:
    simulation = Simulation(8)
    for number in range(5):
        assert simulation.fleet.failure is None
        begun = simulation.now
        while len(simulation.alive) < 8:
            simulation.step(0.05)
        assert simulation.now - begun == pytest.approx(0.1 * 2 ** (number - 1) if number else 0.05, abs=0.06)
        for pid in sorted(simulation.alive):
            simulation.end(pid, -11)
    assert simulation.fleet.failure is not None


def test_while_a_worker_serves_failed_starts_are_repeated_and_end_nothing() -> None:
    simulation = served(2)
    simulation.end(2, -9)
    for _ in range(20):
        while len(simulation.alive) < 2:
            simulation.beat(1)
            simulation.step(0.1)
        simulation.end(max(simulation.alive), BOOT_FAILED, "broken")
    assert simulation.fleet.failure is None
    assert simulation.fleet.serving == 1


def test_a_reload_drains_the_old_when_all_of_the_new_are_ready() -> None:
    simulation = served(2)
    simulation.fleet.reload()
    assert simulation.step() == [Spawn(0, 2), Spawn(1, 2)]
    simulation.ready(3)
    assert simulation.step() == []
    simulation.ready(4)
    assert simulation.step() == [Drain(1), Drain(2)]
    assert simulation.fleet.reloads == 1
    simulation.end(1)
    simulation.end(2)
    assert simulation.step() == []
    assert simulation.most == 4


def test_a_reload_that_cannot_start_is_given_up_and_the_old_serve_on() -> None:
    simulation = served(2)
    simulation.fleet.reload()
    simulation.step()
    simulation.ready(3)
    simulation.end(4, BOOT_FAILED, "SyntaxError")
    assert simulation.step() == [Drain(3)]
    assert simulation.fleet.failed_reloads == 1
    assert simulation.fleet.generation == 1
    assert simulation.pids(State.READY) == [1, 2]
    simulation.end(3)
    simulation.fleet.reload()
    assert simulation.step() == [Spawn(0, 3), Spawn(1, 3)]


def test_a_reload_that_is_asked_for_while_a_broken_one_is_tried_follows_it_once() -> None:
    simulation = served(1)
    simulation.fleet.reload()
    simulation.step()
    simulation.fleet.reload()  # the code has just been mended
    simulation.end(2, BOOT_FAILED, "SyntaxError")
    assert simulation.step() == [Spawn(0, 3)]
    simulation.end(3, BOOT_FAILED, "SyntaxError")
    assert simulation.step() == []
    assert simulation.step(2) == []
    assert simulation.fleet.failed_reloads == 2
    assert simulation.fleet.is_whole


def test_a_reload_that_is_asked_for_during_the_first_start_follows_it() -> None:
    simulation = Simulation(1)
    simulation.step()
    simulation.fleet.reload()
    simulation.ready()
    assert simulation.step() == [Spawn(0, 2)]
    assert simulation.fleet.settled == 1


def test_a_new_program_takes_the_workers_over_and_replaces_them() -> None:
    simulation = served(2)
    simulation.fleet.reload()
    simulation.step()
    simulation.ready(3)
    fleet = simulation.renew()  # in the middle of a reload: one new worker serves, the other one boots
    assert simulation.step() == [Drain(3), Kill(4, "")]
    simulation.end(3)
    simulation.end(4, -9)
    assert simulation.step() == [Spawn(0, 3), Spawn(1, 3)]
    simulation.ready()
    assert simulation.step() == [Drain(1), Drain(2)]
    assert fleet.settled == 3


def test_reloads_in_a_row_are_one_more() -> None:
    simulation = served(1)
    for _ in range(10):
        simulation.fleet.reload()
    simulation.step()
    simulation.ready()
    simulation.step()
    assert simulation.fleet.generation == 3
    simulation.end(1)
    simulation.step()
    simulation.ready()
    simulation.step()
    assert simulation.fleet.is_whole


def test_a_reload_waits_for_those_that_still_drain_so_that_there_are_never_more_than_two_to_a_seat() -> None:
    simulation = served(2)
    simulation.fleet.reload()
    simulation.step()
    simulation.ready()
    simulation.step()
    simulation.fleet.reload()
    assert simulation.step() == []
    simulation.end(1)
    assert simulation.step() == [Spawn(0, 3)]
    assert simulation.most == 4


def test_a_hung_loop_is_dumped_at_three_quarters_and_killed_before_the_limit() -> None:
    simulation = served(2)
    told: dict[type, float] = {}
    begun = simulation.now
    while simulation.now - begun < 4 and Kill not in told:
        simulation.beat(1)
        for action in simulation.step(0.1):
            told[type(action)] = simulation.now - begun
    assert told == {Dump: pytest.approx(3.0, abs=0.15), Kill: pytest.approx(3.6, abs=0.25)}
    assert simulation.fleet.hung == 1
    simulation.end(2, -9)
    simulation.beat(1)
    assert simulation.step(0.2) == [Spawn(1, 1)]


def test_a_loop_that_turns_again_is_spared() -> None:
    simulation = served(1)
    simulation.step(3.1)
    simulation.beat(1)
    assert simulation.step(0.5) == []
    assert simulation.step(2.0) == []


def test_a_start_that_hangs_is_killed_and_counts_as_failed() -> None:
    simulation = Simulation(1, Limits(boot=5, breaker=1))
    simulation.step()
    assert [type(action) for action in simulation.step(4)] == [Dump]
    assert [type(action) for action in simulation.step(0.6)] == [Kill]
    simulation.end(1, -9)
    assert simulation.fleet.failure is not None
    assert "not ready within 5 s" in simulation.fleet.failure


def test_stop_drains_then_hurries_then_kills() -> None:
    simulation = served(2)
    simulation.fleet.stop()
    assert simulation.step() == [Drain(1), Drain(2)]
    simulation.fleet.stop()
    assert simulation.step(1) == [Hurry(1), Hurry(2)]
    assert simulation.step(1) == []
    simulation.end(1)
    assert [type(action) for action in simulation.step(1.1)] == [Kill]
    simulation.end(2, -9)
    assert simulation.fleet.is_over
    assert simulation.fleet.failure is None


def test_the_deadline_ends_a_drain() -> None:
    simulation = served(1)
    simulation.fleet.stop()
    simulation.step()
    assert simulation.step(11) == []
    assert [type(action) for action in simulation.step(1.1)] == [Kill]


@pytest.mark.parametrize("is_stopping", [False, True])
@pytest.mark.parametrize(("status", "crashes"), [(0, 0), (-15, 0), (-11, 1), (1, 1)])
def test_a_crash_while_draining_is_counted(status: int, crashes: int, is_stopping: bool) -> None:
    simulation = served(1)
    if is_stopping:
        simulation.fleet.stop()
    else:
        simulation.fleet.reload()
        simulation.step()
        simulation.ready(2)
    assert simulation.step() == [Drain(1)]
    simulation.end(1, status)
    assert simulation.fleet.crashes == crashes


def test_abort_kills_everything_at_once() -> None:
    simulation = served(2)
    simulation.fleet.reload()
    simulation.step()
    simulation.fleet.abort()
    assert simulation.step() == [Kill(pid, "") for pid in (1, 2, 3, 4)]
    assert simulation.step() == []


def test_more_and_fewer_workers() -> None:
    simulation = served(1)
    simulation.fleet.resize(1)
    assert simulation.step() == [Spawn(1, 1)]
    simulation.ready()
    simulation.step()
    simulation.fleet.resize(-5)
    assert simulation.fleet.size == 1
    assert simulation.step() == [Drain(2)]


def test_a_worker_is_recycled_when_its_replacement_is_ready() -> None:
    simulation = served(2)
    assert simulation.fleet.replace(2)
    assert not simulation.fleet.replace(1)  # one at a time
    assert simulation.step() == [Spawn(1, 1)]
    assert simulation.fleet.serving == 2
    simulation.ready()
    assert simulation.step() == [Drain(2)]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_in_whatever_order_it_ends_whole(seed: int) -> None:
    chance = random.Random(seed)
    size = chance.randint(1, 4)
    simulation = Simulation(size)
    fleet = simulation.fleet
    largest = size
    for _ in range(400):
        event = chance.random()
        if event < 0.1:
            fleet.reload()
        elif event < 0.15:
            fleet.resize(chance.choice([-1, 1]))
            largest = max(largest, fleet.size)
        elif event < 0.25 and simulation.alive:
            fleet.replace(chance.choice(sorted(simulation.alive)))
        elif event < 0.4 and simulation.alive:
            simulation.end(chance.choice(sorted(simulation.alive)), chance.choice([-9, 0, 1]))
        elif event < 0.44:
            fleet = simulation.renew()
        elif event < 0.5:
            fleet.guests = int(not fleet.guests and fleet.room > 0)
        elif event < 0.75:
            simulation.ready(*simulation.pids(State.BOOTING)[:1] or [0])
        simulation.beat(*simulation.alive)
        simulation.step(chance.random() * 0.5)
        if fleet.phase is not Phase.RUNNING:
            assert fleet.failure is not None
            break
    fleet.guests = 0
    for _ in range(300):  # nothing more happens: everybody does as told
        simulation.ready()
        for pid in simulation.pids(State.DRAINING) + simulation.pids(State.DYING):
            simulation.end(pid)
        simulation.beat(*simulation.alive)
        simulation.step(0.5)
    assert simulation.most <= 2 * largest
    if fleet.phase is Phase.RUNNING:
        assert fleet.is_whole
        assert sorted(m.seat for m in fleet.members.values()) == list(range(fleet.size))
        assert simulation.alive == set(fleet.members)
    else:
        assert fleet.is_over

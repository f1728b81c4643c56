"""Masters and workers as processes: starts, deaths, hangs, reloads, signals, ends."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from asyncnet.workers.pidfile import control_path
from tests.attempts import first_good
from tests.workers.masters import (
    ECHO,
    ROOT,
    Running,
    bare_master,
    blocked_signals,
    children,
    is_alive,
    kill,
    running,
    wait_for,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_workers_share_a_listener_and_drain_what_runs(tmp_path: Path) -> None:
    with running(tmp_path, workers=2) as master:
        assert set(children(master.pid)) == set(master.workers("ready"))
        with master.connect() as sock:
            sock.sendall(b"before")
            pid = int(sock.recv(100).split()[0])
            assert pid in master.workers()
            master.signal(signal.SIGTERM)
            wait_for(lambda: is_refused(master))
            sock.sendall(b"after")  # a connection that was open is served to its end
            assert sock.recv(100) == b"%d after" % pid
        assert master.process.wait(10) == 0
        assert not Path(master.pid_file).exists()


def is_refused(master: Running) -> bool:
    """Whether nobody listens any more."""
    try:
        master.connect().close()
    except OSError:
        return True
    return False


def test_a_second_signal_hurries_and_quit_aborts(tmp_path: Path) -> None:
    with running(tmp_path, grace=60.0) as master, master.connect() as sock:
        sock.sendall(b"x")
        assert sock.recv(100)
        begun = time.monotonic()
        master.signal(signal.SIGINT)
        wait_for(lambda: master.report()["status"] == "stopping")
        assert master.process.poll() is None
        master.signal(signal.SIGINT)
        assert master.process.wait(8) == 0
        assert time.monotonic() - begun < 8
    with running(tmp_path, grace=60.0) as master, master.connect() as sock:
        sock.sendall(b"x")
        assert sock.recv(100)
        known = children(master.pid)
        master.signal(signal.SIGQUIT)
        master.process.wait(3)
        assert not any(map(is_alive, known))


def test_a_master_without_a_free_descriptor_serves_on_and_reloads_when_it_has_one(tmp_path: Path) -> None:
    import resource

    with running(tmp_path) as master:
        before = master.workers()
        _, hard = resource.prlimit(master.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(master.pid, resource.RLIMIT_NOFILE, (0, hard))
        master.signal(signal.SIGHUP)
        wait_for(lambda: "cannot fork: Too many open files" in master.log)
        assert master.ask() in before
        with socket.socket(socket.AF_UNIX) as visitor:
            visitor.connect(control_path(master.pid_file))
            visitor.sendall(b"GET /health HTTP/1.1\r\n\r\n")
            resource.prlimit(master.pid, resource.RLIMIT_NOFILE, (hard, hard))
            assert visitor.recv(100).startswith(b"HTTP/1.1 200")
        wait_for(lambda: not set(before) & set(master.workers()) and master.whole())


def test_two_signals_in_one_turn_hurry_the_workers(tmp_path: Path) -> None:
    with running(tmp_path, grace=60.0) as master, master.connect() as sock:
        sock.sendall(b"x")
        assert sock.recv(100)
        for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
            master.signal(number)
        assert master.process.wait(10) == 0
        assert "it is killed" not in master.log


def test_a_stop_that_reaches_all_processes_leaves_workers_their_grace(tmp_path: Path) -> None:
    with running(tmp_path, workers=1, grace=60.0) as master, master.connect() as sock:
        sock.sendall(b"x")
        worker = int(sock.recv(100).split()[0])
        os.kill(worker, signal.SIGTERM)
        master.signal(signal.SIGTERM)
        wait_for(lambda: master.workers("draining") == [worker])
        for _ in range(50):  # turns of the worker's loop
            sock.sendall(b"y")
            assert sock.recv(100) == b"%d y" % worker
        sock.close()
        assert master.process.wait(10) == 0


def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    with running(tmp_path) as master:
        victim = master.ask()
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: victim not in master.workers() and master.whole())
        assert master.report()["crashes"] == 1
        assert master.ask() != victim


def test_a_stopped_worker_is_replaced_within_the_heartbeat_limit(tmp_path: Path) -> None:
    with running(tmp_path, heartbeat=2.0) as master:
        took: list[float] = []

        def stop_one() -> float:
            victim = master.ask()
            os.kill(victim, signal.SIGSTOP)
            begun = time.monotonic()
            wait_for(lambda: victim not in master.workers() and master.whole())
            took.append(time.monotonic() - begun)
            return took[-1]

        assert first_good(stop_one, lambda seconds: seconds < 2.5) < 2.5  # the limit, and the start of a process
        assert master.report()["hung"] == len(took)


def test_a_loop_that_hangs_shows_its_stacks_before_it_is_killed(tmp_path: Path) -> None:
    app = ECHO.replace("    while data", "    hang_for_ever()\n    while data") + (
        "\ndef hang_for_ever():\n    import time\n    while True:\n        time.sleep(1)\n"
    )
    with running(tmp_path, app, heartbeat=4.0, workers=1) as master:
        with master.connect() as sock:
            sock.sendall(b"x")
            with contextlib.suppress(ConnectionResetError):  # nobody answers; the connection ends with the worker
                assert sock.recv(100) == b""
        wait_for(master.whole)
        assert "its event loop hangs; its stacks follow" in master.log
        assert "in hang_for_ever" in master.log


def test_a_server_that_fails_while_it_closes_is_a_crash_with_its_reason(tmp_path: Path) -> None:
    with running(tmp_path, FAILS_AT_THE_END, workers=1) as master:
        (old,) = master.workers()
        master.reload()
        wait_for(lambda: old not in master.workers())
        assert master.report()["crashes"] == 1
        assert f"worker {old} crashed while it drained (status 1)" in master.log
        assert "RuntimeError: it does not close" in master.log
        master.signal(signal.SIGKILL)
        master.process.wait()
        tmp_path.joinpath("log").write_text("")  # the traceback is what is wanted here


FAILS_AT_THE_END = """
class Server:
    stats = None

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        pass

    async def aclose(self):
        raise RuntimeError("it does not close")

async def main(worker):
    await worker.serve(Server())
"""


@pytest.mark.parametrize(
    ("app", "reason"),
    [("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
     ("def main(", "SyntaxError"),
     ("x = 1", "has no function 'main'"),
     ("raise ValueError('x' * 100_000)", "ValueError: xxx"),
     ("async def main(worker):\n    raise OSError(98, 'cannot bind UDP 1.2.3.4:5')", "cannot bind UDP 1.2.3.4:5")],
)  # fmt: skip
def test_a_worker_that_cannot_start_ends_the_master_with_the_reason(tmp_path: Path, app: str, reason: str) -> None:
    master = Running(tmp_path, app, workers=3)
    try:
        assert master.process.wait(5) == 1
        ended = [line for line in master.log.splitlines() if line.startswith("ended: ")]
        assert len(ended) == 1
        assert "a worker cannot start: " in ended[0]
        assert reason in ended[0]
        assert "Traceback" not in master.log
    finally:
        kill(master)


def test_starts_that_end_without_a_word_end_the_master_too(tmp_path: Path) -> None:
    master = Running(tmp_path, "import os\nos._exit(7)", workers=1)
    try:
        assert master.process.wait(10) == 1
        assert "ended before it was ready, with status 7 (5 failed starts in a row)" in master.log
    finally:
        kill(master)


def test_no_worker_outlives_a_master_that_is_killed(tmp_path: Path) -> None:
    master = Running(tmp_path, workers=3)
    try:
        master.wait_ready()
        known = children(master.pid)
        assert len(known) == 3
        master.process.kill()
        master.process.wait()
        wait_for(lambda: not any(map(is_alive, known)), 2)
    finally:
        kill(master)
    with running(tmp_path) as again:  # what it left behind, file and socket, hinders nobody
        again.ask()


def test_a_reload_runs_the_new_code_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as master:
        before = master.workers()
        master.write(ECHO.replace('b"%d "', 'b"%d new "'))
        master.reload()
        wait_for(master.whole)
        with master.connect() as sock:
            sock.sendall(b"x")
            assert sock.recv(100).split()[1:] == [b"new", b"x"]
        serving = master.workers()
        assert not set(before) & set(serving)
        master.write("import no_such_module")
        master.signal(signal.SIGHUP)
        wait_for(lambda: master.report()["failed_reloads"] == 1)
        wait_for(master.whole)
        assert master.workers() == serving
        assert "no_such_module" in master.report()["last_error"]


def test_the_old_worker_finishes_its_connections_after_a_reload(tmp_path: Path) -> None:
    with running(tmp_path, workers=1) as master, master.connect() as sock:
        sock.sendall(b"1")
        old = int(sock.recv(100).split()[0])
        master.reload()
        new = wait_for(lambda: (pid := master.ask()) != old and pid)
        sock.sendall(b"2")
        assert sock.recv(100) == b"%d 2" % old
        assert master.workers("draining") == [old]
        sock.close()
        wait_for(lambda: master.workers() == [new])


def test_more_and_fewer_workers_by_signal(tmp_path: Path) -> None:
    with running(tmp_path, workers=1, bind=["127.0.0.1:0", "udp:127.0.0.1:0"]) as master:
        master.signal(signal.SIGTTIN)
        wait_for(lambda: len(master.workers("ready")) == 2)
        master.signal(signal.SIGTTOU)
        wait_for(lambda: len(master.workers()) == 1)
        master.signal(signal.SIGTTOU)  # one stays
        master.ask()
        assert master.report()["wanted"] == 1


def test_workers_are_recycled_by_connections_one_at_a_time(tmp_path: Path) -> None:
    with running(tmp_path, workers=1, recycle={"connections": 5, "jitter": 0.0}) as master:
        first = master.ask()
        for _ in range(4):
            master.ask()
        wait_for(lambda: master.whole() and first not in master.workers())
        assert "5 accepted" in master.log
        assert master.report()["totals"]["accepted"] == 5  # what ended workers counted is kept
        assert master.report()["crashes"] == 0


@pytest.mark.parametrize(
    ("limit", "reason"),
    [({"age": 0.5}, " s old"), pytest.param({"memory": 1 << 20}, "MiB of memory", marks=pytest.mark.long)],
)
def test_workers_are_recycled_by_age_and_by_memory(tmp_path: Path, limit: dict[str, float], reason: str) -> None:
    with running(tmp_path, workers=1, recycle=limit) as master:
        first = master.workers()
        wait_for(lambda: master.whole() and first != master.workers())
        assert reason in master.log


def test_usr2_becomes_a_new_program_with_the_same_listener_and_process(tmp_path: Path) -> None:
    with running(tmp_path, workers=2) as master, master.connect() as sock:
        sock.sendall(b"1")
        old = int(sock.recv(100).split()[0])
        before = master.workers()
        blocked = blocked_signals(before[0])
        program = tmp_path.joinpath("program.py")
        given = 'counters=["active"], admin=("127.0.0.1", 0), pid_file="other.pid",'
        changed = program.read_text().replace('"app:main",', f'"app:main", {given}')
        changed = changed.replace("\nif ", "\ndel options['pid_file']\nif ", 1)
        program.write_text(changed + "\nraise SystemExit(9)")  # after `run`: it changes the end alone
        master.signal(signal.SIGUSR2)
        wait_for(lambda: "the program is renewed" in master.log)
        wait_for(lambda: not set(before) & set(master.workers("ready")))
        wait_for(lambda: master.ask() not in before)
        for name in ("admin", "pid_file"):
            assert f"{name} has changed: it stays what it was" in master.log
        assert {blocked_signals(pid) for pid in (master.pid, *master.workers("ready"))} == {blocked}
        sock.sendall(b"2")
        assert sock.recv(100) == b"%d 2" % old  # an old connection goes on
        wait_for(lambda: master.report()["totals"] == {"active": 1})  # in the second column of its worker
        sock.close()
        wait_for(master.whole)
        assert not set(before) & set(children(master.pid))
        master.signal(signal.SIGTERM)
        assert master.process.wait(10) == 9
        assert not {"pid", "pid.sock", "other.pid", "other.pid.sock"} & {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("change", [("import json", "raise SystemExit('broken')"), ("app:main", "no function")])
def test_usr2_with_a_program_that_does_not_start_changes_nothing(tmp_path: Path, change: tuple[str, str]) -> None:
    with running(tmp_path) as master:
        before = master.workers()
        program = tmp_path.joinpath("program.py")
        good = program.read_text()
        program.write_text(good.replace(*change))
        master.signal(signal.SIGUSR2)
        wait_for(lambda: "the new program does not start" in master.log)
        assert master.workers() == before
        program.write_text(good)
        master.signal(signal.SIGUSR2)
        wait_for(lambda: "the program is renewed" in master.log)
        wait_for(lambda: master.whole() and master.workers() != before)


def test_a_trial_of_a_new_program_ends_with_its_master(tmp_path: Path) -> None:
    master = Running(tmp_path)
    note = tmp_path / "trial"
    try:
        master.wait_ready()
        program = "import os, time\nopen('trial', 'w').write(f'{os.getpid()} ')\ntime.sleep(20)\n"
        tmp_path.joinpath("program.py").write_text(program)
        master.signal(signal.SIGUSR2)
        trial = int(wait_for(lambda: note.exists() and note.read_text()))
        assert trial in children(master.pid)
        master.process.kill()
        master.process.wait()
        wait_for(lambda: not is_alive(trial), 2)
    finally:
        kill(master)


TRIAL_WAITS = """
import os, time
if "ASYNCNET_WORKERS_TRIAL" in os.environ:
    open("trial", "w").write(f"{os.getpid()} ")
    while not os.path.exists("go"):
        time.sleep(0.01)
"""


def test_a_stop_that_comes_with_the_end_of_a_trial_is_not_lost(tmp_path: Path) -> None:
    with running(tmp_path) as master:
        program = tmp_path.joinpath("program.py")
        program.write_text(TRIAL_WAITS + program.read_text())
        master.signal(signal.SIGUSR2)
        note = tmp_path / "trial"
        trial = int(wait_for(lambda: note.exists() and note.read_text()))
        master.signal(signal.SIGSTOP)
        tmp_path.joinpath("go").touch()
        wait_for(lambda: not is_alive(trial))
        master.signal(signal.SIGTERM)
        master.signal(signal.SIGCONT)
        assert master.process.wait(10) == 0
        assert "the program is renewed" not in master.log


def test_a_signal_that_nobody_has_taken_is_kept_for_the_next_program() -> None:
    if not (pid := os.fork()):
        with contextlib.suppress(BaseException):
            master = bare_master()
            master._open()
            os.kill(os.getpid(), signal.SIGHUP)
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            master.keep_signals()
            os._exit(0 if signal.SIGHUP in signal.sigpending() else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_usr2_during_a_reload_waits_for_the_room_of_its_trial(tmp_path: Path) -> None:
    counts = []

    def logged(text: str) -> bool:
        counts.append(len(children(master.pid)))
        return text in master.log

    with running(tmp_path, workers=1) as master, master.connect() as sock:
        sock.sendall(b"x")
        assert sock.recv(100)
        master.reload()
        assert len(master.workers()) == 2  # the old one drains
        master.signal(signal.SIGUSR2)
        wait_for(lambda: logged("is tried when there is room"))
        sock.close()
        wait_for(lambda: logged("the program is renewed"))
        wait_for(master.whole)
        assert max(counts) == 2


def test_there_are_never_more_than_two_processes_to_a_worker(tmp_path: Path) -> None:
    with running(tmp_path, workers=2, grace=1.0) as master:
        most = 0
        held = [master.connect() for _ in range(4)]  # so that old workers take their grace to drain
        ended = time.monotonic() + 1.5
        while time.monotonic() < ended:
            master.signal(signal.SIGHUP)
            most = max(most, len(children(master.pid)))
            time.sleep(0.002)
        for sock in held:
            sock.close()
        assert 3 <= most <= 4
        wait_for(master.whole)


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in (2, 3, 4, 5))])
def test_a_hundred_signals_in_random_order_leave_a_consistent_state(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    numbers = [signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR2, signal.SIGCHLD]
    with running(tmp_path, workers=2, grace=2.0) as master:
        for _ in range(100):
            master.signal(chance.choice(numbers))
            if chance.random() < 0.1:
                victims = children(master.pid)
                with contextlib.suppress(ProcessLookupError):  # it may have ended
                    os.kill(chance.choice(victims), signal.SIGKILL) if victims else None
            time.sleep(chance.random() * 0.02)
        report = wait_for(lambda: at_rest(master), 30)
        assert sorted(each["seat"] for each in report["workers"]) == list(range(report["wanted"]))
        master.ask()


def at_rest(master: Running) -> dict[str, Any] | None:
    """Return the report when all workers serve and the master has no other child, no zombie either; else None.

    Children and report are not of the same moment: nothing must have changed from the report before to the one after.
    """
    try:
        before, pids, report = master.report(), sorted(children(master.pid)), master.report()
    except (OSError, ValueError, IndexError):  # it is between two programs, and answers nothing or no more
        return None
    known = [(each["generation"], sorted(worker["pid"] for worker in each["workers"])) for each in (before, report)]
    # In the middle of a reload, the old workers serve, all of them, and as many new ones begin.
    is_whole = report["serving"] == report["wanted"] == len(report["workers"])
    return report if is_whole and known == [(report["generation"], pids)] * 2 else None


def test_health_metrics_and_status_by_http(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with running(tmp_path, admin=["127.0.0.1", port]) as master:
        for _ in range(5):
            master.ask()
        wait_for(lambda: master.report()["totals"]["accepted"] == 5)

        def get(path: str) -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                text: str = answer.read().decode()
                return text

        assert json.loads(get("/health")) == {"status": "ok", "serving": 2, "wanted": 2}
        metrics = get("/metrics")
        assert "asyncnet_workers_accepted_total 5\n" in metrics
        assert "asyncnet_workers_serving 2\n" in metrics
        per_worker = [line for line in metrics.splitlines() if line.startswith("asyncnet_worker_accepted{")]
        assert sum(int(line.split()[-1]) for line in per_worker) == 5
        assert json.loads(get("/status"))["workers"][0]["state"] == "ready"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get("/other")
        with socket.create_connection(("127.0.0.1", port)) as silent:  # who says nothing hinders nobody
            assert json.loads(get("/health"))["status"] == "ok"
            silent.sendall(b"x" * 10000)
            assert silent.recv(10) in (b"", b"HTTP/1.1 4")


def test_health_is_503_while_nobody_serves(tmp_path: Path) -> None:
    with running(tmp_path, workers=1) as master:
        assert master.get("/health") == (200, {"status": "ok", "serving": 1, "wanted": 1})
        master.write("import time\ntime.sleep(2)\n" + ECHO)
        os.kill(master.workers()[0], signal.SIGKILL)
        wait_for(lambda: master.get("/health") == (503, {"status": "down", "serving": 0, "wanted": 1}))
        wait_for(lambda: master.get("/health")[0] == 200)
        with master.connect() as sock:
            sock.sendall(b"x")
            assert sock.recv(100)
            master.signal(signal.SIGTERM)
            wait_for(lambda: master.get("/health") == (503, {"status": "stopping", "serving": 0, "wanted": 1}))


def test_counters_that_cannot_be_read_end_no_heartbeat(tmp_path: Path) -> None:
    app = ECHO.replace("    await worker.serve", "    worker.watch(object())\n    await worker.serve")
    with running(tmp_path, app, heartbeat=1.0, workers=1) as master:
        first = master.ask()
        wait_for(lambda: "the counters of a worker cannot be shown" in master.log)
        wait_for(lambda: master.report()["workers"][0]["age"] > 1.5)
        assert master.ask() == first
        log = master.log
        assert log.count("Traceback") == 1
        tmp_path.joinpath("log").write_text("")  # it is told once, with its traceback


def test_reuse_port_gives_each_worker_a_listener(tmp_path: Path) -> None:
    with running(tmp_path, reuse_port=True, workers=2) as master:
        assert len({master.ask() for _ in range(100)}) == 2
        master.reload()
        wait_for(master.whole)
        assert {master.ask() for _ in range(50)} <= set(master.workers())
        port = master.addresses[0][1]
        second = subprocess.run(
            [sys.executable, "-c",
             "from asyncnet import workers\n"
             f"workers.run('app:main', workers=1, bind=['127.0.0.1:{port}'], reuse_port=True)"],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=10,
            check=False,
        )  # fmt: skip
        assert "another program uses that port" in second.stderr  # it does not quietly take half of the clients


def test_unix_sockets_and_those_of_systemd_are_handed_through(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with running(tmp_path, bind=[f"unix:{path}"]) as master:
        master.reload()
        wait_for(master.whole)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            sock.sendall(b"x")
            assert int(sock.recv(100).split()[0]) in master.workers()
    assert not os.path.exists(path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        starter = (
            "import os, sys\nos.dup2(int(sys.argv[1]), 3)\nos.set_inheritable(3, True)\n"
            "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n"
            "os.execv(sys.executable, [sys.executable, '-m', 'asyncnet', 'tcp', 'echo', '--bind', 'systemd',"
            " '--workers', '2'])"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", starter, str(listener.fileno())],
            pass_fds=[listener.fileno()], env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == f"listening on {address[0]}:{address[1]}\n"
            with socket.create_connection(address, timeout=5) as sock:
                sock.sendall(b"hello")
                assert sock.recv(100) == b"hello"
            process.terminate()
            assert process.wait(10) == 0
        finally:
            process.kill()
            process.communicate()


def test_a_second_master_with_the_same_pid_file_is_refused(tmp_path: Path) -> None:
    with running(tmp_path) as master:
        folder = tmp_path / "second"
        folder.mkdir()
        second = Running(folder, pid_file=master.pid_file)
        try:
            assert second.process.wait(5) == 1
            assert f"belongs to the process {master.pid}, which runs" in second.log
        finally:
            kill(second)
        master.ask()

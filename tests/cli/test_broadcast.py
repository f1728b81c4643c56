"""``asyncnet broadcast announce | browse`` as a user meets them: pipes, a terminal, signals, wrong input."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncnet import cli
from asyncnet.broadcast import Location, Peer
from asyncnet.cli.browse import draw

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="127.255.255.255 is a broadcast address on Linux only")

COMMAND = [sys.executable, "-m", "asyncnet", "broadcast"]


@pytest.fixture
def here() -> list[str]:
    """Words that keep everything on this host, at a port that no test beside this one uses, and no client is given."""
    return ["--to", "127.255.255.255", "--discovery-port", str(20000 + os.getpid() % 10000)]


@contextlib.contextmanager
def running(*words: str, announces: bool = False) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        if announces:
            assert process.stderr is not None
            assert select.select([process.stderr], [], [], 15)[0]
            assert process.stderr.readline().startswith("listening on 0.0.0.0:")
        yield process
    finally:
        process.kill()
        process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 10)[0], "no line"
    return process.stdout.readline()


def test_events_are_lines_for_people_and_for_programs(here: list[str]) -> None:
    with (
        running("announce", "printer", "631", "--info", "room=12", *here, announces=True) as announcer,
        running("browse", "printer", *here) as browser,
        running("browse", "*", "--json", *here) as machine,
    ):
        assert line_of(browser) == "joined printer 127.0.0.1:631 (lo) room=12\n"
        joined = json.loads(line_of(machine))
        assert joined["event"] == "joined"
        assert (joined["host"], joined["port"], joined["info"]) == ("127.0.0.1", 631, {"room": "12"})
        announcer.send_signal(signal.SIGINT)
        assert announcer.wait(10) == 0
        assert line_of(browser) == "left printer 127.0.0.1:631 (lo) room=12 [goodbye]\n"
        assert json.loads(line_of(machine))["reason"] == "goodbye"
        for process in (browser, machine):
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
            assert process.stderr is not None
            assert process.stderr.read() == ""


def test_a_key_file_is_what_both_need(here: list[str], tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("a shared secret\n")
    words = [*here, "--key-file", str(key)]
    with (
        running("announce", "printer", "631", *here, announces=True),
        running("announce", "printer", "632", *words, announces=True),
        running("browse", "printer", "--timeout", "3", *words) as browser,
    ):
        out, _ = browser.communicate(timeout=15)
        assert out == "joined printer 127.0.0.1:632 (lo)\n"
        assert browser.returncode == 0


def test_a_live_table_on_a_terminal(here: list[str]) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    process = subprocess.Popen([*COMMAND, "browse", "printer", *here], stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = ""

    def read_until(pattern: str) -> None:
        nonlocal seen
        deadline = time.monotonic() + 10
        while not re.search(pattern, seen, re.S):
            assert select.select([ours], [], [], deadline - time.monotonic())[0], seen
            with contextlib.suppress(OSError):
                data = os.read(ours, 65536)
                seen += data.decode()

    try:
        read_until("printer: nobody yet")
        with running("announce", "printer", "631", "--info", "room=" + "x" * 100, *here, announces=True):
            read_until(r"printer: 1 present.*NAME +ADDRESS +INTERFACE.*printer +127\.0\.0\.1:631 +lo +\d s +room=x")
        process.send_signal(signal.SIGINT)
        read_until(r"\x1b\[\?1049l")  # the screen is as it was
        assert process.wait(10) == 0
        assert max(len(line) for line in re.split(r"\x1b\[[0-9?;]*\w|\r?\n", seen.partition("\x1b[?1049l")[0])) <= 60
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_a_table_that_is_longer_than_the_terminal_says_so() -> None:
    peers = [
        Peer(
            "p",
            1,
            {"k": "\x1b[v"},
            f"{n:016x}",
            "00" * 8,
            (Location(f"10.0.0.{n}", "eth0"), Location("10.1.0.9", "eth1")),
        )
        for n in range(50)
    ]
    lines = draw("*", peers, {peers[0].instance: 0.0}, ["an event"], 7200.0, (80, 20))
    assert len(lines) <= 20
    assert lines[0] == "every service: 50 present"
    assert lines[3].split() == ["p", "10.0.0.0:1", "+1", "eth0,eth1", "2", "h", "k=\N{REPLACEMENT CHARACTER}[v"]
    assert any(line.startswith("... and ") for line in lines)


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["browse"], 2, "NAME"),
        (["announce", "printer", "0"], 2, "'0' is no port"),
        (["announce", "printer", "631", "--info", "room"], 2, "'room' is not KEY=VALUE"),
        (["announce", "printer", "631", "--expiry", "0.5"], 1, "expiry must be above the interval"),
        (["announce", "x" * 64, "631"], 1, "name must be 1 to 63 bytes"),
        (["browse", "printer", "--key-file", "/no/such/file"], 1, "/no/such/file: No such file"),
        (["browse", "printer", "--group", "10.0.0.1"], 1, "group must be a multicast address"),
        (["ask", "7788", "Hi", "--window", "100"], 1, "window must be between 0 and 60 seconds"),
        (["ask", "70000", "Hi"], 2, "'70000' is no port"),
        (["ask", "7788", "Hi", "--to", "no-such-host.invalid"], 1, "no-such-host.invalid"),
    ],
)
def test_wrong_input_is_one_line(words: list[str], status: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert cli.main(["broadcast", *words]) == status
    except SystemExit as exc:
        assert exc.code == status  # noqa: PT017
    errors = capsys.readouterr().err.splitlines()
    assert text in errors[-1]
    if status == 1:
        assert len(errors) == 1


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", 0))
        port = str(sock.getsockname()[1])
        command = [*COMMAND, "browse", "printer", "--discovery-port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        f"asyncnet: cannot bind UDP 0.0.0.0:{port}: another program uses that port; "
        "stop it, or choose another port (0 takes any free one)\n"
    )

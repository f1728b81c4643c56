"""Local networks for the tests: hosts are namespaces, cards are veth pairs, segments are bridges."""

from __future__ import annotations

import contextlib
import json
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import attrs

from tests.netns.hosts import Host

__all__ = ["Lan", "Program", "lan"]


_LOSSY_CABLE = """
import random, select, socket, sys

def end(card):
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    sock.bind((card, 3))
    return sock

host, segment, percent = end(sys.argv[1]), end(sys.argv[2]), int(sys.argv[3])
choose = random.Random(30)
print("ready", flush=True)
while True:
    for sock in select.select([host, segment], [], [])[0]:
        data, address = sock.recvfrom(65536)
        if address[2] == socket.PACKET_OUTGOING or (sock is host and choose.randrange(100) < percent):
            continue
        if data[12:14] == bytes([8, 0]) and data[23] == 17:  # UDP: the card was to compute the checksum
            place = 14 + 4 * (data[14] & 15) + 6
            data = data[:place] + bytes(2) + data[place + 2:]
        try:
            (segment if sock is host else host).send(data)
        except OSError:
            pass
"""
"""A cable between two cards of the switch."""


@attrs.define
class Program:
    """A program that runs on a host; its lines are read as they come."""

    process: subprocess.Popen[bytes]
    _rest: bytes = b""

    def until_ready(self) -> None:
        """Wait until it says that it listens."""
        assert self.process.stderr is not None
        assert select.select([self.process.stderr], [], [], 15)[0], "the program does not start"
        line = self.process.stderr.readline().decode()
        assert line.startswith("listening on "), line

    def line(self, within: float) -> str | None:
        """Return the next line of standard output; None when there is none in time."""
        deadline = time.monotonic() + within
        assert self.process.stdout is not None
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                return None
            data = self.process.stdout.read1(65536)  # type: ignore[attr-defined]
            if not data:
                return None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def event(self, within: float, **wanted: Any) -> dict[str, Any]:
        """Return the first event that has these items; those before it are skipped."""
        deadline = time.monotonic() + within
        seen = []
        while (line := self.line(deadline - time.monotonic())) is not None:
            event: dict[str, Any] = json.loads(line)
            if event.items() >= wanted.items():
                return event
            seen.append(event)
        raise AssertionError(f"no {wanted} within {within} s, but {seen}")

    def stop(self, number: int = signal.SIGTERM) -> str:
        """End it, and return the rest of its output."""
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=15)
        return (self._rest + rest).decode()


class Lan:
    """Bridges in one namespace, hosts in others."""

    def __init__(self, switch: Host, stack: contextlib.ExitStack) -> None:
        self.switch = switch
        self._stack = stack
        self._cards = 0

    def segment(self, name: str) -> None:
        """Make a segment: a bridge that forwards at once."""
        self.switch.run("ip", "link", "add", name, "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
        self.switch.run("ip", "link", "set", name, "up")

    def host(self, segment: str | None = None, address: str | None = None, card: str = "card1") -> Host:
        """Make a host, with a card in a segment."""
        host = make_host(self._stack)
        if segment is not None:
            self.plug(host, card, segment, address)
        return host

    def plug(self, host: Host, card: str, segment: str, address: str | None = None, *, up: bool = True) -> str:
        """Give a host a card in a segment; return the name of the port in the switch."""
        self._cards += 1
        port = f"port{self._cards}"
        self.switch.run("ip", "link", "add", port, "type", "veth", "peer", "name", card, "netns", host.name)
        self.switch.run("ip", "link", "set", port, "master", segment, "up")
        if address is not None:
            host.run("ip", "address", "add", address, "broadcast", "+", "dev", card)
        if up:
            host.run("ip", "link", "set", card, "up")
        return port

    def plug_lossy(self, host: Host, card: str, segment: str, address: str, *, percent: int) -> None:
        """Give a host a card on a cable that loses this share of what the host sends, and nothing of the rest."""
        port = self.plug(host, card, segment, address)
        near, far = f"{port}a", f"{port}b"
        self.switch.run("ip", "link", "set", port, "nomaster")
        self.switch.run("ip", "link", "add", near, "type", "veth", "peer", "name", far)
        self.switch.run("ip", "link", "set", far, "master", segment, "up")
        self.switch.run("ip", "link", "set", near, "up")
        assert self.start(self.switch, "-c", _LOSSY_CABLE, port, near, str(percent)).line(10) == "ready"

    def join(self, one: str, other: str) -> str:
        """Connect two segments by a cable; return the name of its end in the first."""
        self.switch.run("ip", "link", "add", "cable1", "type", "veth", "peer", "name", "cable2")
        for end, segment in (("cable1", one), ("cable2", other)):
            self.switch.run("ip", "link", "set", end, "master", segment, "up")
        return "cable1"

    def start(self, host: Host, *arguments: str, stdin: bool = False) -> Program:
        """Run Python on a host until the end of the test; ``-m asyncnet`` or ``-c script``."""
        command = ["ip", "netns", "exec", host.name, sys.executable, "-W", "error", "-u", *arguments]
        source = subprocess.PIPE if stdin else subprocess.DEVNULL
        process = subprocess.Popen(command, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._stack.callback(_end, process)
        return Program(process)

    def asyncnet(self, host: Host, *arguments: str, ready: bool = True) -> Program:
        """Run ``asyncnet broadcast``, and wait until it says that it listens."""
        program = self.start(host, "-m", "asyncnet", "broadcast", *arguments)
        if ready:
            program.until_ready()
        return program


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def make_host(stack: contextlib.ExitStack) -> Host:
    """Make a namespace with nothing but its loopback interface; it is removed with the stack."""
    host = Host.make()
    stack.callback(host.remove)
    host.run("ip", "link", "set", "lo", "up")
    return host


@contextlib.contextmanager
def lan() -> Iterator[Lan]:
    """Make a network; everything in it is removed at the end."""
    with contextlib.ExitStack() as stack:
        yield Lan(make_host(stack), stack)

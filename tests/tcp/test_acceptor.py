"""Accepting when the system cannot give a socket: a pause, one line in the log, and no loop at full speed."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import sys
from typing import Any

import pytest

from asyncnet.tcp.acceptor import Acceptor
from asyncnet.tcp.connections import ServerStats
from tests.tcp.clients import until

TURNS = 500


class ExhaustedListener(socket.socket):
    """Listens, and fails to accept with `error` until that is 0."""

    error = 0
    calls = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.calls += 1
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        return super().accept()


@pytest.mark.skipif(sys.platform == "win32", reason="needs descriptors")
@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM], ids=errno.errorcode.get)
async def test_an_exhausted_system_is_not_asked_again_and_again(
    error: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncnet.tcp.acceptor.BACK_OFF", (0.02, 1.0))
    listener = ExhaustedListener()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    listener.setblocking(False)
    listener.error = error
    stats = ServerStats()
    admitted: list[socket.socket] = []
    acceptor = Acceptor([listener], lambda sock, peer: admitted.append(sock), lambda: True, stats)
    loop = asyncio.get_running_loop()
    with caplog.at_level(logging.WARNING, "asyncnet.tcp"):
        try:
            acceptor.update()
            with socket.create_connection(listener.getsockname(), 10):  # which makes the listener readable
                begin = loop.time()
                for _ in range(TURNS):
                    await asyncio.sleep(0)
                await until(lambda: stats.accept_errors >= 3)  # it tries again by itself
                took = loop.time() - begin
                # After 0.02 seconds, 0.04, 0.08, and so on up to one; twice with a descriptor that is given up first.
                assert took > 0.04
                assert listener.calls <= 2 * (8 + took)
                assert not admitted
                listener.error = 0
                await until(lambda: admitted)
        finally:
            acceptor.close()
            for sock in admitted:
                sock.close()
    assert len([record for record in caplog.records if os.strerror(error) in record.getMessage()]) == 1


async def test_who_connects_before_the_listener_is_closed_is_admitted(monkeypatch: pytest.MonkeyPatch) -> None:
    clients: list[socket.socket] = []
    admitted: list[socket.socket] = []

    class Poller:
        """While it ceases to watch a listener, a client connects there."""

        def add_reader(self, fd: int, callback: object) -> None:
            pass

        def remove_reader(self, fd: int) -> None:
            (address,) = [listener.getsockname() for listener in listeners if listener.fileno() == fd]
            clients.append(socket.create_connection(address, 10))

    monkeypatch.setattr("asyncnet.tcp.acceptor.poller_of", lambda loop: Poller())
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    for listener in listeners:
        listener.setblocking(False)
    acceptor = Acceptor(list(listeners), lambda sock, peer: admitted.append(sock), lambda: True, ServerStats())
    acceptor.update()
    acceptor.close()
    assert len(clients) == 2
    assert {sock.getpeername() for sock in admitted} == {sock.getsockname() for sock in clients}
    assert all(listener.fileno() < 0 for listener in listeners)
    for sock in [*clients, *admitted]:
        sock.close()

"""Who is connected when a server stops: accepted first, and served or told."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from asyncnet.compat import blocking
from asyncnet.compat.connections import StreamService
from asyncnet.compat.serving import Job, Stats


async def nothing(reader: Any, writer: Any) -> None: ...


@pytest.fixture
def clients() -> Any:
    found: list[socket.socket] = []
    yield found
    for client in found:
        client.close()


def test_who_comes_while_the_last_are_accepted_is_accepted_too(
    monkeypatch: pytest.MonkeyPatch, clients: list[socket.socket]
) -> None:
    service = StreamService(nothing, ("127.0.0.1", 0), backlog=10)
    wait = blocking.wait_ready

    def come_late(*arguments: Any) -> None:
        if len(clients) < 3:
            clients.append(socket.create_connection(service.address[:2], timeout=10))
        wait(*arguments)

    monkeypatch.setattr("asyncnet.compat.connections.wait_ready", come_late)
    service.accept_last(10)
    admitted: list[Job] = []
    service.admit_waiting(admitted.append, Stats())
    service.close()
    assert len(admitted) == len(clients) == 3
    for job in admitted:
        job.close()


def test_no_more_are_accepted_at_the_end_than_there_is_room_for(clients: list[socket.socket]) -> None:
    service = StreamService(nothing, ("127.0.0.1", 0), backlog=10)
    clients.extend(socket.create_connection(service.address[:2], timeout=10) for _ in range(3))
    service.accept_last(2)
    admitted: list[Job] = []
    service.admit_waiting(admitted.append, Stats())
    service.close()
    assert len(admitted) == 2
    for job in admitted:
        job.close()


def test_who_cannot_be_served_at_the_end_is_closed_and_counted(
    clients: list[socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    service, stats = StreamService(nothing, ("127.0.0.1", 0), backlog=10), Stats()
    clients.extend(socket.create_connection(service.address[:2], timeout=10) for _ in range(2))

    def fail(job: Job) -> None:
        raise RuntimeError("can't start new thread")

    service.accept_last(10)
    service.admit_waiting(fail, stats)
    service.close()
    assert [client.recv(1) for client in clients] == [b"", b""]
    assert stats.refused == 2
    assert caplog.text.count("is not served any more: can't start new thread") == 2


def test_who_waits_is_let_go_by_a_process_that_serves_another(clients: list[socket.socket]) -> None:
    service = StreamService(nothing, ("127.0.0.1", 0), backlog=10)
    clients.append(socket.create_connection(service.address[:2], timeout=10))
    service.accept_last(10)
    service.close()
    assert clients[0].recv(1) == b""

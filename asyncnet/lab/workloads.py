"""The workloads of each protocol."""

from __future__ import annotations

from asyncnet.lab.model import Settings, Workload

__all__ = ["MAIN", "RATES", "workloads_of"]

RATES = (500, 2000, 5000)
"""Requests a second that everybody is offered, whatever it can take at most."""
BURN_RATE = 5000
"""So that while one burns, five others arrive."""
MAIN = {"tcp": "echo", "udp": "echo", "tftp": "transfer"}
"""The workload of each protocol that the first table is about."""


def workloads_of(settings: Settings) -> tuple[Workload, ...]:
    """Return what is measured.

    Raises:
        ValueError: there is no workload of a name that was asked for.
    """
    known = {workload.name: workload for workload in _all(settings)}
    unknown = [name for name in settings.workloads if name not in known]
    if unknown:
        raise ValueError(
            f"there is no workload {unknown[0]!r} for {settings.protocol}; the workloads are {', '.join(known)}"
        )
    return tuple(known[name] for name in settings.workloads or known)


def _all(settings: Settings) -> list[Workload]:
    return {"tcp": _tcp, "udp": _udp, "tftp": _tftp}[settings.protocol](settings)


def _tcp(settings: Settings) -> list[Workload]:
    clients, size = settings.clients, settings.size
    return [
        Workload("echo", f"echo: {clients} connections, {size} bytes", clients=clients, size=size),
        Workload("echo-64-10", "echo: 10 connections, 64 bytes", clients=10, size=64),
        Workload("echo-64-1000", "echo: 1000 connections, 64 bytes", clients=1000, size=64),
        Workload("echo-64k-10", "echo: 10 connections, 64 KiB", clients=10, size=65536),
        Workload("echo-1k-1", "echo: 1 connection, 1 KiB", clients=1, size=1024),
        *_at_rates(clients, size, "echo"),
        Workload("churn", "churn: a connection for each request, 50 at once", "churn", clients=50, size=size),
        Workload("idle", f"idle: {settings.idle} connections open, one active", "idle", clients=settings.idle, size=64,
                 rounds=2),
        Workload("slow", "slow clients: 200 connections that trickle, 10 at 500 requests/s", "slow", clients=10,
                 size=64, rate=500),
        Workload("burn", f"1 % of the requests burn 1 ms of CPU; {BURN_RATE} requests/s offered", handler="burn",
                 clients=50, size=64, rate=BURN_RATE),
        Workload("stall", "write-heavy: 20 readers that stall, 8 MiB owed to each", "stall", "bulk", clients=20,
                 size=8 << 20, rounds=2),
        Workload("stop", "SIGTERM under load: 50 connections at once, one for each request", "stop", clients=50,
                 size=64, rounds=2),
    ]  # fmt: skip


def _udp(settings: Settings) -> list[Workload]:
    clients, size = settings.clients, settings.size
    return [
        Workload("echo", f"UDP echo: {clients} peers, {size} bytes", "udp", clients=clients, size=size),
        Workload("echo-64-1", "UDP echo: 1 peer, 64 bytes", "udp", clients=1, size=64),
        Workload("echo-8k-10", "UDP echo: 10 peers, 8 KiB", "udp", clients=10, size=8192),
        *_at_rates(clients, size, "udp"),
        Workload("burn", f"1 % of the requests burn 1 ms of CPU; {BURN_RATE} requests/s offered", "udp", "burn",
                 clients=50, size=64, rate=BURN_RATE),
    ]  # fmt: skip


def _tftp(settings: Settings) -> list[Workload]:
    clients, size = min(settings.clients, 20), max(settings.size, 262_144)
    return [
        Workload("transfer", f"TFTP: {clients} clients, {size} bytes", "tftp", clients=clients, size=size),
        Workload("rate-50", "TFTP: 64 KiB, 50 transfers/s offered", "tftp", clients=20, size=65536, rate=50),
    ]


def _at_rates(clients: int, size: int, mode: str) -> list[Workload]:
    return [
        Workload(f"rate-{rate}", f"{rate} requests/s offered (Poisson), {clients} connections, {size} bytes", mode,
                 clients=clients, size=size, rate=rate)
        for rate in RATES
    ]  # fmt: skip

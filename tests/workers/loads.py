"""Load from a process of its own: ``python loads.py tcp|tftp HOST PORT RATE [FILE]`` until standard input ends.

It prints a line when it begins, and what it has seen as JSON at the end. The times at which clients start are fixed
beforehand: a server that is slow gets no fewer of them. Only when so many are under way that the machine itself cannot
keep up, some are left out, and counted.
"""

from __future__ import annotations

import asyncio
import collections
import json
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from asyncnet import tftp
from asyncnet.errors import TftpError
from asyncnet.loops import run

PATIENCE = 20.0
MOST = {"tcp": 1000, "tftp": 60}
"""Clients under way."""


async def exchange(host: str, port: int, seen: dict[str, Any]) -> str:
    """Connect, ask, and be answered."""
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(host, port)
    except OSError as exc:
        return f"connecting: {type(exc).__name__}"
    try:
        async with asyncio.timeout(PATIENCE):
            writer.write(b"question")
            answer = await reader.read(100)
        if not answer:
            return "closed"
        pid, rest = answer.split()
        seen.setdefault("workers", collections.Counter())[pid.decode()] += 1
        return "ok" if rest == b"question" else "wrong answer"
    except OSError as exc:
        return type(exc).__name__
    finally:
        writer.close()


async def download(host: str, port: int, content: bytes, seen: dict[str, Any]) -> str:
    """Download the file and compare it."""
    try:
        async with asyncio.timeout(60), tftp.Client(host, port, block_size=16384) as client:
            data = await client.read("file")
    except (OSError, TftpError) as exc:
        return f"{type(exc).__name__}: {exc}"
    return "ok" if data == content else "differs"


async def load(start: Callable[[dict[str, Any]], Coroutine[Any, Any, str]], rate: float, most: int) -> dict[str, Any]:
    """Start clients at a rate until standard input ends; return how they fared."""
    seen: dict[str, Any] = {}
    results: collections.Counter[str] = collections.Counter()
    tasks: set[asyncio.Task[str]] = set()
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    print("begun", flush=True)
    begun, count, left_out, highest = time.monotonic(), 0, 0, 0

    def done(task: asyncio.Task[str]) -> None:
        tasks.discard(task)
        results[task.result()] += 1

    while not ended.done():
        due = int((time.monotonic() - begun) * rate)
        for _ in range(due - count):
            if len(tasks) >= most:
                left_out += 1
                continue
            tasks.add(task := asyncio.create_task(start(seen)))
            task.add_done_callback(done)
        count = max(count, due)
        highest = max(highest, len(tasks))
        await asyncio.sleep(1 / rate)
    seconds = time.monotonic() - begun
    if tasks:
        await asyncio.wait(tasks)
    await asyncio.sleep(0)
    return {"results": results, "rate": (count - left_out) / seconds, "most": highest, "left_out": left_out, **seen}


def main() -> None:
    """Run the load that the command line asks for."""
    kind, host, port, rate = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    if kind == "tcp":
        found = run(load(lambda seen: exchange(host, port, seen), rate, MOST[kind]))
    else:
        content = Path(sys.argv[5]).read_bytes()
        found = run(load(lambda seen: download(host, port, content, seen), rate, MOST[kind]))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()

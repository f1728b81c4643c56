"""``udp_idle.py COUNT``: the memory of idle endpoints, in bytes each, as JSON."""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import sys
import tracemalloc
from pathlib import Path

import asyncnet
from asyncnet import udp


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def main(count: int) -> None:
    """Open one endpoint more, for what a process pays once, then as many as asked for, with and without tracing."""
    first = await udp.bind("127.0.0.1")
    gc.collect()
    before = resident()
    endpoints = [await udp.bind("127.0.0.1") for _ in range(count)]
    await asyncio.sleep(0)
    gc.collect()
    each = (resident() - before) / count
    for endpoint in endpoints:
        await endpoint.aclose()
    endpoints.clear()
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    endpoints = [await udp.bind("127.0.0.1") for _ in range(count)]
    await asyncio.sleep(0)
    gc.collect()
    python = (tracemalloc.get_traced_memory()[0] - before) / count
    tracemalloc.stop()
    for endpoint in [first, *endpoints]:
        await endpoint.aclose()
    print(json.dumps({"count": count, "python": python, "resident": each}))


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncnet.run(main(int(sys.argv[1])))

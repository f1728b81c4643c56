"""``lossy_relay.py HOST PORT LOSS SEED``: a UDP relay on a free port that loses datagrams in both directions."""

from __future__ import annotations

import asyncio
import signal
import sys

import asyncnet
from asyncnet import testing


async def main(host: str, port: int, loss: float, seed: int) -> None:
    async with testing.udp_relay((host, port), loss=loss, seed=seed) as relay:
        print(f"listening on {relay.address[0]}:{relay.address[1]}", file=sys.stderr, flush=True)
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await stop.wait()


if __name__ == "__main__":
    asyncnet.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])))

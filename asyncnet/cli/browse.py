"""How ``asyncnet broadcast browse`` shows what it hears: a live table on a terminal, lines elsewhere."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from asyncnet.addresses import format_address
from asyncnet.broadcast import Browser, Browsing, Event, EventKind, Peer

__all__ = ["browse", "draw"]

_EVERY: Final = 0.25
_HEADINGS: Final = ("NAME", "ADDRESS", "INTERFACE", "FOR", "INFO")
_LAST_EVENTS: Final = 5


async def browse(opening: Browsing, *, as_json: bool) -> None:
    """Show events until SIGINT or SIGTERM, or until cancelled."""
    loop = asyncio.get_running_loop()
    async with opening as browser:
        numbers = (signal.SIGINT, signal.SIGTERM)
        added = []
        try:
            with suppress(NotImplementedError):  # Windows
                for number in numbers:
                    loop.add_signal_handler(number, browser.close)
                    added.append(number)
            if sys.stdout.isatty() and not as_json:
                await _show_table(browser)
            else:
                async for event in browser:
                    print(_json(event) if as_json else _line(event), flush=True)
        finally:
            for number in added:
                loop.remove_signal_handler(number)


def _line(event: Event) -> str:
    peer = event.peer
    by = f" ({peer.interface})" if peer.interface else ""
    info = f" {_info(peer)}" if peer.info else ""
    reason = f" [{event.reason}]" if event.reason else ""
    return f"{event.kind} {peer.name} {format_address(peer.addr)}{by}{info}{reason}"


def _info(peer: Peer) -> str:
    """Return what goes with a name, without what would move a terminal's cursor."""
    text = " ".join(f"{key}={value}" for key, value in peer.info.items())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _json(event: Event) -> str:
    peer = event.peer
    places = [{"host": place.host, "interface": place.interface} for place in peer.locations]
    return json.dumps(
        {
            "event": event.kind,
            "reason": event.reason,
            "name": peer.name,
            "host": peer.host,
            "port": peer.port,
            "info": dict(peer.info),
            "instance": peer.instance,
            "node": peer.node,
            "locations": places,
        }
    )


async def _show_table(browser: Browser) -> None:
    """Draw the table again whenever something has changed, and as time goes by, on the terminal's other screen."""
    since: dict[str, float] = {}
    last: deque[str] = deque(maxlen=_LAST_EVENTS)
    sys.stdout.write("\x1b[?1049h\x1b[?25l")
    drawer = asyncio.create_task(_draw_again_and_again(browser, since, last))
    try:
        async for event in browser:
            if event.kind is EventKind.LEFT:
                since.pop(event.peer.instance, None)
            else:
                if event.previous is not None and event.previous.instance != event.peer.instance:
                    since.pop(event.previous.instance, None)
                since.setdefault(event.peer.instance, time.monotonic())
            last.append(f"{time.strftime('%H:%M:%S')}  {_line(event)}")
    finally:
        drawer.cancel()
        await asyncio.wait([drawer])
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        print("\n".join(draw(browser.name, browser.peers, since, [], time.monotonic(), None)), flush=True)


async def _draw_again_and_again(browser: Browser, since: dict[str, float], last: Sequence[str]) -> None:
    while True:
        size = _terminal_size()
        lines = draw(browser.name, browser.peers, since, last, time.monotonic(), size)
        sys.stdout.write("\x1b[H" + "\x1b[K\n".join(lines) + "\x1b[K\x1b[J")
        sys.stdout.flush()
        await asyncio.sleep(_EVERY)


def _terminal_size() -> tuple[int, int]:
    """Return columns and lines of the terminal as it is now, whatever the environment says of when it was opened."""
    try:
        columns, lines = os.get_terminal_size(sys.stdout.fileno())
    except OSError:
        columns = lines = 0
    return columns or 80, lines or 24


def draw(
    name: str,
    peers: Sequence[Peer],
    since: dict[str, float],
    last: Sequence[str],
    now: float,
    size: tuple[int, int] | None,
) -> list[str]:
    """Return the lines of the table.

    Args:
        name: of the service that is browsed for.
        peers: who is present.
        since: when each instance was heard first.
        last: the latest events, as lines.
        now: seconds on the same clock.
        size: columns and lines of the terminal; None for as much as there is.
    """
    count = f"{len(peers)} present" if peers else "nobody yet"
    lines = [f"{'every service' if name == '*' else name}: {count}", ""]
    rows = [_HEADINGS] + [_row(peer, now - since.get(peer.instance, now)) for peer in peers]
    room = len(rows) if size is None else max(2, size[1] - len(lines) - (len(last) + 2 if last else 0) - 2)
    shown = rows[:room]
    widths = [max(len(row[i]) for row in shown) for i in range(len(_HEADINGS))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown]
    if len(shown) < len(rows):
        lines.append(f"... and {len(rows) - len(shown)} more")
    if last:
        lines += ["", *last]
    return lines if size is None else [line[: size[0]] for line in lines]


def _row(peer: Peer, seconds: float) -> tuple[str, ...]:
    more = len({place.host for place in peer.locations}) - 1
    interfaces = list(dict.fromkeys(place.interface for place in peer.locations if place.interface))
    return (
        peer.name,
        format_address(peer.addr) + (f" +{more}" if more else ""),
        ",".join(interfaces) or "-",
        _span(seconds),
        _info(peer),
    )


def _span(seconds: float) -> str:
    if seconds < 60:
        return f"{int(seconds)} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min"
    return f"{int(seconds // 3600)} h"

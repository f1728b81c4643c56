"""Charts as SVG, drawn by hand: what they are coloured with is in the style sheet of `asyncnet.lab.page`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Final

import attrs

from asyncnet.lab.figures import Interval

__all__ = ["NARROW", "WIDE", "Bar", "Curve", "bars", "curves", "nice_top"]

WIDE: Final = 640
NARROW: Final = 350
"""For a telephone: drawn as wide as it is shown, so that its letters are as large as others."""
_ROW: Final = 26
_LABEL: Final = 92
_VALUE: Final = 96
_SMALL_WIDTH: Final = 200
_SMALL_HEIGHT: Final = 130


@attrs.frozen
class Bar:
    """A row of a bar chart: one part, or two on top of each other, and an interval."""

    label: str
    parts: tuple[float, ...]
    text: str
    """The figure, in words."""
    interval: Interval | None = None
    strong: bool = False
    faint: bool = False


@attrs.frozen
class Curve:
    """What a small chart shows: values over the same places for all."""

    label: str
    values: tuple[float, ...]


def nice_top(value: float) -> float:
    """Return the end of an axis: 1, 2 or 5 times a power of ten, at least `value`."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1.0, 2.0, 2.5, 5.0, 10.0) if step * power >= value * 0.999999)


def bars(rows: Sequence[Bar], unit: str, description: str, width: int = WIDE) -> str:
    """Return horizontal bars in the order of the rows, with whiskers where there is an interval; `width` in pixels."""
    most = max([sum(row.parts) for row in rows] + [row.interval.high for row in rows if row.interval], default=0.0)
    top = nice_top(most)
    scale = (width - _LABEL - _VALUE) / top
    height = len(rows) * _ROW + 26
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(description)}">']
    for share in (0.0, 0.25, 0.5, 0.75, 1.0) if width >= WIDE else (0.0, 0.5, 1.0):
        x = _LABEL + share * top * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{height - 22}"/>')
        if share in (0.0, 0.5, 1.0):
            parts.append(
                f'<text class="axis" x="{x:.1f}" y="{height - 6}" text-anchor="middle">{_tick(share * top)}</text>'
            )
    parts.append(f'<text class="axis" x="{width}" y="{height - 6}" text-anchor="end">{escape(unit)}</text>')
    for i, row in enumerate(rows):
        y, x = i * _ROW, float(_LABEL)
        kind = " strong" if row.strong else " faint" if row.faint else ""
        parts.append(f'<g class="row{kind}"><title>{escape(row.label)}: {escape(row.text)}</title>')
        parts.append(f'<text x="{_LABEL - 8}" y="{y + 17}" text-anchor="end">{escape(row.label)}</text>')
        for number, part in enumerate(row.parts):
            parts.append(f'<rect class="part{number}" x="{x:.1f}" y="{y + 5}" width="{part * scale:.1f}" height="16"/>')
            x += part * scale
        end = x
        if row.interval is not None:
            low, high = _LABEL + row.interval.low * scale, _LABEL + row.interval.high * scale
            parts.append(
                f'<path class="whisker" d="M{low:.1f} {y + 13}H{high:.1f}M{low:.1f} {y + 9}v8M{high:.1f} {y + 9}v8"/>'
            )
            end = max(end, high)
        parts.append(f'<text class="value" x="{end + 7:.1f}" y="{y + 17}">{escape(row.text)}</text></g>')
    return "".join([*parts, "</svg>"])


def _tick(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def curves(all_curves: Sequence[Curve], places: Sequence[str], unit: str) -> list[str]:
    """Return a small chart for each curve, with the others in grey behind it; the axis of values is logarithmic."""
    found = [value for curve in all_curves for value in curve.values if value > 0]
    if not found or len(places) < 2:
        return []
    low, high = math.floor(math.log10(min(found))), math.ceil(math.log10(max(found)))
    high = max(high, low + 1)

    def point(place: int, value: float) -> str:
        x = 34 + place * (_SMALL_WIDTH - 48) / (len(places) - 1)
        return f"{x:.1f} {_y(value, low, high):.1f}"

    def path(curve: Curve) -> str:
        return "M" + "L".join(point(i, value) for i, value in enumerate(curve.values) if value > 0)

    grid = "".join(
        f'<path class="grid" d="M34 {_y(10.0**k, low, high):.1f}H{_SMALL_WIDTH - 14}"/>'
        f'<text class="axis" x="30" y="{_y(10.0**k, low, high) + 4:.1f}" text-anchor="end">{10.0**k:g}</text>'
        for k in range(low, high + 1)
    )
    names = "".join(
        f'<text class="axis" x="{34 + i * (_SMALL_WIDTH - 48) / (len(places) - 1):.1f}" y="{_SMALL_HEIGHT - 3}" '
        f'text-anchor="middle">{escape(place)}</text>'
        for i, place in enumerate(places)
    )
    behind = "".join(f'<path class="other" d="{path(curve)}"/>' for curve in all_curves)
    return [
        f"<figure><figcaption>{escape(curve.label)}</figcaption>"
        f'<svg viewBox="0 0 {_SMALL_WIDTH} {_SMALL_HEIGHT}" role="img" '
        f'aria-label="{escape(curve.label)}: {escape(_spoken(curve, places, unit))}">'
        f"<title>{escape(_spoken(curve, places, unit))}</title>{grid}{names}{behind}"
        f'<path class="mine" d="{path(curve)}"/></svg></figure>'
        for curve in all_curves
    ]


def _y(value: float, low: int, high: int) -> float:
    return 8 + (high - math.log10(value)) / (high - low) * (_SMALL_HEIGHT - 28)


def _spoken(curve: Curve, places: Sequence[str], unit: str) -> str:
    return ", ".join(f"{place} {value:.3g} {unit}" for place, value in zip(places, curve.values, strict=True))

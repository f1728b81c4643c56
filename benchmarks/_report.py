"""Tables for people: printed, and put into README.md and the chapters of docs/models between their marks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs

__all__ = ["Table", "fill_chapters", "publish"]

README: Final = Path(__file__).with_name("README.md")
CHAPTERS: Final = Path(__file__).parent.parent / "docs" / "models"


@attrs.frozen
class Table:
    """A titled table; as a string it is Markdown, aligned so that it reads on a terminal too."""

    title: str
    headings: list[str]
    rows: list[list[str]]

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.headings, *self.rows, strict=True)]

        def line(cells: list[str]) -> str:
            padded = [
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ]
            return f"| {' | '.join(padded)} |"

        rule = [":" + "-" * (width - 1) if not i else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
        return "\n".join([f"### {self.title}", "", line(self.headings), line(rule), *map(line, self.rows)])


def publish(name: str, text: str) -> None:
    """Print `text`, and let it stand in README.md between ``<!-- NAME -->`` and ``<!-- /NAME -->``.

    Raises:
        ValueError: README.md has no such marks.
    """
    print(text)
    whole = README.read_text()
    filled = _fill(whole, f"<!-- {name} -->", f"<!-- /{name} -->", text)
    if filled is None:
        raise ValueError(f"{README} has no place for {name!r}")
    README.write_text(filled)


def fill_chapters(kind: str, texts: Mapping[str, str], *, folder: Path = CHAPTERS) -> None:
    """Let texts stand in the chapters that have a place for them: ``<!-- KIND NAME -->`` to ``<!-- /KIND -->``.

    Args:
        kind: ``"engine"`` or ``"claim"``.
        texts: what is to stand there, by its name.
        folder: where the chapters are.

    Raises:
        ValueError: no chapter has a place for one of them; nothing is written then.
    """
    chapters = {path: path.read_text() for path in sorted(folder.glob("*.md"))}
    for name, text in texts.items():
        begin, end = f"<!-- {kind} {name} -->", f"<!-- /{kind} -->"
        filled = {path: new for path, old in chapters.items() if (new := _fill(old, begin, end, text)) is not None}
        if not filled:
            raise ValueError(f"{folder} has no place for the {kind} {name!r}")
        chapters |= filled
    for path, text in chapters.items():
        path.write_text(text)


def _fill(whole: str, begin: str, end: str, text: str) -> str | None:
    """Return `whole` with `text` between the marks; None when it has no such marks."""
    before, mark, rest = whole.partition(begin)
    _, closing, after = rest.partition(end)
    return f"{before}{begin}\n\n{text}\n\n{end}{after}" if mark and closing else None

"""Tables for people: printed, and put into README.md between the marks of their benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import attrs

__all__ = ["Table", "publish"]

README: Final = Path(__file__).with_name("README.md")


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
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, mark, rest = whole.partition(begin)
    _, closing, after = rest.partition(end)
    if not mark or not closing:
        raise ValueError(f"{README} has no place between {begin} and {end}")
    README.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")

"""What the benchmarks write into the documentation is there, and is what they have measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from asyncnet import compat
from benchmarks._harness import saved
from benchmarks._report import CHAPTERS, fill_chapters
from benchmarks.engines import PRICE, price_sentence, summary_table
from benchmarks.models import PARTS

PLACES = re.compile(r"<!-- (engine|claim) (\S+) -->\n\n(.*?)\n\n<!-- /\1 -->", re.S)


def test_a_place_is_filled_anew_each_time_in_every_chapter(tmp_path: Path) -> None:
    (tmp_path / "one.md").write_text(
        "before\n\n<!-- engine epoll -->\n<!-- /engine -->\n\n<!-- engine poll -->\n<!-- /engine -->\n"
    )
    (tmp_path / "two.md").write_text("<!-- engine epoll -->\n\nold\n\n<!-- /engine -->\nafter\n")
    fill_chapters("engine", {"epoll": "first", "poll": "other"}, folder=tmp_path)
    fill_chapters("engine", {"epoll": "12.3 µs"}, folder=tmp_path)
    filled = "<!-- engine epoll -->\n\n12.3 µs\n\n<!-- /engine -->"
    other = "<!-- engine poll -->\n\nother\n\n<!-- /engine -->"
    assert (tmp_path / "one.md").read_text() == f"before\n\n{filled}\n\n{other}\n"
    assert (tmp_path / "two.md").read_text() == f"{filled}\nafter\n"


def test_a_figure_without_a_place_is_an_error_and_nothing_is_written(tmp_path: Path) -> None:
    page = tmp_path / "one.md"
    page.write_text("<!-- engine epoll -->\n<!-- /engine -->\n")
    with pytest.raises(ValueError, match="no place for the engine 'select'"):
        fill_chapters("engine", {"epoll": "1", "select": "2"}, folder=tmp_path)
    assert page.read_text() == "<!-- engine epoll -->\n<!-- /engine -->\n"


def test_the_figures_of_the_chapters_are_those_of_the_saved_runs() -> None:
    prices = saved("engines")["price"]
    engines = [name for name in compat.ENGINES if any(run["name"] == name for run in prices)]
    expected = [("engine", name, price_sentence(name, prices)) for name in engines]
    expected += [("claim", part, str(table(saved("models")[part]))) for part, (_, _, table) in PARTS.items()]
    expected.append(("claim", PRICE, str(summary_table(engines, prices))))
    found = [place for page in CHAPTERS.glob("*.md") for place in PLACES.findall(page.read_text())]
    assert sorted(found) == sorted(expected)

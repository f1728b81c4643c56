"""The examples of the documentation run, its links lead somewhere, and what it quotes is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from asyncnet.compat import ENGINES

TOP = Path(__file__).parent.parent
MODELS = TOP / "docs" / "models"
PAGES = [TOP / "README.md", *sorted((TOP / "docs").rglob("*.md"))]
CHAPTERS = sorted(set(MODELS.glob("*.md")) - {MODELS / "README.md"})
QUOTED = re.compile(r"^From \[(\w+\.py)\]\((\S+)\).*\n(?:.+\n)*\n((?:    .*\n)+)", re.M)
BLOCKS = [
    pytest.param(block, id=f"{page.relative_to(TOP)}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M), 1)
]


@pytest.mark.skipif(sys.platform != "linux", reason="127.255.255.255 is a broadcast address on Linux only")
@pytest.mark.parametrize("block", BLOCKS)
def test_an_example_runs(block: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", block]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target, _, heading in re.findall(r"\]\((?!https?:)([^)#]+)(#([^)]+))?", page.read_text()):
        found = page.parent / target
        assert found.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.+)$", found.read_text(), re.M)
            assert heading in [re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings]


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)
def test_a_chapter_quotes_lines_of_its_listing_in_their_order(page: Path) -> None:
    for name, target, quoted in QUOTED.findall(page.read_text()):
        listing = (page.parent / target).read_text()
        assert target.endswith(name)
        for line in quoted.splitlines():
            before, found, listing = listing.partition(line.strip())
            assert found, line
            assert not before.endswith("# "), line


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)
def test_a_chapter_has_its_five_parts_with_something_in_each(page: Path) -> None:
    _, *parts = re.split(r"^## (.+)\n", page.read_text(), flags=re.M)
    listing = "The handler" if page.stem == "asyncio" else "The listing"  # the course has none for asyncio
    for wanted in ("The idea", listing, "The engine", "The figure", "When"):
        texts = [text for title, text in zip(parts[::2], parts[1::2], strict=True) if title in (wanted, f"{wanted}s")]
        assert len(texts) == 1, wanted
        assert len(texts[0].split()) > 10, wanted


def test_every_engine_has_its_figure_in_one_chapter() -> None:
    places = re.findall(r"<!-- engine (\S+) -->(.*?)<!-- /engine -->", "".join(map(Path.read_text, CHAPTERS)), re.S)
    assert sorted(name for name, _ in places) == sorted(ENGINES)
    assert all(f"A request on `{name}` costs" in " ".join(sentence.split()) for name, sentence in places)


def test_every_chapter_is_linked_from_the_contents() -> None:
    linked = re.findall(r"^\d+\. \[[^]]+\]\((\S+)\)", (MODELS / "README.md").read_text(), re.M)
    assert sorted(linked) == [page.name for page in CHAPTERS]

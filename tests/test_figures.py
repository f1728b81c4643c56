"""What the benchmarks write into the documentation is there, and is what they have measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from asyncnet.lab import Comparison
from benchmarks import compare, discovery, engines, models, startup, tcp, tcp_faults, tftp, udp, workers
from benchmarks._command import Benchmark, Part, saved_runs
from benchmarks._harness import compared
from benchmarks._report import CHAPTERS, README, Table, fill_chapters
from benchmarks.engines import PRICE, engines_in, price_sentence, summary_table
from benchmarks.models import PARTS

BENCHMARKS = [module.BENCHMARK for module in (discovery, engines, models, startup, tcp, tcp_faults, tftp, udp, workers)]

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
    prices, claims = saved_runs("engines")[PRICE], saved_runs("models")
    expected = [("engine", name, price_sentence(name, prices)) for name in engines_in(prices)]
    expected += [("claim", name, str(part.table(claims[name]))) for name, part in PARTS.items()]
    expected.append(("claim", PRICE, str(summary_table(prices))))
    found = [place for page in CHAPTERS.glob("*.md") for place in PLACES.findall(page.read_text())]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.name)
def test_the_tables_of_the_readme_are_those_of_the_saved_runs(benchmark: Benchmark) -> None:
    assert f"<!-- {benchmark.name} -->\n\n{benchmark.text()}\n\n<!-- /{benchmark.name} -->" in README.read_text()
    assert list(saved_runs(benchmark.name)) == list(benchmark.parts)


def test_the_table_of_the_laboratory_is_that_of_the_saved_run() -> None:
    found = compare.text(Comparison.from_json(compare.SAVED.read_text()))
    assert f"<!-- compare -->\n\n{found}\n\n<!-- /compare -->" in README.read_text()


def test_every_benchmark_has_its_place() -> None:
    files = {path.stem for path in README.parent.glob("*.py") if not path.stem.startswith("_")}
    assert files == {benchmark.name for benchmark in BENCHMARKS} | {"compare"}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of results that is empty, and a README.md with a place for one benchmark."""
    monkeypatch.setattr("benchmarks._command.RESULTS", tmp_path / "results")
    monkeypatch.setattr("benchmarks._command._peers", dict)
    monkeypatch.setattr("benchmarks._report.README", tmp_path / "README.md")
    (tmp_path / "README.md").write_text("before\n<!-- toy -->\n<!-- /toy -->\nafter\n")
    return tmp_path


def toy(measured: list[str]) -> Benchmark:
    def measure(name: str) -> dict[str, float]:
        measured.append(name)
        return {"cost": 2.0 if name == "other" else float(measured.count(name))}

    def table(runs: list[dict[str, float]]) -> Table:
        return Table("Cost", ["server", "÷ other"], [["one", compared(runs, "one", "other", "cost")]])

    first = Part(("one", "other"), measure, table, timed=False)
    second = Part(("third",), measure, lambda runs: Table("Rounds", ["count"], [[str(len(runs))]]), timed=False)
    return Benchmark("toy", {"first": first, "second": second}, rounds=3, seconds=None)


def test_a_part_that_is_measured_again_leaves_the_others(results: Path) -> None:
    measured: list[str] = []
    assert toy(measured).main("", []) == 0
    assert sorted(measured) == ["one"] * 3 + ["other"] * 3 + ["third"] * 3
    page = (results / "README.md").read_text()
    assert "| one    | 1.00 (0.50-1.50) |" in page
    assert "| 3     |" in page
    assert "Measured 2" in page
    measured.clear()
    assert toy(measured).main("", ["--part", "sec", "--rounds", "4"]) == 0
    assert measured == ["third"] * 4
    page = (results / "README.md").read_text()
    assert "| one    | 1.00 (0.50-1.50) |" in page
    assert "| 4     |" in page


def test_tables_are_made_again_without_a_measurement(results: Path) -> None:
    measured: list[str] = []
    toy(measured).main("", [])
    whole = (results / "README.md").read_text()
    (results / "README.md").write_text("before\n<!-- toy -->\n<!-- /toy -->\nafter\n")
    measured.clear()
    assert toy(measured).main("", ["--tables"]) == 0
    assert not measured
    assert (results / "README.md").read_text() == whole


def test_a_look_at_one_server_saves_nothing(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured: list[str] = []
    assert toy(measured).main("", ["--only", "oth", "--part", "first"]) == 0
    assert measured == ["other"] * 3
    assert not (results / "results").exists()
    assert "### Cost" in capsys.readouterr().out


def test_a_part_that_there_is_not_is_told_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        toy([]).main("", ["--part", "nothing"])
    assert "no part has nothing in its name; there are first, second" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        toy([]).main("", ["--only", "nobody"])
    assert "nothing that is measured has nobody in its name" in capsys.readouterr().err

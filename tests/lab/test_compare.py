"""Rounds, thermometer, INVALID runs, tables, the page and the baseline, on measurements that are made up."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import attrs
import pytest

from asyncnet import lab
from asyncnet.cli import main
from asyncnet.lab import (
    Comparison,
    Progress,
    Run,
    Settings,
    Workload,
    agreement,
    compare,
    format_html,
    format_table,
    workloads_of,
)
from asyncnet.lab import compare as compare_function
from asyncnet.lab.measuring import why_invalid
from asyncnet.lab.model import AGAIN, CEILING
from asyncnet.lab.processes import tree_of

Measure = Callable[[str, Workload, int, Settings], Run]
ENGINES = ("asyncio", "epoll", "asyncnet")
SPEED = {"asyncio": 1000.0, AGAIN: 1000.0, "epoll": 1500.0, "asyncnet": 2500.0, CEILING: 5000.0}
SETTINGS = Settings(engines=ENGINES, rounds=5, workloads=("echo",))


def figures(engine: str, workload: Workload, number: int, settings: Settings, factor: float = 1.0) -> Run:
    speed = SPEED[engine] * factor * (1 + 0.002 * number)
    values = {
        "requests_per_second": speed, "cpu": 1 / speed, "cpu_user": 0.4 / speed, "cpu_system": 0.6 / speed,
        "p50": 1 / speed, "p90": 2 / speed, "p99": 3 / speed, "p999": 4 / speed, "service_p99": 3 / speed,
        "memory": 2e7 / speed, "kernel_memory": 100.0, "held": 100.0, "complete": 20.0, "broken": 0.0,
        "stop_seconds": 0.1, "load_busy": 0.5, "lag_p99": 1e-6,
    }  # fmt: skip
    return Run(engine, workload.name, number, values, requests=1000)


def test_every_round_has_everybody_once_in_a_new_order_and_the_thermometer_between() -> None:
    steps: list[Progress] = []
    order: list[str] = []

    def measure(engine: str, workload: Workload, number: int, settings: Settings) -> Run:
        order.append(f"{engine} {workload.name}")
        return figures(engine, workload, number, settings)

    result = compare(SETTINGS, progress=steps.append, measure=measure)
    everybody = {*ENGINES, AGAIN, CEILING} if result.environment["load_generator"] == "c" else {*ENGINES, AGAIN}
    by_round = [[run.engine for run in result.runs if run.round == number] for number in range(1, 6)]
    assert all(len(names) == len(everybody) and set(names) == everybody for names in by_round)
    assert len({tuple(names) for names in by_round}) > 1
    assert len([name for name in order if name.endswith("thermometer")]) == 6
    assert len(result.readings) == 5
    assert steps[-1].total == 5 * len(everybody)
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert steps[-1].left is not None


def test_a_thermometer_that_moves_makes_the_block_invalid_after_a_second_try() -> None:
    readings = iter([100.0, 100.0, 80.0, 80.0, 100.0, 100.0, 100.0, 100.0])

    def measure(engine: str, workload: Workload, number: int, settings: Settings) -> Run:
        if workload.name == "thermometer":
            return Run(engine, workload.name, 0, {"requests_per_second": next(readings)})
        return figures(engine, workload, number, settings)

    result = compare(attrs.evolve(SETTINGS, rounds=3), measure=measure)
    assert {run.round for run in result.runs if run.invalid} == set()  # the block of round 2 was measured again
    assert [reading.moved for reading in result.readings] == [False, True, False, True, False]

    readings = iter([100.0, 100.0, 80.0, 60.0, 60.0])
    result = compare(attrs.evolve(SETTINGS, rounds=3), measure=measure)
    assert {run.round for run in result.runs if run.invalid} == {2}
    table = format_table(result)
    assert "INVALID: echo, round 2" in table
    assert "the thermometer moved by -25%" in table
    assert result.summary("epoll", "echo").rounds == 2


def test_an_invalid_run_is_made_again_and_shown_when_it_stays_so() -> None:
    tries: list[str] = []

    def measure(engine: str, workload: Workload, number: int, settings: Settings) -> Run:
        found = figures(engine, workload, number, settings)
        if engine == "epoll" and workload.name == "echo":
            tries.append(engine)
            return attrs.evolve(found, invalid=("the generator lagged: 90 µs at p99",))
        return found

    result = compare(SETTINGS, measure=measure)
    assert len(tries) == 5 * SETTINGS.attempts
    assert result.summary("epoll", "echo").rounds == 0
    row = next(line for line in format_table(result).splitlines() if line.startswith("epoll "))
    assert row.endswith("INVALID")
    assert "INVALID: echo, round 3, epoll: the generator lagged: 90 µs at p99" in format_table(result)
    assert all("epoll" not in pair for pair in result.differences("echo", "requests_per_second"))


@pytest.mark.parametrize(
    ("change", "stolen", "reason"),
    [
        ({}, 0.0, None),
        ({"lag_p99": 60e-6}, 0.0, "the generator lagged: 60 µs at p99"),
        ({"lag_p99": 60e-6, "p99": 0.01}, 0.0, None),  # 0.6 % of the latency
        ({"delayed_seconds": 0.1}, 0.0, "the generator had no core for 5% of the time"),
        ({}, 0.03, "the hypervisor took 3.0% of the machine"),
        ({"requests": 1000}, 0.0, "the generator sent 50% of what it was to send"),
    ],
)
def test_why_a_run_is_invalid(change: dict[str, float], stolen: float, reason: str | None) -> None:
    result = {
        "generator": "c",
        "requests": 2000,
        "seconds": 2.0,
        "lag_p99": 5e-6,
        "p99": 1e-3,
        "delayed_seconds": 0.0,
        "waiting": 0,
    }
    found = why_invalid(result | change, Workload("rate", "", rate=1000), stolen, alone=True)
    assert found == (() if reason is None else (reason,))


@pytest.fixture(scope="module")
def whole() -> Comparison:
    """Every workload of TCP."""
    settings = attrs.evolve(SETTINGS, workloads=(), rounds=5)
    return compare(settings, measure=figures)


def test_the_tables_fit_and_mark_the_best_and_the_worst(whole: Comparison) -> None:
    table = format_table(whole)
    assert max(map(len, table.splitlines())) <= 100
    assert "\x1b" not in table
    rows = [line for line in table.splitlines() if line.startswith("asyncnet ")]
    assert len(rows) == len(whole.workloads)
    assert rows[0].split()[1] == "2515+"
    assert "2.50 [2.50 2.50]" in rows[0]
    assert "1006-" in next(line for line in table.splitlines() if line.startswith("asyncio "))
    assert "\x1b[32m" in format_table(whole, colour=True)


def test_pairs_that_differ_are_in_the_same_order_in_two_runs(whole: Comparison) -> None:
    def slower(engine: str, workload: Workload, number: int, settings: Settings) -> Run:
        return figures(engine, workload, number, settings, 0.9)

    other = compare(attrs.evolve(SETTINGS, workloads=()), seed=2, measure=slower)
    for metric in ("requests_per_second", "p99"):
        once, twice = (set(result.differences("echo", metric)) for result in (whole, other))
        assert once == twice
        assert len(once) == 3


def test_p999_needs_enough_requests_in_every_round(whole: Comparison) -> None:
    def without(run: Run) -> Run:
        values = {name: value for name, value in run.values.items() if name != "p999" or run.round > 1}
        return attrs.evolve(run, values=values)

    some = attrs.evolve(whole, runs=tuple(map(without, whole.runs)))
    assert "p999" in whole.summary("epoll", "echo").values
    assert "p999" not in some.summary("epoll", "echo").values
    assert "p99" in some.summary("epoll", "echo").values


def test_an_opposite_order_is_named(whole: Comparison) -> None:
    then = json.loads(whole.to_json())
    both, opposite = agreement(whole, then)
    assert both > 50
    assert not opposite
    for run in then["runs"]:
        if run["engine"] == "epoll" and run["workload"] == "echo":
            run["values"]["requests_per_second"] = 900.0
    both, opposite = agreement(whole, then)
    assert len(opposite) == 1
    assert "echo, requests/s" in opposite[0]


class _Checker(HTMLParser):
    """Notes what a page would load, and whether its tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self.rows: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.loads += [f"{tag} {name}" for name, _ in attributes if name in ("src", "href")]
        if tag not in ("meta", "line", "rect", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_one_file_with_a_row_for_every_engine(whole: Comparison) -> None:
    page = format_html(whole)
    checker = _Checker()
    checker.feed(page)
    assert not checker.open
    assert not checker.loads
    assert "http" not in page.replace("prefers-color-scheme", "")
    assert "prefers-color-scheme:dark" in page
    for engine in ENGINES:
        assert page.count(f"<td>{engine}</td>") == len(whole.workloads)
    for title in ("Throughput", "CPU for each request", "Latency at the same load", "Memory for each connection"):
        assert f"<h2>{title}</h2>" in page


def test_names_in_the_page_are_escaped(whole: Comparison) -> None:
    bad = attrs.evolve(whole, runs=(attrs.evolve(whole.runs[0], error="<script>alert(1)</script>"), *whole.runs[1:]))
    assert "<script>" not in format_html(bad)


def test_the_json_has_every_run_and_the_machine(whole: Comparison) -> None:
    data = json.loads(whole.to_json())
    assert len(data["runs"]) == len(whole.runs)
    assert {"kernel", "cpu", "mitigations", "versions", "governor", "load_generator"} <= data["environment"].keys()
    summary = next(item for item in data["summaries"] if (item["engine"], item["workload"]) == ("asyncnet", "echo"))
    assert summary["ratios"]["requests_per_second"]["verdict"] == "higher"


@pytest.mark.parametrize(("factor", "status"), [(1.0, 0), (0.7, 1), (1.4, 0)])
def test_a_regression_against_the_baseline_ends_with_1(
    factor: float, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import asyncnet.cli.compare as command

    before = tmp_path / "before.json"
    words = ["compare", "--engines", "asyncio,epoll,asyncnet", "--workloads", "echo"]

    def at(speed: float) -> Callable[..., Comparison]:
        def measure(engine: str, workload: Workload, number: int, settings: Settings) -> Run:
            return figures(engine, workload, number, settings, speed if engine == "epoll" else 1.0)

        return lambda settings, progress: compare_function(settings, progress=progress, measure=measure)

    monkeypatch.setattr(command, "compare", at(1.0))
    assert main([*words, "--json", str(before)]) == 0
    monkeypatch.setattr(command, "compare", at(factor))
    capsys.readouterr()
    assert main([*words, "--baseline", str(before)]) == status
    output = capsys.readouterr().out
    assert ("REGRESSION: epoll, echo" in output) is bool(status)
    assert "REGRESSION: asyncio" not in output
    assert ("better: epoll" in output) is (factor > 1)
    then = json.loads(before.read_text())
    unusable = tmp_path / "unusable.json"
    unusable.write_text(json.dumps(then | {"runs": [run | {"invalid": ["it moved"]} for run in then["runs"]]}))
    assert main([*words, "--baseline", str(unusable)]) == 1
    assert "nothing can be said" in capsys.readouterr().out
    assert main([*words, "--seconds", "3", "--baseline", str(before)]) == 1
    assert "give the same options as then" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--engines", "nope"], "there is no engine 'nope'"),
        (["--workloads", "nope"], "the workloads are echo"),
        (["--against", "epoll", "--engines", "asyncio"], "not among the engines"),
        (["--size", "99999999"], "at most 65507 bytes over UDP"),
        (["--baseline", "/no/such/file"], "No such file"),
        (["--html", "/no/such/folder/x.html"], "No such file"),
    ],
)
def test_a_mistake_is_told_in_a_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *words]) == 1
    output = capsys.readouterr()
    assert said in output.err
    assert len(output.err.splitlines()) == 1
    assert not output.out


@pytest.mark.skipif(sys.platform != "linux", reason="children are found by /proc")
def test_sigterm_leaves_no_server_behind() -> None:
    command = [
        sys.executable,
        "-m",
        "asyncnet",
        "compare",
        "--engines",
        "epoll",
        "--workloads",
        "echo",
        "--seconds",
        "0.2",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not (family := tree_of(process.pid)[1:]) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert family
    finally:
        process.terminate()
        process.wait(20)
    assert process.returncode == 143
    assert not [pid for pid in family if Path(f"/proc/{pid}").exists()]


def test_the_python_generator_is_said_in_every_table() -> None:
    settings = attrs.evolve(SETTINGS, python_load=True, workloads=("echo", "churn"), rounds=2)
    table = format_table(compare(settings, measure=figures))
    assert table.count("(client-limited)") == 2
    assert "compare the CPU, not the rates" in " ".join(table.split())


def test_every_protocol_has_workloads() -> None:
    for protocol, least in (("tcp", 10), ("udp", 5), ("tftp", 2)):
        assert len(workloads_of(Settings(engines=(), protocol=protocol))) >= least
    random.seed(0)
    assert lab.Verdict.NO_DIFFERENCE.value == "no difference"


def test_a_round_is_random_but_repeatable() -> None:
    first, second = (compare(SETTINGS, measure=figures, seed=3) for _ in range(2))
    names: Any = [[run.engine for run in result.runs] for result in (first, second)]
    assert names[0] == names[1]

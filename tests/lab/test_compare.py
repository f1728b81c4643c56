"""Rounds, thermometer, INVALID runs, tables, the page and the baseline, on measurements that are made up."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import attrs
import pytest

from asyncnet import lab
from asyncnet.cli import main
from asyncnet.cli.compare import terminal_progress
from asyncnet.lab import (
    Change,
    Comparison,
    Progress,
    Ratio,
    Run,
    Settings,
    Workload,
    agreement,
    compare,
    compare_with_baseline,
    format_changes,
    format_html,
    format_table,
    workloads_of,
)
from asyncnet.lab import compare as compare_function
from asyncnet.lab.generator import why_no_compiler
from asyncnet.lab.measuring import run_of_result, why_invalid
from asyncnet.lab.metrics import METRICS
from asyncnet.lab.model import AGAIN, CEILING
from asyncnet.lab.processes import tree_of
from asyncnet.lab.workloads import RATES

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


def test_what_a_stop_cuts_off_is_a_figure_and_any_other_failure_an_error() -> None:
    def failing(name: str) -> bool:
        def measure(engine: str, workload: Workload, number: int, settings: Settings) -> Run:
            return attrs.evolve(figures(engine, workload, number, settings), failures=3 * (workload.name == name))

        return compare(attrs.evolve(SETTINGS, rounds=2, workloads=("echo", "stop")), measure=measure).ok

    assert failing("neither")
    assert failing("stop")
    assert not failing("echo")


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
    assert len([name for name in order if name.endswith("thermometer")]) == 6 * 5
    assert len(result.readings) == 5
    assert steps[-1].total == 5 * len(everybody)
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert steps[-1].left is not None


def test_a_thermometer_that_moves_makes_the_block_invalid_after_a_second_try() -> None:
    def readings_of(*temperatures: float) -> Iterator[float]:
        """Yield five readings for each, of which one is far off: that moves nothing."""
        for temperature in temperatures:
            yield from (temperature, temperature * 1.03, temperature / 2, temperature * 1.02, temperature * 0.98)

    readings = readings_of(100.0, 100.0, 80.0, 80.0, 100.0, 100.0, 100.0, 100.0)

    def measure(engine: str, workload: Workload, number: int, settings: Settings) -> Run:
        if workload.name == "thermometer":
            return Run(engine, workload.name, 0, {"requests_per_second": next(readings)})
        return figures(engine, workload, number, settings)

    result = compare(attrs.evolve(SETTINGS, rounds=3), measure=measure)
    assert {run.round for run in result.runs if run.invalid} == set()  # the block of round 2 was measured again
    assert [reading.moved for reading in result.readings] == [False, True, False, True, False]

    readings = readings_of(100.0, 100.0, 80.0, 60.0, 60.0)
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


def test_a_pair_needs_four_rounds_to_be_called_different() -> None:
    few = compare(attrs.evolve(SETTINGS, rounds=3), measure=figures)
    assert list(few.differences("echo", "requests_per_second")) == []
    table = format_table(few)
    assert "95 %" not in table
    assert " 2.50 " in table


def test_the_order_and_the_arrivals_are_others_each_time() -> None:
    seeds = {compare(attrs.evolve(SETTINGS, rounds=1), measure=figures).environment["seed"] for _ in range(3)}
    assert len(seeds) == 3
    assert compare(attrs.evolve(SETTINGS, rounds=1), measure=figures, seed=7).environment["seed"] == 7


def test_the_progress_ends_when_everything_is_measured() -> None:
    steps: list[Progress] = []
    compare(attrs.evolve(SETTINGS, rounds=1), measure=figures, progress=steps.append)
    assert steps[-1].done == steps[-1].total


def test_who_has_another_load_is_neither_the_best_nor_the_worst() -> None:
    def limited(engine: str, workload: Workload, number: int, settings: Settings) -> Run:
        found = figures(engine, workload, number, settings)
        return attrs.evolve(found, notes=("256 connections instead of 1000: 256 threads",) * (engine == "asyncnet"))

    rows = {line.split()[0]: line for line in format_table(compare(SETTINGS, measure=limited)).splitlines() if line}
    assert "2515 " in rows["asyncnet"]
    assert "1509+" in rows["epoll"]


def test_reasons_by_the_dozen_are_told_in_short() -> None:
    def disturbed(engine: str, workload: Workload, number: int, settings: Settings) -> Run:
        reasons = (f"the generator lagged: {number} µs at p99", f"the generator had no core for {number}% of the time")
        return attrs.evolve(figures(engine, workload, number, settings), invalid=reasons * (engine != CEILING))

    settings = attrs.evolve(SETTINGS, rounds=20, attempts=1)
    table = format_table(compare(settings, measure=disturbed)).replace("\n  ", " ")
    found = [line for line in table.splitlines() if line.startswith("INVALID")]
    assert len(found) == 1
    assert "the generator lagged (80), the generator had no core (80)" in found[0]


def test_more_connections_held_are_better() -> None:
    def held(engine: str, workload: Workload, number: int, settings: Settings) -> Run:
        found = figures(engine, workload, number, settings)
        return attrs.evolve(found, values={**found.values, "held": 50.0 if engine == "epoll" else 100.0})

    settings = attrs.evolve(SETTINGS, rounds=2, workloads=("idle",))
    rows = {line.split()[0]: line for line in format_table(compare(settings, measure=held)).splitlines() if line}
    assert "50-" in rows["epoll"]
    assert "100+" in rows["asyncio"]


def test_p999_needs_enough_requests_in_every_round(whole: Comparison) -> None:
    def without(run: Run) -> Run:
        values = {name: value for name, value in run.values.items() if name != "p999" or run.round > 1}
        return attrs.evolve(run, values=values)

    some = attrs.evolve(whole, runs=tuple(map(without, whole.runs)))
    assert "p999" in whole.summary("epoll", "echo").values
    assert "p999" not in some.summary("epoll", "echo").values
    assert "p99" in some.summary("epoll", "echo").values


def test_an_opposite_order_is_named(whole: Comparison) -> None:
    both, opposite = agreement(whole, Comparison.from_json(whole.to_json()))
    assert both > 50
    assert not opposite
    then = json.loads(whole.to_json())
    for run in then["runs"]:
        if run["engine"] == "epoll" and run["workload"] == "echo":
            run["values"]["requests_per_second"] = 900.0
    both, opposite = agreement(whole, Comparison.from_json(json.dumps(then)))
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
    if why_no_compiler() is None:
        assert main([*words, "--python-load", "--baseline", str(before)]) == 1
        assert "not measured by the load generator in Python" in capsys.readouterr().err
    for part in ("runs", "settings", "environment"):
        unusable.write_text(json.dumps(then | {part: [{"engine": "epoll"}]}))
        assert main([*words, "--baseline", str(unusable)]) == 1
        assert "is no comparison" in capsys.readouterr().err


def test_a_comparison_comes_back_from_its_json(whole: Comparison) -> None:
    assert attrs.evolve(Comparison.from_json(whole.to_json()), environment=whole.environment) == whole


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

    page = format_html(compare(settings, measure=figures))
    assert page.count("(client-limited)</h3>") == page.count("<h3>") == 2


HEADINGS = {
    "echo": "engine requests/s % of C ratio CPU µs=user+sys p50 ms p99 ms p99.9 ms failed",
    "rate-500": "engine CPU µs=user+sys p50 ms p99 ms p99.9 ms p99 ratio failed",
    "churn": "engine requests/s % of C ratio CPU µs=user+sys p50 ms p99 ms p99.9 ms failed",
    "idle": "engine held KiB/conn kernel KiB p50 ms p99 ms failed",
    "slow": "engine p50 ms p99 ms p99.9 ms CPU µs failed",
    "stall": "engine complete KiB/conn failed",
    "stop": "engine cut off stop s failed",
}


def test_the_columns_are_those_of_the_workload(whole: Comparison) -> None:
    parts = {part.splitlines()[0]: part.splitlines() for part in format_table(whole).split("\n\n")}
    titles = {workload.name: workload.title for workload in whole.workloads}
    for name, headings in HEADINGS.items():
        assert " ".join(parts[titles[name]][1].split()) == headings, name
    if any(run.engine == CEILING for run in whole.runs):
        row = next(line for line in parts[titles["echo"]] if line.startswith("epoll "))
        assert "30%" in row  # 1500 of 5000
        assert "663=265+398" in row  # microseconds: all, user, system


def test_limits_failures_and_errors_are_told(whole: Comparison) -> None:
    def limited(run: Run) -> Run:
        if run.engine == "epoll" and run.workload == "stop":
            return attrs.evolve(run, notes=("9 connections instead of 50: a limit",), failures=3)
        return run

    table = format_table(attrs.evolve(whole, runs=tuple(map(limited, whole.runs))))
    assert "epoll, stop: 9 connections instead of 50: a limit" in table.splitlines()
    last = table.split("\n\n")[-2].splitlines()
    assert next(line for line in last if line.startswith("epoll ")).split()[-1] == "6"  # two rounds


@pytest.mark.parametrize(("requests", "told"), [(4999, False), (5000, True)])
def test_p999_is_told_from_5000_requests_on(requests: int, told: bool) -> None:
    times = dict.fromkeys(("p50", "p90", "p99", "p999", "service_p99", "lag_p99"), 1e-3)
    result = times | {"requests": requests, "seconds": 1.5, "cpu_seconds": 0.5}
    found = run_of_result("asyncio", Workload("rate", "", rate=5000), 1, result, None, None)
    assert ("p999" in found.values) is told
    assert max(RATES) * Settings(engines=()).seconds > 5000 * 1.2  # so the highest rate has it by default


def test_chance_is_no_regression_and_a_regression_is_no_chance() -> None:
    draw = random.Random(3)

    def noisy(factor: float) -> Measure:
        def measure(engine: str, workload: Workload, number: int, settings: Settings) -> Run:
            slower = factor if engine == "epoll" else 1.0
            run = figures(engine, workload, number, settings, slower)
            values = {name: value * draw.gauss(1, 0.015) for name, value in run.values.items()}
            return attrs.evolve(run, values=values)

        return measure

    then, same, slower = (compare(SETTINGS, measure=noisy(factor), seed=1) for factor in (1.0, 1.0, 0.8))
    assert not any(change.is_regression for change in compare_with_baseline(same, then))
    worse = [change for change in compare_with_baseline(slower, then) if change.is_regression]
    assert "requests_per_second" in {change.metric.name for change in worse}
    assert {change.engine for change in worse} == {"epoll"}


def test_what_may_be_chance_is_counted_and_not_called_a_regression() -> None:
    rate = METRICS["requests_per_second"]
    ratio = Ratio(0.9, 0.85, 0.95, 5, 0.02)
    doubtful, certain = (Change("epoll", "echo", rate, ratio, certain) for certain in (False, True))
    text = format_changes([doubtful, certain], Path("before.json"))
    assert text.count("REGRESSION") == 1
    assert "1 more lie beyond their own interval" in text


class _Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_alone_shows_what_runs_and_the_time_left(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = _Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    show = terminal_progress()
    for step in (Progress(1, 4, "round 1 of 2: echo, epoll", 90.0), Progress(2, 4, "round 2: thermometer", 600.0)):
        show(step)
    shown = stream.getvalue()
    show(Progress(4, 4, "the last", 0.0))
    if terminal:
        lines = [" 25% round 1 of 2: echo, epoll, 90 s left", " 50% round 2: thermometer, 10 min left"]
        assert shown == "".join(f"\r\x1b[K{line}" for line in lines)
        assert stream.getvalue() == shown + "\r\x1b[K"  # nothing is left of it
    else:
        assert stream.getvalue() == ""


def test_help_says_how_long_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    assert "about an hour" in " ".join(capsys.readouterr().out.split())


def test_every_protocol_has_workloads() -> None:
    for protocol, least in (("tcp", 10), ("udp", 5), ("tftp", 2)):
        assert len(workloads_of(Settings(engines=(), protocol=protocol))) >= least
    random.seed(0)
    assert lab.Verdict.NO_DIFFERENCE.value == "no difference"


def test_a_round_is_random_but_repeatable() -> None:
    first, second = (compare(SETTINGS, measure=figures, seed=3) for _ in range(2))
    names: Any = [[run.engine for run in result.runs] for result in (first, second)]
    assert names[0] == names[1]

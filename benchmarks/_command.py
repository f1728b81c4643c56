"""What the benchmarks' commands share: options, saving what was measured, and tables out of what is saved."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeAlias

import attrs

from asyncnet.lab.environment import environment
from benchmarks._harness import FOLDER, rounds_of
from benchmarks._report import Table, publish

__all__ = ["Benchmark", "Part", "Runs", "saved_runs"]

Runs: TypeAlias = list[dict[str, Any]]
RESULTS: Final = FOLDER / "results"


@attrs.frozen
class Part:
    """One question of a benchmark; a table is its answer.

    Attributes:
        names: what is measured in each round.
        measure: measures one of them, given its name, and ``seconds=`` if `timed` and if its benchmark has a length.
        table: makes the table of all runs.
        timed: whether the length of a measurement can be chosen.
        most_rounds: the rounds of what takes long.
        beside: the name of what another one is held against, and which is measured with it.
    """

    names: Sequence[str]
    measure: Callable[..., dict[str, Any]]
    table: Callable[[Runs], Table]
    timed: bool = True
    most_rounds: int = sys.maxsize
    beside: Callable[[str], str] | None = None

    def chosen(self, only: Sequence[str]) -> list[str]:
        """Return the names that contain one of these texts, or all when there is none, and what they are beside."""
        found = [name for name in self.names if not only or any(text in name for text in only)]
        pairs = [(name, self.beside(name)) if self.beside else (name,) for name in found]
        return list(dict.fromkeys(name for pair in pairs for name in pair))


@attrs.frozen
class Benchmark:
    """A command that measures parts in rounds, saves the runs of each, and prints and publishes their tables.

    Attributes:
        name: of the file in ``results``, and of the place in README.md.
        parts: by their names.
        rounds: how many there are, if not told otherwise.
        seconds: length of each measurement, if not told otherwise; None if no part lets it be chosen.
        closing: makes a table of the runs of all parts, which stands at the end.
        also_publish: puts into other pages what belongs there.
    """

    name: str
    parts: Mapping[str, Part]
    rounds: int = 5
    seconds: float | None = 1.5
    closing: Callable[[Mapping[str, Runs]], Table] | None = None
    also_publish: Callable[[Mapping[str, Runs]], None] | None = None

    def main(self, about: str | None, argv: Sequence[str] | None = None) -> int:
        """Do what the arguments of the command say; `about` is its help."""
        parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--rounds", type=int, default=self.rounds, help=f"default: {self.rounds}")
        if self.seconds is not None:
            text = f"length of each measurement (default: {self.seconds:g})"
            parser.add_argument("--seconds", type=float, default=self.seconds, help=text)
        parser.add_argument(
            "--part", metavar="TEXT", action="append", help=f"measure these alone; the others stay: {_list(self.parts)}"
        )
        either = parser.add_mutually_exclusive_group()
        text = "of what is measured, that alone whose name contains this; prints, and saves nothing"
        either.add_argument("--only", metavar="TEXT", action="append", help=text)
        either.add_argument("--tables", action="store_true", help="measure nothing: make the tables of the saved runs")
        arguments = parser.parse_args(argv)
        wanted = [part for part in self.parts if not arguments.part or any(text in part for text in arguments.part)]
        if not wanted:
            parser.error(f"no part has {_list(arguments.part)} in its name; there are {_list(self.parts)}")
        chosen = {part: names for part in wanted if (names := self.parts[part].chosen(arguments.only or ()))}
        if not chosen:
            parser.error(f"nothing that is measured has {_list(arguments.only)} in its name")
        for name in () if arguments.tables else chosen:
            part = self.parts[name]
            timed = part.timed and self.seconds is not None
            measure = partial(part.measure, seconds=arguments.seconds) if timed else part.measure
            runs = rounds_of(chosen[name], min(arguments.rounds, part.most_rounds), measure)
            if arguments.only:
                print(part.table(runs), "\n", flush=True)
            else:
                self._save(name, runs)
        if not arguments.only:
            publish(self.name, self.text())
            if self.also_publish:
                self.also_publish(saved_runs(self.name))
        return 0

    def _save(self, name: str, runs: Runs) -> None:
        """Write the runs of a part, with the machine they ran on; those of the other parts stay."""
        found = _saved(self.name) | {name: {"environment": environment() | {"peers": _peers()}, "runs": runs}}
        listed = []
        for part in [part for part in self.parts if part in found]:
            lines = ",\n".join(map(json.dumps, found[part]["runs"]))  # a line for each run
            where = json.dumps(found[part]["environment"])
            listed.append(f'{json.dumps(part)}: {{"environment": {where},\n"runs": [\n{lines}\n]}}')
        RESULTS.mkdir(exist_ok=True)
        _path(self.name).write_text('{"parts": {\n' + ",\n".join(listed) + "\n}}\n")

    def text(self) -> str:
        """Return the tables of what was saved, and on what it was measured."""
        found = _saved(self.name)
        runs = {name: part["runs"] for name, part in found.items()}
        tables = [str(part.table(runs[name])) for name, part in self.parts.items() if name in runs]
        tables += [str(self.closing(runs))] if self.closing else []
        return "\n\n".join([*tables, _provenance([part["environment"] for part in found.values()])])


def saved_runs(name: str) -> dict[str, Runs]:
    """Return the runs that a benchmark has saved, by parts; none when there are no results."""
    return {part: found["runs"] for part, found in _saved(name).items()}


def _saved(name: str) -> dict[str, Any]:
    path = _path(name)
    parts: dict[str, Any] = json.loads(path.read_text())["parts"] if path.exists() else {}
    return parts


def _path(name: str) -> Path:
    return RESULTS / f"{name}.json"


def _peers() -> dict[str, str]:
    """Return the versions of what the package is held against, as far as it is from Python."""
    lines = (FOLDER / "requirements.txt").read_text().splitlines()
    return {name: version(name) for line in lines for name in [line.partition("==")[0]] if not line.startswith("#")}


def _provenance(environments: Sequence[Mapping[str, Any]]) -> str:
    """Say when and where something was measured."""
    days = sorted({str(found["time"])[:10] for found in environments})
    machines = {
        f"{found['cpu']}, {found['cores_of_machine']} cores, Linux {found['kernel']}, "
        f"{found['implementation']} {found['python']}, uvloop {found['versions']['uvloop']}"
        for found in environments
    }
    return f"Measured {' and '.join(days)} on {'; '.join(sorted(machines))}."


def _list(texts: Sequence[str] | Mapping[str, object]) -> str:
    return ", ".join(f"“{text}”" if " " in text else text for text in texts)

"""The load generators over TFTP, against a server of the package."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncnet.lab.generator import write_file
from asyncnet.lab.processes import ServerProcess, started
from tests.attempts import first_good

SIZE = 100_000


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one file."""
    folder = tmp_path_factory.mktemp("root")
    write_file(folder, SIZE)
    return folder


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[ServerProcess]:
    """`asyncnet tftp serve` on that directory."""
    with started([sys.executable, "-m", "asyncnet", "tftp", "serve", str(root), "--bind", "127.0.0.1:0"]) as found:
        yield found


def load(
    generator: list[str], server: ServerProcess, file: Path, *options: object, name: str = "file"
) -> dict[str, Any]:
    """Download by four clients."""
    words = [server.host, server.port, name, file, 4, 1428, 16, 10, *options]
    command = [*generator, "tftp", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    first, last = done.stdout.splitlines()
    assert first == "measuring"
    result: dict[str, Any] = json.loads(last)
    return result


def test_every_client_downloads_the_file_once(generator: list[str], server: ServerProcess, root: Path) -> None:
    result = load(generator, server, root / "file")
    assert (result["done"], result["failed"], result["wrong"], result["resent"]) == (4, 0, 0, 0)
    assert result["bytes"] == 4 * SIZE
    assert result["requests"] == sum(count for _, count in result["histogram"]) == 4
    assert 0 < result["p50"] <= result["max"] < 10


def test_clients_download_again_and_again(generator: list[str], server: ServerProcess, root: Path) -> None:
    result = load(generator, server, root / "file", 1.0)
    assert result["requests"] > 4
    assert result["failed"] == result["wrong"] == 0
    assert result["bytes"] >= result["requests"] * SIZE


def test_transfers_begin_when_they_are_offered(generator: list[str], server: ServerProcess, root: Path) -> None:
    result = first_good(
        lambda: load(generator, server, root / "file", 0.3, "rate=100", "arrivals=constant"),
        lambda found: found["requests"] >= 20,
    )
    assert 20 <= result["requests"] <= 31
    assert result["offered"] == 100


def test_another_content_is_wrong(generator: list[str], server: ServerProcess, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(write_file(tmp_path, SIZE).read_bytes()[:-1] + b"!")
    result = load(generator, server, other)
    assert result["wrong"] == 4


def test_a_file_that_is_not_there_is_a_failure(generator: list[str], server: ServerProcess, root: Path) -> None:
    result = load(generator, server, root / "file", name="nowhere")
    assert (result["done"], result["failed"]) == (0, 4)

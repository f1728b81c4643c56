"""Both load generators: what is asked of one is asked of the other."""

from __future__ import annotations

import shutil

import pytest

from asyncnet.lab.generator import generator_command


@pytest.fixture(params=["c", "python"])
def generator(request: pytest.FixtureRequest) -> list[str]:
    """How a load generator is started."""
    if request.param == "c" and shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    return generator_command(request.param == "python")

"""Makes the hosts of these tests, and removes them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.netns.hosts import Host
from tests.netns.lan import Lan, lan, make_host


@pytest.fixture
def host() -> Iterator[Host]:
    """A host with nothing but its loopback interface, which is up."""
    with contextlib.ExitStack() as stack:
        yield make_host(stack)


@pytest.fixture
def network() -> Iterator[Lan]:
    """A network without segments and hosts."""
    with lan() as made:
        yield made

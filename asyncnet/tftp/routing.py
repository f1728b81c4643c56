"""Storages in front of storages: which directory a client sees, and what its file names mean."""

from __future__ import annotations

import errno
import inspect
import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Self

import attrs

from asyncnet.addresses import in_networks
from asyncnet.errors import LocalError
from asyncnet.tftp.packets import ErrorCode
from asyncnet.tftp.storage import Request, Storage

__all__ = ["RemapRule", "Remapped", "Roots", "explain_remap"]

_MISSING: Final = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


class Roots:
    """A storage for each network of clients, and one for all.

    A client reads from the storage of its own network first, then from the common one; it writes to its own.

    Args:
        common: the storage for all.
        by_network: networks such as ``"192.168.1.0/24"`` or single addresses, each with its storage; where networks
            overlap, the smallest counts.

    Raises:
        ValueError: a network is malformed.
    """

    def __init__(self, common: Storage, by_network: Mapping[str, Storage]) -> None:
        self._common = common
        found = [(ipaddress.ip_network(network, strict=False), storage) for network, storage in by_network.items()]
        self._own = sorted(found, key=lambda pair: -pair[0].prefixlen)

    def open_read(self, request: Request) -> Any:
        """See `Storage`."""
        own = self._storage_of(request)
        if own is None:
            return self._common.open_read(request)
        try:
            opened: Any = own.open_read(request)
        except (LocalError, OSError) as exc:
            if not _is_missing(exc):
                raise
            return self._common.open_read(request)
        return self._or_common(opened, request) if inspect.isawaitable(opened) else opened

    async def _or_common(self, opening: Any, request: Request) -> Any:
        try:
            return await opening
        except (LocalError, OSError) as exc:
            if not _is_missing(exc):
                raise
        opened: Any = self._common.open_read(request)
        return await opened if inspect.isawaitable(opened) else opened

    def open_write(self, request: Request) -> Any:
        """See `Storage`."""
        own = self._storage_of(request)
        return (self._common if own is None else own).open_write(request)

    def _storage_of(self, request: Request) -> Storage | None:
        for network, storage in self._own:
            if in_networks(str(request.peer[0]), (network,)):
                return storage
        return None


def _is_missing(exc: Exception) -> bool:
    if isinstance(exc, LocalError):
        return exc.code == ErrorCode.FILE_NOT_FOUND
    return isinstance(exc, OSError) and exc.errno in _MISSING


@attrs.frozen
class RemapRule:
    """What becomes of the file names that a regular expression is found in."""

    pattern: re.Pattern[str]
    replacement: str
    """Of what was found, with ``\\1`` and ``\\g<name>``; empty: the name is refused."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``REGEX=REPLACEMENT``; the first ``=`` that no backslash precedes divides them.

        Raises:
            ValueError: it has another form, or the expression is malformed.
        """
        parts = re.split(r"(?<!\\)=", text, maxsplit=1)
        if len(parts) != 2 or not parts[0]:
            raise ValueError(f"{text!r} is no rule: write REGEX=REPLACEMENT")
        try:
            pattern = re.compile(parts[0].replace("\\=", "="))
            pattern.sub(parts[1], "")  # looks at the replacement too
        except (re.error, IndexError) as exc:
            raise ValueError(f"the rule {text!r} is malformed: {exc}") from None
        return cls(pattern, parts[1])


def _plain(name: str) -> str:
    return name.replace("\\", "/").lstrip("/")


def _apply(rules: Sequence[RemapRule], name: str) -> tuple[RemapRule | None, str | None]:
    """Return the rule that matches and what the name becomes; None when it is refused."""
    for rule in rules:
        if rule.pattern.search(name):
            return rule, rule.pattern.sub(rule.replacement, name, count=1) if rule.replacement else None
    return None, name


def explain_remap(rules: Sequence[RemapRule], name: str) -> str:
    """Say for a person what the rules make of a name."""
    rule, result = _apply(rules, _plain(name))
    if rule is None:
        return f"{name}: no rule matches"
    what = f"becomes {result}" if result is not None else "is refused"
    return f"{name}: {what} (rule {rule.pattern.pattern}={rule.replacement})"


class Remapped:
    """A storage whose file names are rewritten first: the first rule that matches counts, and only it.

    The rules see names with slashes for backslashes and without a leading slash. What they make of a name is checked
    by the storage like any other name.

    Args:
        storage: opens the files.
        rules: in the order in which they are tried.
    """

    def __init__(self, storage: Storage, rules: Sequence[RemapRule]) -> None:
        self._storage = storage
        self._rules = tuple(rules)

    def open_read(self, request: Request) -> Any:
        """See `Storage`."""
        return self._open(self._storage.open_read, request)

    def open_write(self, request: Request) -> Any:
        """See `Storage`."""
        return self._open(self._storage.open_write, request)

    def _open(self, open_: Callable[[Request], Any], request: Request) -> Any:
        _, name = _apply(self._rules, _plain(request.name))
        if name is None:
            raise LocalError(ErrorCode.ACCESS_VIOLATION, "this name is not served")
        return open_(attrs.evolve(request, name=name))

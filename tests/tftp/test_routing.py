"""Which storage a client meets, and what its file names become."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncnet.errors import LocalError
from asyncnet.tftp.files import BytesSink
from asyncnet.tftp.routing import Remapped, RemapRule, Roots, explain_remap
from asyncnet.tftp.storage import Request


class Shelf:
    """A storage of bytes in memory."""

    def __init__(self, **files: bytes) -> None:
        self.files = files
        self.written: list[str] = []

    def open_read(self, request: Request) -> bytes:
        if request.name == "locked":
            raise LocalError(2, "locked")
        if request.name not in self.files:
            raise FileNotFoundError(2, "No such file")
        return self.files[request.name]

    def open_write(self, request: Request) -> BytesSink:
        self.written.append(request.name)
        return BytesSink()


class LateShelf(Shelf):
    async def open_read(self, request: Request) -> bytes:  # type: ignore[override]  # a storage may be either
        await asyncio.sleep(0)
        return super().open_read(request)


def asked(name: str, host: str = "10.0.0.1") -> Request:
    return Request((host, 50_000), name)


def test_a_client_has_its_own_storage_and_falls_back_to_the_common_one() -> None:
    common = Shelf(a=b"common a", b=b"common b", locked=b"")
    own, single = Shelf(a=b"own a"), Shelf(a=b"single a")
    roots = Roots(common, {"10.0.0.0/8": own, "10.0.0.9": single, "2001:db8::/32": own})
    assert roots.open_read(asked("a")) == b"own a"
    assert roots.open_read(asked("b")) == b"common b"
    assert roots.open_read(asked("a", "10.0.0.9")) == b"single a"
    assert roots.open_read(asked("a", "2001:db8::1")) == b"own a"
    assert roots.open_read(asked("a", "192.168.0.1")) == b"common a"
    assert roots.open_read(asked("a", "fe80::1%eth0")) == b"common a"
    with pytest.raises(FileNotFoundError):
        roots.open_read(asked("c"))
    with pytest.raises(LocalError, match="locked"):
        roots.open_read(asked("locked"))
    roots.open_write(asked("new"))
    roots.open_write(asked("new", "192.168.0.1"))
    assert (own.written, common.written) == (["new"], ["new"])


def test_a_storage_that_is_empty_like_a_list_is_a_storage() -> None:
    class Empty(Shelf):
        def __len__(self) -> int:
            return len(self.written)

    common, own = Shelf(), Empty()
    Roots(common, {"10.0.0.0/8": own}).open_write(asked("new"))
    assert (own.written, common.written) == (["new"], [])


async def test_storages_may_be_coroutines() -> None:
    roots = Roots(LateShelf(b=b"common b"), {"10.0.0.0/8": LateShelf(a=b"own a")})
    assert await roots.open_read(asked("a")) == b"own a"
    assert await roots.open_read(asked("b")) == b"common b"
    with pytest.raises(FileNotFoundError):
        await roots.open_read(asked("c"))


def test_a_malformed_network_is_named() -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0\.300"):
        Roots(Shelf(), {"10.0.0.300": Shelf()})


def rules(*texts: str) -> list[RemapRule]:
    return [RemapRule.parse(text) for text in texts]


@pytest.mark.parametrize(("texts", "name", "becomes"), [
    ((r"^pxelinux\.cfg/.*=default",), "pxelinux.cfg/01-aa-bb", "default"),
    ((r"^(?P<mac>[0-9a-f]{12})/=by-mac/\g<mac>/",), "0123456789ab/kernel", "by-mac/0123456789ab/kernel"),
    ((r"^(.*)\.old$=\1", "x=y"), "x.old", "x"),
    ((r"^boot/=",), "other", "other"),
    ((r"^boot/=images/",), "\\Boot\\..\\boot/a", "Boot/../boot/a"),
    ((r"^boot/=images/",), "\\boot\\a", "images/a"),
    ((r"a\=b=c",), "a=b", "c"),
])  # fmt: skip
def test_the_first_rule_that_matches_rewrites_the_name(texts: tuple[str, ...], name: str, becomes: str) -> None:
    seen: list[str] = []

    class Storage(Shelf):
        def open_read(self, request: Request) -> bytes:
            seen.append(request.name)
            return b""

        def open_write(self, request: Request) -> Any:
            seen.append(request.name)

    remapped = Remapped(Storage(), rules(*texts))
    remapped.open_read(asked(name))
    remapped.open_write(asked(name))
    assert seen == [becomes, becomes]


def test_an_empty_replacement_refuses_the_name() -> None:
    with pytest.raises(LocalError, match="not served") as caught:
        Remapped(Shelf(secret=b"x"), rules("^secret=")).open_read(asked("secret"))
    assert caught.value.code == 2


def test_rules_are_explained() -> None:
    found = rules("^a=b", "^c=")
    assert explain_remap(found, "/a1") == "/a1: becomes b1 (rule ^a=b)"
    assert explain_remap(found, "c") == "c: is refused (rule ^c=)"
    assert explain_remap(found, "d") == "d: no rule matches"


@pytest.mark.parametrize("text", ["", "x", "=x", "(=x", r"a=\1", r"a=\g<name>"])
def test_a_malformed_rule_is_one_line_that_names_it(text: str) -> None:
    with pytest.raises(ValueError, match="rule") as caught:
        RemapRule.parse(text)
    assert "\n" not in str(caught.value)

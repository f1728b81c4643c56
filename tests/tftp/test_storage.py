"""Files and the served directory: what is read is what is there, what is written appears whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncnet.errors import LocalError
from asyncnet.tftp.files import BytesSink, BytesSource, FileSink, FileSource, NetasciiSink, NetasciiSource, Sink, Source
from asyncnet.tftp.storage import Directory, Request, WritePolicy, error_packet_fields

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def root(tmp_path: Path) -> Path:
    served = tmp_path / "served"
    (served / "sub" / "deep").mkdir(parents=True)
    (served / "boot.img").write_bytes(CONTENT)
    (served / "sub" / "deep" / "file").write_bytes(b"deep")
    (tmp_path / "served-private").mkdir()
    (tmp_path / "served-private" / "secret").write_bytes(b"secret")
    (tmp_path / "secret").write_bytes(b"secret")
    return served


def asked(name: str, *options: tuple[str, str]) -> Request:
    return Request(("127.0.0.1", 50_000), name, options=options)


def read_all(source: Source, piece: int = 100) -> bytes:
    buffer = memoryview(bytearray(piece))
    found = b""
    while count := source.fill([buffer[:30], buffer[30:]], len(found)):
        found += bytes(buffer[:count])
    source.close()
    return found


# Sources


def make_file_source(tmp_path: Path) -> Source:
    (tmp_path / "source").write_bytes(CONTENT)
    return FileSource.open(tmp_path / "source")


@pytest.mark.parametrize("make", [make_file_source, lambda _: BytesSource(CONTENT)])
def test_a_source_fills_buffers_in_order_and_stops_at_the_end(make: Callable[[Path], Source], tmp_path: Path) -> None:
    source = make(tmp_path)
    assert source.size == len(CONTENT)
    assert read_all(source) == CONTENT


def test_more_buffers_than_one_call_takes_are_filled(tmp_path: Path) -> None:
    source = make_file_source(tmp_path)
    buffer = memoryview(bytearray(len(CONTENT)))
    assert source.fill([buffer[i : i + 1] for i in range(len(CONTENT))], 0) == len(CONTENT)
    assert bytes(buffer) == CONTENT
    source.close()


def test_a_text_source_converts_line_ends() -> None:
    source = NetasciiSource(BytesSource(b"a\nb\rc\n" * 1000))
    assert source.size is None
    assert read_all(source) == b"a\r\nb\r\0c\r\n" * 1000


# Sinks


def test_a_file_appears_when_it_is_committed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    sink = FileSink(target)
    sink.store([memoryview(b"world")], 6)
    sink.store([memoryview(b"hello ")], 0)
    assert not target.exists()
    sink.commit()
    assert target.read_bytes() == b"hello world"
    assert os.listdir(tmp_path) == ["target"]


def test_an_aborted_file_leaves_the_old_one_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")
    sink = FileSink(target)
    sink.store([memoryview(b"new")], 0)
    sink.abort()
    sink.abort()
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["target"]


def test_a_replaced_file_keeps_its_mode(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")
    target.chmod(0o640)
    sink = FileSink(target)
    sink.commit()
    assert target.stat().st_mode & 0o777 == 0o640


def test_a_file_that_came_into_being_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "target"
    sink = FileSink(target, replace=False)
    sink.store([memoryview(b"new")], 0)
    target.write_bytes(b"other")
    with pytest.raises(FileExistsError):
        sink.commit()
    sink.abort()
    assert target.read_bytes() == b"other"
    assert os.listdir(tmp_path) == ["target"]


def test_a_file_system_without_links_takes_new_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    sinks = [FileSink(tmp_path / "target", replace=False) for _ in range(2)]
    for number, sink in enumerate(sinks):
        sink.store([memoryview(b"%d" % number)], 0)
    sinks[0].commit()
    with pytest.raises(FileExistsError):
        sinks[1].commit()
    sinks[1].abort()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"target": b"0"}


@pytest.mark.parametrize("target", ["/dev/null", "/"])
def test_what_is_no_regular_file_is_never_replaced(target: str) -> None:
    with pytest.raises(OSError, match=r"regular|directory"):
        FileSink(target)


def test_what_cannot_be_written_is_named_and_not_its_temporary_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        FileSink(tmp_path / "nowhere" / "file")
    assert caught.value.filename == str(tmp_path / "nowhere" / "file")


def test_bytes_may_arrive_out_of_order_up_to_the_limit() -> None:
    sink = BytesSink(limit=10)
    sink.store([memoryview(b"56789")], 5)
    sink.store([memoryview(b"01234")], 0)
    assert sink.data == b"0123456789"
    with pytest.raises(LocalError, match="10 bytes"):
        sink.store([memoryview(b"x")], 10)


def test_a_text_sink_converts_line_ends_split_over_blocks() -> None:
    inner = BytesSink()
    sink: Sink = NetasciiSink(inner)
    assert not sink.random_access
    for piece in (b"a\r", b"\nb\r", b"\0", b"c\r"):
        sink.store([memoryview(piece)], 0)
    sink.commit()
    assert inner.data == b"a\nb\rc\r"


# The served directory


@pytest.mark.parametrize(
    "name", ["boot.img", "/boot.img", "//boot.img", "./boot.img", "sub/deep/file", "sub\\deep\\file"]
)
def test_files_below_the_root_are_served(root: Path, name: str) -> None:
    expected = b"deep" if name.endswith("file") else CONTENT
    assert read_all(Directory(root).open_read(asked(name))) == expected


@pytest.mark.parametrize(
    "name",
    ["../secret", "..\\secret", "sub/../../secret", "/../secret", "../served-private/secret", "..", "sub/..", "a\x01b",
     "boot.img\x7f"],
)  # fmt: skip
def test_names_that_lead_outside_are_refused_with_code_2(root: Path, name: str) -> None:
    with pytest.raises(LocalError) as caught:
        Directory(root).open_read(asked(name))
    assert caught.value.code == 2


def test_absolute_paths_start_at_the_root_of_what_is_served(root: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Directory(root).open_read(asked(str(root.parent / "secret")))


@pytest.mark.parametrize("name", ["link", "linkdir/secret", "inside"])
@pytest.mark.skipif(os.name == "nt", reason="symbolic links need a privilege on Windows")
def test_symbolic_links_are_not_followed(root: Path, name: str) -> None:
    (root / "link").symlink_to(root.parent / "secret")
    (root / "linkdir").symlink_to(root.parent)
    (root / "inside").symlink_to("boot.img")
    with pytest.raises(OSError, match=r"\w") as caught:
        Directory(root).open_read(asked(name))
    assert error_packet_fields(caught.value)[0] in (1, 2)


def test_only_regular_files_are_served(root: Path) -> None:
    os.mkfifo(root / "pipe")
    for name in ("pipe", "sub"):
        with pytest.raises((LocalError, OSError)) as caught:
            Directory(root).open_read(asked(name))
        assert error_packet_fields(caught.value)[0] == 1


@pytest.mark.parametrize("name", ["", "/", ".", "no such file", "boot.img/below"])
def test_missing_files_have_code_1(root: Path, name: str) -> None:
    with pytest.raises((LocalError, OSError)) as caught:
        Directory(root).open_read(asked(name))
    assert error_packet_fields(caught.value)[0] == 1


def test_where_directories_have_no_descriptors_links_are_not_followed_either(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows."""
    monkeypatch.setattr("asyncnet.tftp.storage._HAS_DIR_FD", False)
    monkeypatch.setattr("asyncnet.tftp.storage.NO_FOLLOW", 0)
    (root.parent / "secret").write_bytes(b"secret")
    (root / "leaf").symlink_to(root.parent / "secret")
    (root / "way").symlink_to(root.parent)
    (root / "plain").write_bytes(b"plain")
    storage = Directory(root, write=WritePolicy.OVERWRITE)
    for name in ("leaf", "way/secret"):
        with pytest.raises(LocalError):
            storage.open_read(asked(name))
        with pytest.raises(LocalError):
            storage.open_write(asked(name))
    source = storage.open_read(asked("plain"))
    assert source.size == 5
    source.close()


def test_nothing_is_written_unless_allowed(root: Path) -> None:
    with pytest.raises(LocalError) as caught:
        Directory(root).open_write(asked("new"))
    assert caught.value.code == 2


def test_create_writes_new_files_only(root: Path) -> None:
    directory = Directory(root, write=WritePolicy.CREATE)
    sink = directory.open_write(asked("sub/new"))
    sink.store([memoryview(b"x")], 0)
    sink.commit()
    assert (root / "sub" / "new").read_bytes() == b"x"
    with pytest.raises(FileExistsError) as caught:
        directory.open_write(asked("boot.img"))
    assert error_packet_fields(caught.value)[0] == 6


def test_overwrite_replaces_files_but_never_through_a_link(root: Path) -> None:
    directory = Directory(root, write=WritePolicy.OVERWRITE)
    sink = directory.open_write(asked("boot.img"))
    sink.store([memoryview(b"new")], 0)
    sink.commit()
    assert (root / "boot.img").read_bytes() == b"new"
    (root / "link").symlink_to(root.parent / "secret")
    with pytest.raises(OSError, match="regular"):
        directory.open_write(asked("link"))
    assert (root.parent / "secret").read_bytes() == b"secret"


def test_writing_leaves_no_descriptor_open(root: Path) -> None:
    directory = Directory(root, write=WritePolicy.OVERWRITE)
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    for _ in range(3):
        directory.open_write(asked("sub/a")).abort()
        directory.open_write(asked("sub/a")).commit()
        with pytest.raises(FileNotFoundError):
            directory.open_write(asked("nowhere/a"))
    if before:
        assert len(os.listdir("/proc/self/fd")) == len(before)


def test_errors_on_the_wire_hold_no_path_of_this_host() -> None:
    code, text = error_packet_fields(FileNotFoundError(2, "No such file or directory", "/secret/place"))
    assert (code, text) == (1, "No such file or directory")
    assert error_packet_fields(RuntimeError("/secret/place")) == (0, "internal error")


def test_an_upload_has_a_largest_size(root: Path) -> None:
    directory = Directory(root, write=WritePolicy.CREATE, max_size=10)
    with pytest.raises(LocalError, match="larger than 10") as caught:
        directory.open_write(asked("new", ("tsize", "11")))
    assert caught.value.code == 3
    sink = directory.open_write(asked("new", ("TSIZE", "10")))
    sink.store([memoryview(bytes(4)), memoryview(bytes(6))], 0)
    with pytest.raises(LocalError, match="larger than 10"):
        sink.store([memoryview(b"x")], 10)
    sink.abort()
    assert not (root / "new").exists()
    assert not [name for name in os.listdir(root) if name.endswith(".part")]


@pytest.mark.skipif(not hasattr(os, "fstatvfs"), reason="this system does not tell how much is free")
def test_an_upload_needs_room(root: Path) -> None:
    directory = Directory(root, write=WritePolicy.CREATE)
    with pytest.raises(LocalError, match="no room") as caught:
        directory.open_write(asked("new", ("tsize", str(1 << 60))))
    assert caught.value.code == 3
    directory.open_write(asked("new", ("tsize", "-5"))).abort()  # no number: it announces nothing


def test_an_upload_is_on_the_disk_before_it_is_acknowledged(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First its bytes, then its name."""
    synced: list[tuple[bool, bool]] = []

    def record(fd: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(fd).st_mode), (root / "new").exists()))

    monkeypatch.setattr(os, "fsync", record)
    for sync in (True, False):
        directory = Directory(root, write=WritePolicy.OVERWRITE, sync=sync)
        directory.open_write(asked("new")).commit()
        assert synced == [(False, False), (True, True)]


def test_a_name_as_long_as_the_file_system_takes_can_be_uploaded(root: Path) -> None:
    directory = Directory(root, write=WritePolicy.CREATE)
    name = "字" * 85  # 255 bytes
    sink = directory.open_write(asked(name))
    sink.store([memoryview(b"content")], 0)
    sink.commit()
    assert (root / name).read_bytes() == b"content"


def test_a_drive_is_no_part_of_a_name(root: Path) -> None:
    (root / "boot").mkdir(exist_ok=True)
    (root / "boot" / "loader").write_bytes(b"x")
    for name in ("C:\\boot\\loader", "c:/boot/loader"):
        source = Directory(root).open_read(asked(name))
        assert source.size == 1
        source.close()
    with pytest.raises(LocalError):
        Directory(root).open_read(asked("C:\\..\\secret"))

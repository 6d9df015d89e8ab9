"""A full disk, refused system calls, and links and files in place of the cache's own."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from repvgg_zoo.errors import CacheError, DiskFullError, IntegrityError
from repvgg_zoo.hub import cache
from repvgg_zoo.hub.partial import PartialFile

from .conftest import BODY, FILE, NAME, OTHER, NoHttp, Zoo, fill, spec, stamp_file
from .server import Answer, Server


def test_a_full_disk_is_noticed_before_the_first_byte(zoo: Zoo, server: Server) -> None:
    file = spec(server.serve("/a.bin", Answer(BODY)))
    with pytest.raises(DiskFullError) as caught:
        zoo.fetch(file, services=zoo.services(free_bytes=lambda folder: 1_000_000))
    assert (caught.value.needed, caught.value.free) == (len(BODY), 1_000_000)
    assert "3000000 bytes are needed, 1000000 are free" in str(caught.value)
    assert zoo.names() == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_write_that_fails_midway_is_final_and_cleaned_up(
    zoo: Zoo, server: Server, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """The third write fails; no second request is made."""
    file = spec(server.serve("/a.bin", Answer(BODY)))
    writes = []
    real = PartialFile.write

    def write(part: PartialFile, data: bytes) -> None:
        writes.append(len(data))
        if len(writes) == 3:
            raise OSError(code, os.strerror(code))
        real(part, data)

    monkeypatch.setattr(PartialFile, "write", write)
    with pytest.raises(CacheError) as caught:
        zoo.fetch(file)
    assert isinstance(caught.value, DiskFullError) is (code != errno.EIO)
    assert zoo.names() == []
    assert len(server.requests) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_real_full_device_is_reported_as_a_full_disk(zoo: Zoo) -> None:
    zoo.root.mkdir()
    part = PartialFile(zoo.root, "0" * 16)
    part.close()
    part._descriptor = os.open("/dev/full", os.O_RDWR)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is checked below
        part.write(b"x" * 100)
    assert isinstance(cache.write_error(zoo.root, caught.value, "a.bin", 100), DiskFullError)
    part.discard()


@pytest.mark.skipif(not Path("/proc/mounts").exists(), reason="only Linux mounts a tmpfs of few inodes")
def test_a_disk_without_free_inodes_says_so_and_not_how_many_bytes_are_free(tmp_path: Path) -> None:
    code = """
import errno, sys
from pathlib import Path
from repvgg_zoo.errors import DiskFullError
from repvgg_zoo.hub import Settings, cache, fetch_file
from repvgg_zoo.registry.specs import FileSpec
disk, source = map(Path, sys.argv[1:])
cache.prepare(disk)
try:
    for number in range(1000):
        (disk / str(number)).touch()
except OSError as error:
    assert error.errno == errno.ENOSPC
try:
    fetch_file(FileSpec("a.bin", (str(source),), 7, "0" * 64), settings=Settings(cache_dir=disk))
except DiskFullError as error:
    print(error, error.free > 100_000)
"""
    disk, source = tmp_path / "disk", tmp_path / "a.bin"
    disk.mkdir()
    source.write_bytes(b"content")
    mount = f'mount -t tmpfs -o nr_inodes=20,size=1m,mode=755 none {disk} && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    if subprocess.run([*command, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a disk")
    command += [sys.executable, "-c", code, str(disk), str(source)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "no free inodes" in output and "df -i" in output and output.endswith("True\n"), output
    assert "bytes are needed" not in output


def test_a_used_up_quota_is_not_a_full_disk(tmp_path: Path) -> None:
    error = cache.write_error(tmp_path, OSError(errno.EDQUOT, "quota"), "a.bin", 100, free=10**12)
    assert isinstance(error, DiskFullError) and "quota is used up" in error.message and "1000000" not in error.message


@pytest.mark.parametrize("call", ["open", "replace", "mkdir"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EXDEV])
def test_a_refused_system_call_is_a_cache_error_and_leaves_nothing(
    zoo: Zoo, server: Server, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    """Root may do everything, and the tests may run as root, so the call itself is replaced."""
    file = spec(server.serve("/a.bin", Answer(BODY)))

    def refuse(*args: Any, **more: Any) -> Any:
        raise OSError(code, os.strerror(code))

    if call == "mkdir":
        monkeypatch.setattr(Path, "mkdir", refuse)
    elif call == "replace":
        real = Path.replace
        monkeypatch.setattr(Path, "replace", lambda old, new: refuse() if old.suffix == ".part" else real(old, new))
    else:
        opened = os.open
        monkeypatch.setattr(
            os,
            "open",
            lambda path, *rest, **more: refuse() if str(path).endswith(".part") else opened(path, *rest, **more),
        )
    with pytest.raises(CacheError, match="REPVGG_ZOO_HOME"):
        zoo.fetch(file)
    monkeypatch.undo()
    assert zoo.names() == []


def test_a_partial_file_that_cannot_be_deleted_hides_no_error(
    zoo: Zoo, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:

    def refuse(*args: Any, **more: Any) -> Any:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(IntegrityError):
        zoo.fetch(spec(server.serve("/a.bin", Answer(OTHER))))


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
@pytest.mark.parametrize("size_known", [True, False])
@pytest.mark.parametrize("points_to", ["the-same-bytes", "nowhere", "a-folder"])
def test_a_link_in_place_of_the_file_is_replaced_and_never_followed(
    zoo: Zoo, server: Server, tmp_path: Path, points_to: str, size_known: bool
) -> None:
    zoo.root.mkdir()
    outside = tmp_path / "outside"
    if points_to == "the-same-bytes":
        outside.write_bytes(BODY)
    elif points_to == "a-folder":
        outside.mkdir()
    (zoo.root / NAME).symlink_to(outside)
    url = server.serve("/a.bin", Answer(BODY))
    path = zoo.fetch(spec(url, **({} if size_known else {"size": None})))
    assert not path.is_symlink()
    assert path.read_bytes() == BODY
    assert len(server.requests) == 1


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_a_link_in_place_of_the_stamp_is_replaced_and_never_followed(zoo: Zoo, tmp_path: Path) -> None:
    path = fill(zoo.root, stamped=False)
    precious = tmp_path / "precious"
    precious.write_text("keep me")
    stamp_file(path).symlink_to(precious)
    zoo.fetch(FILE, services=zoo.services(client=NoHttp()))
    assert precious.read_text() == "keep me"
    assert not stamp_file(path).is_symlink()


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_a_stamp_behind_a_link_is_not_trusted(zoo: Zoo, tmp_path: Path) -> None:
    path = fill(zoo.root)
    elsewhere = tmp_path / "elsewhere"
    stamp_file(path).rename(elsewhere)
    stamp_file(path).symlink_to(elsewhere)
    assert cache.read_stamp(stamp_file(path)) is None
    assert zoo.fetch(FILE, services=zoo.services(client=NoHttp())) == path
    assert cache.read_stamp(stamp_file(path)) is not None


def test_a_hard_linked_file_is_replaced_and_not_written_through(zoo: Zoo, server: Server, tmp_path: Path) -> None:
    zoo.root.mkdir()
    precious = tmp_path / "precious"
    precious.write_bytes(b"keep me")
    os.link(precious, zoo.root / NAME)
    assert zoo.fetch(spec(server.serve("/a.bin", Answer(BODY)))).read_bytes() == BODY
    assert precious.read_bytes() == b"keep me"


def test_a_folder_in_place_of_the_file_is_a_cache_error(zoo: Zoo, server: Server) -> None:
    (zoo.root / NAME).mkdir(parents=True)
    with pytest.raises(CacheError):
        zoo.fetch(spec(server.serve("/a.bin", Answer(BODY))))


def test_a_reader_keeps_the_old_file_while_it_is_replaced(zoo: Zoo, server: Server) -> None:
    path = fill(zoo.root, OTHER, stamped=False)
    with path.open("rb") as reader:
        assert zoo.fetch(spec(server.serve("/a.bin", Answer(BODY)))).read_bytes() == BODY
        assert reader.read() == OTHER


@pytest.mark.parametrize("refusals", [1, 5, 10**6])
def test_a_rename_that_windows_refuses_is_retried_for_a_bounded_time(
    zoo: Zoo, server: Server, monkeypatch: pytest.MonkeyPatch, refusals: int
) -> None:
    file = spec(server.serve("/a.bin", Answer(BODY)))
    real, left = Path.replace, [refusals]

    def replace(old: Any, new: Any) -> None:
        if old.suffix == ".part":
            left[0] -= 1
            if left[0] >= 0:
                raise PermissionError(errno.EACCES, "in use")
        real(old, new)

    monkeypatch.setattr(Path, "replace", replace)
    if refusals < 20:
        assert zoo.fetch(file).read_bytes() == BODY
        assert len(zoo.clock.slept) == refusals
    else:
        with pytest.raises(CacheError):
            zoo.fetch(file)
        assert sum(zoo.clock.slept) < 5
    assert zoo.parts() == []


def test_a_refused_rename_is_no_error_if_another_process_published_the_file(
    zoo: Zoo, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = spec(server.serve("/a.bin", Answer(BODY)))
    real = Path.replace

    def replace(old: Any, new: Any) -> None:
        if old.suffix == ".part":
            fill(zoo.root)
            raise PermissionError(errno.EACCES, "in use")
        real(old, new)

    monkeypatch.setattr(Path, "replace", replace)
    assert zoo.fetch(file).read_bytes() == BODY
    assert zoo.parts() == []

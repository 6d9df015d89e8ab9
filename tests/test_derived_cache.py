"""The derived cache gives back exactly what was stored under a key, or nothing."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest

from repvgg_zoo._derived_cache import HEADER_BYTES, DerivedCache, DerivedKey
from repvgg_zoo._file_state import FileState
from repvgg_zoo.errors import CacheError

KEY = DerivedKey("a" * 64, "weights", 1, {"layout": "timm", "form": "deploy"})
SIZES = [0, 1, 4096, (4 << 20) - 1, 4 << 20, (9 << 20) + 7]


@pytest.fixture
def cache(tmp_path):
    return DerivedCache(tmp_path / "cache")


def store(cache, payload=b"payload", key=KEY):
    assert cache.write(key, lambda stream: stream.write(payload))
    (entry,) = (entry for entry in cache.entries() if key.digest()[:32] in entry.path.name)
    return entry.path


@pytest.mark.parametrize("size", SIZES)
def test_what_is_written_is_read_back(cache, size):
    payload = os.urandom(size)
    store(cache, payload)
    assert bytes(cache.read(KEY)) == payload


def test_what_is_written_in_pieces_has_the_digest_of_the_whole(cache):
    payload = os.urandom((9 << 20) + 7)
    bounds = [0, 1, 4096, (4 << 20) - 1, (4 << 20) + 5, (4 << 20) + 5, len(payload)]

    def write(stream):
        for start, stop in zip(bounds, bounds[1:]):
            stream.write(memoryview(payload)[start:stop])

    assert cache.write(KEY, write)
    assert bytes(cache.read(KEY)) == payload  # which is read only if it has the digest


def test_what_was_read_does_not_follow_the_file(cache):
    payload = os.urandom(5 << 20)
    path = store(cache, payload)
    read = cache.read(KEY)
    os.truncate(path, 0)
    assert bytes(read) == payload


@pytest.mark.parametrize("read_before", [True, False], ids=["read before", "never read"])
@pytest.mark.parametrize("size", [9, (5 << 20) + 3])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: flip(path, HEADER_BYTES),
        lambda path: flip(path, path.stat().st_size - 1),
        lambda path: flip(path, 20),
        lambda path: os.truncate(path, path.stat().st_size - 1),
        lambda path: os.truncate(path, HEADER_BYTES),
        lambda path: os.truncate(path, 3),
        lambda path: os.truncate(path, 0),
        lambda path: path.write_bytes(path.read_bytes() + b"x"),
        lambda path: path.write_bytes(b"\0" * path.stat().st_size),
        lambda path: replace_by_a_copy(path),
    ],
    ids=["first", "last", "header", "cut", "no payload", "no header", "empty", "longer", "zeros", "replaced"],
)
def test_a_damaged_entry_is_reported_and_not_used(cache, caplog, read_before, size, damage):
    path = store(cache, os.urandom(size))
    assert not read_before or cache.read(KEY) is not None
    status = path.stat()
    damage(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert cache.read(KEY) is None
    assert [(record.levelno, str(path) in record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, True)
    ]
    store(cache, b"again")
    assert bytes(cache.read(KEY)) == b"again"


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def replace_by_a_copy(path):
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    flip(copy, HEADER_BYTES + 3)
    copy.replace(path)


def damage_under_a_fitting_stamp(cache):
    path = store(cache)
    assert bytes(cache.read(KEY)) == b"payload"
    flip(path, HEADER_BYTES)
    path.with_name(f"{path.name}.stamp").write_text(json.dumps(FileState.of(path.stat())))


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="POSIX permissions")
def test_a_file_that_was_checked_before_is_not_hashed_again(cache):
    damage_under_a_fitting_stamp(cache)
    assert bytes(cache.read(KEY)) == b"qayload"


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="POSIX permissions")
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o707])
def test_where_others_can_write_every_read_checks_the_digest(cache, mode):
    damage_under_a_fitting_stamp(cache)
    cache.folder.chmod(mode)
    assert cache.read(KEY) is None


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root gives folders away")
def test_in_a_folder_of_another_user_every_read_checks_the_digest(cache):
    damage_under_a_fitting_stamp(cache)
    os.chown(cache.folder, 12345, -1)
    assert cache.read(KEY) is None


@pytest.mark.parametrize("stamp", [b"", b"{}", b"[1, 2]", b'"text"', b"null", b"[" * 100000, b"\xff"])
def test_a_damaged_stamp_costs_a_check_and_is_replaced(cache, stamp):
    path = store(cache)
    stamp_path = path.with_name(f"{path.name}.stamp")
    stamp_path.write_bytes(stamp)
    assert bytes(cache.read(KEY)) == b"payload"
    if hasattr(os, "getuid"):
        assert json.loads(stamp_path.read_bytes()) == list(FileState.of(path.stat()))


@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, source="b" * 64),
        replace(KEY, step="compile"),
        replace(KEY, version=2),
        replace(KEY, parameters={"layout": "timm", "form": "train"}),
    ],
    ids=["source", "step", "version", "parameters"],
)
def test_every_part_of_the_key_counts(cache, other):
    path = store(cache)
    assert cache.read(other) is None
    path.rename(cache._path(other))  # a file that was renamed does not become another entry
    assert cache.read(other) is None


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_only_a_regular_file_is_an_entry(cache, tmp_path, kind):
    path = store(cache)
    path.rename(tmp_path / "moved")
    {"link": lambda: path.symlink_to(tmp_path / "moved"), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    assert cache.read(KEY) is None


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "cache").write_text("a file")
    cache = DerivedCache(tmp_path / "cache")
    assert not cache.write(KEY, lambda stream: stream.write(b"x"))
    assert cache.read(KEY) is None and cache.entries() == [] and cache.prune() == []


def test_a_failure_while_writing_leaves_nothing(cache):
    def fail(stream):
        stream.write(b"half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        cache.write(KEY, fail)
    assert list(cache.folder.iterdir()) == []


def test_a_killed_writer_leaves_a_file_that_is_removed_later(cache):
    code = f"""
        import os, signal
        from pathlib import Path
        from repvgg_zoo._derived_cache import DerivedCache, DerivedKey
        key = DerivedKey("a" * 64, "weights", 1, {{}})
        kill = lambda stream: (stream.write(b"half"), os.kill(os.getpid(), signal.SIGKILL))
        DerivedCache(Path({str(cache.folder.parent)!r})).write(key, kill)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], timeout=60)
    (left,) = cache.folder.iterdir()
    assert cache.entries() == []
    store(cache)
    assert left.exists()  # another process may be writing it
    os.utime(left, (0, 0))
    store(cache)
    assert not left.exists()


def test_prune_removes_all_entries_and_nothing_else(cache):
    paths = [store(cache), store(cache, key=replace(KEY, step="compile"))]
    assert cache.read(KEY) is not None  # which leaves a stamp
    (cache.folder / "notes.txt").write_text("mine")
    assert [entry.step for entry in cache.entries()] == ["compile", "weights"]
    assert {entry.path for entry in cache.prune()} == set(paths)
    assert [path.name for path in cache.folder.iterdir()] == ["notes.txt"]


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="POSIX permissions")
def test_an_entry_is_left_in_its_file_only_once_its_digest_was_checked(cache):
    payload = os.urandom((5 << 20) + 3)
    path = store(cache, payload)
    assert cache.open_checked(KEY) is None
    cache.read(KEY)
    region = cache.open_checked(KEY)
    assert bytes(region.read(0, region.size)) == payload
    assert bytes(region.read(7, 9)) == payload[7:16]
    cache.folder.chmod(0o777)
    assert cache.open_checked(KEY) is None
    cache.folder.chmod(0o700)
    replace_by_a_copy(path)
    assert cache.open_checked(KEY) is None


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="POSIX permissions")
@pytest.mark.parametrize(
    "change", [lambda path: os.truncate(path, HEADER_BYTES + 2), lambda path: flip(path, HEADER_BYTES)]
)
def test_an_entry_that_changes_while_it_is_read_is_an_error_with_its_path(cache, change):
    path = store(cache)
    cache.read(KEY)
    region = cache.open_checked(KEY)
    change(path)
    with pytest.raises(CacheError, match="changed while it was read") as caught:
        region.read(0, 7)
    assert caught.value.path == str(path)
    assert cache.read(KEY) is None


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="POSIX permissions")
def test_an_entry_that_is_deleted_while_it_is_read_can_still_be_read(cache):
    store(cache)
    cache.read(KEY)
    region = cache.open_checked(KEY)
    cache.prune()
    assert bytes(region.read(0, 7)) == b"payload"

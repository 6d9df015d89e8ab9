"""The derived cache gives back exactly what was stored under a key, or nothing."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest

from repvgg_zoo._derived_cache import HEADER_BYTES, DerivedCache, DerivedKey

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


def test_what_was_read_does_not_follow_the_file(cache):
    payload = os.urandom(5 << 20)
    path = store(cache, payload)
    read = cache.read(KEY)
    os.truncate(path, 0)
    assert bytes(read) == payload


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
    ],
    ids=["first", "last", "header", "cut", "no payload", "no header", "empty", "longer", "zeros"],
)
def test_a_damaged_entry_is_reported_and_not_used(cache, caplog, size, damage):
    path = store(cache, os.urandom(size))
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
        kill = lambda stream: (stream.write(b"half"), stream.flush(), os.kill(os.getpid(), signal.SIGKILL))
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
    (cache.folder / "notes.txt").write_text("mine")
    assert [entry.step for entry in cache.entries()] == ["compile", "weights"]
    assert {entry.path for entry in cache.prune()} == set(paths)
    assert [path.name for path in cache.folder.iterdir()] == ["notes.txt"]

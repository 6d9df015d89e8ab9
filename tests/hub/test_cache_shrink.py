"""A cache is kept below a size by removing what can be had again, the least useful first, and nothing else.

The kind of mistake: removing what nobody can bring back, such as a file of a plugin that is not loaded today or the
only record of a digest, or what is in use, or more than is needed.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import List

import pytest

from repvgg_zoo._derived_cache import DerivedCache, DerivedKey
from repvgg_zoo.errors import IntegrityError
from repvgg_zoo.hub import cache, cache_filename, cache_manager
from repvgg_zoo.hub.partial import machine_id
from repvgg_zoo.registry.specs import FileSpec

from .conftest import Zoo, plant_stamp, snapshot, spec, stamp_file
from .server import Answer, Server

SIZE = 1000
DAY = 86400
NOW = time.time()


def add(root: Path, letter: str, days: float) -> FileSpec:
    """Add a file that was last used so many days ago."""
    root.mkdir(exist_ok=True)
    body = letter.encode() * SIZE
    file = spec(f"http://127.0.0.1:1/{letter}.bin", body=body, name=f"{letter}.bin")
    path = root / cache_filename(file)
    path.write_bytes(body)
    os.utime(str(path), (NOW - days * DAY, NOW - 100 * DAY))
    plant_stamp(path, str(file.sha256))
    return file


def add_derived(root: Path, file: FileSpec, days: float) -> Path:
    """Add derived data of a file, computed so many days ago."""
    derived = DerivedCache(root)
    before = {entry.path for entry in derived.entries()}
    derived.write(DerivedKey(str(file.sha256), "fuse", 1, ()), lambda stream: stream.write(b"d" * SIZE))
    (path,) = {entry.path for entry in derived.entries()} - before
    os.utime(str(path), (NOW, NOW - days * DAY))
    return path


def names(removed: List[cache_manager.CachedFile]) -> List[str]:
    return [entry.path.name.partition("-")[2] if entry.kind == "file" else entry.kind for entry in removed]


@pytest.mark.parametrize(
    ("max_bytes", "removed"),
    [
        (3 * SIZE, []),
        (3 * SIZE - 1, ["b.bin"]),
        (2 * SIZE, ["b.bin"]),
        (2 * SIZE - 1, ["b.bin", "c.bin"]),
        (0, ["b.bin", "c.bin", "a.bin"]),
    ],
)
def test_the_least_recently_used_files_go_first_and_no_more_than_needed(zoo: Zoo, max_bytes: int, removed: List[str]):
    files = [add(zoo.root, letter, days) for letter, days in (("a", 1), ("b", 9), ("c", 3))]
    before = snapshot(zoo.root)
    would, size = cache_manager.shrink(zoo.root, max_bytes, files, dry_run=True)
    assert snapshot(zoo.root) == before and names(would) == removed
    assert cache_manager.shrink(zoo.root, max_bytes, files) == (would, size)
    left = [entry for entry in cache_manager.list_files(zoo.root) if entry.kind == "file"]
    assert size == sum(entry.size for entry in left) == SIZE * (3 - len(removed)) <= max_bytes
    assert not [name for name in zoo.names() if name.endswith(".stamp") and not (zoo.root / name[:-6]).exists()]


def test_a_file_that_no_registry_of_today_has_is_never_removed(zoo: Zoo) -> None:
    unknown, known = add(zoo.root, "a", 99), add(zoo.root, "b", 1)
    removed, size = cache_manager.shrink(zoo.root, 0, [known])
    assert names(removed) == ["b.bin"] and size == SIZE
    assert (zoo.root / cache_filename(unknown)).exists()


def test_derived_data_goes_before_any_file_the_oldest_first(zoo: Zoo) -> None:
    file, other = add(zoo.root, "a", 9), add(zoo.root, "b", 9)
    old, new = add_derived(zoo.root, file, 5), add_derived(zoo.root, other, 2)
    total = 2 * SIZE + old.stat().st_size + new.stat().st_size
    assert [entry.path for entry in cache_manager.shrink(zoo.root, total - 1, [file, other])[0]] == [old]
    removed, _ = cache_manager.shrink(zoo.root, SIZE, [file, other])
    assert [entry.path for entry in removed[:1]] == [new] and names(removed)[1:] == ["a.bin"]


def test_what_is_removed_anyway_does_not_count(zoo: Zoo) -> None:
    file, other = add(zoo.root, "a", 9), add(zoo.root, "b", 1)
    path = zoo.root / cache_filename(file)
    assert cache_manager.shrink(zoo.root, SIZE, [file, other], without={path}, dry_run=True) == ([], SIZE)


def test_an_unfinished_download_goes_only_if_no_process_writes_it(zoo: Zoo) -> None:
    zoo.root.mkdir()
    idle = zoo.root / f"{'0' * 16}.released.{'0' * 12}.part"
    running = zoo.root / f"{'0' * 16}.{machine_id()}-{os.getpid()}.{'1' * 12}.part"
    for path in (idle, running):
        path.write_bytes(b"p" * SIZE)
        os.utime(str(path), (NOW - 30 * DAY, NOW - 30 * DAY))
    os.utime(str(running))
    removed, size = cache_manager.shrink(zoo.root, 0, [])
    assert [entry.path for entry in removed] == [idle] and size == SIZE and running.exists()


def test_the_recorded_digest_of_a_weak_file_outlives_it(zoo: Zoo, server: Server) -> None:
    body = b"x" * SIZE
    file = spec(server.serve("/u.bin", Answer(body), Answer(b"y" * SIZE)), size=None, sha256=None)
    path = zoo.fetch(file, allow_unverified=True)
    assert names(cache_manager.shrink(zoo.root, 0, [file])[0]) == ["a.bin"] and not path.exists()
    assert cache.read_stamp(stamp_file(path)) is not None
    with pytest.raises(IntegrityError, match="recorded"):
        zoo.fetch(file, allow_unverified=True)

"""List, remove, prune and verify the files of a cache, and never anything outside the folder."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from repvgg_zoo._file_state import FileState
from repvgg_zoo.errors import ArgumentError
from repvgg_zoo.hub import Settings, cache, cache_filename, cache_manager
from repvgg_zoo.hub.partial import machine_id

from .conftest import BODY, FILE, NAME, OTHER, Zoo, fill, plant_stamp, snapshot, spec, stamp_file
from .server import Answer, Server

OLD = time.time() - 30 * 86400


def old(path: Path, body: bytes = b"x") -> Path:
    path.write_bytes(body)
    os.utime(path, (OLD, OLD))
    return path


def test_the_listing_shows_files_partial_and_stale_ones_with_sizes(zoo: Zoo) -> None:
    path = fill(zoo.root)
    key = "0" * 16
    old(zoo.root / f"{key}.released.{'0' * 12}.part")
    old(zoo.root / f"{key}.lock", b"")
    old(zoo.root / f"{key}-gone.bin.stamp", b"{}")
    (zoo.root / "README.md").write_text("not the cache's")
    (zoo.root / f"{key}-folder").mkdir()
    listed = {entry.path.name: (entry.kind, entry.size) for entry in cache_manager.list_files(zoo.root)}
    assert listed == {
        path.name: ("file", len(BODY)),
        f"{key}.released.{'0' * 12}.part": ("partial", 1),
        f"{key}.lock": ("stale", 0),
        f"{key}-gone.bin.stamp": ("stale", 2),
    }
    assert [entry.sha256 for entry in cache_manager.list_files(zoo.root) if entry.kind == "file"] == [FILE.sha256]


def test_a_cache_that_does_not_exist_is_empty(zoo: Zoo) -> None:
    assert cache_manager.list_files(zoo.root) == cache_manager.prune(zoo.root) == cache_manager.verify(zoo.root) == []


@pytest.mark.parametrize("name", [NAME, NAME[:16], "a.bin"])
def test_a_file_is_removed_by_cache_name_key_or_own_name(zoo: Zoo, name: str) -> None:
    path = fill(zoo.root)
    assert [entry.path for entry in cache_manager.remove(zoo.root, [name])] == [path]
    assert zoo.names() == []


@pytest.mark.parametrize(
    "name", ["../precious", "/etc/passwd", "..", ".", "", "*", "README.md", "CACHEDIR.TAG", "precious"]
)
def test_nothing_but_the_caches_own_files_can_be_removed(zoo: Zoo, tmp_path: Path, name: str) -> None:
    fill(zoo.root)
    (zoo.root / "README.md").write_text("not the cache's")
    (tmp_path / "precious").write_text("keep me")
    before = snapshot(tmp_path)
    with pytest.raises(ArgumentError, match="nothing was removed"):
        cache_manager.remove(zoo.root, ["a.bin", name])
    assert snapshot(tmp_path) == before


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_links_in_the_cache_are_neither_listed_nor_followed(zoo: Zoo, tmp_path: Path) -> None:
    zoo.root.mkdir()
    outside = old(tmp_path / NAME, BODY)
    (zoo.root / NAME).symlink_to(outside)
    (zoo.root / f"{'0' * 16}.released.{'0' * 12}.part").symlink_to(outside)
    assert cache_manager.list_files(zoo.root) == []
    assert cache_manager.prune(zoo.root, days=0, known=[]) == []
    assert outside.read_bytes() == BODY


def test_a_dry_run_changes_nothing_and_returns_the_same(zoo: Zoo) -> None:
    fill(zoo.root)
    old(zoo.root / f"{'0' * 16}.released.{'0' * 12}.part")
    before = snapshot(zoo.root)
    would_rm = cache_manager.remove(zoo.root, ["a.bin"], dry_run=True)
    would_prune = cache_manager.prune(zoo.root, known=[], dry_run=True)
    cache_manager.verify(zoo.root, dry_run=True)
    assert snapshot(zoo.root) == before
    assert cache_manager.prune(zoo.root, known=[]) == would_prune
    assert would_rm[0] in would_prune
    assert zoo.names() == []


def test_prune_removes_old_partial_and_stale_files_only(zoo: Zoo) -> None:
    fill(zoo.root)
    key = "0" * 16
    gone = [
        old(zoo.root / f"{key}.released.{'0' * 12}.part"),
        old(zoo.root / f"{key}.{'0' * 12}-1.{'0' * 12}.part"),
        old(zoo.root / f"{key}-gone.bin.stamp"),
        old(zoo.root / f".{key}-gone.bin.stamp.{'0' * 8}.tmp"),
        old(zoo.root / f"{key}.lock"),
    ]
    remaining = [
        zoo.root / f"{key}.released.{'1' * 12}.part",
        zoo.root / f"{key}.{machine_id()}-{os.getpid()}.{'1' * 12}.part",
        zoo.root / f"{key}.{'0' * 12}-1.{'1' * 12}.part",
    ]
    for path in remaining:
        path.write_bytes(b"new")
    old(zoo.root / "precious")
    assert sorted(entry.path for entry in cache_manager.prune(zoo.root)) == sorted(gone)
    assert all(path.exists() for path in [*remaining, zoo.root / NAME, zoo.root / "precious"])


def test_prune_with_the_known_files_removes_those_of_older_registries(zoo: Zoo, server: Server) -> None:
    fill(zoo.root)
    other = zoo.fetch(spec(server.serve("/b.bin", Answer(OTHER)), body=OTHER, name="b.bin"))
    assert [entry.path for entry in cache_manager.prune(zoo.root, known=[FILE])] == [other]
    assert zoo.names() == [NAME, NAME + ".stamp"]


def test_the_record_of_an_unverified_file_outlives_it(zoo: Zoo, server: Server) -> None:
    file = spec(server.serve("/u.bin", Answer(BODY)), size=None, sha256=None)
    path = zoo.fetch(file, allow_unverified=True)
    path.unlink()
    cache_manager.prune(zoo.root, days=0)
    assert cache.read_stamp(stamp_file(path)) is not None


def test_prune_does_not_disturb_a_running_download(zoo: Zoo, server: Server) -> None:
    """Not even if it ignores the age."""
    file = spec(server.serve("/a.bin", Answer(BODY)))
    stop = threading.Event()

    def prune() -> None:
        while not stop.is_set():
            cache_manager.prune(zoo.root, days=-1)

    thread = threading.Thread(target=prune)
    thread.start()
    try:
        for _ in range(10):
            assert zoo.fetch(file).read_bytes() == BODY
            cache_manager.remove(zoo.root, ["a.bin"])
    finally:
        stop.set()
        thread.join()


def test_verify_detects_damage_by_the_name_and_by_the_stamp(zoo: Zoo) -> None:
    """A full key needs no registry."""
    fill(zoo.root, OTHER)
    (finding,) = cache_manager.verify(zoo.root)
    assert finding.problem is not None
    assert "its name says" in finding.problem
    unverified = zoo.root / f"u{'0' * 15}-u.bin"
    unverified.write_bytes(BODY)
    plant_stamp(unverified, "0" * 64, "none")
    problems = {item.file.path.name: item.problem for item in cache_manager.verify(zoo.root)}
    assert "was recorded" in str(problems[unverified.name])


def test_verify_refreshes_the_stamp_of_an_intact_file(zoo: Zoo) -> None:
    path = fill(zoo.root)
    os.utime(path)
    assert [finding.problem for finding in cache_manager.verify(zoo.root)] == [None]
    stamp = cache.read_stamp(stamp_file(path))
    assert stamp is not None
    assert stamp.state == FileState.of(path.stat())


def test_a_cache_folder_is_a_mirror(zoo: Zoo, tmp_path: Path) -> None:
    fill(tmp_path / "other")
    file = spec("http://127.0.0.1:1/")
    settings = Settings(cache_dir=zoo.root, mirrors=(str(tmp_path / "other"),))
    assert zoo.fetch(file, settings=settings).name == cache_filename(file)

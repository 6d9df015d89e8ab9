"""List, remove, prune and verify the files of a cache, and never anything outside the folder.

The kinds of mistake that these tests are about: deleting what somebody else may need, deleting something other than
what was named, leaving behind what keeps a deleted file in memory, and being silent about what cannot be read.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from repvgg_zoo._derived_cache import DerivedCache, DerivedKey
from repvgg_zoo._file_state import FileState
from repvgg_zoo.errors import ArgumentError, CacheError, IntegrityError
from repvgg_zoo.hub import Settings, cache, cache_filename, cache_manager
from repvgg_zoo.hub.filenames import cache_key
from repvgg_zoo.hub.partial import machine_id
from tests.other_user import run_as_other_user

from .conftest import BODY, FILE, NAME, OTHER, Zoo, fill, plant_stamp, snapshot, spec, stamp_file
from .server import Answer, Server

ROOT = Path(__file__).resolve().parents[2]
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
        f"{key}-folder": ("invalid", 0),
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


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links and FIFOs")
def test_what_is_not_a_regular_file_is_listed_with_its_problem_and_never_followed(zoo: Zoo, tmp_path: Path) -> None:
    zoo.root.mkdir()
    outside = old(tmp_path / NAME, BODY)
    (zoo.root / NAME).symlink_to(outside)
    (zoo.root / f"{'0' * 16}.released.{'0' * 12}.part").symlink_to(outside)
    (zoo.root / f"{'1' * 16}-dangling.bin").symlink_to(tmp_path / "nowhere")
    os.mkfifo(zoo.root / f"{'2' * 16}-pipe.bin")
    (zoo.root / f"{'3' * 16}-folder").mkdir()
    problems = {file.path.name[:2]: (file.kind, file.problem) for file in cache_manager.list_files(zoo.root)}
    assert problems == {
        NAME[:2]: ("invalid", "it is a link, not a regular file"),
        "00": ("invalid", "it is a link, not a regular file"),
        "11": ("invalid", "it is a link, not a regular file"),
        "22": ("invalid", "it is a FIFO, not a regular file"),
        "33": ("invalid", "it is a folder, not a regular file"),
    }
    assert [finding.sha256 for finding in cache_manager.verify(zoo.root)] == [None] * 5
    assert cache_manager.prune(zoo.root, days=0) == []
    assert outside.read_bytes() == BODY


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_a_link_is_removed_by_name_and_its_target_stays(zoo: Zoo, tmp_path: Path) -> None:
    zoo.root.mkdir()
    outside = old(tmp_path / NAME, BODY)
    (zoo.root / NAME).symlink_to(outside)
    cache_manager.remove(zoo.root, [NAME])
    assert zoo.names() == [] and outside.read_bytes() == BODY


def test_an_entry_that_cannot_be_removed_is_an_error_with_its_path(zoo: Zoo) -> None:
    (zoo.root / NAME).mkdir(parents=True)
    with pytest.raises(CacheError) as caught:
        cache_manager.remove(zoo.root, [NAME])
    assert caught.value.path == str(zoo.root / NAME) in caught.value.message


def test_an_unreadable_file_is_a_problem_of_its_own(zoo: Zoo) -> None:
    fill(zoo.root)
    unreadable = old(zoo.root / f"{'0' * 16}-secret.bin")
    unreadable.chmod(0)
    listed, verified = evaluate_as_other_user(
        "[[file.path.name, file.problem] for file in cache_manager.list_files(root)],"
        "[[result.file.path.name, result.problem] for result in cache_manager.verify(root)]",
        zoo.root,
    )
    assert listed == [[unreadable.name, "cannot be read: Permission denied"], [NAME, None]]
    assert verified == listed


@pytest.mark.parametrize("closed", ["folder", "parent"])
def test_a_folder_that_cannot_be_read_is_not_an_empty_cache(zoo: Zoo, closed: str) -> None:
    fill(zoo.root)
    folder = zoo.root if closed == "folder" else zoo.root.parent
    folder.chmod(0)
    try:
        with pytest.raises(AssertionError, match=f"cannot read the cache folder {zoo.root}: Permission denied"):
            evaluate_as_other_user("cache_manager.list_files(root)", zoo.root)
    finally:
        folder.chmod(0o755)


def test_a_folder_that_is_a_dangling_link_is_not_an_empty_cache(zoo: Zoo) -> None:
    zoo.root.symlink_to("nowhere")
    with pytest.raises(CacheError, match=str(zoo.root)):
        cache_manager.list_files(zoo.root)


def evaluate_as_other_user(expression: str, root: Path) -> Any:
    """Return the value of an expression in a process that obeys permissions, unlike root's."""
    code = f"""
import json, sys
from pathlib import Path
from repvgg_zoo.hub import cache_manager
root = Path(sys.argv[1])
print(json.dumps([{expression}]))
"""
    done = run_as_other_user("-c", code, str(root), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_file_that_vanishes_while_it_is_verified_is_not_a_finding(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fill(zoo.root)

    def hash_file(path: Path) -> str:
        path.unlink()  # as another process does it
        return real(path)

    real = cache_manager.hash_file
    monkeypatch.setattr(cache_manager, "hash_file", hash_file)
    assert cache_manager.verify(zoo.root) == []
    assert not path.exists()


def test_a_dry_run_changes_nothing_and_returns_the_same(zoo: Zoo) -> None:
    fill(zoo.root)
    old(zoo.root / f"{'0' * 16}.released.{'0' * 12}.part")
    before = snapshot(zoo.root)
    would_rm = cache_manager.remove(zoo.root, ["a.bin"], dry_run=True)
    would_prune = cache_manager.prune(zoo.root, dry_run=True)
    cache_manager.verify(zoo.root, dry_run=True)
    assert snapshot(zoo.root) == before
    assert cache_manager.prune(zoo.root) == would_prune
    assert cache_manager.remove(zoo.root, ["a.bin"]) == would_rm
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


def test_no_whole_file_is_ever_pruned_and_unknown_ones_are_only_listed(zoo: Zoo, server: Server) -> None:
    """They may belong to a plugin that cannot be loaded today, or to the registry of another shell."""
    fill(zoo.root)
    other = zoo.fetch(spec(server.serve("/b.bin", Answer(OTHER)), body=OTHER, name="b.bin"))
    os.utime(other, (OLD, OLD))
    assert [entry.path for entry in cache_manager.unknown_files(zoo.root, [FILE])] == [other]
    cache_manager.prune(zoo.root, days=-1)
    assert other.exists() and (zoo.root / NAME).exists()


def test_a_name_that_several_files_have_removes_none_of_them(zoo: Zoo) -> None:
    """Publishers call their files model.safetensors or pytorch_model.bin."""
    names = [f"{digit * 16}-model.bin" for digit in "01"]
    fill(zoo.root)
    for name in names:
        old(zoo.root / name)
    before = snapshot(zoo.root)
    with pytest.raises(ArgumentError, match="may be any of 2 files") as caught:
        cache_manager.remove(zoo.root, ["a.bin", "model.bin"])
    assert caught.value.expected == names and all(name in str(caught.value.hint) for name in names)
    assert snapshot(zoo.root) == before
    assert [entry.path.name for entry in cache_manager.remove(zoo.root, [names[0]])] == names[:1]
    assert [entry.path.name for entry in cache_manager.remove(zoo.root, ["model.bin"])] == names[1:]


@pytest.mark.parametrize("deleted_by_hand", [True, False])
@pytest.mark.parametrize("name", ["u.bin", "key", "file"])
def test_with_a_file_goes_all_that_the_cache_remembers_of_it(
    zoo: Zoo, server: Server, name: str, deleted_by_hand: bool
) -> None:
    file = spec(server.serve("/u.bin", Answer(BODY)), name="u.bin", size=None, sha256=None)
    path = zoo.fetch(file, allow_unverified=True)
    fill(zoo.root)
    key = cache_key(file)
    (zoo.root / f"{key}.lock").touch()
    (zoo.root / f"{key}.released.{'0' * 12}.part").write_bytes(b"x")
    derived = DerivedCache(zoo.root)
    for source in (hashlib.sha256(BODY).hexdigest(), "f" * 64):
        assert derived.write(DerivedKey(source, "weights", 1, {}), lambda stream: stream.write(b"x"))
    if deleted_by_hand:
        path.unlink()
        assert [entry.kind for entry in cache_manager.list_files(zoo.root) if "u.bin" in entry.path.name] == ["record"]
    removed = cache_manager.remove(zoo.root, [{"key": key, "file": path.name}.get(name, name)])
    kinds = sorted(entry.kind for entry in removed)
    assert kinds == sorted(["record" if deleted_by_hand else "file", "stale", "partial", "derived"])
    assert [each.name for each in zoo.root.iterdir() if each.name.startswith(key)] == []
    assert [entry.source for entry in derived.entries()] == ["f" * 64], "of another file"
    server.serve("/u.bin", Answer(OTHER))  # the publisher has a new file
    assert zoo.fetch(file, allow_unverified=True).read_bytes() == OTHER


def test_a_file_that_its_publisher_replaced_is_refused_with_the_name_to_remove(zoo: Zoo, server: Server) -> None:
    file = spec(server.serve("/u.bin", Answer(BODY)), name="u.bin", size=None, sha256=None)
    path = zoo.fetch(file, allow_unverified=True)
    path.unlink()
    server.serve("/u.bin", Answer(OTHER))
    with pytest.raises(IntegrityError) as caught:
        zoo.fetch(file, allow_unverified=True)
    assert f"`repvgg-zoo cache rm {path.name}`" in str(caught.value.hint)
    cache_manager.remove(zoo.root, [path.name])
    assert zoo.fetch(file, allow_unverified=True).read_bytes() == OTHER


def test_a_running_download_keeps_its_lock_and_its_bytes(zoo: Zoo) -> None:
    fill(zoo.root)
    key = NAME[:16]
    own = zoo.root / f"{key}.{machine_id()}-{os.getpid()}.{'1' * 12}.part"
    lock = zoo.root / f"{key}.lock"
    for path in (own, lock):
        path.write_bytes(b"x")
    assert [entry.path.name for entry in cache_manager.remove(zoo.root, [NAME])] == [NAME]
    assert own.exists() and lock.exists()


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

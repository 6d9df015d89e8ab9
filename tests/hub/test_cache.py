"""Cache folders in any state, and when a file in them is trusted."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict

import pytest

from repvgg_zoo._file_state import FileState
from repvgg_zoo.errors import ArgumentError, CacheError, IntegrityError, UnverifiedError
from repvgg_zoo.hub import (
    Settings,
    cache,
    cache_filename,
    cache_manager,
    fetch_file,
    fetch_verified,
    read_settings,
)

from .conftest import BODY, FILE, NAME, OTHER, NoHttp, Zoo, fill, plant_stamp, snapshot, spec, stamp_file
from .server import Answer, Server


def test_a_cached_file_uses_no_network_and_writes_nothing(zoo: Zoo) -> None:
    path = fill(zoo.root)
    before = snapshot(zoo.root)
    assert fetch_file(FILE, settings=Settings(cache_dir=zoo.root), services=zoo.services(client=NoHttp())) == path
    assert snapshot(zoo.root) == before


def test_a_cached_file_opens_nothing_for_writing_and_creates_no_lock(zoo: Zoo) -> None:
    """According to the interpreter's audit events, in a process of its own."""
    import subprocess

    fill(zoo.root)
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from repvgg_zoo.hub import Settings, fetch_file\n"
        "from repvgg_zoo.registry.specs import FileSpec\n"
        "events = []\n"
        "def watch(event, args):\n"
        "    if event == 'open':\n"
        "        events.append((event, args[2]))\n"
        "    elif event.split('.')[0] in ('os', 'shutil', 'socket', 'fcntl', 'import'):\n"
        "        events.append((event, args))\n"
        f"file = {FILE!r}\n"
        f"settings = Settings(cache_dir=Path({str(zoo.root)!r}))\n"
        "sys.addaudithook(watch)\n"
        "fetch_file(file, settings=settings)\n"
        "writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND\n"
        "bad = [item for item in events if item[0] != 'open' or (item[1] or 0) & writing]\n"
        "print(bad, 'requests' in sys.modules, 'filelock' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] False False"


def test_a_cached_file_is_returned_from_a_read_only_folder(zoo: Zoo) -> None:
    path = fill(zoo.root)
    for item in (path, stamp_file(path), zoo.root):
        item.chmod(0o555 if item.is_dir() else 0o444)
    try:
        assert fetch_file(FILE, settings=Settings(cache_dir=zoo.root), services=zoo.services(client=NoHttp())) == path
    finally:
        zoo.root.chmod(0o755)


@pytest.mark.parametrize("writable", [True, False])
def test_a_file_in_a_read_only_cache_needs_no_writable_cache(zoo: Zoo, tmp_path: Path, writable: bool) -> None:
    path = fill(tmp_path / "shared", stamped=False)
    before = snapshot(tmp_path / "shared")
    home = zoo.root if writable else tmp_path / "a-file" / "home"
    (tmp_path / "a-file").write_bytes(b"")
    settings = Settings(cache_dir=home, read_only_cache_dirs=(tmp_path / "absent", tmp_path / "shared"))
    for _ in range(2):
        assert zoo.fetch(FILE, settings=settings) == path
    assert snapshot(tmp_path / "shared") == before


def test_a_file_missing_in_the_read_only_caches_goes_into_the_writable_one(
    zoo: Zoo, server: Server, tmp_path: Path
) -> None:
    fill(tmp_path / "shared", OTHER, stamped=False)
    settings = Settings(cache_dir=zoo.root, read_only_cache_dirs=(tmp_path / "shared",))
    path = zoo.fetch(spec(server.serve("/a.bin", Answer(BODY))), settings=settings)
    assert path.parent == zoo.root
    assert (tmp_path / "shared" / NAME).read_bytes() == OTHER


def test_a_cache_that_cannot_be_written_names_the_folder_and_the_variable(zoo: Zoo, server: Server) -> None:
    """A file is in place of the folder."""
    zoo.root.write_bytes(b"")
    with pytest.raises(CacheError, match="REPVGG_ZOO_HOME") as caught:
        zoo.fetch(FILE)
    assert caught.value.path == str(zoo.root)


def test_a_file_in_place_of_a_parent_folder_is_a_cache_error(zoo: Zoo, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CacheError):
        zoo.fetch(FILE, settings=Settings(cache_dir=tmp_path / "file" / "cache"))


@pytest.mark.parametrize("name", ["with space", "ключ-模型", "a" * 200, "x%20y;'\"$(touch z)", "deep/er/still/deeper"])
def test_a_cache_folder_may_have_any_name(zoo: Zoo, server: Server, tmp_path: Path, name: str) -> None:
    settings = read_settings({"REPVGG_ZOO_HOME": str(tmp_path / name)})
    path = zoo.fetch(spec(server.serve("/a.bin", Answer(BODY))), settings=settings)
    assert path.parent == tmp_path / name
    assert path.read_bytes() == BODY


def test_a_path_too_long_for_the_system_is_a_cache_error(zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(CacheError):
        zoo.fetch(FILE, settings=Settings(cache_dir=tmp_path / ("b" * 300)))


BAD_FILES: Dict[str, Callable[[Path], None]] = {
    "empty": lambda path: path.write_bytes(b"") and None,
    "truncated": lambda path: path.write_bytes(BODY[:-1]) and None,
    "longer": lambda path: path.write_bytes(BODY + b"x") and None,
    "other-bytes": lambda path: path.write_bytes(OTHER) and None,
}


@pytest.mark.parametrize("damage", list(BAD_FILES.values()), ids=list(BAD_FILES))
@pytest.mark.parametrize("size_known", [True, False])
@pytest.mark.parametrize("stamped", [True, False])
def test_a_damaged_file_is_noticed_and_replaced(
    zoo: Zoo, server: Server, damage: Callable[[Path], None], size_known: bool, stamped: bool
) -> None:
    path = fill(zoo.root, stamped=stamped)
    time.sleep(0.01)  # so that the file system's clock, which ticks in milliseconds, has moved
    damage(path)
    url = server.serve("/a.bin", Answer(BODY))
    assert zoo.fetch(spec(url, **({} if size_known else {"size": None}))).read_bytes() == BODY
    assert len(server.requests) == 1


def test_a_flipped_bit_is_found_by_verify_and_repaired_by_the_next_fetch(zoo: Zoo, server: Server) -> None:
    """Size and modification time do not show it; the time of change, which no program can set, does."""
    file = spec(server.serve("/a.bin", Answer(BODY)))
    path = zoo.fetch(file)
    status = path.stat()
    path.write_bytes(OTHER)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert [finding.problem is not None for finding in cache_manager.verify(zoo.root)] == [True]
    assert zoo.fetch(file).read_bytes() == BODY


STATE = [1, 2, len(BODY), 3, 4]
STAMPS: Dict[str, bytes] = {
    "empty": b"",
    "garbage": b"\x00\xff\x80garbage",
    "not-an-object": b"[1, 2]",
    "missing-fields": b'{"sha256": "1"}',
    "wrong-types": json.dumps({"state": ["1"] * 5, "sha256": 7, "integrity": "sha256", "version": 2}).encode(),
    "short-state": json.dumps({"state": [1], "sha256": "0" * 64, "integrity": "sha256", "version": 2}).encode(),
    "other-version": json.dumps({"state": STATE, "sha256": "0" * 64, "integrity": "sha256", "version": 3}).encode(),
    "other-file": json.dumps({"state": STATE, "sha256": "0" * 64, "integrity": "sha256", "version": 2}).encode(),
    "deep": b"[" * 4000,
    "huge": b" " * 100_000,
}


@pytest.mark.parametrize("text", [None, *STAMPS.values()], ids=["missing", *STAMPS])
def test_a_file_with_an_invalid_stamp_is_hashed_and_stamped_again(zoo: Zoo, text: Any) -> None:
    path = fill(zoo.root, stamped=False)
    if text is not None:
        stamp_file(path).write_bytes(text)
    assert zoo.fetch(FILE, services=zoo.services(client=NoHttp())) == path
    stamp = cache.read_stamp(stamp_file(path))
    assert stamp is not None
    assert stamp.state == FileState.of(path.stat())
    assert stamp.sha256 == FILE.sha256


def test_a_stamp_with_another_digest_is_not_trusted(zoo: Zoo, server: Server) -> None:
    path = fill(zoo.root)
    plant_stamp(path, "0" * 64)
    zoo.fetch(spec(server.serve("/a.bin", Answer(BODY))))
    assert len(server.requests) == 1


def test_a_folder_in_place_of_a_stamp_does_no_harm(zoo: Zoo) -> None:
    path = fill(zoo.root, stamped=False)
    stamp_file(path).mkdir()
    assert zoo.fetch(FILE, services=zoo.services(client=NoHttp())) == path
    assert zoo.names() == [NAME, NAME + ".stamp"]


@pytest.mark.parametrize("how", ["move", "copy-with-times", "copy-without-times"])
def test_a_cache_that_was_moved_is_still_valid(zoo: Zoo, server: Server, tmp_path: Path, how: str) -> None:
    zoo.fetch(spec(server.serve("/a.bin", Answer(BODY))))
    there = tmp_path / "there"
    if how == "move":
        zoo.root.rename(there)
    else:
        shutil.copytree(zoo.root, there, copy_function=shutil.copy2 if how == "copy-with-times" else shutil.copyfile)
    path = fetch_file(FILE, settings=Settings(cache_dir=there), services=zoo.services(client=NoHttp()))
    assert path.parent == there
    assert str(zoo.root) not in "".join(item.read_text() for item in there.glob("*.stamp"))


def test_the_folder_is_tagged_as_a_cache(zoo: Zoo, server: Server) -> None:
    zoo.fetch(spec(server.serve("/a.bin", Answer(BODY))))
    assert (zoo.root / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")


def test_the_digest_is_returned_with_the_file(zoo: Zoo, server: Server, tmp_path: Path) -> None:
    url = server.serve("/a.bin", Answer(BODY))
    prefix = str(FILE.sha256)[:8]
    files = [
        spec(url),
        spec(url, sha256=None, sha256_prefix=prefix),
        spec(url, sha256=None, size=None),
    ]
    for file in files:
        for _ in range(2):  # downloaded, then cached
            verified = fetch_verified(file, settings=Settings(cache_dir=zoo.root), allow_unverified=True)
            assert verified == (zoo.root / cache_filename(file), FILE.sha256, file.integrity)


def test_a_prefix_verifies_a_file_and_the_full_digest_is_recorded(zoo: Zoo, server: Server) -> None:
    url = server.serve("/a.bin", Answer(BODY))
    file = spec(url, sha256=None, sha256_prefix=str(FILE.sha256)[:8])
    path = zoo.fetch(file)
    assert path.name == f"{str(FILE.sha256)[:8]}-a.bin"
    stamp = cache.read_stamp(stamp_file(path))
    assert stamp is not None
    assert (stamp.sha256, stamp.integrity) == (FILE.sha256, "sha256_prefix")


class TestUnverified:
    """Files of which the publisher states no digest."""

    def file(self, server: Server, *answers: Answer) -> Any:
        return spec(server.serve("/u.bin", *answers), size=None, sha256=None, name="u.bin")

    def test_is_refused_before_the_network_unless_allowed(self, zoo: Zoo, server: Server) -> None:
        with pytest.raises(UnverifiedError, match="REPVGG_ZOO_ALLOW_UNVERIFIED"):
            zoo.fetch(self.file(server, Answer(BODY)))
        assert server.requests == []
        assert not zoo.root.exists()

    @pytest.mark.parametrize("by", ["argument", "environment"])
    def test_is_cached_once_allowed(self, zoo: Zoo, server: Server, by: str) -> None:
        file = self.file(server, Answer(BODY))
        if by == "argument":
            path = zoo.fetch(file, allow_unverified=True)
        else:
            path = zoo.fetch(file, settings=Settings(cache_dir=zoo.root, allow_unverified=True))
        assert zoo.fetch(file, services=zoo.services(client=NoHttp())) == path

    def test_is_checked_against_the_recorded_digest_when_it_is_fetched_again(self, zoo: Zoo, server: Server) -> None:
        file = self.file(server, Answer(BODY), Answer(OTHER))
        zoo.fetch(file, allow_unverified=True).unlink()
        with pytest.raises(IntegrityError) as caught:
            zoo.fetch(file, allow_unverified=True)
        assert caught.value.expected == FILE.sha256

    def test_that_was_changed_on_disk_is_fetched_again_and_must_be_as_before(self, zoo: Zoo, server: Server) -> None:
        file = self.file(server, Answer(BODY))
        path = zoo.fetch(file, allow_unverified=True)
        path.write_bytes(b"changed")
        assert zoo.fetch(file, allow_unverified=True).read_bytes() == BODY

    def test_whose_record_was_lost_is_not_returned_unless_allowed(self, zoo: Zoo, server: Server) -> None:
        file = self.file(server, Answer(BODY))
        path = zoo.fetch(file, allow_unverified=True)
        stamp_file(path).unlink()
        with pytest.raises(UnverifiedError):
            zoo.fetch(file)
        assert zoo.fetch(file, allow_unverified=True, services=zoo.services(client=NoHttp())) == path

    def test_is_forgotten_when_it_is_removed(self, zoo: Zoo, server: Server) -> None:
        file = self.file(server, Answer(BODY), Answer(OTHER))
        zoo.fetch(file, allow_unverified=True)
        cache_manager.remove(zoo.root, ["u.bin"])
        assert zoo.fetch(file, allow_unverified=True).read_bytes() == OTHER


def test_an_invalid_digest_is_an_argument_error(zoo: Zoo) -> None:
    for fields in ({"sha256": "xyz"}, {"sha256": "0" * 63}, {"sha256": None, "sha256_prefix": "abc"}):
        with pytest.raises(ArgumentError):
            zoo.fetch(spec("http://127.0.0.1:1/", **fields))


def test_a_digest_in_capitals_is_the_same_digest(zoo: Zoo) -> None:
    fill(zoo.root)
    assert zoo.fetch(spec(sha256=str(FILE.sha256).upper()), services=zoo.services(client=NoHttp())).name == NAME

"""What a cache folder may look like, and what is made of it (T24-T33, T36)."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict

import pytest

from repvgg_zoo.errors import ArgumentError, CacheError, DiskFullError, IntegrityError, UnverifiedError
from repvgg_zoo.hub import Settings, cache, fetch_file, manage, read_settings, stored_name
from repvgg_zoo.hub.parts import Part

from .conftest import BODY, OTHER, Zoo, spec
from .server import Answer, Server

FILE = spec("http://127.0.0.1:1/a.bin")  # nobody listens there
NAME = stored_name(FILE)


class NoWeb:
    """A network that must not be used."""

    def get(self, source: Any, headers: Any) -> Any:
        raise AssertionError("the network was used")

    def close(self) -> None:
        pass


def fill(root: Path, body: bytes = BODY, stamped: bool = True) -> Path:
    """A cache folder that holds the file."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / NAME
    path.write_bytes(body)
    if stamped:
        status = path.stat()
        cache.write_stamp(path, cache.Stamp(len(body), status.st_mtime_ns, FILE.sha256 or "", "sha256"))
    return path


def snapshot(root: Path) -> Dict[str, Any]:
    """Every name below a folder with its inode, size and times of change."""
    return {
        str(path): (path.lstat().st_ino, path.lstat().st_size, path.lstat().st_mtime_ns, path.lstat().st_ctime_ns)
        for path in [root, *root.rglob("*")]
    }


def test_a_hit_uses_no_network_and_writes_nothing(zoo: Zoo) -> None:
    """T25"""
    path = fill(zoo.root)
    before = snapshot(zoo.root)
    assert fetch_file(FILE, settings=Settings(cache=zoo.root), tools=zoo.tools(web=NoWeb())) == path
    assert snapshot(zoo.root) == before


def test_a_hit_opens_nothing_for_writing_and_makes_no_file_or_lock(zoo: Zoo) -> None:
    """T25: as the interpreter's own audit events tell, in a process of its own."""
    import subprocess

    fill(zoo.root)
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from repvgg_zoo.hub import Settings, fetch_file\n"
        "from repvgg_zoo.registry.spec import FileSpec\n"
        "seen = []\n"
        "def watch(event, args):\n"
        "    if event == 'open':\n"
        "        seen.append((event, args[2]))\n"
        "    elif event.split('.')[0] in ('os', 'shutil', 'socket', 'fcntl', 'import'):\n"
        "        seen.append((event, args))\n"
        f"file = {FILE!r}\n"
        f"settings = Settings(cache=Path({str(zoo.root)!r}))\n"
        "sys.addaudithook(watch)\n"
        "fetch_file(file, settings=settings)\n"
        "writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND\n"
        "bad = [item for item in seen if item[0] != 'open' or (item[1] or 0) & writing]\n"
        "print(bad, 'requests' in sys.modules, 'filelock' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] False False"


def test_a_hit_works_on_a_read_only_tree(zoo: Zoo) -> None:
    """T25"""
    path = fill(zoo.root)
    for item in (path, cache.stamp_path(path), zoo.root):
        item.chmod(0o555 if item.is_dir() else 0o444)
    try:
        assert fetch_file(FILE, settings=Settings(cache=zoo.root), tools=zoo.tools(web=NoWeb())) == path
    finally:
        zoo.root.chmod(0o755)


def test_a_hit_in_a_read_only_root_needs_no_cache_at_all(zoo: Zoo, tmp_path: Path) -> None:
    """T25, T26"""
    path = fill(tmp_path / "shared", stamped=False)
    before = snapshot(tmp_path / "shared")
    settings = Settings(cache=zoo.root, read_only=(tmp_path / "absent", tmp_path / "shared"))
    assert zoo.fetch(FILE, settings=settings) == path
    assert snapshot(tmp_path / "shared") == before
    assert not zoo.root.exists()


def test_a_miss_in_the_read_only_roots_is_fetched_into_the_writable_one(
    zoo: Zoo, server: Server, tmp_path: Path
) -> None:
    """T26"""
    fill(tmp_path / "shared", OTHER, stamped=False)
    settings = Settings(cache=zoo.root, read_only=(tmp_path / "shared",))
    path = zoo.fetch(spec(server.serve("/a.bin", Answer(BODY))), settings=settings)
    assert path.parent == zoo.root
    assert (tmp_path / "shared" / NAME).read_bytes() == OTHER


def test_a_cache_that_cannot_be_written_names_the_folder_and_the_variable(zoo: Zoo, server: Server) -> None:
    """T26, T27: a file stands where the folder should be."""
    zoo.root.write_bytes(b"")
    with pytest.raises(CacheError, match="REPVGG_ZOO_HOME") as caught:
        zoo.fetch(FILE)
    assert caught.value.path == str(zoo.root)


def test_a_file_in_place_of_a_parent_folder_is_a_cache_error(zoo: Zoo, tmp_path: Path) -> None:
    """T27"""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CacheError):
        zoo.fetch(FILE, settings=Settings(cache=tmp_path / "file" / "cache"))


@pytest.mark.parametrize("name", ["with space", "ключ-模型", "a" * 200, "x%20y;'\"$(touch z)", "deep/er/still/deeper"])
def test_a_cache_may_lie_anywhere(zoo: Zoo, server: Server, tmp_path: Path, name: str) -> None:
    """T27"""
    settings = read_settings({"REPVGG_ZOO_HOME": str(tmp_path / name)})
    path = zoo.fetch(spec(server.serve("/a.bin", Answer(BODY))), settings=settings)
    assert path.parent == tmp_path / name
    assert path.read_bytes() == BODY


def test_a_path_too_long_for_the_system_is_a_cache_error(zoo: Zoo, tmp_path: Path) -> None:
    """T27"""
    with pytest.raises(CacheError):
        zoo.fetch(FILE, settings=Settings(cache=tmp_path / ("b" * 300)))


BAD_FILES: Dict[str, Callable[[Path], None]] = {
    "empty": lambda path: path.write_bytes(b"") and None,
    "truncated": lambda path: path.write_bytes(BODY[:-1]) and None,
    "longer": lambda path: path.write_bytes(BODY + b"x") and None,
    "other-bytes": lambda path: path.write_bytes(OTHER) and None,
}


@pytest.mark.parametrize("spoil", list(BAD_FILES.values()), ids=list(BAD_FILES))
@pytest.mark.parametrize("size_known", [True, False])
@pytest.mark.parametrize("stamped", [True, False])
def test_a_damaged_file_is_noticed_and_replaced(
    zoo: Zoo, server: Server, spoil: Callable[[Path], None], size_known: bool, stamped: bool
) -> None:
    """T28, T29"""
    path = fill(zoo.root, stamped=stamped)
    time.sleep(0.01)  # so that the file system's clock, which ticks in milliseconds, has moved
    spoil(path)
    url = server.serve("/a.bin", Answer(BODY))
    assert zoo.fetch(spec(url, **({} if size_known else {"size": None}))).read_bytes() == BODY
    assert len(server.requests) == 1


def test_a_flipped_bit_under_an_unchanged_stamp_is_found_by_verify_and_mended_by_the_next_fetch(
    zoo: Zoo, server: Server
) -> None:
    """T29: a hit trusts size and time of change, as documented; ``verify`` does not."""
    file = spec(server.serve("/a.bin", Answer(BODY)))
    path = zoo.fetch(file)
    status = path.stat()
    path.write_bytes(OTHER)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert zoo.fetch(file) == path
    assert path.read_bytes() == OTHER
    assert [finding.problem is not None for finding in manage.verify(zoo.root, dry_run=True)] == [True]
    assert zoo.fetch(file).read_bytes() == OTHER
    manage.verify(zoo.root)
    assert zoo.fetch(file).read_bytes() == BODY


STAMPS: Dict[str, bytes] = {
    "empty": b"",
    "garbage": b"\x00\xff\x80garbage",
    "not-an-object": b"[1, 2]",
    "missing-fields": b'{"size": 1}',
    "wrong-types": json.dumps(
        {"size": "1", "mtime_ns": None, "sha256": 7, "integrity": "sha256", "version": 1}
    ).encode(),
    "other-version": json.dumps(
        {"size": len(BODY), "mtime_ns": 0, "sha256": "0" * 64, "integrity": "sha256", "version": 2}
    ).encode(),
    "from-the-future": json.dumps(
        {"size": len(BODY), "mtime_ns": 2**62, "sha256": "0" * 64, "integrity": "sha256", "version": 1}
    ).encode(),
    "deep": b"[" * 4000,
    "huge": b" " * 100_000,
}


@pytest.mark.parametrize("text", [None, *STAMPS.values()], ids=["missing", *STAMPS])
def test_a_stamp_that_does_not_fit_makes_the_file_be_hashed_and_stamped_anew(zoo: Zoo, text: Any) -> None:
    """T30"""
    path = fill(zoo.root, stamped=False)
    if text is not None:
        cache.stamp_path(path).write_bytes(text)
    assert zoo.fetch(FILE, tools=zoo.tools(web=NoWeb())) == path
    stamp = cache.read_stamp(path)
    assert stamp is not None
    assert stamp.mtime_ns == path.stat().st_mtime_ns
    assert stamp.sha256 == FILE.sha256


def test_a_stamp_of_another_digest_does_not_vouch_for_the_file(zoo: Zoo, server: Server) -> None:
    """T30"""
    path = fill(zoo.root)
    status = path.stat()
    cache.write_stamp(path, cache.Stamp(len(BODY), status.st_mtime_ns, "0" * 64, "sha256"))
    zoo.fetch(spec(server.serve("/a.bin", Answer(BODY))))
    assert len(server.requests) == 1


def test_a_folder_in_place_of_a_stamp_does_no_harm(zoo: Zoo) -> None:
    """T30, T32"""
    path = fill(zoo.root, stamped=False)
    cache.stamp_path(path).mkdir()
    assert zoo.fetch(FILE, tools=zoo.tools(web=NoWeb())) == path
    assert zoo.names() == [NAME, NAME + ".stamp"]


def test_a_disk_without_room_is_noticed_before_the_first_byte(zoo: Zoo, server: Server) -> None:
    """T31"""
    file = spec(server.serve("/a.bin", Answer(BODY)))
    with pytest.raises(DiskFullError) as caught:
        zoo.fetch(file, tools=zoo.tools(free_bytes=lambda folder: 1_000_000))
    assert (caught.value.needed, caught.value.free) == (len(BODY), 1_000_000)
    assert "3000000 bytes are needed, 1000000 are free" in str(caught.value)
    assert zoo.names() == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_write_that_fails_midway_is_final_and_cleaned_up(
    zoo: Zoo, server: Server, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """T31: the disk says so in the third write; no second request is made."""
    file = spec(server.serve("/a.bin", Answer(BODY)))
    writes = []
    real = Part.write

    def write(part: Part, data: bytes) -> None:
        writes.append(len(data))
        if len(writes) == 3:
            raise OSError(code, os.strerror(code))
        real(part, data)

    monkeypatch.setattr(Part, "write", write)
    with pytest.raises(CacheError) as caught:
        zoo.fetch(file)
    assert isinstance(caught.value, DiskFullError) is (code != errno.EIO)
    assert zoo.names() == []
    assert len(server.requests) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_real_full_device_is_reported_as_a_full_disk(zoo: Zoo) -> None:
    """T31"""
    zoo.root.mkdir()
    part = Part(zoo.root, "0" * 16)
    part.close()
    part._descriptor = os.open("/dev/full", os.O_RDWR)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is checked below
        part.write(b"x" * 100)
    assert isinstance(cache.write_error(zoo.root, caught.value, "a.bin", 100), DiskFullError)
    part.discard()


@pytest.mark.parametrize("call", ["open", "replace", "mkdir"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EXDEV])
def test_a_refused_system_call_is_a_cache_error_and_leaves_nothing(
    zoo: Zoo, server: Server, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    """T32: the tests may run as root, whom no mode stops, so the refusal is put in place of the call."""
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


def test_a_part_that_cannot_be_deleted_hides_no_error(
    zoo: Zoo, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T32"""

    def refuse(*args: Any, **more: Any) -> Any:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(IntegrityError):
        zoo.fetch(spec(server.serve("/a.bin", Answer(OTHER))))


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
@pytest.mark.parametrize("size_known", [True, False])
@pytest.mark.parametrize("points_to", ["the-right-bytes", "nowhere", "a-folder"])
def test_a_link_at_the_stored_name_is_replaced_and_never_followed(
    zoo: Zoo, server: Server, tmp_path: Path, points_to: str, size_known: bool
) -> None:
    """T33"""
    zoo.root.mkdir()
    outside = tmp_path / "outside"
    if points_to == "the-right-bytes":
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
def test_a_link_at_the_stamp_is_replaced_and_never_followed(zoo: Zoo, tmp_path: Path) -> None:
    """T33"""
    path = fill(zoo.root, stamped=False)
    precious = tmp_path / "precious"
    precious.write_text("keep me")
    cache.stamp_path(path).symlink_to(precious)
    zoo.fetch(FILE, tools=zoo.tools(web=NoWeb()))
    assert precious.read_text() == "keep me"
    assert not cache.stamp_path(path).is_symlink()


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_a_stamp_behind_a_link_is_not_believed(zoo: Zoo, tmp_path: Path) -> None:
    """T33"""
    path = fill(zoo.root)
    elsewhere = tmp_path / "elsewhere"
    cache.stamp_path(path).rename(elsewhere)
    cache.stamp_path(path).symlink_to(elsewhere)
    assert cache.read_stamp(path) is None
    assert zoo.fetch(FILE, tools=zoo.tools(web=NoWeb())) == path
    assert cache.read_stamp(path) is not None


def test_a_hard_linked_file_is_replaced_and_not_written_through(zoo: Zoo, server: Server, tmp_path: Path) -> None:
    """T33"""
    zoo.root.mkdir()
    precious = tmp_path / "precious"
    precious.write_bytes(b"keep me")
    os.link(precious, zoo.root / NAME)
    assert zoo.fetch(spec(server.serve("/a.bin", Answer(BODY)))).read_bytes() == BODY
    assert precious.read_bytes() == b"keep me"


def test_a_folder_at_the_stored_name_is_a_cache_error(zoo: Zoo, server: Server) -> None:
    """T33"""
    (zoo.root / NAME).mkdir(parents=True)
    with pytest.raises(CacheError):
        zoo.fetch(spec(server.serve("/a.bin", Answer(BODY))))


def test_a_reader_keeps_the_old_file_while_it_is_replaced(zoo: Zoo, server: Server) -> None:
    """T24"""
    path = fill(zoo.root, OTHER, stamped=False)
    with path.open("rb") as reader:
        assert zoo.fetch(spec(server.serve("/a.bin", Answer(BODY)))).read_bytes() == BODY
        assert reader.read() == OTHER


@pytest.mark.parametrize("refusals", [1, 5, 10**6])
def test_a_replace_that_windows_refuses_for_a_while_is_tried_again_within_a_bound(
    zoo: Zoo, server: Server, monkeypatch: pytest.MonkeyPatch, refusals: int
) -> None:
    """T24"""
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


def test_a_refused_replace_is_no_error_if_another_process_has_published_the_file(
    zoo: Zoo, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T24"""
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


@pytest.mark.parametrize("how", ["move", "copy-with-times", "copy-without-times"])
def test_a_cache_that_was_moved_is_still_valid(zoo: Zoo, server: Server, tmp_path: Path, how: str) -> None:
    """T36"""
    zoo.fetch(spec(server.serve("/a.bin", Answer(BODY))))
    there = tmp_path / "there"
    if how == "move":
        zoo.root.rename(there)
    else:
        shutil.copytree(zoo.root, there, copy_function=shutil.copy2 if how == "copy-with-times" else shutil.copyfile)
    path = fetch_file(FILE, settings=Settings(cache=there), tools=zoo.tools(web=NoWeb()))
    assert path.parent == there
    assert str(zoo.root) not in "".join(item.read_text() for item in there.glob("*.stamp"))


def test_the_folder_is_tagged_as_a_cache(zoo: Zoo, server: Server) -> None:
    zoo.fetch(spec(server.serve("/a.bin", Answer(BODY))))
    assert (zoo.root / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")


def test_a_prefix_proves_a_file_and_the_whole_digest_is_recorded(zoo: Zoo, server: Server) -> None:
    url = server.serve("/a.bin", Answer(BODY))
    file = spec(url, sha256=None, sha256_prefix=str(FILE.sha256)[:8])
    path = zoo.fetch(file)
    assert path.name == f"{str(FILE.sha256)[:8]}-a.bin"
    stamp = cache.read_stamp(path)
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
    def test_is_remembered_once_allowed(self, zoo: Zoo, server: Server, by: str) -> None:
        file = self.file(server, Answer(BODY))
        if by == "argument":
            path = zoo.fetch(file, allow_unverified=True)
        else:
            path = zoo.fetch(file, settings=Settings(cache=zoo.root, allow_unverified=True))
        assert zoo.fetch(file, tools=zoo.tools(web=NoWeb())) == path

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

    def test_whose_record_was_lost_is_not_given_out_unless_allowed(self, zoo: Zoo, server: Server) -> None:
        file = self.file(server, Answer(BODY))
        path = zoo.fetch(file, allow_unverified=True)
        cache.stamp_path(path).unlink()
        with pytest.raises(UnverifiedError):
            zoo.fetch(file)
        assert zoo.fetch(file, allow_unverified=True, tools=zoo.tools(web=NoWeb())) == path

    def test_is_forgotten_when_it_is_removed(self, zoo: Zoo, server: Server) -> None:
        file = self.file(server, Answer(BODY), Answer(OTHER))
        zoo.fetch(file, allow_unverified=True)
        manage.rm(zoo.root, ["u.bin"])
        assert zoo.fetch(file, allow_unverified=True).read_bytes() == OTHER


def test_a_digest_that_is_none_is_an_argument_error(zoo: Zoo) -> None:
    for facts in ({"sha256": "xyz"}, {"sha256": "0" * 63}, {"sha256": None, "sha256_prefix": "abc"}):
        with pytest.raises(ArgumentError):
            zoo.fetch(spec("http://127.0.0.1:1/", **facts))


def test_a_digest_in_capitals_is_the_same_digest(zoo: Zoo) -> None:
    fill(zoo.root)
    assert zoo.fetch(spec(sha256=str(FILE.sha256).upper()), tools=zoo.tools(web=NoWeb())).name == NAME

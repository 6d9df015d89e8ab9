"""Offline, local sources and mirrors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Callable

import pytest

from repvgg_zoo.errors import DownloadError, OfflineError
from repvgg_zoo.hub import Settings, cache_filename

from .conftest import BODY, OTHER, Zoo, spec
from .server import Answer, Server


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_offline_lists_the_places_searched_and_how_to_provide_the_file(
    zoo: Zoo, server: Server, tmp_path: Path, by: str
) -> None:
    file = spec(server.serve("/a.bin", Answer(BODY)))
    settings = Settings(cache_dir=zoo.root, read_only_cache_dirs=(tmp_path / "shared",), offline=by == "environment")
    with pytest.raises(OfflineError) as caught:
        zoo.fetch(file, settings=settings, offline=True if by == "argument" else None)
    name = cache_filename(file)
    assert [
        str(zoo.root / name) in caught.value.attempts[1],
        str(tmp_path / "shared" / name) in caught.value.attempts[0],
    ]
    for word in (name, "REPVGG_ZOO_CACHE_DIRS", "REPVGG_ZOO_MIRROR", "REPVGG_ZOO_OFFLINE"):
        assert word in str(caught.value)
    assert server.requests == []


def test_offline_returns_cached_files(zoo: Zoo, server: Server) -> None:
    file = spec(server.serve("/a.bin", Answer(BODY)))
    path = zoo.fetch(file)
    assert zoo.fetch(file, offline=True) == path


def test_a_file_copied_into_the_cache_by_hand_is_used_once_verified(zoo: Zoo) -> None:
    file = spec("http://127.0.0.1:1/a.bin")
    zoo.root.mkdir()
    (zoo.root / cache_filename(file)).write_bytes(OTHER)
    with pytest.raises(OfflineError):
        zoo.fetch(file, offline=True)
    (zoo.root / cache_filename(file)).write_bytes(BODY)
    assert zoo.fetch(file, offline=True).read_bytes() == BODY


def test_the_argument_takes_precedence_over_the_environment(zoo: Zoo, server: Server) -> None:
    settings = Settings(cache_dir=zoo.root, offline=True)
    assert zoo.fetch(spec(server.serve("/a.bin", Answer(BODY))), settings=settings, offline=False).read_bytes() == BODY


@pytest.mark.parametrize("form", ["path", "file-url", "mirror-folder"])
@pytest.mark.parametrize("offline", [True, False])
def test_a_file_on_this_machine_is_copied_in_and_verified_even_offline(
    zoo: Zoo, tmp_path: Path, form: str, offline: bool
) -> None:
    folder = tmp_path / "some files"
    folder.mkdir()
    file = spec("http://127.0.0.1:1/a.bin") if form == "mirror-folder" else spec(str(folder / "a.bin"))
    settings = Settings(cache_dir=zoo.root)
    if form == "mirror-folder":
        (folder / cache_filename(file)).write_bytes(BODY)
        settings = Settings(cache_dir=zoo.root, mirrors=(str(folder),))
    else:
        (folder / "a.bin").write_bytes(BODY)
        file = file if form == "path" else spec((folder / "a.bin").as_uri())
    path = zoo.fetch(file, settings=settings, offline=offline)
    assert path.parent == zoo.root
    assert path.read_bytes() == BODY


@pytest.mark.parametrize("kind", ["absent", "folder", "pipe", "device", "wrong-bytes", "short", "long", "html"])
def test_a_local_source_that_is_not_the_file_is_a_failed_source(
    zoo: Zoo, server: Server, tmp_path: Path, kind: str
) -> None:
    local = tmp_path / "local"
    if kind == "folder":
        local.mkdir()
    elif kind == "pipe":
        os.mkfifo(local)
    elif kind == "device":
        local = Path("/dev/zero")
    elif kind != "absent":
        local.write_bytes({"wrong-bytes": OTHER, "short": BODY[:-1], "long": BODY + b"x", "html": b"<html>"}[kind])
    assert zoo.fetch(spec(str(local), server.serve("/a.bin", Answer(BODY)))).read_bytes() == BODY


def test_a_local_source_resumes_a_partial_file(zoo: Zoo, server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(BODY)
    broken = server.serve("/a.bin", Answer(BODY, cut=1_000_000, reset=False))
    assert zoo.fetch(spec(broken, str(tmp_path / "a.bin"))).read_bytes() == BODY


def test_offline_with_a_local_source_that_fails_is_still_an_offline_error(zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(OfflineError) as caught:
        zoo.fetch(spec(str(tmp_path / "absent"), "http://127.0.0.1:1/"), offline=True)
    assert any("No such file" in attempt for attempt in caught.value.attempts)


def test_a_mirror_serves_cache_names_and_is_tried_first(zoo: Zoo, server: Server) -> None:
    file = spec("http://127.0.0.1:1/a.bin")
    server.serve(f"/zoo/{cache_filename(file)}", Answer(BODY))
    assert zoo.fetch(file, settings=Settings(cache_dir=zoo.root, mirrors=(server.url("/zoo/"),))).read_bytes() == BODY
    assert zoo.clock.slept == []


def test_a_mirror_without_the_file_or_with_another_is_skipped(zoo: Zoo, server: Server) -> None:
    file = spec(server.serve("/a.bin", Answer(BODY)))
    server.serve(f"/wrong/{cache_filename(file)}", Answer(OTHER))
    settings = Settings(cache_dir=zoo.root, mirrors=(server.url("/lacks"), server.url("/wrong")))
    assert zoo.fetch(file, settings=settings).read_bytes() == BODY


def test_a_file_without_sources_says_so(zoo: Zoo) -> None:
    with pytest.raises(DownloadError, match="it has no source"):
        zoo.fetch(spec())


NAME = cache_filename(spec("http://127.0.0.1:1/a.bin"))


def make_short(folder: Path) -> None:
    (folder / NAME).write_bytes(BODY[:-1000])


def make_long(folder: Path) -> None:
    (folder / NAME).write_bytes(BODY + b"x")


def make_damaged(folder: Path) -> None:
    (folder / NAME).write_bytes(OTHER)


def make_link(folder: Path) -> None:
    (folder.parent / "elsewhere").write_bytes(BODY)
    (folder / NAME).symlink_to(folder.parent / "elsewhere")


def make_dangling_link(folder: Path) -> None:
    (folder / NAME).symlink_to(folder.parent / "nowhere")


def make_folder(folder: Path) -> None:
    (folder / NAME).mkdir()


def make_own_name(folder: Path) -> None:
    (folder / "a.bin").write_bytes(BODY)


def unmount(folder: Path) -> None:
    folder.rmdir()


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
@pytest.mark.parametrize("in_writable_cache", [True, False])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_short, "is cut short: it has 2999000 of 3000000 bytes"),
        (make_long, "is not this file: it has 3000001 bytes, not 3000000"),
        (make_damaged, "is damaged: its SHA-256 is not "),
        (make_link, "is a link, which is not followed"),
        (make_dangling_link, "is a link, which is not followed"),
        (make_folder, "is a folder, which is not followed"),
        (make_own_name, "does not exist; a.bin does: rename it if it is this file"),
        (unmount, "does not exist, nor does the folder "),
    ],
)
def test_offline_says_why_the_file_that_is_there_cannot_be_used(
    zoo: Zoo, tmp_path: Path, make: Callable[[Path], None], reason: str, in_writable_cache: bool
) -> None:
    """A user who sees the file in the folder must not be told that it does not exist."""
    folder = zoo.root if in_writable_cache else tmp_path / "usb"
    folder.mkdir()
    make(folder)
    settings = Settings(cache_dir=zoo.root, read_only_cache_dirs=() if in_writable_cache else (folder,))
    with pytest.raises(OfflineError) as caught:
        zoo.fetch(spec("http://127.0.0.1:1/a.bin"), settings=settings, offline=True)
    assert f"{folder / NAME} {reason}" in caught.value.attempts[0]
    is_there = os.path.lexists(folder / NAME)
    assert ("is in the cache, but cannot be used" in caught.value.message) is is_there
    assert ("is not in the cache" in caught.value.message) is not is_there

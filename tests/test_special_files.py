"""FIFOs, devices and folders in every place where a path can be named: refused at once, with the path in the error.

The kind: opening a FIFO waits for a writer that never comes, reading ``/dev/zero`` never ends, and root can replace a
device by a file. So every path that a user, a registry, a setting or a bundle can name is opened by one function, and
written by another, which look at what is there first.
"""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path
from types import FrameType
from typing import Any, Callable, Iterator, Optional

import numpy as np
import pytest

import repvgg_zoo
from repvgg_zoo._atomic import atomic_write
from repvgg_zoo._derived_cache import DerivedCache, DerivedKey
from repvgg_zoo._digest import hash_file
from repvgg_zoo._files import open_regular_file
from repvgg_zoo.errors import CacheError, DownloadError, ZooError
from repvgg_zoo.hub import Settings, bundle, cache, cache_filename, cache_manager, fetch_file
from repvgg_zoo.image.io import load_image
from repvgg_zoo.registry.specs import FileSpec

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")

KINDS = ("fifo", "device", "folder")
FILE = FileSpec("a.bin", (), 7, "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73")  # of b"content"


@pytest.fixture(autouse=True)
def _alarm() -> Iterator[None]:
    """Fail a test that waits for a FIFO or reads a device."""

    def fail(number: int, frame: Optional[FrameType]) -> None:
        raise AssertionError("it waits, or reads without an end")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, 10)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def make(kind: str, path: Path) -> Path:
    """Create something that is not a regular file, at the path if it is not a device."""
    if kind == "device":
        return Path("/dev/zero")
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    return path


READERS = {
    "open_regular_file": open_regular_file,
    "hash_file": hash_file,
    "load_checkpoint": repvgg_zoo.load_checkpoint,
    "register": repvgg_zoo.register,
    "an image": lambda path: load_image(path, "RGB"),
    "read_bundle": bundle.read_bundle,
    "unpack": lambda path: bundle.unpack(path, settings=Settings(cache_dir=path.parent / "cache")),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", READERS)
def test_a_path_that_is_not_a_regular_file_is_not_read(tmp_path: Path, kind: str, name: str) -> None:
    read: Callable[[Path], Any] = READERS[name]
    path = make(kind, tmp_path / "x")
    with pytest.raises((ZooError, OSError, ValueError)) as caught:
        read(path)
    if name != "open_regular_file":
        assert str(path) in f"{caught.value} {getattr(caught.value, 'path', '')}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_that_is_not_a_regular_file_is_a_failed_source(tmp_path: Path, kind: str) -> None:
    source = make(kind, tmp_path / "x")
    settings = Settings(cache_dir=tmp_path / "cache")
    with pytest.raises(DownloadError):
        fetch_file(FILE._replace(sources=(str(source),)), settings=settings)


@pytest.mark.parametrize("kind", ["fifo", "folder"])
@pytest.mark.parametrize("part", ["file", "stamp", "lock", "tag"])
def test_anything_in_place_of_the_caches_own_files_does_not_stop_it(tmp_path: Path, kind: str, part: str) -> None:
    (tmp_path / "a.bin").write_bytes(b"content")
    root = tmp_path / "cache"
    root.mkdir()
    name = cache_filename(FILE)
    names = {"file": name, "stamp": f"{name}.stamp", "lock": f"{name[:16]}.lock", "tag": "CACHEDIR.TAG"}
    path = make(kind, root / names[part])
    cache_manager.list_files(root), cache_manager.verify(root), cache_manager.prune(root)
    assert cache.find(root, FILE, home=root) is None
    file, settings = FILE._replace(sources=(str(tmp_path / "a.bin"),)), Settings(cache_dir=root)
    if (kind, part) == ("folder", "file"):
        with pytest.raises(CacheError, match=str(root)):
            fetch_file(file, settings=settings)
    else:
        assert fetch_file(file, settings=settings).read_bytes() == b"content"
    assert path.exists()


@pytest.mark.parametrize("kind", ["fifo", "folder"])
@pytest.mark.parametrize("suffix", ["", ".stamp"])
def test_anything_in_place_of_derived_data_is_as_if_it_were_missing(tmp_path: Path, kind: str, suffix: str) -> None:
    derived, key = DerivedCache(tmp_path), DerivedKey("a" * 64, "step", 1, {})
    assert derived.write(key, lambda stream: stream.write(b"payload"))
    (entry,) = derived.entries()
    path = entry.path.with_name(entry.path.name + suffix)
    if path.exists():
        path.unlink()
    make(kind, path)
    payload = derived.read(key)
    assert payload is None if suffix == "" else bytes(payload or b"") == b"payload"
    assert [entry.source for entry in derived.entries()] == ["" if suffix == "" else "a" * 64]


@pytest.mark.parametrize("kind", ["fifo", "folder"])
@pytest.mark.parametrize("member", ["bundle.json", "file"])
def test_a_bundle_with_a_member_that_is_not_a_regular_file_is_refused(tmp_path: Path, kind: str, member: str) -> None:
    (tmp_path / "a.bin").write_bytes(b"content")
    folder = bundle.pack({"a": FILE}, tmp_path / "b", fetch=lambda file: tmp_path / "a.bin")
    path = folder / (cache_filename(FILE) if member == "file" else member)
    path.unlink()
    make(kind, path)
    with pytest.raises(ZooError) as caught:
        bundle.unpack(folder, settings=Settings(cache_dir=tmp_path / "cache"))
    assert path.name in str(caught.value)


WRITERS = {
    "atomic_write": lambda path: atomic_write(path, lambda stream: stream.write(b"x")),
    "save_checkpoint": lambda path: repvgg_zoo.save_checkpoint(path, {"head.weight": np.zeros((1, 1), np.float32)}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WRITERS)
def test_a_fifo_a_device_or_a_folder_is_never_replaced_by_a_file(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / "out.safetensors"
    if kind == "device":  # a link to one, which a rename would replace
        path.symlink_to("/dev/null")
    else:
        make(kind, path)
    mode = path.stat().st_mode
    with pytest.raises(OSError, match="not a regular file") as caught:
        WRITERS[name](path)
    assert caught.value.filename == str(path)
    assert stat.S_IFMT(path.stat().st_mode) == stat.S_IFMT(mode)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]

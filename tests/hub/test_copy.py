"""A verified file is copied to where one wants it: whole and equal, or not at all, and over nobody's file.

The kind: what may be in the place of the copy already, and what may go wrong while it is written.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import repvgg_zoo
from repvgg_zoo.errors import ArgumentError, IntegrityError
from repvgg_zoo.hub import fetch_verified
from repvgg_zoo.hub.copy import copy_to_folder

FILE = repvgg_zoo.model_info("RepVGG_N0").checkpoint("digits").file


@pytest.fixture
def verified(tmp_path, monkeypatch):
    monkeypatch.setenv("REPVGG_ZOO_HOME", str(tmp_path / "cache"))
    return fetch_verified(FILE)


@pytest.mark.parametrize("folder", ["weights", "a/b/c", "."])
def test_a_copy_has_the_publishers_name_and_the_same_bytes(verified, tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    path = copy_to_folder(verified, FILE, Path(folder))
    assert path == Path(folder) / FILE.name and path.read_bytes() == verified.path.read_bytes()
    assert [entry.name for entry in path.parent.iterdir() if entry.is_file()] == [FILE.name]
    path.write_bytes(b"mine now")
    assert verified.path.read_bytes() != b"mine now", "the cache's file is another one"


def test_an_equal_file_is_left_alone(verified, tmp_path):
    path = copy_to_folder(verified, FILE, tmp_path / "weights")
    os.utime(str(path), ns=(1, 1))
    before = path.stat()
    assert copy_to_folder(verified, FILE, tmp_path / "weights") == path
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("content", [b"", b"another", "folder"])
def test_another_file_is_refused(verified, tmp_path, content):
    target = tmp_path / "weights" / FILE.name
    target.parent.mkdir()
    if content == "folder":
        target.mkdir()
    else:
        target.write_bytes(content)
    with pytest.raises(ArgumentError, match="exists already and is another file") as caught:
        copy_to_folder(verified, FILE, target.parent)
    assert caught.value.path == str(target) and "--force" in caught.value.hint
    assert content == "folder" or target.read_bytes() == content
    if content != "folder":
        assert copy_to_folder(verified, FILE, target.parent, force=True).read_bytes() == verified.path.read_bytes()


def test_a_file_in_the_place_of_the_folder_is_refused(verified, tmp_path):
    (tmp_path / "weights").write_bytes(b"")
    with pytest.raises(ArgumentError, match="weights is not a folder"):
        copy_to_folder(verified, FILE, tmp_path / "weights", force=True)


def test_a_file_that_changes_in_the_cache_is_not_copied(verified, tmp_path):
    verified.path.write_bytes(b"another")
    with pytest.raises(IntegrityError, match="nothing was written"):
        copy_to_folder(verified, FILE, tmp_path / "weights")
    assert list((tmp_path / "weights").iterdir()) == []


def test_fetch_copies_as_well(verified, tmp_path):
    path = repvgg_zoo.fetch("n0", to=tmp_path / "weights")
    assert path == tmp_path / "weights" / FILE.name and path.read_bytes() == verified.path.read_bytes()
    path.write_bytes(b"")
    with pytest.raises(ArgumentError, match="another file"):
        repvgg_zoo.fetch("n0", to=str(path.parent))
    assert repvgg_zoo.fetch("n0", to=str(path.parent), force=True).stat().st_size == FILE.size
    with pytest.raises(ArgumentError):
        repvgg_zoo.fetch("n0", to=5)

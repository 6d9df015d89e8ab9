"""What is verified is what is used.

The kind of fault: something besides the bytes themselves vouches for a file. A stamp that somebody else wrote, a
folder in which others can swap files between check and use, a digest so short that another file has it too, a second
description of the file that states less. Each must cost a hash, a refusal or a permission, never go unnoticed.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest

import repvgg_zoo
from repvgg_zoo._file_state import FileState
from repvgg_zoo.checkpoints import load_checkpoint, save_checkpoint
from repvgg_zoo.errors import CacheError, DownloadError, IntegrityError, OfflineError, UnverifiedError
from repvgg_zoo.hub import Settings, cache, cache_filename, fetch_file
from repvgg_zoo.registry.specs import FileSpec

from .conftest import BODY, FILE, NAME, OTHER, NoHttp, Zoo, fill, plant_stamp, spec, stamp_file
from .server import Answer, Server

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="POSIX permissions")

PREFIX = str(FILE.sha256)[:8]


def prefix_only(*sources: str) -> FileSpec:
    return spec(*sources, sha256=None, sha256_prefix=PREFIX)


def unverified(*sources: str) -> FileSpec:
    return spec(*sources, sha256=None, size=None)


def shared(zoo: Zoo, folder: Path) -> Settings:
    return Settings(cache_dir=zoo.root, read_only_cache_dirs=(folder,))


# Stamps -------------------------------------------------------------------------------------------------------


def test_a_stamp_in_a_folder_of_others_does_not_vouch_for_a_file(zoo: Zoo, tmp_path: Path) -> None:
    path = fill(tmp_path / "disk", OTHER)  # with a stamp that fits it in every way
    assert cache.find(path.parent, FILE, home=zoo.root) is None
    with pytest.raises(OfflineError):
        zoo.fetch(FILE, settings=shared(zoo, path.parent), offline=True)


@pytest.mark.parametrize("copy", [shutil.copy2, shutil.copyfile])
def test_a_stamp_that_was_copied_with_its_file_does_not_vouch_for_it(
    zoo: Zoo, tmp_path: Path, copy: Callable[..., Any]
) -> None:
    disk = fill(tmp_path / "disk", OTHER).parent
    zoo.root.mkdir()
    for item in disk.iterdir():
        copy(item, zoo.root / item.name)
    with pytest.raises(OfflineError):
        zoo.fetch(FILE, offline=True)


@pytest.mark.parametrize("place", ["home", "read-only"])
def test_a_planted_stamp_does_not_allow_a_file_without_a_digest(zoo: Zoo, tmp_path: Path, place: str) -> None:
    file = unverified("http://127.0.0.1:1/u.bin")
    folder = tmp_path / "disk"
    folder.mkdir()
    planted = folder / cache_filename(file)
    planted.write_bytes(OTHER)
    plant_stamp(planted, "0" * 64, "none")
    if place == "home":
        shutil.copytree(folder, zoo.root, copy_function=shutil.copy2)
    with pytest.raises((UnverifiedError, OfflineError)):
        zoo.fetch(file, settings=shared(zoo, folder), offline=True)


def change_in_place(path: Path) -> None:
    path.write_bytes(OTHER)


def replace(path: Path) -> None:
    path.with_name("new").write_bytes(OTHER)
    path.with_name("new").replace(path)


@pytest.mark.parametrize("place", ["home", "read-only"])
@pytest.mark.parametrize("change", [change_in_place, replace])
def test_a_change_is_noticed_although_size_and_time_stay(
    zoo: Zoo, tmp_path: Path, place: str, change: Callable[[Path], None]
) -> None:
    path = fill(zoo.root if place == "home" else tmp_path / "disk", stamped=False)
    settings = Settings(cache_dir=zoo.root) if place == "home" else shared(zoo, path.parent)
    assert zoo.fetch(FILE, settings=settings) == path
    status = path.stat()
    change(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(OfflineError):
        zoo.fetch(FILE, settings=settings, offline=True)


def test_a_file_in_a_read_only_folder_is_hashed_once(zoo: Zoo, tmp_path: Path, caplog: Any) -> None:
    path = fill(tmp_path / "disk", stamped=False)
    settings = shared(zoo, path.parent)
    zoo.fetch(FILE, settings=settings)
    (stamp,) = (zoo.root / "stamps").iterdir()
    # A second hash would find the digest that this stamp does not have.
    recorded = json.loads(stamp.read_text())
    stamp.write_text(json.dumps({**recorded, "sha256": "0" * 64}))
    assert cache.find(path.parent, FILE, home=zoo.root) is None
    stamp.write_text(json.dumps(recorded))
    assert zoo.fetch(FILE, settings=settings) == path


def test_the_stamp_of_a_file_that_tar_restored_is_mended(zoo: Zoo, server: Server, tmp_path: Path) -> None:
    zoo.fetch(spec(server.serve("/a.bin", Answer(BODY))))
    with tarfile.open(tmp_path / "layer.tar", "w", format=tarfile.USTAR_FORMAT) as archive:  # times in whole seconds
        archive.add(zoo.root, "home")
    with tarfile.open(tmp_path / "layer.tar") as archive:
        archive.extractall(tmp_path / "container")
    home = tmp_path / "container" / "home"
    before = cache.read_stamp(stamp_file(home / NAME))
    path = fetch_file(FILE, settings=Settings(cache_dir=home), services=zoo.services(client=NoHttp()))
    after = cache.read_stamp(stamp_file(home / NAME))
    assert before is not None
    assert after is not None
    assert before.state != after.state == FileState.of(path.stat())


# The user's own folder ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o1777])
def test_a_home_to_which_others_can_write_is_refused_with_the_cure(zoo: Zoo, server: Server, mode: int) -> None:
    path = fill(zoo.root)
    zoo.root.chmod(mode)
    for file in (FILE, spec(server.serve("/b.bin", Answer(BODY)), name="b.bin")):
        with pytest.raises(CacheError, match="chmod go-w") as caught:
            zoo.fetch(file)
        assert caught.value.path == str(zoo.root)
        assert "others can write" in str(caught.value)
    assert server.requests == []
    # Shared folders stay possible, where they are only read.
    home = zoo.root / "mine"
    settings = Settings(cache_dir=home, read_only_cache_dirs=(zoo.root,))
    assert zoo.fetch(FILE, settings=settings) == path


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root gives folders away")
def test_a_home_of_another_user_is_refused(zoo: Zoo) -> None:
    fill(zoo.root)
    os.chown(zoo.root, 12345, -1)
    with pytest.raises(CacheError, match="belongs to user 12345"):
        zoo.fetch(FILE)


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
@pytest.mark.parametrize("first", ["download", "read-only cache"])
def test_a_new_home_is_private_whatever_the_umask(
    zoo: Zoo, server: Server, tmp_path: Path, umask: int, first: str
) -> None:
    disk = fill(tmp_path / "disk", stamped=False).parent
    before = os.umask(umask)
    try:
        if first == "read-only cache":
            zoo.fetch(FILE, settings=shared(zoo, disk))
            assert (zoo.root / "stamps").exists()
        for _ in range(2):
            zoo.fetch(spec(server.serve("/a.bin", Answer(BODY))))
    finally:
        os.umask(before)
    assert [path for path in (zoo.root, zoo.root / "stamps") if path.exists() and path.stat().st_mode & 0o022] == []


# Time of check, time of use -----------------------------------------------------------------------------------


@pytest.mark.parametrize("deploy", [True, False])
def test_weights_that_were_swapped_after_the_check_are_not_loaded(tmp_path: Path, deploy: bool) -> None:
    """The owner of a shared folder replaces a file between its verification and the moment that it is read."""
    from repvgg_zoo.hub import fetch_verified
    from repvgg_zoo.registry.api import find_default_checkpoint
    from repvgg_zoo.weights import load_weights

    checkpoint = find_default_checkpoint("RepVGG_N0")
    disk = tmp_path / "disk"
    disk.mkdir()
    fetched = fetch_file(checkpoint.file, settings=Settings(cache_dir=tmp_path / "first"))
    path = disk / fetched.name
    shutil.copyfile(fetched, path)
    settings = Settings(cache_dir=tmp_path / "home", read_only_cache_dirs=(disk,))
    verified = fetch_verified(checkpoint.file, settings=settings)
    assert verified.path == path
    other = dict(load_checkpoint(path).state_dict)
    other["linear.weight"] = other["linear.weight"] * 0
    save_checkpoint(path, other)
    disk.chmod(0o777)
    with pytest.raises(IntegrityError, match="changed after it was verified") as caught:
        load_weights(verified, checkpoint, deploy=deploy, cache_dir=settings.cache_dir)
    assert caught.value.expected == checkpoint.file.sha256


def test_a_digest_can_be_asked_of_any_checkpoint(tmp_path: Path) -> None:
    path = repvgg_zoo.fetch("RepVGG_N0.digits")
    sha256 = str(repvgg_zoo.model_info("RepVGG_N0").checkpoint("digits").file.sha256)
    assert load_checkpoint(path, sha256=sha256).form
    with pytest.raises(IntegrityError):
        load_checkpoint(path, sha256="0" * 64)


# Prefixes -----------------------------------------------------------------------------------------------------


def test_a_prefix_is_announced_once_and_the_whole_digest_is_recorded(zoo: Zoo, server: Server, caplog: Any) -> None:
    file = prefix_only(server.serve("/a.bin", Answer(BODY)))
    for _ in range(3):
        zoo.fetch(file)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "not tampering" in warnings[0]
    assert str(FILE.sha256) in warnings[0]


def test_a_file_with_the_same_prefix_is_not_the_recorded_one(zoo: Zoo, server: Server) -> None:
    url = server.serve("/a.bin", Answer(BODY))
    file = prefix_only(url)
    path = zoo.fetch(file)
    stamp = cache.read_stamp(stamp_file(path))
    assert stamp is not None
    forged = PREFIX + "0" * 56  # as if the first download had been another file with this prefix
    cache.write_stamp(stamp_file(path), cache.Stamp(forged, "sha256_prefix", stamp.state))
    path.unlink()
    with pytest.raises(IntegrityError) as caught:
        zoo.fetch(file)
    assert caught.value.expected == forged


def substitutes(zoo: Zoo, server: Server, folder: Path) -> Dict[str, Settings]:
    url = server.serve("/mirror/" + f"{PREFIX}-a.bin", Answer(BODY))
    fill(folder, stamped=False).rename(folder / f"{PREFIX}-a.bin")
    old = "http://127.0.0.1:1/"
    return {
        "mirror": Settings(cache_dir=zoo.root, mirrors=(url.rpartition("/")[0],)),
        "mirror folder": Settings(cache_dir=zoo.root, mirrors=(str(folder),)),
        "rewritten URL": Settings(cache_dir=zoo.root, url_rewrites=((old + "a.bin", url),)),
        "read-only cache": shared(zoo, folder),
    }


@pytest.mark.parametrize("kind", ["mirror", "mirror folder", "rewritten URL", "read-only cache"])
def test_only_the_publisher_may_serve_a_file_with_a_prefix_unless_allowed(
    zoo: Zoo, server: Server, tmp_path: Path, kind: str
) -> None:
    settings = substitutes(zoo, server, tmp_path / "folder")[kind]
    file = prefix_only("http://127.0.0.1:1/a.bin")
    with pytest.raises((DownloadError, OfflineError)) as caught:
        zoo.fetch(file, settings=settings, offline=None if "URL" in kind or kind == "mirror" else True)
    assert server.requests == []
    if kind != "read-only cache":
        assert "REPVGG_ZOO_ALLOW_UNVERIFIED" in str(caught.value)
    assert zoo.fetch(file, settings=settings._replace(allow_unverified=True)).read_bytes() == BODY


def test_a_mirror_may_serve_a_file_whose_digest_was_recorded(zoo: Zoo, server: Server) -> None:
    file = prefix_only(server.serve("/a.bin", Answer(BODY), Answer(OTHER)))
    zoo.fetch(file).unlink()
    mirror = server.serve(f"/mirror/{PREFIX}-a.bin", Answer(BODY)).rpartition("/")[0]
    settings = Settings(cache_dir=zoo.root, mirrors=(mirror,))
    assert zoo.fetch(file, settings=settings).read_bytes() == BODY
    assert server.requests[-1].path.startswith("/mirror/")


# Registries ---------------------------------------------------------------------------------------------------


def weaker(**fields: Any) -> Dict[str, Any]:
    """A registry whose variant has a file of the shipped registry, described with other integrity data."""
    checkpoint = repvgg_zoo.model_info("RepVGG_A2").checkpoint("timm")
    preprocessing = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in checkpoint.preprocessing._asdict().items()
    }
    entry = {
        "file": {"name": "x.safetensors", "sources": list(checkpoint.file.sources), **fields},
        "publisher": "somebody",
        "format": checkpoint.format,
        "layout": checkpoint.layout,
        "form": checkpoint.form,
        "license": "MIT",
        "provenance": ["a test"],
        "preprocessing": preprocessing,
    }
    variant = {
        "family": "RepVGG-A",
        "architecture": {"num_blocks": [2, 4, 14, 1], "width_multiplier": [1.5, 1.5, 1.5, 2.75]},
        "params": {"train": 1, "deploy": 1},
        "macs": {"train": 1, "deploy": 1},
        "checkpoints": {"x": entry},
    }
    return {"schema": 1, "variants": {"acme/RepVGG_X": variant}}


LESS: List[Dict[str, Any]] = [{}, {"sha256_prefix": "0" * 8}]


@pytest.mark.parametrize("fields", LESS, ids=["none", "prefix"])
def test_a_registry_that_states_less_of_a_known_file_is_refused(fields: Dict[str, Any]) -> None:
    with pytest.raises(repvgg_zoo.errors.RegistryError, match="its sha256 is missing"):
        repvgg_zoo.register(weaker(**fields))
    assert "acme/RepVGG_X" not in repvgg_zoo.list_models()


def test_a_registry_that_states_the_same_of_a_known_file_is_accepted() -> None:
    file = repvgg_zoo.model_info("RepVGG_A2").checkpoint("timm").file
    mapping = weaker(sha256=file.sha256, size=file.size)
    repvgg_zoo.register(mapping)
    try:
        assert "acme/RepVGG_X" in repvgg_zoo.list_models()
    finally:
        repvgg_zoo.unregister(mapping)

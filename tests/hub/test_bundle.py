"""Bundles: packed here, imported there, tampering and hostile paths refused."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict

import pytest

from repvgg_zoo.errors import ArgumentError, BundleError, DiskFullError, UnverifiedError, ZooError
from repvgg_zoo.hub import Settings, bundle, cache_filename

from .conftest import BODY, OTHER, Zoo, spec
from .server import Answer, Server

SHA = hashlib.sha256(BODY).hexdigest()


def files(server: Server) -> Dict[str, Any]:
    """One file of each kind of integrity."""
    other = hashlib.sha256(OTHER).hexdigest()
    return {
        "RepVGG_A0.x": spec(server.serve("/a.bin", Answer(BODY))),
        "RepVGG_A1.x": spec(server.serve("/b.bin", Answer(OTHER)), name="b.bin", sha256=None, sha256_prefix=other[:8]),
        "RepVGG_A2.x": spec(server.serve("/u.bin", Answer(b"\x80u" * 9)), name="u.bin", sha256=None, size=None),
    }


@pytest.fixture(params=["folder", "zip"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / ("bundle.zip" if request.param == "zip" else "bundle")


def packed(zoo: Zoo, server: Server, target: Path, **more: Any) -> Path:
    return bundle.pack(files(server), target, fetch=lambda file: zoo.fetch(file, allow_unverified=True), **more)


def test_a_bundle_brings_identical_files_to_a_machine_without_a_network(
    zoo: Zoo, server: Server, target: Path, tmp_path: Path
) -> None:
    packed(zoo, server, target, registry={"models": [{"name": "RepVGG_A0"}]})
    there = Settings(cache_dir=tmp_path / "there", offline=True)
    paths = bundle.unpack(str(target), settings=there, allow_unverified=True)
    for name, file in files(server).items():
        assert zoo.fetch(file, settings=there) == paths[name]
        assert paths[name].read_bytes() == zoo.fetch(file).read_bytes()
    assert bundle.read_bundle(target).registry == {"models": [{"name": "RepVGG_A0"}]}
    assert not list((tmp_path / "there").glob("*.part"))


def test_a_bundle_folder_is_a_cache_and_a_mirror(zoo: Zoo, server: Server, tmp_path: Path) -> None:
    packed(zoo, server, tmp_path / "bundle")
    file = files(server)["RepVGG_A0.x"]
    in_place = Settings(cache_dir=tmp_path / "there", read_only_cache_dirs=(tmp_path / "bundle",))
    assert zoo.fetch(file, settings=in_place, offline=True).parent == tmp_path / "bundle"
    mirrored = Settings(cache_dir=tmp_path / "there", mirrors=(str(tmp_path / "bundle"),))
    assert zoo.fetch(file, settings=mirrored, offline=True).parent == tmp_path / "there"


def test_importing_twice_changes_nothing(zoo: Zoo, server: Server, target: Path, tmp_path: Path) -> None:
    packed(zoo, server, target)
    there = Settings(cache_dir=tmp_path / "there")
    first = bundle.unpack(target, settings=there, allow_unverified=True)
    before = {path: path.stat().st_ino for path in first.values()}
    assert bundle.unpack(target, settings=there, allow_unverified=True) == first
    assert {path: path.stat().st_ino for path in first.values()} == before


def rezip(target: Path, change: Callable[[Dict[str, bytes]], None]) -> None:
    """Change the members of a bundle, folder or zip."""
    if target.is_dir():
        members = {path.name: path.read_bytes() for path in target.iterdir()}
        change(members)
        for path in list(target.iterdir()):
            path.unlink()
        for name, data in members.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(data)
        return
    with zipfile.ZipFile(target) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def reindex(change: Callable[[Any], Any]) -> Callable[[Dict[str, bytes]], None]:
    def apply(members: Dict[str, bytes]) -> None:
        index = json.loads(members["bundle.json"])
        changed = change(index)
        members["bundle.json"] = json.dumps(index if changed is None else changed).encode()

    return apply


A0 = f"{SHA[:16]}-a.bin"
TAMPERED: Dict[str, Callable[[Dict[str, bytes]], None]] = {
    "other-bytes": lambda m: m.update({A0: OTHER}),
    "shorter": lambda m: m.update({A0: BODY[:-1]}),
    "longer": lambda m: m.update({A0: BODY + b"x"}),
    "missing-file": lambda m: m.pop(A0) and None,
    "missing-index": lambda m: m.pop("bundle.json") and None,
    "index-is-garbage": lambda m: m.update({"bundle.json": b"\xff\xfe{{{"}),
    "index-is-a-list": lambda m: m.update({"bundle.json": b"[1]"}),
    "index-runs-code": lambda m: m.update({"bundle.json": b"!!python/object/apply:os.system ['touch x']"}),
    "index-is-huge": lambda m: m.update({"bundle.json": b"#" * (5 << 20)}),
    "index-is-deep": lambda m: m.update({"bundle.json": b"[" * 100_000}),
    "other-version": reindex(lambda i: i.update(bundle=2)),
    "no-files": reindex(lambda i: i.pop("files") and None),
    "files-of-the-wrong-type": reindex(lambda i: i.update(files=["a"])),
    "entry-of-the-wrong-type": reindex(lambda i: i["files"].update(x=3)),
    "no-digest": reindex(lambda i: i["files"]["RepVGG_A0.x"].pop("sha256") and None),
    "digest-of-the-wrong-type": reindex(lambda i: i["files"]["RepVGG_A0.x"].update(sha256=7)),
    "digest-of-another-file": reindex(lambda i: i["files"]["RepVGG_A0.x"].update(sha256="0" * 64)),
    "negative-size": reindex(lambda i: i["files"]["RepVGG_A0.x"].update(size=-1)),
    "unknown-integrity": reindex(lambda i: i["files"]["RepVGG_A0.x"].update(integrity="trust me")),
    "prefix-of-another-file": reindex(lambda i: i["files"]["RepVGG_A1.x"].update(sha256_prefix="00000000")),
    "empty-prefix": reindex(lambda i: i["files"]["RepVGG_A1.x"].update(sha256_prefix="")),
    "no-source": reindex(lambda i: i["files"]["RepVGG_A2.x"].pop("source") and None),
    "alias-bomb": lambda m: m.update(
        {"bundle.json": b"a: &a [x,x,x,x]\n" + b"".join(b"b%d: &b%d [*a,*a,*a]\n" % (n, n) for n in range(999))}
    ),
}


@pytest.mark.parametrize("change", list(TAMPERED.values()), ids=list(TAMPERED))
def test_a_bundle_that_was_tampered_with_is_refused_as_a_whole(
    zoo: Zoo, server: Server, target: Path, tmp_path: Path, change: Callable[[Dict[str, bytes]], None]
) -> None:
    packed(zoo, server, target)
    rezip(target, change)
    there = tmp_path / "there"
    with pytest.raises(BundleError):
        bundle.unpack(target, settings=Settings(cache_dir=there), allow_unverified=True)
    assert [path.name for path in there.glob("*") if path.name != "CACHEDIR.TAG"] == []


def test_a_file_under_the_prefix_of_another_is_refused(zoo: Zoo, server: Server, target: Path, tmp_path: Path) -> None:
    """Index and file agree with each other, and the prefix is not that of the digest."""
    packed(zoo, server, target)

    def swap(members: Dict[str, bytes]) -> None:
        reindex(lambda i: i["files"]["RepVGG_A1.x"].update(sha256_prefix="0" * 8))(members)
        members["00000000-b.bin"] = members.pop(f"{hashlib.sha256(OTHER).hexdigest()[:8]}-b.bin")

    rezip(target, swap)
    with pytest.raises(BundleError, match="contradict"):
        bundle.unpack(target, settings=Settings(cache_dir=tmp_path / "there"), allow_unverified=True)


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/b", "..", "C:\\evil", "a\\..\\evil", "bundle.json "])
def test_a_zip_with_a_path_outside_the_bundle_is_refused(zoo: Zoo, server: Server, tmp_path: Path, name: str) -> None:
    """Zip-slip."""
    target = packed(zoo, server, tmp_path / "bundle.zip")
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr(name, b"evil")
    with pytest.raises(BundleError, match="an invalid member"):
        bundle.unpack(target, settings=Settings(cache_dir=tmp_path / "there"), allow_unverified=True)


@pytest.mark.parametrize("name", ["../../evil", "/abs/evil", "..", "a\0b"])
def test_a_hostile_file_name_in_the_index_stays_in_the_cache(
    zoo: Zoo, server: Server, target: Path, tmp_path: Path, name: str
) -> None:
    """The index never says where a file goes; its name is sanitized as everywhere."""
    packed(zoo, server, target)
    rezip(target, reindex(lambda i: i["files"]["RepVGG_A0.x"].update(name=name)))
    before = {path for path in tmp_path.iterdir() if path.name != "there"}
    with pytest.raises(BundleError):
        bundle.unpack(target, settings=Settings(cache_dir=tmp_path / "there"), allow_unverified=True)
    assert {path for path in tmp_path.iterdir() if path.name != "there"} == before


def test_a_member_twice_or_compressed_is_refused(zoo: Zoo, server: Server, tmp_path: Path) -> None:
    """Of two members of one name each tool reads another, and a compressed one can be a bomb."""
    twice = packed(zoo, server, tmp_path / "twice.zip")
    with zipfile.ZipFile(twice, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(A0, OTHER)
    with pytest.raises(BundleError, match="an invalid member"):
        bundle.unpack(twice, settings=Settings(cache_dir=tmp_path / "there"))
    small = tmp_path / "small.zip"
    with zipfile.ZipFile(twice) as old, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as new:
        new.writestr("bundle.json", old.read("bundle.json"))
    with pytest.raises(BundleError, match="compressed"):
        bundle.read_bundle(small)


@pytest.mark.parametrize("kind", ["absent", "text", "truncated-zip", "empty-folder"])
def test_a_file_that_is_not_a_bundle_is_refused(zoo: Zoo, server: Server, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.zip"
    if kind == "text":
        path.write_text("hello")
    elif kind == "truncated-zip":
        packed(zoo, server, path)
        path.write_bytes(path.read_bytes()[:1000])
    elif kind == "empty-folder":
        path.mkdir()
    with pytest.raises(BundleError):
        bundle.unpack(path, settings=Settings(cache_dir=zoo.root))


@pytest.mark.parametrize("seconds", [60, 0, -86400, 2**33], ids=["1970", "epoch", "1969", "2242"])
def test_a_machine_with_a_wrong_clock_packs_a_bundle_all_the_same(
    zoo: Zoo, server: Server, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    """Boards without a clock start in 1970, and a zip has dates from 1980 to 2107 only."""
    real = bundle._write_index

    def write_index(path: Path, index: Any) -> None:
        real(path, index)
        for file in path.parent.iterdir():  # as the kernel of such a machine dates every new file
            os.utime(file, (seconds, seconds))

    monkeypatch.setattr(bundle, "_write_index", write_index)
    packed(zoo, server, target)
    there = Settings(cache_dir=tmp_path / "there", offline=True)
    assert set(bundle.unpack(target, settings=there, allow_unverified=True)) == set(files(server))


def test_a_link_in_a_bundle_folder_is_refused(zoo: Zoo, server: Server, tmp_path: Path) -> None:
    target = packed(zoo, server, tmp_path / "bundle")
    secret = tmp_path / "secret"
    secret.write_bytes(BODY)
    (target / A0).unlink()
    (target / A0).symlink_to(secret)
    with pytest.raises(BundleError, match="not a regular file"):
        bundle.unpack(target, settings=Settings(cache_dir=tmp_path / "there"), allow_unverified=True)


def test_an_unverified_file_in_a_bundle_must_be_allowed(zoo: Zoo, server: Server, target: Path, tmp_path: Path) -> None:
    """Nor is a prefix of a digest enough: who made the bundle may have forged a file with the same."""
    packed(zoo, server, target)
    there = Settings(cache_dir=tmp_path / "there")
    with pytest.raises(UnverifiedError, match=r"publishers of RepVGG_A1\.x, RepVGG_A2\.x state no whole digest"):
        bundle.unpack(target, settings=there)
    assert not there.cache_dir.exists()
    paths = bundle.unpack(target, settings=there, allow_unverified=True)
    assert bundle.unpack(target, settings=there) == paths, "their digests are recorded"


def test_packing_onto_something_that_exists_is_refused(zoo: Zoo, server: Server, target: Path) -> None:
    target.write_bytes(b"precious")
    with pytest.raises(ArgumentError):
        packed(zoo, server, target)
    assert target.read_bytes() == b"precious"


def test_packing_that_fails_leaves_nothing(zoo: Zoo, target: Path) -> None:
    before = sorted(target.parent.iterdir())
    with pytest.raises(ZooError):
        bundle.pack({"x": spec("http://127.0.0.1:1/")}, target, fetch=zoo.fetch)
    assert [path for path in sorted(target.parent.iterdir()) if path.name != "cache"] == before


def test_a_full_disk_is_reported_at_import(
    zoo: Zoo, server: Server, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed(zoo, server, target)
    import errno

    from repvgg_zoo.hub.partial import PartialFile

    def full(part: PartialFile, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(PartialFile, "write", full)
    with pytest.raises(DiskFullError):
        bundle.unpack(target, settings=Settings(cache_dir=tmp_path / "there"), allow_unverified=True)
    assert not list((tmp_path / "there").glob("*.part"))


def test_packed_files_are_not_executable(zoo: Zoo, server: Server, tmp_path: Path) -> None:
    target = packed(zoo, server, tmp_path / "bundle")
    assert {stat.S_IMODE(path.stat().st_mode) & 0o111 for path in target.iterdir()} == {0}
    assert sorted(path.name for path in target.iterdir()) == sorted(
        ["bundle.json", *(cache_filename(file) for file in files(server).values())]
    )

"""Reading a bundle takes memory, time and room on the disk in proportion to its size.

The kind: an index or a zip's directory that is small to carry and large to read, and one content under many names.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict

import pytest

from repvgg_zoo.errors import BundleError
from repvgg_zoo.hub import Settings, bundle
from repvgg_zoo.hub.partial import PartialFile

BODY = os.urandom(100_000)
SHA = hashlib.sha256(BODY).hexdigest()
NAME = f"{SHA[:16]}-f.bin"
ENTRY = {"name": "f.bin", "integrity": "sha256", "size": len(BODY), "sha256": SHA}
DIGITS = "1" * 5000


def zipped(path: Path, index: Any, members: Dict[str, bytes], change: Callable[[bytearray], None] = bytes) -> Path:
    text = index if isinstance(index, str) else json.dumps({"bundle": 1, "files": index, "registry": {}})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("bundle.json", text)
        for name, data in members.items():
            archive.writestr(name, data)
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    return path


def set_flag(flag: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[6] |= flag
        data[data.index(b"PK\1\2") + 8] |= flag

    return change


def only_a_directory(count: int) -> bytes:
    """A zip of nothing but entries of its directory, in zip64's form."""
    names = [b"%x" % number for number in range(count)]
    head = struct.pack("<4s4B4HL2L", b"PK\1\2", 20, 3, 20, 0, 0, 0, 0, 33, 0, 0, 0)
    entries = b"".join(head + struct.pack("<5H2L", len(name), 0, 0, 0, 0, 0, 0) + name for name in names)
    end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(entries), 0)
    end += struct.pack("<4sLQL", b"PK\6\7", 0, len(entries), 1)
    return entries + end + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)


def with_number(number: str) -> str:
    return f'{{"bundle": 1, "files": {{}}, "registry": {{"a": {number}}}}}'


# (what it is, the index, a change of the zip)
COSTLY: Dict[str, Any] = {
    "a number of 5000 digits": with_number(DIGITS),
    "a number of a million digits": with_number("1" * 1_000_000),
    "an infinite number": with_number("Infinity"),
    "900 nested lists": with_number("[" * 900 + "]" * 900 + "x"),
    "100000 open brackets": "[" * 100_000,
    "300000 lists": with_number(f"[{'[],' * 300_000}1]"),
    "a key twice": '{"bundle": 1, "bundle": 1, "files": {}, "registry": {}}',
    "an index of 2 MB": with_number('"' + "x" * 2_000_000 + '"'),
    "YAML": "bundle: 1\nfiles: {}\nregistry: {a: 1:1:1:1}\n",
    "a size of 5000 digits": json.dumps({"bundle": 1, "files": {"x": ENTRY}, "registry": {}}).replace("100000", DIGITS),
}


def peak_of(path: Path) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(BundleError):
            bundle.read_bundle(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("what", COSTLY)
def test_a_costly_index_is_refused_within_bounds(tmp_path: Path, what: str) -> None:
    path = zipped(tmp_path / "x.zip", COSTLY[what], {})
    assert peak_of(path) < 8 * path.stat().st_size + (8 << 20)


@pytest.mark.parametrize("flag", [1, 0x20], ids=["encrypted", "patched"])
def test_flags_that_zipfile_cannot_read_are_a_bundle_error(tmp_path: Path, flag: int) -> None:
    with pytest.raises(BundleError):
        bundle.read_bundle(zipped(tmp_path / "x.zip", {}, {}, set_flag(flag)))


def test_a_directory_of_a_hundred_thousand_entries_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(only_a_directory(100_000))
    assert peak_of(path) < 16 << 20  # all of it would take 40 MB


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["FIFO", "device"])
def test_what_is_not_a_regular_file_is_refused_at_once(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "x.zip")
    with pytest.raises(BundleError, match="not a regular file"):
        bundle.read_bundle(tmp_path / "x.zip")


def test_one_file_under_300_names_is_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(tmp_path / "x.zip", {f"n{number}": ENTRY for number in range(300)}, {NAME: BODY})
    written = []
    write = PartialFile.write

    def count(partial: PartialFile, data: bytes) -> None:
        written.append(len(data))
        write(partial, data)

    monkeypatch.setattr(PartialFile, "write", count)
    paths = bundle.unpack(path, settings=Settings(cache_dir=tmp_path / "cache"))
    assert len(paths) == 300
    assert set(paths.values()) == {tmp_path / "cache" / NAME}
    assert sum(written) == len(BODY)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"a": ENTRY, "b": {**ENTRY, "size": len(BODY) - 1}}, "in two ways"),
        ({f"n{number}": {**ENTRY, "name": f"f{number}.bin"} for number in range(300)}, "bytes together"),
        ({"a": {**ENTRY, "size": 2**60}}, "bytes together"),
    ],
    ids=["one file of two sizes", "one content under 300 file names", "a size of 2^60"],
)
def test_files_that_cannot_all_be_in_the_bundle_are_refused(tmp_path: Path, index: Any, message: str) -> None:
    path = zipped(tmp_path / "x.zip", index, {NAME: BODY})
    with pytest.raises(BundleError, match=message):
        bundle.unpack(path, settings=Settings(cache_dir=tmp_path / "cache"))
    assert not list((tmp_path / "cache").glob("*f*.bin"))

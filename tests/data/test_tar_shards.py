"""Tar files in webdataset's convention: what is whole is read, and what is not is an error with the reason."""

from __future__ import annotations

import gzip
import json
import tarfile
from pathlib import Path
from typing import Any, Callable, List

import numpy as np
import pytest

from repvgg_zoo import open_images
from repvgg_zoo.errors import ArgumentError

from .conftest import Member, digit_members, png, write_tar

PNG = png(np.zeros((8, 8), np.uint8))


def special(name: str, kind: bytes, **fields: Any) -> Member:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return name, info


LABELS = {
    "a class name": ([("a.png", PNG), ("a.cls", b"cat\n")], "cat"),
    "an index": ([("a.cls", b"12"), ("a.png", PNG)], "12"),
    "JSON with a label": ([("a.png", PNG), ("a.json", b'{"label": 12, "width": 8}')], "12"),
    "JSON with a name": ([("a.png", PNG), ("a.json", b'{"class_name": "cat"}')], "cat"),
    "a label and JSON without one": ([("a.png", PNG), ("a.json", b'{"width": 8}'), ("a.cls", b"cat")], "cat"),
    "no label": ([("a.png", PNG), ("a.txt", b"a cat")], None),
}


@pytest.mark.parametrize(("members", "label"), LABELS.values(), ids=LABELS)
def test_a_label_is(tmp_path, members, label):
    (sample,) = open_images(write_tar(tmp_path / "x.tar", members))
    assert sample == ("a", PNG, label)


def test_keys_end_at_the_first_dot_and_other_files_are_left_out(tmp_path):
    members: List[Member] = [
        special("d", tarfile.DIRTYPE),
        ("d/a.b.png", b"segmentation"),
        ("d/a.PNG", PNG),
        ("d/a.cls", b"1"),
        ("d/._a.PNG", b"a resource fork"),
        ("__meta__.json", b"{}"),
        ("README.txt", b"text"),
        ("e/" + "x" * 200 + ".png", PNG),
    ]
    assert [sample.key for sample in open_images(write_tar(tmp_path / "x.tar", members))] == ["d/a", "e/" + "x" * 200]


def test_a_folder_of_tar_files_and_a_range_are_one_source(tmp_path):
    for number in range(3):
        write_tar(tmp_path / f"val-{number:02}.tar", digit_members(4 * number, 4 * number + 4))
    by_folder, by_range = open_images(tmp_path), open_images(str(tmp_path / "val-{00..02}.tar"))
    assert list(by_folder) == list(by_range)
    assert [shard.name for shard in by_folder.shards] == ["val-00.tar", "val-01.tar", "val-02.tar"]
    assert [sample.key for sample in by_folder][3:5] == ["val-00.tar/003", "val-01.tar/004"]


HOSTILE = {
    "a symbolic link": ([special("a.png", tarfile.SYMTYPE, linkname="/etc/passwd")], "a link"),
    "a hard link": ([("a.png", PNG), special("b.png", tarfile.LNKTYPE, linkname="a.png")], "a link"),
    "a FIFO": ([special("a.png", tarfile.FIFOTYPE)], "not a plain file"),
    "a device": ([special("a.png", tarfile.CHRTYPE)], "not a plain file"),
    "a huge member": ([special("a.png", tarfile.REGTYPE, size=1 << 40)], "1099511627776 bytes"),
    "a sparse file": ([special("a.png", tarfile.GNUTYPE_SPARSE, size=0)], "plain file|not a whole"),
    "a huge label": ([("a.png", PNG), ("a.cls", b"x" * (1 << 21))], "2097152 bytes in a.cls"),
    "keys that are not adjacent": (
        [("a.png", PNG), ("b.png", PNG), ("a.cls", b"1")],
        "files of a that are not adjacent",
    ),
    "two images of one key": ([("a.png", PNG), ("a.jpg", PNG)], "2 images for a"),
    "the same file twice": ([("a.png", PNG), ("a.png", PNG)], "a.png twice"),
    "a label without an image": ([("a.cls", b"1")], "a label and no image for a"),
    "an empty label": ([("a.png", PNG), ("a.cls", b" \n")], "no label in a.cls"),
    "a label that is not text": ([("a.png", PNG), ("a.cls", b"\xff\xfe")], "no label in a.cls"),
    "JSON that is damaged": ([("a.png", PNG), ("a.json", b"{")], "not valid JSON"),
    "no images": ([("a.txt", b"x")], "no images"),
}


@pytest.mark.parametrize(("members", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_tar_file_is_refused_for(tmp_path, members, message):
    path = write_tar(tmp_path / "x.tar", members)
    with pytest.raises(ArgumentError, match=message) as caught:
        list(open_images(path))
    assert caught.value.path == str(path)


def flip_header(data: bytes) -> bytes:
    damaged = bytearray(data)
    damaged[2 * 1024 + 148] ^= 0x15  # in the checksum of the third member
    return bytes(damaged)


DAMAGE = {
    "truncated in a file": lambda data: data[: 512 + 20],
    "truncated after a file": lambda data: data[: 4 * 1024],
    "truncated in a header": lambda data: data[: 4 * 1024 + 100],
    "without its end": lambda data: data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % 512),
    "damaged in a header": flip_header,
    "empty": lambda data: b"",
    "not a tar file": lambda data: b"x" * 2048,
    "compressed": gzip.compress,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_tar_file_that_ends_too_early_is_an_error_and_what_came_before_is_read(tmp_path, damage: Callable[..., Any]):
    path = write_tar(tmp_path / "x.tar", digit_members(0, 8))
    whole = [sample.key for sample in open_images(path)]
    path.write_bytes(damage(path.read_bytes()))
    keys: List[str] = []
    with pytest.raises(ArgumentError, match=r"tar file|truncated"):
        keys.extend(sample.key for sample in open_images(path))
    assert keys == whole[: len(keys)] and len(keys) < len(whole)


def test_a_header_that_is_too_long_is_not_read_into_memory(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("x" * (3 << 20) + ".png", PNG)])
    with pytest.raises(ArgumentError, match="a header of more than"):
        list(open_images(path))


def test_labels_of_real_shards_are_those_of_the_folder(tmp_path, digit_folder):
    write_tar(tmp_path / "x.tar", digit_members(0, 360))
    by_key = {Path(sample.key).stem: sample.label for sample in open_images(digit_folder)}
    assert {sample.key: sample.label for sample in open_images(tmp_path / "x.tar")} == by_key
    assert json.dumps(sorted(by_key)) == json.dumps([f"{number:03}" for number in range(360)])

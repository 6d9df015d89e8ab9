"""What the first bytes of a file tell."""

from __future__ import annotations

import struct

import pytest

from repvgg_zoo._sniff import sniff_content_type
from repvgg_zoo.checkpoints.formats import read_file

PLACEHOLDERS = [
    (b"", "an empty file"),
    (b"<!DOCTYPE html><title>Sign in</title>", "an HTML page"),
    (b"\xef\xbb\xbf\r\n <HTML><body>quota</body></html>", "an HTML page"),
    (b"<?xml version='1.0'?><Error/>", "an XML document"),
    (b'{"error": "no such file"}', "a JSON document"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "a Git LFS pointer"),
]
OTHER_FILES = [
    (b"\x1f\x8b\x08\0", "a gzip file"),
    (b"BZh91AY&SY", "a bzip2 file"),
    (b"\xfd7zXZ\0", "an xz file"),
    (b"storages".ljust(257, b"\0") + b"ustar\0", "a tar archive"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY\x01\0", "a single NumPy array"),
]


@pytest.mark.parametrize(("head", "name"), PLACEHOLDERS + OTHER_FILES)
def test_a_file_that_is_not_a_checkpoint_is_named(head: bytes, name: str) -> None:
    kind = sniff_content_type(head)
    assert kind is not None
    assert kind.name == name
    assert kind.is_placeholder is ((head, name) in PLACEHOLDERS)
    assert kind.hint


@pytest.mark.parametrize(
    "head", [b"PK\x03\x04", b"\x80\x02}q\0", b"\x80\x04\x95", b"}q\0(U", b"(dp0\nS'a'\n", b"\0" * 9]
)
def test_what_may_be_a_checkpoint_is_not_named(head: bytes) -> None:
    assert sniff_content_type(head) is None


# The lengths of headers whose first bytes are "<", "{", "[", and a space followed by "<".
@pytest.mark.parametrize("length", [0x3C, 0x7B, 0x5B, 0x3C20, 0x200A3C20])
def test_safetensors_whose_header_length_looks_like_text_is_not_named(length: int) -> None:
    assert sniff_content_type(struct.pack("<Q", length) + b'{"a":{"dtype":"F32"') is None


def test_a_safetensors_file_whose_length_starts_like_a_web_page_is_loaded(tmp_path) -> None:
    header = b'{"fc.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(0x3C20)
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<f", 1.0))
    format, arrays = read_file(path)
    assert format == "safetensors"
    assert arrays["fc.weight"].tolist() == [1.0]

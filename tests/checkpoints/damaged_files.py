"""Files that are damaged, or something else than a checkpoint: (what it is, content, a word of the error)."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
import zlib
from typing import Any, List, Tuple

import numpy as np

from tests.checkpoints import torch_files as write
from tests.checkpoints.hostile_files import Row, array_call
from tests.checkpoints.torch_files import group, integer, name, storage, tensor, text, whole, zip_file


def bent_zip(change: Any, content: bytes = b"") -> bytes:
    data = bytearray(content or write.good_zip())
    change(data)
    return bytes(data)


def set_in_directory(offset: int, value: int, content: bytes = b"") -> bytes:
    """A zip file with two bytes of its first directory entry replaced."""
    data = bytearray(content or write.good_zip())
    struct.pack_into("<H", data, data.index(b"PK\1\2") + offset, value)
    return bytes(data)


def other_zip(members: List[Tuple[str, bytes]], method: int = 0) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for member, raw in members:
            archive.writestr(member, raw)
    return stream.getvalue()


def one_tensor(
    offset: int, size: Tuple[int, ...], stride: Tuple[int, ...], key: str = "0", numel: int = 6, raw: int = 24
) -> bytes:
    return zip_file(whole(tensor(storage(key, "f4", numel), offset, size, stride)), {"0": bytes(raw)})


def damaged() -> List[Row]:
    zipped, legacy, mge, safe = write.good_zip(), write.good_legacy(), write.good_megengine(), write.good_safetensors()
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    return [
        ("an empty file", b"", "empty"),
        ("a web page", b"<!DOCTYPE html><html>404</html>", "HTML page"),
        ("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "LFS"),
        ("a gzip file", b"\x1f\x8b\x08" + bytes(20), "gzip"),
        ("a tar file", tar.getvalue(), "tar"),
        ("an HDF5 file", b"\x89HDF\r\n\x1a\n" + bytes(20), "HDF5"),
        ("a .npy file", b"\x93NUMPY\x01\x00", "NumPy array"),
        ("noise", bytes(range(1, 200)), "no known format"),
        ("text", b"accuracy: 75.1\n", "no known format"),
        ("zeros", bytes(1000), "no known format"),
        ("one byte", b"\x80", "cut off"),
        ("protocol 6", b"\x80\x06N.", "protocol 6"),
        ("an unknown opcode", whole(b"\xff"), "opcode"),
        ("an extension code", whole(b"\x82\x01"), "opcode"),
        ("an out-of-band buffer", whole(b"\x97", 5), "opcode"),
        ("STOP on an empty stack", whole(b""), "damaged"),
        ("an APPEND to a number", whole(b"K\x01Na"), "items for"),
        ("an odd number of SETITEMS", whole(b"}(Nu"), "without a value"),
        ("a REDUCE of a number", whole(b"K\x01)R"), "call of"),
        ("a MARK never opened", whole(b"t"), "damaged"),
        ("text that is not UTF-8", whole(b"X\x02\x00\x00\x00\xff\xfe"), "damaged"),
        ("bytes after the pickle", mge + b"x", "follow"),
        ("a cut MegEngine file", mge[: len(mge) // 2], "cut off"),
        ("a persistent id outside torch's files", whole(text("x") + b"Q"), "persistent"),
        (
            "an array without data",
            whole(
                name("numpy.core.multiarray", "_reconstruct")
                + group(name("numpy", "ndarray"), group(integer(0)), b"C\x01b")
                + b"R"
            ),
            "without data",
        ),
        ("an array short of data", whole(array_call(group(integer(3)), data=b"C\x04abcd")), "bytes of data"),
        ("an array with data to spare", whole(array_call(group(integer(1)), data=b"C\x05abcde")), "bytes of data"),
        ("an array of Python objects", pickle.dumps({"w": np.array([None, 1])}, 4), "dtype"),
        ("an array of complex numbers", pickle.dumps({"w": np.ones(2, "c8")}, 4), "dtype"),
        ("an array of records", pickle.dumps({"w": np.ones(2, [("a", "f4")])}, 4), "dtype"),
        ("an array of text", pickle.dumps({"w": np.array(["a"])}, 4), "dtype"),
        ("an array of long doubles", pickle.dumps({"w": np.ones(2, np.longdouble)}, 4), "dtype"),
        (
            "_codecs.encode to another encoding",
            whole(name("_codecs", "encode") + group(text("x"), text("idna")) + b"R"),
            "encode",
        ),
        (
            "_codecs.encode with an error handler",
            whole(name("_codecs", "encode") + group(text("x"), text("latin1"), text("x")) + b"R"),
            "damaged",
        ),
        ("numpy.ndarray called", whole(name("numpy", "ndarray") + group(group(integer(2**40))) + b"R"), "called"),
        ("paddle's slices", pickle.dumps({"UnpackBigParamInfor@@": {}}, 2), "slices"),
        ("a torch zip cut in half", zipped[: len(zipped) // 2], "zip"),
        ("a torch zip without its directory's end", zipped[:-22], "zip"),
        ("an encrypted zip", set_in_directory(8, 1), "encrypted"),
        ("a zip of an unknown method", set_in_directory(10, 99), "deflate"),
        ("an LZMA zip", write.good_zip(method=14), "deflate"),
        (
            "a zip whose member has moved",
            bent_zip(lambda d: struct.pack_into("<I", d, d.index(b"PK\1\2") + 42, 5)),
            "zip",
        ),
        (
            "a zip whose member leaves the file",
            bent_zip(lambda d: struct.pack_into("<II", d, d.index(b"PK\1\2") + 20, 10**6, 10**6)),
            "zip",
        ),
        (
            "a deflated storage with flipped bits",
            bent_zip(lambda d: d.__setitem__(slice(60, 90), bytes(30)), write.good_zip(method=8)),
            "damaged",
        ),
        (
            "a zip with a name that is not UTF-8",
            set_in_directory(8, 0x800, write.good_zip(root="\xff").replace("\xff".encode(), b"\x96\x96")),
            "damaged",
        ),
        ("an .npz file with an empty member", other_zip([("a.npy", b"")]), "not a .npy file"),
        ("a zip with two roots", other_zip([("a/data.pkl", b"N."), ("b/data.pkl", b"N.")]), "data.pkl"),
        ("a zip with its pickle in a deep folder", other_zip([("a/../../data.pkl", b"N.")]), "data.pkl"),
        ("a zip with two members of one name", bent_zip(lambda d: None, _twice()), "two members"),
        ("a TorchScript archive", write.good_zip(extra=[("archive/constants.pkl", b"N.")]), "TorchScript"),
        ("a zip of a strange byte order", write.good_zip(extra=[("archive/byteorder", b"middle")]), "damaged"),
        (
            "a storage key that is a path",
            zip_file(whole(tensor(storage("../../secret", "f4", 1), 0, (1,), (1,))), {"0": bytes(4)}),
            "lacks",
        ),
        ("a storage that is missing", one_tensor(0, (6,), (1,), key="1"), "lacks"),
        ("a storage shorter than declared", one_tensor(0, (6,), (1,), raw=20), "declared"),
        ("a storage longer than declared", one_tensor(0, (6,), (1,), raw=28), "declared"),
        ("a tensor larger than its storage", one_tensor(0, (7,), (1,)), "outside"),
        ("a tensor whose offset leaves its storage", one_tensor(1, (6,), (1,)), "outside"),
        ("a tensor whose stride leaves its storage", one_tensor(0, (3,), (3,)), "outside"),
        (
            "a tensor with a negative stride",
            zip_file(
                whole(tensor(storage("0", "f4", 6), 0, (3,), (1,)).replace(group(integer(1)), b"(J\xff\xff\xff\xfft")),
                {"0": bytes(24)},
            ),
            "lengths",
        ),
        ("a tensor with a stride too few", one_tensor(0, (2, 3), (1,)), "strides"),
        ("a tensor of shape (0, 2^62, 4)", one_tensor(0, (0, 2**62, 4), (1, 1, 1)), "damaged"),
        ("a tensor of huge strides", one_tensor(0, (2, 3), (2**62, 2**62)), "outside"),
        ("a tensor of complex numbers", zip_file(whole(name("torch", "ComplexFloatStorage")), {}), "ComplexFloat"),
        ("a storage without a tensor", zip_file(whole(storage("0", "f4", 6)), {"0": bytes(24)}), "not a value"),
        ("a tensor without a storage", zip_file(whole(tensor(text("0"), 0, (1,), (1,))), {}), "storage"),
        (
            "one storage described twice",
            zip_file(whole(b"(" + storage("0", "f4", 6) + storage("0", "f8", 3) + b"t"), {"0": bytes(24)}),
            "two different descriptions",
        ),
        ("a legacy file cut in its storages", legacy[:-4], "cut off"),
        ("a legacy file cut in its pickle", legacy[:150], "cut off"),
        ("a legacy file with bytes to spare", legacy + b"x", "follow"),
        ("a legacy file of another version", legacy.replace(pickle.dumps(1001, 2), pickle.dumps(1002, 2)), "1001"),
        (
            "a legacy file with a storage of negative size",
            write.legacy_file(whole(tensor(storage("0", "f4", 1, legacy=True), 0, (1,), (1,))), {"0": (-1, b"")}),
            "size",
        ),
        (
            "a legacy file with a storage listed twice",
            write.legacy_file(whole(storage("0", "f4", 1, legacy=True)), {"0": (1, bytes(4))}, keys=["0", "0"]),
            "twice",
        ),
        (
            "a legacy file that lacks a storage",
            write.legacy_file(whole(tensor(storage("0", "f4", 1, legacy=True), 0, (1,), (1,))), {}),
            "not in the file",
        ),
        (
            "a legacy view outside its storage",
            write.legacy_file(
                whole(storage("0", "f4", 4, group(text("1"), integer(3), integer(2)), legacy=True)),
                {"0": (4, bytes(16))},
            ),
            "view",
        ),
        (
            "a legacy module",
            write.legacy_file(whole(group(text("module"), b"N", text("f.py"), text("import os")) + b"Q"), {}),
            "module",
        ),
        ("a safetensors file cut in its header", safe[:20], "no known format"),
        ("a safetensors file cut in its data", safe[:-1], "outside the data"),
        ("a safetensors file with bytes to spare", safe + b"x", "its tensors end at byte"),
        ("a safetensors header that is not JSON", write.safetensors_file(b"{nonsense"), "JSON"),
        (
            "a safetensors header with a length beyond the file",
            write.safetensors_file(b"{}", size=10**12),
            "no known format",
        ),
        ("safetensors offsets that overlap", _safe("[4]", "[0,16]", "[4]", "[8,24]", 24), "hole or overlap"),
        ("safetensors offsets with a hole", _safe("[4]", "[0,16]", "[4]", "[20,36]", 36), "hole or overlap"),
        ("safetensors offsets that run backwards", _safe("[4]", "[16,0]", "[4]", "[0,16]", 16), "outside the data"),
        (
            "a safetensors shape that does not fit its data",
            _safe("[5]", "[0,16]", "[4]", "[16,32]", 32),
            "another size",
        ),
        (
            "a safetensors shape that overflows",
            _safe("[4294967296,4294967296,4294967296]", "[0,0]", "[0]", "[0,0]", 0),
            "checkpoint",
        ),
        (
            "an unknown safetensors dtype",
            write.safetensors_file(b'{"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
            "checkpoint",
        ),
        (
            "an 8-bit float in safetensors",
            write.safetensors_file(b'{"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}', bytes(4)),
            "F8_E4M3",
        ),
        ("a safetensors shape of (0, 2^63)", _safe("[0,9223372036854775808]", "[0,0]", "[0]", "[0,0]", 0), "dimension"),
        ("a safetensors shape of 70 axes", _safe("[1" + ",1" * 69 + "]", "[0,4]", "[0]", "[4,4]", 4), "dimension"),
        ("a compressed pickle", zlib.compress(mge), "no known format"),
    ]


def _twice() -> bytes:
    data = other_zip([("a/data.pkl", b"N."), ("a/data.pkX", b"N.")])
    return data.replace(b"a/data.pkX", b"a/data.pkl")


def _safe(shape_a: str, range_a: str, shape_b: str, range_b: str, size: int) -> bytes:
    entries = [
        f'"{key}":{{"dtype":"F32","shape":{shape},"data_offsets":{place}}}'
        for key, shape, place in (("a", shape_a, range_a), ("b", shape_b, range_b))
    ]
    return write.safetensors_file(("{" + ",".join(entries) + "}").encode(), bytes(size))

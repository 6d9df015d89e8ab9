"""Files that do not hold a single state dict are read where that is simple, and else named, with what to do instead.

The kind of fault: what a folder of weights has beside checkpoints (exported programs, indexes, archives of arrays), or
what is pasted as a path (a URL, a path from home), ends in an error that does not say what the file is.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

import repvgg_zoo
from repvgg_zoo.checkpoints import load_checkpoint, save_checkpoint
from repvgg_zoo.checkpoints.formats import read_file
from repvgg_zoo.errors import ArgumentError, CheckpointFormatError, LayoutError, MissingFileError

from . import torch_files
from .publishers import SMALL, entries, numbered

STATE = numbered(entries("official", SMALL["plain"], "train", classes=10), "official")[1]


def assert_holds_all(checkpoint):
    assert set(checkpoint.state_dict) == set(STATE)
    assert all(np.array_equal(checkpoint.state_dict[key].ravel(), STATE[key].ravel()) for key in STATE)


# The first bytes that real exporters wrote.
HEADS = {
    "an ONNX model": b"\x08\t\x12\x07pytorch\x1a\x062.13.0:\xdf\x01\n\\\n\x0connx::Gemm_0\n\x06weight",
    "a PaddlePaddle inference model's weights": bytes(16) + b"\x04\0\0\0\x08\x05\x10\x02" + bytes(20),
    "a PaddlePaddle program": b"\n\x9e%\x08\0\x10" + b"\xff" * 9 + b"\x01\x1a\x1e\n\x05input\x12\x15\x08\x07\x1a",
    "a MegEngine model": b"\x8c\x04\0\0\x1c\0\0\0mgv2\x14\0 \0\x1c\0\x18\0\x14\0\x10\0\x0c\0\x08\0\0\0\x04\0",
    "a TensorFlow Lite model": b"\x1c\0\0\0TFL3\x14\0 \0\x1c\0\x18\0\x14\0\x10\0\x0c\0",
    "a TensorRT engine": b"ftrt\0\0\0\0\xc8\0\0\0",
    "a TensorFlow model": b"\x08\x01\x12\xc2\x92\x0b\n\xff\x03\n.\n\x08",
    "an HDF5 file": b"\x89HDF\r\n\x1a\n\0\0\0\0\0\x08\x08\0",
    "an OpenVINO model": b'<?xml version="1.0"?>\n<net name="RepVGG" version="11">\n\t<layers>',
}
MORE_HEADS = [
    ("a MegEngine model", b"MGBC" + bytes(12) + b" \0\0\0" + bytes(12)),
    ("a PaddlePaddle program", b'{"base_code":{"magic":"pir","trainable":true,"version":4},"progr'),
    ("an ONNX model", b"\x08\x03\x3a\x80\x80\x80\x04\n\x10\n\x01x"),
]


@pytest.mark.parametrize(("name", "head"), [*HEADS.items(), *MORE_HEADS])
def test_an_exported_program_is_named_by_its_content_whatever_its_suffix(tmp_path, name, head):
    (tmp_path / "best.pth").write_bytes(head + bytes(100))
    with pytest.raises(CheckpointFormatError, match=f"the file is {name}, not a checkpoint") as caught:
        load_checkpoint(tmp_path / "best.pth")
    assert caught.value.hint.count("pass the") + caught.value.hint.count("save the") == 1


@pytest.mark.parametrize(
    ("suffix", "name"),
    [
        (".engine", "a TensorRT engine"),
        (".plan", "a TensorRT engine"),
        (".mge", "a MegEngine model"),
        (".tflite", "a TensorFlow Lite model"),
        (".onnx", "an ONNX model"),
        (".pdmodel", "a PaddlePaddle program"),
        (".pdiparams", "a PaddlePaddle inference model's weights"),
        (".pb", "a TensorFlow model"),
        (".h5", "an HDF5 file"),
        (".mlmodel", "a Core ML model"),
    ],
)
def test_content_that_says_nothing_is_named_by_its_suffix(tmp_path, suffix, name):
    (tmp_path / f"net{suffix}").write_bytes(b"\x01encrypted or of a later version")
    with pytest.raises(CheckpointFormatError, match=f"the file is {name} by its name") as caught:
        load_checkpoint(tmp_path / f"net{suffix}")
    assert caught.value.hint


def test_a_checkpoint_is_read_whatever_its_suffix(tmp_path):
    for name in ("net.onnx", "net.h5", "net.engine"):
        (tmp_path / name).write_bytes(pickle.dumps(STATE))
        assert_holds_all(load_checkpoint(tmp_path / name))


def test_a_torchscript_archive_is_named_with_how_to_save_its_weights(tmp_path):
    content = torch_files.zip_file(torch_files.whole(b"}"), {})
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        root = archive.namelist()[0].split("/")[0]
    (tmp_path / "script.pt").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "script.pt", "a") as archive:
        archive.writestr(f"{root}/constants.pkl", b"\x80\x02).")
    with pytest.raises(CheckpointFormatError, match="TorchScript archive") as caught:
        load_checkpoint(tmp_path / "script.pt")
    assert "torch.jit.load" in caught.value.hint


# .npz --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_read(tmp_path, save):
    weights = {key: np.random.RandomState(0).rand(*array.shape).astype(array.dtype) for key, array in STATE.items()}
    weights["linear.weight"] = np.asfortranarray(weights["linear.weight"])
    save(tmp_path / "net.npz", **weights)
    checkpoint = load_checkpoint(tmp_path / "net.npz")
    assert checkpoint.format == "npz"
    for key, array in weights.items():
        np.testing.assert_array_equal(checkpoint.state_dict[key].ravel(), array.ravel(), err_msg=key)


def npy(array, version=None):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=version, allow_pickle=True)
    return stream.getvalue()


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8", "<i8", "|u1", "|b1"])
def test_every_npy_header_that_numpy_writes_is_read(tmp_path, dtype, version):
    for array in (np.arange(6).astype(dtype), np.arange(6).astype(dtype).reshape(1, 2, 3), np.zeros((), dtype)):
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            archive.writestr("a.npy", npy(array, version))
        result = read_file(tmp_path / "x.npz")[1]["a"]
        np.testing.assert_array_equal(result, array)
        assert result.dtype == array.dtype.newbyteorder("=") and result.shape == array.shape


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(np.array([{}, print], object)), "Python objects"),
        (npy(np.zeros(3, "c8")), "dtype 'c8'"),
        (npy(np.zeros(3, "U5")), "numpy.savez does not write|dtype"),
        (npy(np.zeros(3, [("a", "f4")])), r"numpy\.savez does not write"),
        (npy(np.zeros(3))[:-1], "bytes of data"),
        (npy(np.zeros(3)) + b"x", "bytes of data"),
        (b"\x93NUMPY\x02\0\xff\xff\xff\x7f", "header of 2147483647 bytes"),
        (b"\x93NUMPY\x01\0", "not a .npy file"),
        (npy(np.zeros(3)).replace(b"(3,)", b"(9" + b"9" * 18 + b",)").replace(b" " * 18, b"", 1), "shape|bytes|header"),
        (b"", "not a .npy file"),
    ],
)
def test_a_member_of_an_npz_that_is_no_array_is_an_error(tmp_path, content, message):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", content)
    with pytest.raises(CheckpointFormatError, match=message):
        read_file(tmp_path / "x.npz")


def test_an_npz_that_would_unpack_to_many_times_its_size_is_an_error(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(1 << 20))
    with pytest.raises(CheckpointFormatError, match="many times its size"):
        read_file(tmp_path / "x.npz")


# Shards ------------------------------------------------------------------------------------------------------

INDEX = "model.safetensors.index.json"


def write_shards(folder: Path, weight_map=None):
    keys = list(STATE)
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    shards = {names[0]: keys[::2], names[1]: keys[1::2]}
    for name, part in shards.items():
        save_checkpoint(folder / name, {key: STATE[key] for key in part})
    if weight_map is None:
        weight_map = {key: name for name, part in shards.items() for key in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return folder / INDEX


def test_the_shards_of_an_index_are_read(tmp_path):
    checkpoint = load_checkpoint(write_shards(tmp_path))
    assert_holds_all(checkpoint)
    assert checkpoint.format == "safetensors"


def test_one_shard_is_an_error_that_names_the_index(tmp_path):
    write_shards(tmp_path)
    with pytest.raises(LayoutError) as caught:
        load_checkpoint(tmp_path / "model-00001-of-00002.safetensors")
    assert ".index.json" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../model.safetensors", "not a file beside it"),
        ("/etc/passwd", "not a file beside it"),
        ("..\\model.safetensors", "not a file beside it"),
        ("c:model.safetensors", "not a file beside it"),
        ("..", "not a file beside it"),
        ("", "not a file beside it"),
        ("a\0b.safetensors", "not a file beside it"),
        ("pytorch_model-00001-of-00002.bin", "only shards in safetensors"),
        ("lost.safetensors", "does not exist"),
        ("model-00001-of-00002.safetensors", "lacks 1 of the tensors in the index, such as 'x'"),
        (3, "no weight_map"),
    ],
)
def test_a_shard_that_is_not_a_file_of_the_same_folder_is_an_error(tmp_path, name, message):
    index = write_shards(tmp_path, {"x": name})
    with pytest.raises((CheckpointFormatError, MissingFileError), match=message):
        load_checkpoint(index)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": null}}', "[" * 100_000, " " * (2 << 20)],
)
def test_an_index_that_is_not_valid_is_an_error(tmp_path, content):
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(CheckpointFormatError) as caught:
        load_checkpoint(tmp_path / INDEX)
    assert caught.value.path == str(tmp_path / INDEX)


def test_limits_of_shards(tmp_path):
    index = write_shards(tmp_path, {str(number): f"{number}.safetensors" for number in range(65)})
    with pytest.raises(CheckpointFormatError, match="65 files"):
        load_checkpoint(index)


def test_a_damaged_shard_is_an_error_with_its_path(tmp_path):
    index = write_shards(tmp_path)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(CheckpointFormatError, match="shard") as caught:
        load_checkpoint(index)
    assert caught.value.path == str(shard)


def test_an_index_has_no_digest_of_its_shards(tmp_path):
    with pytest.raises(CheckpointFormatError, match="says nothing about the files"):
        load_checkpoint(write_shards(tmp_path), sha256="0" * 64)


def test_an_index_under_another_name_is_named(tmp_path):
    (tmp_path / "weights.json").write_bytes(write_shards(tmp_path).read_bytes())
    with pytest.raises(CheckpointFormatError, match="the index of a checkpoint's shards"):
        load_checkpoint(tmp_path / "weights.json")


# Paths -------------------------------------------------------------------------------------------------------

URLS = [
    "https://me:secret@host.example/net.pth?token=x",
    "hf://timm/repvgg_a0/model.safetensors",
    "s3://bucket/net.pth",
]
TAKE_A_PATH = {
    "load_checkpoint": load_checkpoint,
    "save_checkpoint": lambda path: save_checkpoint(path, STATE, format="safetensors"),
    "create": lambda path: repvgg_zoo.create("RepVGG_N0", checkpoint=path),
    "preprocess": lambda path: repvgg_zoo.preprocess("RepVGG_N0")(path),
}


@pytest.mark.parametrize("url", [*URLS, Path("https://host.example/net.pth")])
@pytest.mark.parametrize("function", TAKE_A_PATH)
def test_a_url_as_a_path_is_named(function, url):
    with pytest.raises(ArgumentError, match="is a URL") as caught:
        TAKE_A_PATH[function](url)
    assert "secret" not in str(caught.value) and "download it" in caught.value.hint


def test_a_path_from_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    network = repvgg_zoo.create("RepVGG_N0", num_blocks=(1, 1, 1, 1), width_multiplier=(0.125,) * 4)
    save_checkpoint("~/net.safetensors", network)
    assert (tmp_path / "net.safetensors").exists()
    path = Path("~") / "net.safetensors"
    checkpoint = load_checkpoint(path)
    assert checkpoint.path == str(tmp_path / "net.safetensors")
    repvgg_zoo.create("RepVGG_N0", checkpoint=str(path), num_blocks=(1, 1, 1, 1), width_multiplier=(0.125,) * 4)
    with pytest.raises(MissingFileError, match=str(tmp_path / "lost.pth")):
        load_checkpoint("~/lost.pth")
    with pytest.raises(ArgumentError, match=str(tmp_path / "lost.png")):
        repvgg_zoo.preprocess("RepVGG_N0")("~/lost.png")


@pytest.mark.parametrize("path", [b"net.pth", 3, None, io.BytesIO(b"x")])
def test_what_is_no_path_is_an_argument_error(path):
    with pytest.raises(ArgumentError, match="the path is"):
        load_checkpoint(path)

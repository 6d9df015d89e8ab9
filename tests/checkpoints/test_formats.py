"""Well-formed files are read exactly, as views of one private buffer, whatever their suffix."""

from __future__ import annotations

import mmap
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest

from repvgg_zoo.checkpoints.formats import read_file
from tests.arrays import assert_same_array
from tests.checkpoints import torch_files as write

EXPECTED = {"weight": write.VALUES.reshape(6, 4).T, "shared": write.VALUES[18:]}


@pytest.fixture
def read(tmp_path):
    def from_bytes(content):
        path = tmp_path / "checkpoint.suffix-says-nothing"
        path.write_bytes(content)
        return read_file(path)

    return from_bytes


def buffer_of(array):
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return getattr(array, "obj", None)


@pytest.mark.parametrize(
    "content",
    [
        write.good_zip(),
        write.good_zip(root="epoch_300.pth"),
        write.good_zip(method=8),
        write.good_zip(extra=[("archive/version", b"3\n"), ("archive/byteorder", b"little")]),
        write.good_legacy(),
        write.good_legacy(little=False),
    ],
    ids=["zip", "another root", "deflated", "with byteorder", "legacy", "legacy big-endian"],
)
def test_torch_tensors_are_views_of_shared_strided_storages(read, content):
    name, tree = read(content)
    assert name == "torch"
    assert list(tree) == ["weight", "shared"]
    for key, expected in EXPECTED.items():
        assert_same_array(tree[key], expected)
    assert np.shares_memory(tree["weight"], tree["shared"])


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_megengine_pickles_of_every_protocol_and_numpy_version_are_read(read, protocol, core):
    content = write.good_megengine(protocol)
    old = [b"numpy.core.multiarray", b"numpy.core.numeric", b"numpy._core.multiarray", b"numpy._core.numeric"]
    for module in old:  # protocol 4 and 5 write the module's length before its name
        new = core + b"." + module.rpartition(b".")[2]
        content = content.replace(bytes([0x8C, len(module)]) + module, bytes([0x8C, len(new)]) + new)
        content = content.replace(b"c" + module + b"\n", b"c" + new + b"\n")
    if protocol >= 4:  # and the frame's length before all; the reader does not need it
        content = content.replace(content[2:11], b"\x95" + struct.pack("<Q", len(content) - 11), 1)
    name, tree = read(content)
    assert name == "megengine"
    for key, expected in write.arrays().items():
        np.testing.assert_array_equal(tree[key], expected)
        assert tree[key].dtype == expected.dtype
    assert core in content


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("marked", [True, False])
def test_paddle_files_give_arrays_without_their_internal_names(read, protocol, marked):
    name, tree = read(write.good_paddle(protocol, marked))
    assert name == "paddle"
    assert list(tree) == ["weight", "_mean"]
    assert_same_array(tree["weight"], write.VALUES.reshape(4, 6))


def test_safetensors_files_are_read(read):
    name, tree = read(write.good_safetensors())
    assert name == "safetensors"
    assert set(tree) == {"weight", "half"}
    assert_same_array(tree["weight"], write.VALUES.reshape(4, 6))


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (write.good_zip(), "weight"),
        (write.good_legacy(), "weight"),
        (write.good_safetensors(), "weight"),
        (write.good_megengine(4), "weight"),
        (write.good_megengine(5), "weight"),
        (write.good_paddle(), "weight"),
    ],
    ids=["torch zip", "torch legacy", "safetensors", "megengine 4", "megengine 5", "paddle"],
)
def test_arrays_are_read_only_views_of_one_buffer_with_the_file(read, content, key):
    array = read(content)[1][key]
    buffer = buffer_of(array)
    assert isinstance(buffer, (bytearray, mmap.mmap)) and bytes(buffer) == content
    assert not array.flags.writeable


def test_bfloat16_becomes_float32_exactly_in_torch_and_safetensors_files(read):
    values = np.float32([1.0, -0.5, 3.140625, 2.0**100, np.inf])
    words = (values.view("u4") >> 16).astype("<u2").tobytes()
    body = write.whole(write.mapping({"w": write.tensor(write.storage("0", "bf", 5), 0, (5,), (1,))}))
    header = b'{"w":{"dtype":"BF16","shape":[5],"data_offsets":[0,10]}}'
    for content in (write.zip_file(body, {"0": words}), write.safetensors_file(header, words)):
        assert_same_array(read(content)[1]["w"], values)


@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "<i8", ">i4", "u1", "i1", "?"])
def test_arrays_of_any_dtype_order_and_shape_are_read_in_native_order(read, dtype):
    base = np.arange(24).astype(dtype).reshape(2, 3, 4)
    state = {
        "c": base,
        "f": np.asfortranarray(base),
        "strided": base[::-1, :, ::2],
        "0-d": np.array(base[0, 0, 1]),
        "empty": base[:0],
    }
    for protocol in range(6):
        tree = read(pickle.dumps(state, protocol))[1]
        for key, expected in state.items():
            np.testing.assert_array_equal(tree[key], expected)
            assert tree[key].shape == expected.shape
            assert tree[key].dtype == expected.dtype.newbyteorder("=")


def test_wrappers_scalars_and_shared_parts_stay_as_they_were_saved(read):
    betas = (0.9, 0.999)
    array = np.ones(3)
    saved = {"state_dict": {"w": array}, "epoch": 3, "groups": [{"betas": betas}, {"betas": betas}], 7: None}
    saved.update(note="é", seed=10**30, raw=bytes(100), again=array)
    for protocol in range(6):
        tree = read(pickle.dumps(saved, protocol))[1]
        assert tree["again"] is tree["state_dict"]["w"]
        assert {key: tree[key] for key in tree if key not in ("state_dict", "again")} == {
            key: saved[key] for key in saved if key not in ("state_dict", "again")
        }


def test_reading_imports_no_framework(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(write.good_zip())
    code = (
        "import sys; from repvgg_zoo.checkpoints.formats import read_file; read_file(sys.argv[1]); "
        "assert not {'torch', 'megengine', 'paddle'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)

"""A FileArray has the shape, the parts and the values of the array in its file."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from megengine import Tensor

from repvgg_zoo._buffers import FileRegion
from repvgg_zoo._file_array import FileArray
from repvgg_zoo._tensors import tensors_from_arrays


@pytest.fixture(scope="module")
def region(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "numbers"
    path.write_bytes(b"head" + np.arange(1 << 20, dtype=np.float32).tobytes())
    return FileRegion(os.open(path, os.O_RDONLY), path, 4)


@given(st.data())
def test_slices_and_shapes_are_those_of_an_array(region, data):
    shape = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    first = data.draw(st.integers(0, 100))
    rows = slice(data.draw(st.integers(0, 9)), data.draw(st.integers(0, 9)))
    array = np.arange(first, first + math.prod(shape), dtype=np.float32).reshape(shape)
    in_file = FileArray(region, 4 * first, shape, array.dtype)
    assert (in_file.shape, in_file.dtype, in_file.size, in_file.ndim, len(in_file)) == (
        array.shape,
        array.dtype,
        array.size,
        array.ndim,
        len(array),
    )
    if rows.start <= rows.stop:
        assert np.array_equal(np.asarray(in_file[rows]), array[rows])
    assert np.array_equal(np.asarray(in_file.reshape((array.size,))), array.ravel())


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32])
@pytest.mark.parametrize("size", [10, 1 << 14, 1 << 20])
@pytest.mark.parametrize("device", ["cpux", "cpu1"])
def test_tensors_hold_the_values_whatever_their_dtype_and_size(region, dtype, size, device):
    like = Tensor(np.zeros(1, dtype), device=device)
    (tensor,) = tensors_from_arrays([(FileArray(region, 0, (2, size // 2), np.dtype(np.float32)), like)])
    with np.errstate(over="ignore"):
        expected = np.arange(size, dtype=np.float32).astype(dtype).reshape(2, size // 2)
    assert (tensor.dtype, str(tensor.device)) == (like.dtype, str(like.device))
    assert np.array_equal(tensor.numpy(), expected)

"""MegEngine's memory is read in place; an array that was borrowed outlives its tensor."""

from __future__ import annotations

import gc

import megengine
import megengine.functional as F
import numpy as np
import pytest
from megengine import Tensor

from repvgg_zoo.reparam.borrowing import borrow


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_borrowed_values_are_those_of_the_tensor_and_outlive_it(dtype):
    made = Tensor(np.arange(1 << 16).reshape(256, 256) % 1000, dtype=dtype)
    tensors = {"computed": made + 1, "part of one": made[3:, 1:], "spread": F.broadcast_to(made[:1], (256, 256))}
    expected = {key: tensor.numpy() for key, tensor in tensors.items()}
    arrays = borrow(tensors)
    del tensors, made
    gc.collect()
    megengine._full_sync()
    for key, array in arrays.items():
        np.testing.assert_array_equal(array, expected[key], strict=True)
        assert not array.flags.writeable


def test_a_large_tensor_is_not_copied():
    """It rests on where DLPack's record has the address; a MegEngine that changes it would be noticed here."""
    tensor = Tensor(np.zeros((64, 1024), np.float32))
    first, second = borrow({"x": tensor})["x"], borrow({"x": tensor})["x"]
    assert np.shares_memory(first, second)

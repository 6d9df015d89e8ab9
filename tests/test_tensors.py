"""MegEngine's memory is read and written in place; a view outlives its tensor."""

from __future__ import annotations

import gc
import subprocess
import sys

import megengine
import megengine.functional as F
import numpy as np
import pytest
from megengine import Tensor

from repvgg_zoo._tensors import numpy_views, tensors_from_arrays
from tests.arrays import assert_same_array


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_views_have_the_values_of_the_tensor_and_outlive_it(dtype):
    source = Tensor(np.arange(1 << 16).reshape(256, 256) % 1000, dtype=dtype)
    tensors = {"computed": source + 1, "part of one": source[3:, 1:], "spread": F.broadcast_to(source[:1], (256, 256))}
    expected = {key: tensor.numpy() for key, tensor in tensors.items()}
    arrays = numpy_views(tensors)
    del tensors, source
    gc.collect()
    megengine._full_sync()
    for key, array in arrays.items():
        assert_same_array(array, expected[key])
        assert not array.flags.writeable


def test_a_large_tensor_is_not_copied():
    """It rests on where DLPack's record has the address; a MegEngine that changes it would be noticed here."""
    tensor = Tensor(np.zeros((64, 1024), np.float32))
    first, second = numpy_views({"x": tensor})["x"], numpy_views({"x": tensor})["x"]
    assert np.shares_memory(first, second)


SIZES = [(), (1,), (127,), (9, 8), (128, 128), (40, 3, 57, 5), (2, 1200, 1500), (256, 1 << 10)]
KINDS = [np.float16, np.float32, np.float64, np.int32]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_arrays_have_their_values_and_memory_of_their_own(dtype, kind):
    arrays = [
        (np.arange(np.prod(shape)) % 2000 + index).reshape(shape).astype(kind) for index, shape in enumerate(SIZES)
    ]
    arrays += [arrays[3].T, arrays[-1].T, arrays[-1][:, ::2], np.broadcast_to(arrays[4][:1], (300, 128))]
    like = Tensor(0, dtype=dtype)
    tensors = tensors_from_arrays([(array, like) for array in arrays])
    expected = [array.astype(dtype) for array in arrays]
    highest = [tensor.max() for tensor in tensors]  # computed on what was written
    for array in arrays:
        if array.flags.writeable:
            array[...] = -1
    for tensor, value, top in zip(tensors, expected, highest):
        assert isinstance(tensor, Tensor) and tensor.dtype == dtype
        assert_same_array(tensor.numpy(), value)
        assert top.numpy() == value.max()
    changed = tensors[4] + 0
    tensors[4][...] = 5
    np.testing.assert_array_equal(changed.numpy(), expected[4])


GROWTH = """
import numpy as np
from megengine import Tensor
from repvgg_zoo._tensors import empty_like, tensors_from_arrays
def resident(): return 1024 * int(open('/proc/self/status').read().split('VmRSS:')[1].split()[0])
def values(): return [(np.ones(1 << 20, np.float32), like) for _ in range(16)]  # 64 MB
like = Tensor(0.0)
tensors_from_arrays(values())[0].numpy(), empty_like((1,), like).numpy()
pairs = values()
before = resident()
result = {made}
print((resident() - before) / (16 << 22))
"""


@pytest.mark.parametrize(
    ("made", "least", "most"),
    [
        ("tensors_from_arrays(pairs)", 0.8, 1.15),  # MegEngine's own way makes a second copy, and gives it back late
        ("empty_like((1 << 24,), like)\nresult[0].numpy()", -0.1, 0.1),  # a MegEngine that fills it would be noticed
    ],
)
def test_memory_grows_by_what_is_written_and_by_nothing_before(made, least, most):
    code = GROWTH.replace("{made}", made)
    grown = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert least < grown < most, grown

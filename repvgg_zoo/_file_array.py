"""FileArray: an array in a file, whose values are read when they are copied.

A network's weights are copied from a file into its tensors in small pieces, so that memory for a second copy of them
all is never asked for: to get that from the system takes longer than the copy.
"""

from __future__ import annotations

import math
from typing import Any, Sequence

import numpy as np
from numpy.typing import NDArray

from ._buffers import FileRegion


class FileArray:
    """What ``load_state_dict`` needs of an array; ``numpy.asarray`` reads the values into memory of their own.

    Only the first axis can be sliced. Raises CacheError while reading, as ``FileRegion.read_into`` does.
    """

    def __init__(self, region: FileRegion, start: int, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        self.region = region
        self.start = start
        self.shape = tuple(shape)
        self.dtype = dtype
        self.ndim = len(self.shape)
        self.size = math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> FileArray:
        first, last, step = rows.indices(len(self))
        assert step == 1
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        return FileArray(self.region, self.start + first * row_bytes, (last - first, *self.shape[1:]), self.dtype)

    def reshape(self, shape: Sequence[int]) -> FileArray:
        assert math.prod(shape) == self.size
        return FileArray(self.region, self.start, shape, self.dtype)

    def read_into(self, target: NDArray[Any]) -> None:
        """Fill a contiguous array of the same shape and dtype."""
        assert (target.shape, target.dtype) == (self.shape, self.dtype)
        self.region.read_into(target.reshape(-1).view(np.uint8).data, self.start)

    def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[Any]:
        array = np.empty(self.shape, self.dtype)
        self.read_into(array)
        return array if dtype is None else array.astype(dtype, copy=False)

"""FileArray: an array in a file, whose values are read when they are copied.

A network's weights are copied from a file into its tensors in small pieces, so that memory for a second copy of them
all is never asked for: to get that from the system takes longer than the copy.
"""

from __future__ import annotations

import math
import os
import weakref
from pathlib import Path
from typing import Any, Sequence

import numpy as np
from numpy.typing import NDArray

from ._buffers import read_into
from ._file_state import FileState
from .errors import CacheError


class FileRegion:
    """The bytes of an open file from ``offset`` on, read when they are needed; closed with its last user."""

    def __init__(self, descriptor: int, path: Path, offset: int) -> None:
        self.descriptor = descriptor
        self.path = path
        self.offset = offset
        self.state = FileState.of(os.fstat(descriptor))
        self.size = self.state.size - offset
        weakref.finalize(self, os.close, descriptor)

    def read(self, start: int, size: int) -> memoryview:
        """Return ``size`` bytes from ``start`` on; raise CacheError as ``read_into`` does."""
        buffer = memoryview(bytearray(size))
        self.read_into(buffer, start)
        return buffer

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill ``buffer`` with the bytes from ``start`` on; raise CacheError if the file is not what it was."""
        try:
            read_into(self.descriptor, buffer, self.offset + start)
            state = FileState.of(os.fstat(self.descriptor))
        except (OSError, EOFError) as error:
            raise self._error(str(error)) from error
        if state[:-1] != self.state[:-1]:  # all but ctime, which deleting the file sets as well
            raise self._error("another process wrote to it")

    def _error(self, reason: str) -> CacheError:
        return CacheError(
            f"{self.path} changed while it was read: {reason}",
            hint="try again; it is computed again when its content is no longer what was written",
            path=str(self.path),
        )


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

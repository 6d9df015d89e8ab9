"""borrow: the values of MegEngine's tensors as arrays on the same memory; tensors_of: tensors made by one copy or none.

``Tensor.numpy()`` copies the values, and the tensor keeps the copy for as long as it lives; ``Tensor(array)`` copies
them twice, and the memory of the first copy is not given back at once. Tensors on an array's own memory were
tried and given up: MegEngine 1.13 takes it through DLPack under the name "cpu0" only. Borrowed to the network's device
(``Tensor.to(device, _borrow=True)``), the thread that releases such a tensor waits for itself for ever; passed on by a
compiled trace, it is released while queued operators still read it. So a file is mapped over memory of MegEngine's own,
see ``pages``.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from typing import Any, Dict, Iterator, List, Mapping, Sequence, Tuple

import megengine
import megengine.functional as F
import numpy as np
from megengine import Tensor
from megengine.utils.dlpack import to_dlpack
from numpy.typing import NDArray

from ._parallel import in_parallel

# Below this many bytes values are copied sooner than their memory is asked for.
LARGE = 1 << 16
# A core copies this many bytes at a time.
PART = 1 << 22
MADV_POPULATE_WRITE = 23  # include/uapi/asm-generic/mman-common.h


def borrow(tensors: Mapping[str, Tensor]) -> Dict[str, NDArray[Any]]:
    """The tensors' values as read-only arrays, large ones of the CPU without a copy."""
    megengine._full_sync()  # what is borrowed may not be computed yet
    return {
        key: np.asarray(Borrowed(tensor)) if _may_lend(tensor.shape, tensor) else tensor.numpy()
        for key, tensor in tensors.items()
    }


def tensors_of(values: Sequence[Tuple[NDArray[Any], Tensor]], *, file_stays: bool = False) -> List[Tensor]:
    """A new tensor of each array, with the dtype and device of the tensor beside it; all cores write the large ones.

    With ``file_stays``, arrays that are views of a file are not copied where that can be avoided.
    """
    from .checkpoints.pages import tensors_on_file

    large = {i: value for i, value in enumerate(values) if _may_lend(value[0].shape, value[1])}
    mapped = tensors_on_file(large) if file_stays else {}
    made = [
        mapped[i] if i in mapped else unwritten(array.shape, like) if i in large else _copied(array, like)
        for i, (array, like) in enumerate(values)
    ]
    if len(mapped) == len(large):
        return made
    megengine._full_sync()
    pairs = [
        (np.asarray(Borrowed(made[i], readonly=False)), array) for i, (array, _) in large.items() if i not in mapped
    ]
    for _ in in_parallel(_write, [part for place, array in pairs for part in _parts(place, array)]):
        pass
    return made


def unwritten(shape: Sequence[int], like: Tensor) -> Tensor:
    """A tensor of whatever is in its memory, of another's dtype and device: MegEngine pads nothing without writing."""
    nothing = Tensor(np.zeros(0, np.float32), dtype=like.dtype, device=like.device)
    return F.nn.pad(nothing, ((math.prod(shape), 0),)).reshape(shape)


def address_of(tensor: Tensor) -> int:
    """Where a tensor of the CPU lies in memory."""
    megengine._full_sync()
    return Borrowed(tensor).address


class Borrowed:
    """A tensor's memory as NumPy sees it; the capsule keeps it."""

    def __init__(self, tensor: Tensor, *, readonly: bool = True) -> None:
        self.capsule = to_dlpack(tensor)
        record = DLManagedTensor.from_address(_get_pointer(self.capsule, b"dltensor"))
        self.address: int = record.data + record.byte_offset
        self.__array_interface__ = {
            "version": 3,
            "shape": tuple(tensor.shape),
            "typestr": np.dtype(tensor.dtype).str,
            "data": (self.address, readonly),
        }


class DLManagedTensor(ctypes.Structure):
    """The record that DLPack passes (dlpack.h, version 0.7): a tensor, then who owns it."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("type_code", ctypes.c_uint8),
        ("type_bits", ctypes.c_uint8),
        ("type_lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


_get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def _may_lend(shape: Sequence[int], like: Tensor) -> bool:
    """Whether a tensor of this shape has memory that NumPy can use, and is worth asking for it."""
    return math.prod(shape) * np.dtype(like.dtype).itemsize >= LARGE and (
        like.dtype in (np.float32, np.float16) and like.device.physical_locator[0] == "cpu"
    )


def _copied(array: NDArray[Any], like: Tensor) -> Tensor:
    if array.dtype == like.dtype:
        values = np.asarray(array, order="C")
    else:
        with np.errstate(over="ignore"):
            values = array.astype(like.dtype, order="C")
    return Tensor(values, device=like.device, no_cache=True)  # which keeps MegEngine from holding on to a copy


def _parts(place: NDArray[Any], array: NDArray[Any]) -> Iterator[Tuple[NDArray[Any], NDArray[Any]]]:
    """Both cut along their first axis, so that no core is left with a large tensor while the others are done."""
    rows = max(1, PART * len(place) // place.nbytes)
    for first in range(0, len(place), rows):
        yield place[first : first + rows], array[first : first + rows]


def _write(part: Tuple[NDArray[Any], NDArray[Any]]) -> None:
    place, array = part
    if sys.platform == "linux":
        _populate(place)
    with np.errstate(over="ignore"):
        np.copyto(place, array, casting="unsafe")


def _populate(place: NDArray[Any]) -> None:
    """Has Linux 5.14 or newer give the pages at once, not one by one: a third of the time. Older ones refuse."""
    address = place.__array_interface__["data"][0]
    first = address // mmap.PAGESIZE * mmap.PAGESIZE
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    madvise(first, address + place.nbytes - first, MADV_POPULATE_WRITE)

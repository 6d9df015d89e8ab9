"""lend: arrays as MegEngine tensors on the same memory, so that weights in a mapped file need not be copied.

A tensor made in the ordinary way is a copy, and most of its price is that of fresh memory: for B3 0.07 s on a quiet
machine and many times that on a busy one, where mapping the file takes 0.02 s. MegEngine takes foreign memory through
DLPack, whose contract is that the taker calls a ``deleter`` once it needs the memory no more. It calls it from a thread
of its own, while the main thread may hold Python's lock and wait for that thread: a deleter written in Python, NumPy's
included, then never returns. So the deleter is ``sem_post`` of the C library, which asks nobody, and a Python thread
waits for the semaphore and lets the arrays go.
"""

from __future__ import annotations

import ctypes
import logging
import sys
import threading
from typing import Any, Dict, List, Mapping, Optional, Sequence

import megengine
import numpy as np
from megengine import Tensor
from megengine.utils.dlpack import from_dlpack, to_dlpack
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

DL_CPU, DL_FLOAT = 1, 2

# Below this many bytes an array is copied sooner than lent.
LEND_FROM = 1 << 16


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


def lend_large(arrays: Mapping[str, NDArray[Any]], like: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """Those of the arrays that are worth it, lent to the device of the tensors ``like``; none where that fails."""
    large = [key for key, array in arrays.items() if array.nbytes >= LEND_FROM and array.flags.c_contiguous]
    if len({str(like[key].device) for key in large}) != 1:
        return {}
    lent = lend([arrays[key] for key in large], like[large[0]].device)
    return {} if lent is None else dict(zip(large, lent))


def lend(arrays: Sequence[NDArray[Any]], device: Any) -> Optional[List[Tensor]]:
    """A tensor on ``device`` for each array, float32 or float16 and contiguous, on the array's own memory.

    None where that is not possible: on a GPU, on other systems than Linux, or with a MegEngine that does it no more.

    The arrays are kept until MegEngine has released every tensor that shares their memory. Nobody else may write to
    that memory, and a file that it is mapped from must not be cut; MegEngine itself may write to it.
    """
    try:
        if not sys.platform.startswith("linux") or device.physical_locator[0] != "cpu":
            return None
        return _lend(arrays, device)
    # Whatever it is: a function of the C library or a private argument of MegEngine's that is gone, a record refused.
    except Exception as error:
        logger.warning("MegEngine does not take memory as it did (%s); weights are copied", error)
        return None


class Borrowed:
    """A tensor's memory as NumPy sees it; the capsule keeps it."""

    def __init__(self, tensor: Tensor) -> None:
        self.capsule = to_dlpack(tensor)
        get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
        get_pointer.restype = ctypes.c_void_p
        get_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
        record = DLManagedTensor.from_address(get_pointer(self.capsule, b"dltensor"))
        self.__array_interface__ = {
            "version": 3,
            "shape": tuple(tensor.shape),
            "typestr": np.dtype(tensor.dtype).str,
            "data": (record.data + record.byte_offset, True),
        }


def borrow(tensors: Mapping[str, Tensor]) -> Dict[str, NDArray[Any]]:
    """The tensors' values as read-only arrays, large ones without a copy.

    ``Tensor.numpy()`` copies the values and keeps the copy for as long as the tensor lives: twice the memory.
    """
    megengine._full_sync()  # what is borrowed may not be computed yet
    return {
        key: np.asarray(Borrowed(tensor)) if _can_be_borrowed(tensor) else tensor.numpy()
        for key, tensor in tensors.items()
    }


def _can_be_borrowed(tensor: Tensor) -> bool:
    count = int(np.prod(tensor.shape))
    return (
        tensor.dtype in (np.float32, np.float16)
        and count * np.dtype(tensor.dtype).itemsize >= LEND_FROM
        and tensor.device.physical_locator[0] == "cpu"
    )


def _lend(arrays: Sequence[NDArray[Any]], device: Any) -> List[Tensor]:
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype = ctypes.py_object
    new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)

    # Not Python's memory: MegEngine outlives the interpreter, and calls the last deleters after it is gone.
    size = ctypes.sizeof(DLManagedTensor)
    block = libc.malloc(ctypes.c_size_t(max(1, len(arrays)) * size))
    tensors: List[Tensor] = []
    lent: List[int] = []
    try:
        for index, array in enumerate(arrays):
            assert array.flags.c_contiguous
            assert array.dtype in (np.float32, np.float16)
            address = block + index * size
            ctypes.memset(address, 0, size)
            record = DLManagedTensor.from_address(address)
            shape = (ctypes.c_int64 * array.ndim)(*array.shape)
            record.data, record.shape, record.ndim = array.__array_interface__["data"][0], shape, array.ndim
            record.device_type, record.type_code, record.type_lanes = DL_CPU, DL_FLOAT, 1
            record.type_bits = 8 * array.itemsize
            record.deleter = ctypes.cast(libc.sem_post, ctypes.c_void_p).value
            tensor = from_dlpack(new_capsule(address, b"dltensor", None))
            # MegEngine has read the record and comes back only for the deleter, which lies at the end and gets the
            # record's address; so the semaphore can lie at the start, in the place of what has been read.
            libc.sem_init(ctypes.c_void_p(address), 0, 0)
            lent.append(address)
            # DLPack knows "cpu0" only, and an operator refuses inputs of two devices, be they two names of one.
            tensors.append(tensor.to(device, _borrow=True))
    finally:
        keeper = threading.Thread(target=_keep, args=(libc, block, lent, arrays), name="repvgg_zoo-lent", daemon=True)
        keeper.start()
    return tensors


def _keep(libc: Any, block: int, lent: Sequence[int], arrays: Sequence[NDArray[Any]]) -> None:
    """Holds on to the arrays until every semaphore is posted."""
    for semaphore in lent:
        while libc.sem_wait(ctypes.c_void_p(semaphore)) != 0:
            pass  # a signal came
    libc.free(ctypes.c_void_p(block))

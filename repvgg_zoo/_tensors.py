"""Weights between NumPy arrays and MegEngine tensors, with one copy or none.

``Tensor.numpy()`` copies the values, and the tensor keeps the copy for as long as it lives; ``Tensor(array)`` copies
them twice, and the memory of the first copy is not given back at once. So the memory of large tensors on the CPU is
read and written in place, as NumPy arrays that DLPack gives the address for.

The other direction, tensors on the memory of an array, does not work: MegEngine 1.13 imports it through DLPack as a
tensor on "cpu0" only. Moved to the network's device (``Tensor.to(device, _borrow=True)``), the thread that
releases such a tensor waits for itself for ever; passed on by a compiled trace, it is released while queued operators
still read it.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Collection, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

import megengine
import megengine.functional as F
import numpy as np
from megengine import Tensor
from megengine.module import Module
from megengine.utils.dlpack import to_dlpack
from numpy.typing import NDArray

from ._cpu import lower_sync_thread_priority, usable_cores
from ._file_array import FileArray
from .checkpoints.layouts import same_shape
from .errors import StateError

ZERO_COPY_MIN_BYTES = 1 << 16  # smaller tensors are copied sooner than their address is found
COPY_CHUNK_BYTES = 1 << 24  # a thread that has copied one waits for its turn in Python, up to 5 ms
MAX_COPY_THREADS = 8  # a copy waits for memory, which a few cores keep busy

Shape = Tuple[int, ...]
MAX_LISTED = 10  # problems in the message of an error


def load_state_dict(
    module: Module,
    state_dict: Mapping[str, NDArray[Any]],
    *,
    allow_missing: Collection[str] = (),
    copies: Optional[TensorCopies] = None,
) -> None:
    """Copy canonical arrays into all parameters and BN statistics of ``module``, or leave it as it is.

    The network keeps its dtype and device: values are cast once, as they are written. A vector of (C,) fits a tensor
    of (1, C, 1, 1) and the other way round, since MegEngine saves BN in the one and holds it in the other. Keys in
    ``allow_missing`` may be missing; their tensors stay as they are. NaN and infinity are loaded like any other value;
    re-parameterization is where they are refused. ``copies`` are those of some of the arrays that have begun before.
    Raises StateError with every key that is missing, unexpected, of another shape or not made of real numbers.
    """
    tensors = dict(module.named_tensors())
    missing = [key for key in tensors if key not in state_dict and key not in allow_missing]
    unexpected = [key for key in state_dict if key not in tensors]
    mismatches = [
        (key, tuple(tensor.shape), tuple(state_dict[key].shape))
        for key, tensor in tensors.items()
        if key in state_dict and not same_shape(tuple(tensor.shape), tuple(state_dict[key].shape))
    ]
    not_real = [key for key, array in state_dict.items() if key in tensors and array.dtype.kind not in "fiu"]
    if missing or unexpected or mismatches or not_real:
        raise _state_error(state_dict, missing, unexpected, mismatches, not_real)

    targets = {key: tensor for key, tensor in tensors.items() if key in state_dict}
    loaded = {key: None if copies is None else copies.take(state_dict[key], tensor) for key, tensor in targets.items()}
    others = [key for key, tensor in loaded.items() if tensor is None]
    values = [(state_dict[key].reshape(tuple(targets[key].shape)), targets[key]) for key in others]
    loaded.update(zip(others, tensors_from_arrays(values)))
    if copies is not None:
        copies.wait()
    for key, tensor in targets.items():
        # `tensor[...] = value` is the public way, but it takes two copies more. _reset is how MegEngine's own
        # load_state_dict does it; neither checks the shape.
        tensor._reset(loaded[key])


def numpy_views(tensors: Mapping[str, Tensor]) -> Dict[str, NDArray[Any]]:
    """Return the tensors' values as read-only arrays, which share the memory of large tensors on the CPU."""
    megengine._full_sync()  # operators that compute them may still be queued
    return {
        key: np.asarray(_TensorBuffer(tensor)) if _supports_zero_copy(tensor.shape, tensor) else tensor.numpy()
        for key, tensor in tensors.items()
    }


def tensors_from_arrays(values: Sequence[Tuple[NDArray[Any], Tensor]]) -> List[Tensor]:
    """Return a new tensor for each array, with the dtype and device of the tensor beside it.

    Large ones are copied once, by several threads; those that are still in a file (FileArray) are read in place.
    """
    is_large = [_supports_zero_copy(array.shape, like) for array, like in values]
    with TensorCopies(list(itertools.compress(values, is_large))) as copies:
        tensors = iter(copies.tensors)
        result = [
            next(tensors) if large else _small_tensor(array, like) for large, (array, like) in zip(is_large, values)
        ]
        copies.wait()
    return result


def copy_in_background(arrays: Iterable[NDArray[Any]]) -> TensorCopies:
    """Begin to copy the large ones of these arrays to float32 tensors, as the parameters of a new network are."""
    like = Tensor(np.zeros(0, np.float32))
    return TensorCopies([(array, like) for array in arrays if _supports_zero_copy(array.shape, like)])


class TensorCopies:
    """New tensors for large arrays, and threads that copy the values, which have begun; a context that ends them."""

    def __init__(self, values: Sequence[Tuple[NDArray[Any], Tensor]]) -> None:
        self._values = values
        self.tensors = [empty_like(array.shape, like) for array, like in values]
        self._free = {id(array): tensor for (array, _), tensor in zip(values, self.tensors)}
        self._copies: List[Future[None]] = []
        self._pool = ThreadPoolExecutor(min(usable_cores(), MAX_COPY_THREADS))
        if values:
            megengine._full_sync()
            lower_sync_thread_priority()  # or it takes a part of a core from the copy
        for (array, _), tensor in zip(values, self.tensors):
            for chunk in _chunks(np.asarray(_TensorBuffer(tensor, readonly=False)), array):
                self._copies.append(self._pool.submit(_copy, *chunk))

    def take(self, array: NDArray[Any], like: Tensor) -> Optional[Tensor]:
        """Return the tensor for an array if it can stand for ``like``, and only once; its values come with ``wait``."""
        tensor = self._free.pop(id(array), None)
        if tensor is None or (tensor.dtype, str(tensor.device)) != (like.dtype, str(like.device)):
            return None
        return tensor if tensor.shape == like.shape else tensor.reshape(like.shape)

    def wait(self) -> None:
        """Wait until all values are copied; raise what reading them raises."""
        for copy in self._copies:
            copy.result()

    def __enter__(self) -> TensorCopies:
        return self

    def __exit__(self, *_: object) -> None:
        for copy in self._copies:
            copy.cancel()
        self._pool.shutdown()


def empty_like(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return an uninitialized tensor with ``like``'s dtype and device.

    MegEngine has no ``empty``; padding a tensor without elements does not write to the result.
    """
    nothing = Tensor(np.zeros(0, np.float32), dtype=like.dtype, device=like.device)
    return F.nn.pad(nothing, ((math.prod(shape), 0),)).reshape(shape)


def input_tensor(network: Module, x: Any) -> Tensor:
    """Return an array or a tensor as an input: with the dtype and on the device of the network's first convolution."""
    weight = next((parameter for parameter in network.parameters() if parameter.ndim >= 4), None)
    if weight is None:
        return x if isinstance(x, Tensor) else Tensor(x)
    values = x.numpy() if isinstance(x, Tensor) else np.asarray(x)
    dtype = np.float16 if weight.dtype == np.float16 else np.float32  # of a quantized network's too
    return Tensor(values.astype(dtype, copy=False), device=weight.device)


class _TensorBuffer:
    """A tensor's memory as NumPy sees it; the capsule keeps it alive."""

    def __init__(self, tensor: Tensor, *, readonly: bool = True) -> None:
        self.capsule = to_dlpack(tensor)
        managed = _DLManagedTensor.from_address(_get_pointer(self.capsule, b"dltensor"))
        self.__array_interface__ = {
            "version": 3,
            "shape": tuple(tensor.shape),
            "typestr": np.dtype(tensor.dtype).str,
            "data": (managed.data + managed.byte_offset, readonly),
        }


class _DLManagedTensor(ctypes.Structure):
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


def _supports_zero_copy(shape: Sequence[int], like: Tensor) -> bool:
    """Return whether a tensor of this shape has memory that NumPy can use, and enough of it to be worth it."""
    return math.prod(shape) * np.dtype(like.dtype).itemsize >= ZERO_COPY_MIN_BYTES and (
        like.dtype in (np.float32, np.float16) and like.device.physical_locator[0] == "cpu"
    )


def _small_tensor(array: NDArray[Any], like: Tensor) -> Tensor:
    with np.errstate(over="ignore"):
        values = np.asarray(array, order="C").astype(like.dtype, copy=False)
    return Tensor(values, device=like.device, no_cache=True)  # otherwise MegEngine holds on to a copy


def _chunks(target: NDArray[Any], source: NDArray[Any]) -> Iterator[Tuple[NDArray[Any], NDArray[Any]]]:
    """Cut both along their first axis, so that no core is left with a large tensor while the others are done."""
    rows = max(1, COPY_CHUNK_BYTES * len(target) // target.nbytes)
    for first in range(0, len(target), rows):
        yield target[first : first + rows], source[first : first + rows]


def _copy(target: NDArray[Any], source: Union[NDArray[Any], FileArray]) -> None:
    if isinstance(source, FileArray) and source.dtype == target.dtype:
        source.read_into(target)
        return
    with np.errstate(over="ignore"):
        np.copyto(target, np.asarray(source), casting="unsafe")


def _state_error(
    state_dict: Mapping[str, NDArray[Any]],
    missing: Sequence[str],
    unexpected: Sequence[str],
    mismatches: Sequence[Tuple[str, Shape, Shape]],
    not_real: Sequence[str],
) -> StateError:
    lists: Dict[str, List[str]] = {
        "missing": list(missing),
        "unexpected": list(unexpected),
        "of another shape": [f"{key} {in_file} for {in_network}" for key, in_network, in_file in mismatches],
        "not real numbers": [f"{key} ({state_dict[key].dtype})" for key in not_real],
    }
    counts = ", ".join(f"{len(lines)} {title}" for title, lines in lists.items() if lines)
    lines = [f"{title}: {line}" for title, group in lists.items() for line in group]
    more = f"\n  and {len(lines) - MAX_LISTED} more" if len(lines) > MAX_LISTED else ""
    return StateError(
        f"the weights do not fit the network, which was left as it was: {counts}\n  "
        + "\n  ".join(lines[:MAX_LISTED])
        + more,
        missing=missing,
        unexpected=unexpected,
        shape_mismatches=mismatches,
        hint="build the variant, form and number of classes that the file was saved from",
    )

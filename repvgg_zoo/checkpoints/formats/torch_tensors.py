"""The globals of PyTorch that a pickle may use: tensors as strided views of storages, in both file formats."""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, NamedTuple, Optional

import numpy as np

from .arrays import check_shape, native_order, numpy_globals, widen_bfloat16
from .file_buffer import MalformedFile, UnsupportedFile
from .pickle_values import Builder, Global, Placeholder
from .pickles import Budget

# NumPy codes of the elements of storage classes, and of the dtypes that tensors in untyped storages name.
STORAGES = {
    "torch.HalfStorage": "f2",
    "torch.FloatStorage": "f4",
    "torch.DoubleStorage": "f8",
    "torch.CharStorage": "i1",
    "torch.ShortStorage": "i2",
    "torch.IntStorage": "i4",
    "torch.LongStorage": "i8",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "?",
    "torch.BFloat16Storage": "bfloat16",
    "torch.storage.UntypedStorage": "u1",
    "torch.UntypedStorage": "u1",
}
DTYPES = {
    "torch.float16": "f2",
    "torch.float32": "f4",
    "torch.float64": "f8",
    "torch.int8": "i1",
    "torch.int16": "i2",
    "torch.int32": "i4",
    "torch.int64": "i8",
    "torch.uint8": "u1",
    "torch.uint16": "u2",
    "torch.uint32": "u4",
    "torch.uint64": "u8",
    "torch.bool": "?",
    "torch.bfloat16": "bfloat16",
}


class StorageId(NamedTuple):
    """A storage as a persistent id describes it: its key in the file, the code and the number of its elements."""

    key: str
    code: str
    numel: int

    @property
    def itemsize(self) -> int:
        return itemsize(self.code)


class Storage(Placeholder):
    """The part of a storage that a tensor uses: ``count`` elements from ``start`` on."""

    def __init__(self, identity: StorageId, start: int, count: int) -> None:
        self.identity = identity
        self.start = start
        self.count = count


class Tensor(Placeholder):
    """A tensor, read once the positions of the storages are known: in the legacy format they follow the pickle."""

    def __init__(
        self, storages: Storages, storage: Any, code: Optional[str], offset: Any, size: Any, stride: Any
    ) -> None:
        if not isinstance(storage, Storage):
            raise MalformedFile("a tensor without a storage")
        self.storages = storages
        self.storage = storage
        self.code = storage.identity.code if code is None else code
        self.shape = check_shape(size)
        self.stride = check_shape(stride)
        (self.offset,) = check_shape((offset,))
        width = itemsize(self.code)
        capacity = storage.count * storage.identity.itemsize // width
        elements = math.prod(self.shape)
        last = sum((length - 1) * step for length, step in zip(self.shape, self.stride))
        if len(self.shape) != len(self.stride):
            raise MalformedFile(f"a tensor has {len(self.shape)} axes and {len(self.stride)} strides")
        # With a stride of zero, a tensor of any size fits into a storage of one element; a copy would fill the memory.
        if elements and (elements > capacity or self.offset + last >= capacity):
            raise MalformedFile(f"a tensor of shape {self.shape} is outside its storage of {capacity} elements")

    def resolve(self) -> np.ndarray[Any, Any]:
        flat = self.storages.elements(self.storage.identity, self.code)
        start = self.storage.start + self.offset
        if not math.prod(self.shape):
            return np.empty(self.shape, flat.dtype)
        steps = tuple(step * flat.itemsize if length > 1 else 0 for length, step in zip(self.shape, self.stride))
        return np.ndarray(self.shape, flat.dtype, flat, start * flat.itemsize, steps)


class Storages:
    """All storages of a file. ``read`` returns the bytes of one; each is converted at most once."""

    def __init__(self, read: Callable[[StorageId], Any], order: str, budget: Budget) -> None:
        self.read = read
        self.order = order
        self.budget = budget
        self.known: Dict[str, StorageId] = {}
        self.raw: Dict[str, Any] = {}
        self.arrays: Dict[Any, np.ndarray[Any, Any]] = {}

    def identify(self, key: Any) -> Storage:
        """Return the storage that a persistent id names; legacy ids may name a part of one."""
        if not isinstance(key, tuple) or len(key) not in (5, 6) or key[0] != "storage":
            kind = key[0] if isinstance(key, tuple) and key and isinstance(key[0], str) else type(key).__name__
            raise UnsupportedFile(f"a persistent id of kind {kind[:50]!r}; checkpoints hold storages")
        kind, name, count = key[1], key[2], key[4]
        if not isinstance(kind, Global) or kind.name not in STORAGES or not isinstance(name, str):
            raise MalformedFile("a storage without class and key")
        (count,) = check_shape((count,))
        identity = self.known.setdefault(name, StorageId(name, STORAGES[kind.name], count))
        if identity != StorageId(name, STORAGES[kind.name], count):
            raise MalformedFile(f"storage {name[:50]!r} has two different descriptions")
        start = 0
        if len(key) == 6 and key[5] is not None:
            _, start, count = check_view(key[5])
            if start + count > identity.numel:
                raise MalformedFile(f"a view is outside storage {name[:50]!r}")
        return Storage(identity, start, count)

    def elements(self, identity: StorageId, code: str) -> np.ndarray[Any, Any]:
        """Return the whole storage as an array of ``code``, shared by all tensors in it; bfloat16 becomes float32."""
        if (identity.key, code) not in self.arrays:
            dtype = np.dtype(self.order + ("u2" if code == "bfloat16" else code))
            raw = self._raw(identity)
            if len(raw) != identity.numel * identity.itemsize:
                raise MalformedFile(f"storage {identity.key[:50]!r} has {len(raw)} bytes, not the declared number")
            array = native_order(np.frombuffer(raw, dtype, len(raw) // dtype.itemsize), self.budget)
            if code == "bfloat16":
                self.budget.spend(2 * array.nbytes)
                array = widen_bfloat16(array)
            self.arrays[identity.key, code] = array
        return self.arrays[identity.key, code]

    def _raw(self, identity: StorageId) -> Any:
        if identity.key not in self.raw:  # read, which may decompress, only once for all dtypes
            self.raw[identity.key] = self.read(identity)
        return self.raw[identity.key]


def check_view(view: Any) -> Any:
    """Return (key, start, count) of a legacy view of a part of a storage."""
    if not isinstance(view, tuple) or len(view) != 3:
        raise MalformedFile("a view of a storage is not (key, start, count)")
    return (view[0], *check_shape(view[1:]))


def itemsize(code: str) -> int:
    return 2 if code == "bfloat16" else np.dtype(code).itemsize


def torch_globals(storages: Storages) -> Dict[str, Builder]:
    """Return the globals that a pickled state dict of tensors and parameters uses, and NumPy's beside them."""

    def tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
        return Tensor(storages, storage, None, offset, size, stride)

    def typed_tensor(
        storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
    ) -> Tensor:
        if not isinstance(dtype, Global) or dtype.name not in DTYPES:
            raise UnsupportedFile("a tensor has an unknown dtype")
        return Tensor(storages, storage, DTYPES[dtype.name], offset, size, stride)

    def parameter(data: Any, *rest: Any) -> Any:
        if not isinstance(data, Tensor):
            raise MalformedFile("a parameter without a tensor")
        return data

    allowed = numpy_globals(storages.budget)
    allowed.update(dict.fromkeys((*STORAGES, *DTYPES), _not_callable))
    allowed.update(
        {
            "torch._utils._rebuild_tensor": tensor,
            "torch._utils._rebuild_tensor_v2": tensor,
            "torch._utils._rebuild_tensor_v3": typed_tensor,
            "torch._utils._rebuild_parameter": parameter,
            "torch._utils._rebuild_parameter_with_state": parameter,
            "torch.Size": check_shape,
            "torch.device": _device,
        }
    )
    return allowed


def _device(kind: Any, index: Any = 0) -> str:
    if not isinstance(kind, str) or not isinstance(index, int):
        raise MalformedFile("a device is not a name and a number")
    return kind


def _not_callable(*arguments: Any) -> Any:
    raise MalformedFile("a storage class or dtype of torch is called, which torch's own pickles never do")

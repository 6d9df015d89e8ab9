"""write_torch: PyTorch's file format since 1.6, as ``torch.save`` writes a state dict, without torch.

A zip archive with one pickle, which names the storages that are its other members. ``torch.load`` reads it with
``weights_only=True``, and maps it with ``mmap=True``.
"""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from typing import Any, BinaryIO, Iterator, Mapping, Optional, Union

import numpy as np
from numpy.typing import NDArray

from .formats.file_buffer import METADATA_KEY

ROOT = "archive"
ALIGNMENT = 64  # of the values of each array in the file, as torch aligns them
LOCAL_HEADER = 30  # bytes of a zip member's header before its name
STORAGES = {"float16": "HalfStorage", "float32": "FloatStorage", "float64": "DoubleStorage"}


def write_torch(stream: BinaryIO, arrays: Mapping[str, NDArray[Any]], metadata: Optional[str] = None) -> None:
    """Write an OrderedDict of tensors to a seekable stream; the same arrays give the same bytes."""
    with zipfile.ZipFile(stream, "w") as archive:
        _add(archive, stream, "data.pkl", b"".join(_pickle(arrays, metadata)))
        _add(archive, stream, "byteorder", b"little")
        for index, array in enumerate(arrays.values()):
            little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
            _add(archive, stream, f"data/{index}", little.reshape(-1).view(np.uint8).data)
        _add(archive, stream, "version", b"3\n")


def _add(archive: zipfile.ZipFile, stream: BinaryIO, name: str, data: Union[bytes, memoryview]) -> None:
    member = zipfile.ZipInfo(f"{ROOT}/{name}")  # of 1980, whenever it is written
    header = LOCAL_HEADER + len(member.filename) + 4
    padding = -(stream.tell() + header) % ALIGNMENT
    member.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    member.file_size = len(data)
    with archive.open(member, "w") as target:
        target.write(data)


def _pickle(arrays: Mapping[str, NDArray[Any]], metadata: Optional[str]) -> Iterator[bytes]:
    """Yield the operations that build the dict, in protocol 2 as torch writes it."""
    ordered_dict = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    yield pickle.PROTO + b"\2" + ordered_dict + pickle.MARK
    for index, (key, array) in enumerate(arrays.items()):
        storage = _tuple(
            _text("storage"),
            _global("torch", STORAGES[array.dtype.name]),
            _text(str(index)),
            _text("cpu"),
            _int(array.size),
        )
        strides = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
        tensor = _tuple(
            storage + pickle.BINPERSID,
            _int(0),
            _tuple(*map(_int, array.shape)),
            _tuple(*map(_int, strides)),
            pickle.NEWFALSE,
            ordered_dict,
        )
        yield _text(key) + _global("torch._utils", "_rebuild_tensor_v2") + tensor + pickle.REDUCE
    yield pickle.SETITEMS
    if metadata is not None:
        yield pickle.EMPTY_DICT + _text(METADATA_KEY) + _text(metadata) + pickle.SETITEM + pickle.BUILD
    yield pickle.STOP


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def _text(text: str) -> bytes:
    data = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _int(value: int) -> bytes:
    if value < 1 << 31:
        return pickle.BININT + struct.pack("<i", value)
    return pickle.LONG1 + b"\x08" + struct.pack("<q", value)

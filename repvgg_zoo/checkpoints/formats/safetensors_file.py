"""safetensors: a JSON header, then the tensors' bytes, which are returned as views of the buffer.

The library's own readers open the path once more or copy every tensor. So its checks of the header (JSON, dtypes,
shapes, offsets without holes or overlaps) are repeated here; the tests hold them against the library's.
"""

from __future__ import annotations

import math
from typing import Any, Dict, NamedTuple, Tuple, Union

import numpy as np

from ..._json import parse_json
from .arrays import native_order, widen_bfloat16
from .file_buffer import METADATA_KEY, Buffer, MalformedFile, UnsupportedFile

MAX_HEADER_BYTES = 8 << 20  # that of a checkpoint with a thousand tensors takes 100 kB
MAX_AXES = 64  # NumPy's own limit is 32 or, since version 2, 64
MAX_KEY_CHARS = 1000  # the longest key of any publisher has 40
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "<u1",
    "BOOL": "?",
}


class Entry(NamedTuple):
    """A tensor of the header; ``start`` and ``end`` are bytes of the file."""

    dtype: str
    shape: Tuple[int, ...]
    start: int
    end: int


def is_safetensors(data: Buffer) -> bool:
    """Return whether the file begins with the length of a header that fits into it, and then with a JSON object."""
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8


def read(data: Union[Buffer, memoryview]) -> Dict[str, Any]:
    """Return the tensors by name, and under METADATA_KEY the text that save_checkpoint wrote, if it did.

    bfloat16 becomes float32. Raises MalformedFile.
    """
    view = memoryview(data)
    entries, metadata = read_header(view[: header_bytes(view)], len(view))
    payload: Dict[str, Any] = {name: _view(view, name, entry) for name, entry in entries.items()}
    return {**payload, METADATA_KEY: metadata[METADATA_KEY]} if METADATA_KEY in metadata else payload


def header_bytes(data: Union[Buffer, memoryview]) -> int:
    """Return how many bytes the header takes, its length before it included; raise MalformedFile if that is absurd."""
    size = int.from_bytes(data[:8], "little")
    if size > MAX_HEADER_BYTES:
        raise UnsupportedFile(f"its header of {size} bytes is larger than that of any checkpoint")
    return 8 + size


def read_header(data: memoryview, file_size: int) -> Tuple[Dict[str, Entry], Dict[str, str]]:
    """Return where in a file of ``file_size`` bytes each tensor is, and the file's ``__metadata__``.

    ``data`` is its header. Raises MalformedFile.
    """
    try:
        header = parse_json(bytes(data[8:]))
    except ValueError as error:
        raise MalformedFile(f"its header is not valid JSON ({str(error)[:100]})") from error
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise MalformedFile("its metadata is not a table of texts")
    size = file_size - len(data)
    entries = {name: _entry(len(data), size, name, entry) for name, entry in header.items()}
    end = len(data)
    for start, stop in sorted((entry.start, entry.end) for entry in entries.values()):
        if start != end:
            raise MalformedFile(f"its tensors leave a hole or overlap at byte {end}")
        end = stop
    if end != file_size:
        raise MalformedFile(f"its tensors end at byte {end} of {file_size}")
    return entries, metadata


def _entry(header_size: int, size: int, name: str, entry: Any) -> Entry:
    """Return a tensor's entry, checked against the ``size`` bytes of data that follow the header."""
    printable = ascii(name[:100])
    if len(name) > MAX_KEY_CHARS:
        raise UnsupportedFile(f"a tensor's name has {len(name)} characters")
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
        raise MalformedFile(f"tensor {printable} lacks dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UnsupportedFile(
            f"tensor {printable} has dtype {ascii(dtype)[:20]}; only real numbers of 8 to 64 bits are read"
        )
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise MalformedFile(f"tensor {printable} has a shape or offsets that are not lists of lengths")
    if len(shape) > MAX_AXES:  # their product would be a number of millions of digits
        raise MalformedFile(f"tensor {printable} has {len(shape)} dimensions")
    start, end = offsets
    if not start <= end <= size or math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize != end - start:
        raise MalformedFile(
            f"tensor {printable} has offsets outside the data or of another size than its shape and dtype"
        )
    return Entry(dtype, tuple(shape), header_size + start, header_size + end)


def _view(data: memoryview, name: str, entry: Entry) -> np.ndarray[Any, Any]:
    try:
        array = native_order(np.frombuffer(data[entry.start : entry.end], DTYPES[entry.dtype]))
        return (widen_bfloat16(array) if entry.dtype == "BF16" else array).reshape(entry.shape)
    except (ValueError, OverflowError) as error:  # more or longer axes than NumPy has
        raise MalformedFile(f"tensor {name[:100]!a}: {error}") from error


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**64 for item in value)

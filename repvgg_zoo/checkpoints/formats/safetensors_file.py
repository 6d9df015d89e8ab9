"""safetensors: the library judges the file, and the tensors are views of the mapped file.

The library's own get_tensor copies each tensor out of its map. Its checks of the header (size, JSON, dtypes, offsets
without holes or overlaps) are the reference ones, so they are run first; what is left is to point at the bytes.
"""

from __future__ import annotations

import json
import os
from typing import Any, Dict, Union

import numpy as np
from safetensors import SafetensorError, safe_open

from ...errors import PathLike
from .arrays import native_order, widen_bfloat16
from .mmap_file import Buffer, Damaged

MAX_HEADER = 8 << 20  # bytes; that of a checkpoint with a thousand tensors takes 100 kB
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


def is_safetensors(data: Buffer) -> bool:
    """Whether the file begins with a header's length that fits into it and then with a JSON object."""
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8


def read(data: Buffer, path: PathLike) -> Dict[str, np.ndarray[Any, Any]]:
    """The tensors by name; bfloat16 becomes float32. Raises Damaged."""
    size = int.from_bytes(data[:8], "little")
    if size > MAX_HEADER:
        raise Damaged(f"its header of {size} bytes is larger than that of any checkpoint")
    try:
        with safe_open(os.fspath(path), framework="numpy"):
            pass
        return parse(data)
    except Damaged:
        raise
    # The last three: shapes that NumPy cannot hold, or another file under this path since it was mapped.
    except (SafetensorError, OSError, ValueError, LookupError, OverflowError) as error:
        raise Damaged(str(error)[:300]) from error


def parse(data: Union[Buffer, memoryview]) -> Dict[str, np.ndarray[Any, Any]]:
    """Return the tensors of a file that is known to be well-formed, as views of ``data``."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(bytes(data[8 : 8 + size]))
    header.pop("__metadata__", None)
    body = memoryview(data)[8 + size :]
    return {name: _tensor(body, name, entry) for name, entry in header.items()}


def _tensor(body: memoryview, name: str, entry: Dict[str, Any]) -> np.ndarray[Any, Any]:
    dtype = entry["dtype"]
    if dtype not in DTYPES:
        raise Damaged(f"tensor {name[:100]!r} is of dtype {dtype}; real numbers of 8 to 64 bits are read")
    begin, end = entry["data_offsets"]
    array = native_order(np.frombuffer(body[begin:end], DTYPES[dtype]))
    return (widen_bfloat16(array) if dtype == "BF16" else array).reshape(entry["shape"])

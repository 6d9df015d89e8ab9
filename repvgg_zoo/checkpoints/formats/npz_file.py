"""NumPy's .npz: a zip archive with a .npy file for each array. Python objects, which are pickles, are not read."""

from __future__ import annotations

import re
import struct
from typing import Any, Dict, Tuple

import numpy as np

from .arrays import CODES, check_shape, native_order
from .file_buffer import MalformedFile, UnsupportedFile
from .pickles import Budget
from .zip_archive import MAX_EXPANSION, Archive

SUFFIX = ".npy"
MAX_HEADER_BYTES = 10_000  # NumPy's own limit
# The header of a .npy file is a dict as Python writes it, with these three keys in any order.
_DTYPE = re.compile(r"""['"]descr['"]\s*:\s*['"]([<>|=]?)([a-z][1-9][0-9]*|[A-Z])['"]""")
_ORDER = re.compile(r"""['"]fortran_order['"]\s*:\s*(True|False)""")
_SHAPE = re.compile(r"""['"]shape['"]\s*:\s*\(([0-9, ]*)\)""")


def is_npz(archive: Archive) -> bool:
    """Return whether all members are .npy files."""
    return bool(archive.members) and all(name.endswith(SUFFIX) for name in archive.members)


def read(archive: Archive) -> Dict[str, np.ndarray[Any, Any]]:
    """Return the arrays by name. Raises MalformedFile and ZIP_ERRORS."""
    budget = Budget(MAX_EXPANSION * len(archive.data))
    return {name[: -len(SUFFIX)]: _array(name, archive.content(name), budget) for name in archive.members}


def _array(name: str, data: Any, budget: Budget) -> np.ndarray[Any, Any]:
    """Return the array in a .npy file, as a view."""
    printable = ascii(name[:100])
    if bytes(data[:6]) != b"\x93NUMPY" or len(data) < 12 or data[6] not in (1, 2, 3):
        raise MalformedFile(f"its member {printable} is not a .npy file")
    start, size = (10, struct.unpack("<H", data[8:10])[0]) if data[6] == 1 else (12, struct.unpack("<I", data[8:12])[0])
    if size > MAX_HEADER_BYTES or start + size > len(data):
        raise MalformedFile(f"its member {printable} has a header of {size} bytes")
    dtype, is_fortran, shape = _header(printable, bytes(data[start : start + size]).decode("latin-1"))
    values = data[start + size :]
    if int(np.prod(shape, dtype=object)) * dtype.itemsize != len(values):
        raise MalformedFile(f"its member {printable} has {len(values)} bytes of data for shape {shape} and {dtype}")
    return native_order(np.frombuffer(values, dtype), budget).reshape(shape, order="F" if is_fortran else "C")


def _header(printable: str, text: str) -> Tuple[np.dtype[Any], bool, Tuple[int, ...]]:
    dtype, order, shape = _DTYPE.search(text), _ORDER.search(text), _SHAPE.search(text)
    if dtype is None or order is None or shape is None:
        raise MalformedFile(f"its member {printable} has a header that numpy.savez does not write: {text[:100]!a}")
    if dtype.group(2) not in CODES:
        what = "Python objects" if dtype.group(2) == "O" else f"dtype {dtype.group(2)!r}"
        raise UnsupportedFile(f"its member {printable} holds {what}; real numbers of up to 64 bits are read")
    lengths = tuple(int(length[:20]) for length in shape.group(1).replace(" ", "").split(",") if length)
    return np.dtype(dtype.group(1) + dtype.group(2)), order.group(1) == "True", check_shape(lengths)

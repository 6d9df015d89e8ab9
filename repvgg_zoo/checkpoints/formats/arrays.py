"""The globals of NumPy that a pickle may use: arrays as views of the buffer, scalars, and dtypes of plain numbers.

NumPy 2 writes numpy._core where NumPy 1 wrote numpy.core; both are allowed. Arrays are read-only and in the machine's
byte order; strides are those in the file.
"""

from __future__ import annotations

import math
from typing import Any, Dict, NoReturn, Optional, Sequence, Tuple

import numpy as np

from .file_buffer import MalformedFile, UnsupportedFile
from .pickle_machine import pairs
from .pickle_values import Builder, Global, Placeholder
from .pickles import Budget

CODES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


class DType(Placeholder):
    """A dtype, whose byte order comes with its state."""

    def __init__(self, code: Any, align: Any = False, copy: Any = False) -> None:
        # Other dtypes are refused by view_array, after all globals that an array of objects holds have been collected.
        self.value = np.dtype(code) if code in CODES else None
        self.description = repr(code[:20]) if isinstance(code, str) else f"of type {type(code).__name__}"

    def set_state(self, state: Any) -> None:
        _, order, subdtype, names, fields = state[:5]
        if subdtype is not None or names is not None or fields is not None or order not in ("<", ">", "=", "|"):
            self.value = None
        if order != "|" and self.value is not None:
            self.value = self.value.newbyteorder(order)

    def resolve(self) -> str:
        return self.description if self.value is None else self.value.name


class Array(Placeholder):
    """An array, which numpy first creates empty and then fills from a state with its shape, dtype and data."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.value: Optional[np.ndarray[Any, Any]] = None

    def set_state(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = view_array(data, dtype, shape, "F" if fortran else "C", self.budget)

    def resolve(self) -> np.ndarray[Any, Any]:
        if self.value is None:
            raise MalformedFile("an array without data")
        return self.value


def numpy_globals(budget: Budget) -> Dict[str, Builder]:
    """Return the globals that pickled arrays and state dicts use, under NumPy 1 and 2, protocols 0 to 5."""

    def reconstruct(subtype: Any, shape: Any, typecode: Any) -> Array:
        if not (isinstance(subtype, Global) and subtype.name == "numpy.ndarray"):
            raise MalformedFile("an array of a subclass")
        return Array(budget)

    def from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> Array:
        array = Array(budget)
        array.value = view_array(data, dtype, shape, order, budget)
        return array

    def scalar(dtype: Any, data: Any) -> Any:
        array = view_array(data, dtype, (), "C", budget)
        return array[()]

    def encode(text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding != "latin1":
            raise MalformedFile("_codecs.encode with other arguments than (text, 'latin1'), which numpy writes")
        budget.spend(len(text))
        return text.encode("latin-1")

    def ordered_dict(items: Sequence[Any] = ()) -> Dict[Any, Any]:
        budget.spend(64 * len(items))
        return pairs([key for key, _ in items], [value for _, value in items])

    allowed: Dict[str, Builder] = {
        "collections.OrderedDict": ordered_dict,
        "numpy.ndarray": _not_callable,
        "numpy.dtype": DType,
        "_codecs.encode": encode,
        "__builtin__.bytes": _empty_bytes,
        "builtins.bytes": _empty_bytes,
    }
    for core in ("numpy.core", "numpy._core"):
        allowed[f"{core}.multiarray._reconstruct"] = reconstruct
        allowed[f"{core}.multiarray.scalar"] = scalar
        allowed[f"{core}.numeric._frombuffer"] = from_buffer
    return allowed


def view_array(data: Any, dtype: Any, shape: Any, order: Any, budget: Budget) -> np.ndarray[Any, Any]:
    """Return ``data`` as an array; its length must match ``shape`` and ``dtype``. It is copied only to swap bytes."""
    if not isinstance(dtype, DType):
        raise MalformedFile("an array without a dtype")
    if dtype.value is None:
        raise UnsupportedFile(f"an array of dtype {dtype.description}; real numbers of up to 64 bits are read")
    if isinstance(data, str):  # Python 2 and protocol 0
        budget.spend(len(data))
        data = data.encode("latin-1")
    shape = check_shape(shape)
    if order not in ("C", "F"):
        raise MalformedFile("an array whose order is not C or F")
    if math.prod(shape) * dtype.value.itemsize != len(data):
        raise MalformedFile(f"an array of shape {shape} and dtype {dtype.value} has {len(data)} bytes of data")
    return native_order(np.frombuffer(data, dtype.value), budget).reshape(shape, order=order)


def check_shape(shape: Any) -> Tuple[int, ...]:
    """Return the shape if it is a tuple of at most 32 lengths that are not negative, or raise MalformedFile."""
    if not isinstance(shape, tuple) or len(shape) > 32 or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        raise MalformedFile("an array's shape is not a tuple of lengths")
    return shape


def native_order(array: np.ndarray[Any, Any], budget: Optional[Budget] = None) -> np.ndarray[Any, Any]:
    """Return the array in this machine's byte order, read-only; a copy only where the order differs."""
    if not array.dtype.isnative:
        if budget is not None:
            budget.spend(array.nbytes)
        array = array.astype(array.dtype.newbyteorder("="))
    array.flags.writeable = False
    return array


def widen_bfloat16(words: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return bfloat16 numbers, passed as uint16 in native byte order, as float32, of which they are the upper half."""
    wide = words.astype(np.uint32)
    wide <<= 16
    wide.flags.writeable = False
    return wide.view(np.float32)


def _empty_bytes() -> bytes:
    return b""  # protocols 0 to 2 have no other way to write the data of an empty array


def _not_callable(*arguments: Any) -> NoReturn:
    raise MalformedFile("numpy.ndarray is called, which numpy's own pickles never do")

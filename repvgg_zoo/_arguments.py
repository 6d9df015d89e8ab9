"""Check arguments: each function returns the value in its plain type, or raises ArgumentError that names it."""

from __future__ import annotations

import math
import operator
from typing import Any, Optional, Tuple

from .errors import ArgumentError


def check_flag(name: str, value: Any) -> bool:
    """Return a truth value; NumPy's are accepted, numbers and text are not."""
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        return bool(value)
    raise _error(name, value, "True or False")


def check_int(name: str, value: Any, *, minimum: int, maximum: Optional[int] = None) -> int:
    """Return an integer within bounds; NumPy's are accepted, floats, text and truth values are not."""
    expected = f"an integer of at least {minimum}" if maximum is None else f"an integer from {minimum} to {maximum}"
    if isinstance(value, bool):
        raise _error(name, value, expected)
    try:
        number = operator.index(value)
    except TypeError:
        raise _error(name, value, expected) from None
    if number < minimum or (maximum is not None and number > maximum):
        raise _error(name, value, expected)
    return number


def check_float(name: str, value: Any, *, above: float) -> float:
    """Return a finite number above a bound; NumPy's are accepted, text and truth values are not."""
    is_number = (
        hasattr(type(value), "__float__") and not isinstance(value, (bool, str)) and getattr(value, "ndim", 0) == 0
    )
    number = float(value) if is_number else math.nan
    if not math.isfinite(number) or number <= above:
        raise _error(name, value, f"a number above {above:g}")
    return number


def check_items(name: str, value: Any, *, length: Optional[int] = None) -> Tuple[Any, ...]:
    """Return the items of a list, tuple or array; text is none of them."""
    expected = "a list or tuple" if length is None else f"a list or tuple of {length}"
    if isinstance(value, (str, bytes, dict)):
        raise _error(name, value, expected)
    try:
        items = tuple(value)
    except TypeError:
        raise _error(name, value, expected) from None
    if length is not None and len(items) != length:
        raise _error(name, value, expected)
    return items


def _error(name: str, value: Any, expected: str) -> ArgumentError:
    text = repr(value)
    text = text if len(text) <= 80 else f"{text[:77]}..."
    return ArgumentError(f"{name}={text} is not valid", expected=expected, actual=value, hint=f"pass {expected}")

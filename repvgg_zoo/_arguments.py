"""Check arguments: each function returns the value in its plain type, or raises ArgumentError that names it."""

from __future__ import annotations

import math
import numbers
import os
import re
import sys
from pathlib import Path
from typing import Any, Optional, Sequence, Tuple

from ._redact import redact
from .errors import ArgumentError

# A scheme of one letter is a drive; pathlib makes one slash of two.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def is_module(value: Any) -> bool:
    """Return whether a value is a MegEngine Module; where there is one, MegEngine has been imported already."""
    modules = sys.modules.get("megengine.module")
    return modules is not None and isinstance(value, modules.Module)


def check_flag(name: str, value: Any) -> bool:
    """Return a truth value; NumPy's are accepted, numbers and text are not."""
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):  # NumPy 1's and 2's, without importing it
        return bool(value)
    raise _error(name, value, "True or False")


def check_int(name: str, value: Any, *, minimum: int) -> int:
    """Return an integer of at least ``minimum``; NumPy's are accepted, floats, text and truth values are not."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < minimum:
        raise _error(name, value, f"an integer of at least {minimum}")
    return int(value)


def check_text(name: str, value: Any, expected: str = "text") -> str:
    """Return a text; paths, bytes and None are not accepted."""
    if not isinstance(value, str):
        raise _error(name, value, expected)
    return value


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return one of the given texts."""
    if not isinstance(value, str) or value not in choices:
        raise _error(name, value, " or ".join(map(repr, choices)))
    return value


def check_path(name: str, value: Any) -> Path:
    """Return a path, of text or an ``os.PathLike``, with ``~`` replaced; bytes are not accepted."""
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(path, str):
        raise _error(name, value, "a path")
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises for an unknown user


def check_local_path(name: str, value: Any) -> Path:
    """Return a path as check_path does; raise ArgumentError for a URL, unless a file has this name."""
    path = check_path(name, value)
    text = os.fspath(value)
    if _URL.match(text) and not os.path.lexists(path):
        raise ArgumentError(
            f"{redact(text)} is a URL, which is not downloaded",
            expected="the path of a file",
            actual=redact(text),
            hint="download it and pass its path, or describe it in a registry file, with its digest",
        )
    return path


def check_float(name: str, value: Any, *, above: float = -math.inf) -> float:
    """Return a finite number above a bound; NumPy's are accepted, text and truth values are not."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    try:
        number = float(value) if is_number else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number <= above:
        raise _error(name, value, "a number" if above == -math.inf else f"a number above {above:g}")
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


def check_image_size(name: str, value: Any) -> Tuple[int, int]:
    """Return (height, width) of one number or of two."""
    if isinstance(value, (list, tuple)):
        height, width = check_items(name, value, length=2)
        return check_int(name, height, minimum=1), check_int(name, width, minimum=1)
    size = check_int(name, value, minimum=1)
    return size, size


def _error(name: str, value: Any, expected: str) -> ArgumentError:
    text = repr(value)
    text = text if len(text) <= 80 else f"{text[:77]}..."
    return ArgumentError(f"{name} is {text}", expected=expected, actual=value, hint=f"pass {expected}")

"""Compare arrays."""

from __future__ import annotations

from typing import Any

import numpy as np


def assert_same_array(actual: Any, expected: Any, what: str = "") -> None:
    """Assert equal values, shapes and dtypes, as ``strict=True`` does, which NumPy has from 1.24 on."""
    actual, expected = np.asanyarray(actual), np.asanyarray(expected)
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype), what
    np.testing.assert_array_equal(actual, expected, err_msg=what)

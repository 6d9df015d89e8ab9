"""What holds for every test."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def seeded_weights() -> None:
    """Give a test the same random weights in whatever order and process it runs."""
    if "megengine" in sys.modules:
        sys.modules["megengine"].random.seed(0)

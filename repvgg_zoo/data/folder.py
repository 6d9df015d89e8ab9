"""FolderShard: images in a folder, which is on a disk or at a URL."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import FrozenSet, Iterator, List, Mapping, Optional, Sequence, Tuple

from ..errors import ArgumentError
from ..registry.model_or_file import IMAGE_SUFFIXES
from .remote import base_name, is_url, join, read
from .samples import Sample

# Folders that hold the splits of a data set rather than a class each.
SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})


@dataclass(frozen=True)
class FolderShard:
    """Some images of a folder: ``items`` are (path in the folder, label, size if it is known)."""

    name: str
    root: str
    items: Tuple[Tuple[str, Optional[str], Optional[int]], ...]
    prefix: str = ""

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self.items)

    @property
    def class_names(self) -> Tuple[str, ...]:
        """The labels that occur, sorted."""
        return tuple(sorted({label for _, label, _ in self.items if label is not None}))

    def __iter__(self) -> Iterator[Sample]:
        is_remote = is_url(self.root)
        for name, label, _ in self.items:
            yield Sample(self.prefix + name, read(join(self.root, name)) if is_remote else Path(self.root, name), label)

    def digest(self) -> str:
        """Return a SHA-256 of the names, the labels and the sizes; a file that does not exist has none."""
        digest = hashlib.sha256()
        for name, label, size in self.items:
            size = _size(Path(self.root, name)) if size is None else size
            digest.update(f"{name}\0{label}\0{size}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def split(self, size: int) -> Tuple[FolderShard, ...]:
        """Return shards of at most ``size`` images."""
        if len(self.items) <= size:
            return (self,)
        parts = (self.items[start : start + size] for start in range(0, len(self.items), size))
        return tuple(replace(self, name=f"{self.name}-{number:05d}", items=part) for number, part in enumerate(parts))


def open_folder(root: str, images: Sequence[str], sizes: Optional[Mapping[str, Optional[int]]] = None) -> FolderShard:
    """Return the images of a folder that has a folder for each class; those beside these folders have no label.

    Raises ArgumentError for a folder of the splits of a data set, which are not classes.
    """
    items = tuple((name, _first_folder(name), None if sizes is None else sizes[name]) for name in images)
    shard = FolderShard(base_name(root), root, items)
    if shard.class_names and SPLITS.issuperset(name.lower() for name in shard.class_names):
        raise ArgumentError(
            f"{root} has the folders {', '.join(shard.class_names)}, which are splits and not classes",
            path=root,
            expected="a folder for each class",
            actual=shard.class_names,
            hint=f"pass one of them, such as {join(root, shard.class_names[-1])}",
        )
    return shard


def list_images(root: Path) -> List[str]:
    """Return the paths of all images in a folder and its subfolders, with slashes, in the order of their names.

    The suffix tells what an image is. Hidden files are left out; links are followed. Raises ArgumentError for a folder
    that cannot be read.
    """
    try:
        return list(_walk(root, "", frozenset()))
    except OSError as error:
        raise ArgumentError(
            f"{error.filename} cannot be read: {error.strerror}", path=error.filename, hint="check its permissions"
        ) from error


def empty_class_folders(root: Path, images: Sequence[str]) -> Tuple[str, ...]:
    """Return the names of the folders without images, if there are folders with some."""
    classes = {name for name in map(_first_folder, images) if name is not None}
    with os.scandir(root) as entries:
        folders = {entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")}
    return tuple(sorted(folders - classes)) if classes else ()


def _walk(folder: Path, prefix: str, parents: FrozenSet[Tuple[int, int]]) -> Iterator[str]:
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in parents:  # a link to a folder that it is in
        return
    with os.scandir(folder) as entries:
        ordered = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in ordered:
        if entry.is_dir():
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", parents | {identity})
        elif entry.name.lower().endswith(IMAGE_SUFFIXES):
            yield prefix + entry.name


def _first_folder(name: str) -> Optional[str]:
    folder, slash, _ = name.partition("/")
    return folder if slash else None


def _size(path: Path) -> Optional[int]:
    try:
        return path.stat().st_size
    except OSError:
        return None

"""open_images: a folder, a folder with a CSV, tar shards, URLs, or a list of these, as a source of labeled images."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Iterator, List, Mapping, Optional, Tuple, cast

from .._arguments import check_int, check_path
from .._redact import redact
from ..errors import ArgumentError, MissingFileError
from .folder import FolderShard, empty_class_folders, list_images, open_folder
from .label_csv import Labels, assign_labels
from .pairs import PairShard, pair_samples
from .remote import base_name, expand_braces, is_url, list_remote_images
from .samples import Sample, Shard
from .tar_shard import TarShard

TAR_SUFFIX = ".tar"
EXPECTED = "a folder, a .tar file or several ('val-{000..049}.tar'), a URL of these, a list of them, or (image, label)s"

__all__ = ["ImageSource", "Sample", "Shard", "open_images"]


@dataclass(frozen=True)
class ImageSource:
    """Images and their labels, in shards; iterating it yields a ``Sample`` for each image, always in the same order.

    Attributes: ``name``, ``shards``, ``class_names`` (the labels that occur, or None if they are only known once all
    images are read), and ``empty_classes``, the names of class folders without images. It can be pickled.
    """

    name: str
    shards: Tuple[Shard, ...]
    class_names: Optional[Tuple[str, ...]] = None
    empty_classes: Tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Sample]:
        for shard in self.shards:
            yield from shard

    @property
    def count(self) -> Optional[int]:
        """The number of images, or None if it is only known once all are read."""
        counts = [shard.count for shard in self.shards]
        return None if None in counts else sum(count for count in counts if count is not None)

    def digest(self) -> str:
        """Return a SHA-256 of the names, the labels and the sizes of all files."""
        digests = (f"{shard.name} {shard.digest()}\n" for shard in self.shards)
        return hashlib.sha256("".join(digests).encode("utf-8", "surrogateescape")).hexdigest()

    def split(self, size: int) -> ImageSource:
        """Return the same images in shards of at most ``size``; a tar file stays one."""
        size = check_int("size", size, minimum=1)
        return replace(self, shards=tuple(part for shard in self.shards for part in shard.split(size)))


def open_images(data: Any, *, labels: Optional[Labels] = None) -> ImageSource:
    """Return the images of a folder, of tar files, of URLs of these, of a list of any of them, or of pairs.

    - A folder that has a folder for each class: the class is the first folder of an image's path.
    - A folder with ``labels``: a CSV file, or a mapping, from the path of an image in the folder to its label. Only the
      images that it lists are used. It may have a header; separators may be commas, tabs, semicolons or spaces.
    - ``.tar`` files, or a folder of nothing else, in webdataset's convention: the files of one sample have one name and
      are adjacent: ``0001.jpg`` and ``0001.cls``, an index or a class name, or ``0001.json`` with a "label".
    - URLs of these (``s3://``, ``https://``), for which megfile is needed.
    - A list of pairs (image, label), of which an image is a path, bytes, an array or a Pillow image.

    No image is opened. Raises ArgumentError for anything else, MissingFileError, and DependencyError for URLs without
    megfile.
    """
    if isinstance(data, ImageSource):
        return data if labels is None else _refuse_labels("an ImageSource")
    if isinstance(data, (list, tuple)) and data:
        if all(isinstance(item, (list, tuple)) for item in data):
            return _open_pairs(data) if labels is None else _refuse_labels("a list of pairs")
        return _join(data) if labels is None else _refuse_labels("a list of sources")
    if not isinstance(data, (str, os.PathLike)):
        raise ArgumentError(f"{type(data).__name__} is not a source of images", expected=EXPECTED, actual=type(data))
    text = os.fspath(data)
    names = [text] if os.path.lexists(text) else expand_braces(text)
    if len(names) > 1:
        return _join(names) if labels is None else _refuse_labels("a list of sources")
    return _open_url(names[0], labels) if is_url(names[0]) else _open_path(check_path("data", data), labels)


def _open_path(path: Path, labels: Optional[Labels]) -> ImageSource:
    if not path.exists():
        raise MissingFileError(f"{path} does not exist", path=path, hint="check the path")
    if path.is_dir():
        images = list_images(path)
        tars = sorted(entry.name for entry in os.scandir(path) if entry.name.lower().endswith(TAR_SUFFIX))
        if images and tars:
            raise ArgumentError(
                f"{path} has images and tar files ({tars[0]})",
                path=path,
                expected="images or tar files",
                hint="move one of them to another folder, or pass a list of the tar files",
            )
        if tars and labels is None:
            return ImageSource(str(path), tuple(TarShard(name, str(path / name), f"{name}/") for name in tars))
        if not images:
            raise ArgumentError(f"{path} holds no images", path=path, expected=EXPECTED, hint="check the path")
        if labels is None:
            source = open_folder(str(path), images)
            return ImageSource(str(path), (source,), source.class_names, empty_class_folders(path, images))
        return _labeled(str(path), dict.fromkeys(images), labels)
    if path.name.lower().endswith(TAR_SUFFIX):
        return ImageSource(path.name, (TarShard(path.name, str(path)),)) if labels is None else _refuse_labels("a .tar")
    raise ArgumentError(f"{path} is not a source of images", path=path, expected=EXPECTED, hint=f"pass {EXPECTED}")


def _open_url(url: str, labels: Optional[Labels]) -> ImageSource:
    base = base_name(url)
    if base.lower().endswith(TAR_SUFFIX):
        return ImageSource(base, (TarShard(base, url),)) if labels is None else _refuse_labels("a .tar")
    sizes = list_remote_images(url)
    if labels is not None:
        return _labeled(url, sizes, labels)
    source = open_folder(url, list(sizes), sizes)
    return ImageSource(redact(url), (source,), source.class_names)


def _labeled(root: str, sizes: Mapping[str, Optional[int]], labels: Labels) -> ImageSource:
    assigned = assign_labels(labels, list(sizes), root)
    items = tuple((name, label, sizes[name]) for name, label in assigned.items())
    shard = FolderShard(base_name(root), root, items)
    return ImageSource(redact(root), (shard,), shard.class_names)


def _open_pairs(pairs: Any) -> ImageSource:
    samples = tuple(pair_samples(pairs))
    labels = sorted({sample.label for sample in samples if sample.label is not None})
    return ImageSource("pairs", (PairShard("pairs", samples),), tuple(labels))


def _join(items: Any) -> ImageSource:
    """Return several sources as one; keys and shards are named after the sources, or after their paths."""
    sources = [open_images(item) for item in items]
    paths = [item.name if isinstance(item, ImageSource) else os.fspath(item) for item in items]
    names: List[str] = [base_name(path) for path in paths]
    names = names if len(set(names)) == len(names) else [redact(path) for path in paths]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ArgumentError(f"{twice} is listed twice", expected="each source once", actual=names)
    shards: List[Any] = []
    for name, source in zip(names, sources):
        for shard in source.shards:
            own_name = name if len(source.shards) == 1 else f"{name}/{shard.name}"
            shards.append(replace(cast(Any, shard), name=own_name, prefix=f"{name}/{cast(Any, shard).prefix}"))
    known = [source.class_names for source in sources]
    class_names = None if None in known else tuple(dict.fromkeys(name for part in known for name in part or ()))
    empty = dict.fromkeys(name for source in sources for name in source.empty_classes)
    return ImageSource(", ".join(names), tuple(shards), class_names, tuple(empty))


def _refuse_labels(what: str) -> ImageSource:
    raise ArgumentError(f"{what} has labels of its own", expected="no labels", hint="labels are for a folder of images")

"""split_samples: the images of a data set by class, in a part for training and one for validation."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
from numpy.typing import NDArray

from .._arguments import check_float
from .._escape import escape
from ..checkpoints.state_dict import format_keys
from ..data.sources import ImageSource, Sample, open_images
from ..errors import ArgumentError

DEFAULT_VAL_SHARE = 0.1
MAX_BYTES_IN_MEMORY = 1 << 32  # of the images of tar files, which are read in another order in each epoch


class Labeled(NamedTuple):
    """Samples and the index of the class of each, (N,) int32."""

    samples: Tuple[Sample, ...]
    labels: NDArray[Any]

    def subset(self, indices: Sequence[int]) -> Labeled:
        """Return some of them."""
        return Labeled(tuple(self.samples[index] for index in indices), self.labels[np.asarray(indices, np.intp)])


class Split(NamedTuple):
    """The classes in the order of the logits, the images of both parts, and the digest of all keys and labels."""

    class_names: Tuple[str, ...]
    train: Labeled
    val: Labeled
    digest: str


def split_samples(data: Any, val: Any, *, labels: Any, seed: int) -> Split:
    """Return the images of ``data``, with those of ``val`` for validation, or a share of ``data`` where it is a number.

    The share is taken from each class, at random by ``seed``, at least one image of each. Raises ArgumentError for
    fewer than two classes, a class without images, an image without a label, a class of ``val`` that is not one of
    ``data``, and what ``open_images`` raises.
    """
    source = open_images(data, labels=labels)
    samples = _read(source)
    class_names = _class_names(source, samples)
    train = Labeled(samples, _indices(samples, class_names))
    if val is None or (isinstance(val, (int, float)) and not isinstance(val, bool)):
        parts = _hold_out(train, class_names, DEFAULT_VAL_SHARE if val is None else _share(val), seed)
        return Split(class_names, *parts, _digest(source))
    val_source = open_images(val)
    val_samples = _read(val_source)
    unknown = sorted({str(sample.label) for sample in val_samples} - set(class_names))
    if unknown:
        raise ArgumentError(
            f"{len(unknown)} classes of val are not classes of data: {format_keys(unknown)}; those of data are"
            f" {format_keys(class_names)}",
            expected=class_names,
            actual=tuple(unknown),
            hint="name the folders of both alike",
        )
    return Split(
        class_names, train, Labeled(val_samples, _indices(val_samples, class_names)), _digest(source, val_source)
    )


def _read(source: ImageSource) -> Tuple[Sample, ...]:
    samples: List[Sample] = []
    size = 0
    for sample in source:
        size += len(sample.image) if isinstance(sample.image, bytes) else 0
        if size > MAX_BYTES_IN_MEMORY:
            raise ArgumentError(
                f"the images of {source.name} have more than {MAX_BYTES_IN_MEMORY >> 30} GB, which are held in memory",
                expected=f"at most {MAX_BYTES_IN_MEMORY} bytes",
                hint="unpack the tar files into folders, which are read image by image",
            )
        samples.append(sample)
    unlabeled = [sample.key for sample in samples if sample.label is None]
    if unlabeled:
        raise ArgumentError(
            f"{len(unlabeled)} of {len(samples)} images of {source.name} have no label: {format_keys(unlabeled)}",
            actual=tuple(unlabeled),
            hint="put them into a folder for each class, or pass labels=, a CSV file",
        )
    if not samples:
        raise ArgumentError(f"{source.name} has no images", hint="pass a folder with a folder of images for each class")
    return tuple(samples)


def _class_names(source: ImageSource, samples: Sequence[Sample]) -> Tuple[str, ...]:
    counts = Counter(sample.label for sample in samples)
    names = source.class_names or tuple(sorted(str(label) for label in counts))
    empty = [*source.empty_classes, *(name for name in names if not counts[name])]
    if empty:
        raise ArgumentError(
            f"{len(empty)} classes have no images: {format_keys(empty)}",
            actual=tuple(empty),
            hint="remove their folders, or put images into them",
        )
    if len(names) < 2:
        raise ArgumentError(
            f"all images are of one class, {format_keys(names)}",
            expected="at least two classes",
            actual=names,
            hint="pass a folder with a folder of images for each class",
        )
    return names


def _indices(samples: Sequence[Sample], class_names: Sequence[str]) -> NDArray[Any]:
    index: Dict[Optional[str], int] = {name: number for number, name in enumerate(class_names)}
    return np.array([index[sample.label] for sample in samples], np.int32)


def _share(value: Union[int, float]) -> float:
    share = check_float("val", value, above=0)
    if share >= 1:
        raise ArgumentError(
            f"val is {share:g}", expected="a share below 1, or images", actual=value, hint="pass 0.1 for a tenth"
        )
    return share


def _hold_out(train: Labeled, class_names: Sequence[str], share: float, seed: int) -> Tuple[Labeled, Labeled]:
    random = np.random.RandomState(seed)
    held_out: List[int] = []
    for index, name in enumerate(class_names):
        members = np.flatnonzero(train.labels == index)
        if len(members) < 2:
            raise ArgumentError(
                f"the class {escape(name)} has one image, which cannot be both in training and in validation",
                actual=name,
                hint="add images of it, or pass val=, the images for validation",
            )
        count = min(len(members) - 1, max(1, round(share * len(members))))
        held_out += random.permutation(members)[:count].tolist()
    is_held_out = np.zeros(len(train.labels), bool)
    is_held_out[held_out] = True
    return train.subset(np.flatnonzero(~is_held_out).tolist()), train.subset(np.flatnonzero(is_held_out).tolist())


def _digest(*sources: ImageSource) -> str:
    return hashlib.sha256(" ".join(source.digest() for source in sources).encode("ascii")).hexdigest()

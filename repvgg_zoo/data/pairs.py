"""PairShard: images that a program has in memory, or whose paths and labels it knows."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Iterator, Optional, Sequence, Tuple

import numpy as np

from .._arguments import check_text
from ..errors import ArgumentError
from .samples import Sample


@dataclass(frozen=True)
class PairShard:
    """The samples themselves."""

    name: str
    samples: Tuple[Sample, ...]
    prefix: str = ""

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        for sample in self.samples:
            yield sample._replace(key=self.prefix + sample.key)

    def digest(self) -> str:
        """Return a SHA-256 of the keys, the labels, and the sizes of files or the values of arrays."""
        digest = hashlib.sha256()
        for key, image, label in self.samples:
            if isinstance(image, Path):
                content = str(image.stat().st_size if image.exists() else None).encode()
            else:
                content = image if isinstance(image, bytes) else np.asarray(image).tobytes()
            digest.update(f"{key}\0{label}\0{len(content)}\n".encode("utf-8", "surrogateescape") + content)
        return digest.hexdigest()

    def split(self, size: int) -> Tuple[PairShard, ...]:
        """Return shards of at most ``size`` images."""
        if len(self.samples) <= size:
            return (self,)
        parts = (self.samples[start : start + size] for start in range(0, len(self.samples), size))
        return tuple(replace(self, name=f"{self.name}-{number:05d}", samples=part) for number, part in enumerate(parts))


def pair_samples(pairs: Sequence[Any]) -> Iterator[Sample]:
    """Yield a sample for each pair (image, label); its key is the path, or the number in the list.

    Raises ArgumentError for anything but pairs, and for a path that occurs twice.
    """
    keys = set()
    for number, pair in enumerate(pairs):
        if len(pair) != 2:
            raise ArgumentError(f"item {number} has {len(pair)} parts", expected="(image, label)", actual=len(pair))
        image, label = pair
        is_path = isinstance(image, (str, os.PathLike))
        key = os.fspath(image) if is_path else f"{number:08d}"
        if key in keys:
            raise ArgumentError(f"{key} is listed twice", expected="each image once", actual=key)
        keys.add(key)
        yield Sample(key, Path(image) if is_path else image, _label(label))


def _label(label: Any) -> Optional[str]:
    if label is None or isinstance(label, str):
        return label
    if isinstance(label, (int, np.integer)) and not isinstance(label, bool):
        return str(int(label))
    return check_text("a label", label, "a class name or an index")

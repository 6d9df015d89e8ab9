"""Sample and Shard: what every source of images yields, and the part of it that one process reads."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Iterator, NamedTuple, Optional, Protocol, Tuple, Union

from numpy.typing import NDArray

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image as Pillow


class Sample(NamedTuple):
    """One image: its key, which no other of the source has, and the class that the data says it is of.

    ``image`` is a path, or the bytes of a file; of a list of pairs it is what the pair has. ``label`` is a class name,
    a synset or an index, as the data has it, or None for an image without a label.
    """

    key: str
    image: Union[Path, bytes, Pillow.Image, NDArray[Any]]
    label: Optional[str] = None


def as_image(image: Any) -> Any:
    """Return the image of a sample as ``preprocess`` takes it: bytes as an open file, all else as it is."""
    return io.BytesIO(image) if isinstance(image, bytes) else image


class Shard(Protocol):
    """A part of a source that can be pickled and read on its own, in another process or on another machine."""

    @property
    def name(self) -> str:
        """The name, which no other shard of the source has."""

    @property
    def count(self) -> Optional[int]:
        """The number of samples, or None if it is not known before all are read."""

    def __iter__(self) -> Iterator[Sample]:
        """Yield the samples, always in the same order."""

    def digest(self) -> str:
        """Return a SHA-256 of the names, the labels and the sizes of all files."""

    def split(self, size: int) -> Tuple[Shard, ...]:
        """Return shards of at most ``size`` samples, or the shard itself if it has to be read in one go."""

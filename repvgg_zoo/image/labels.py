"""Class names: those that the registry has for a checkpoint, or ImageNet-1k's."""

from __future__ import annotations

import functools
from typing import NamedTuple, Tuple

from .._resources import read_text
from ..checkpoints import CheckpointMetadata
from ..checkpoints.metadata import metadata_of_spec
from ..registry.specs import IMAGENET, CheckpointSpec


class Label(NamedTuple):
    """A class name, and its WordNet synset where it is one of ImageNet's."""

    name: str
    synset: str = ""


def labels_of(checkpoint: CheckpointSpec) -> Tuple[Label, ...]:
    """Return the classes of a checkpoint in the order of its logits; empty if the registry does not know them."""
    return class_labels(metadata_of_spec(checkpoint), checkpoint.num_classes)


def class_labels(metadata: CheckpointMetadata, num_classes: int) -> Tuple[Label, ...]:
    """Return the classes of a network in the order of its logits; empty if they are not known, or not that many."""
    classes = tuple(map(Label, metadata.class_names))
    if not classes and metadata.dataset == IMAGENET:
        classes = imagenet()
    return classes if len(classes) == num_classes else ()


@functools.lru_cache(maxsize=1)
def imagenet() -> Tuple[Label, ...]:
    """Return the 1000 classes of ImageNet-1k.

    >>> imagenet()[207]
    Label(name='golden retriever', synset='n02099601')
    """
    rows = (line.partition(" ") for line in read_text("image/imagenet-1k.txt").splitlines() if not line.startswith("#"))
    return tuple(Label(name, synset) for synset, _, name in rows)

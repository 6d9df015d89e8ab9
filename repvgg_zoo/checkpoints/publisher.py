"""complete_metadata: what a file does not say about its weights, from the publisher of its layout and the registry."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import List, Optional, Tuple

from ..errors import LayoutError, PluginError, UnknownModelError
from ..registry.api import find_model
from ..registry.load import shipped_registry
from ..registry.specs import IMAGENET, CheckpointSpec, ModelSpec, Preprocessing
from .identify import identify_variant
from .metadata import CheckpointMetadata
from .state_dict import Checkpoint, class_count, input_channels

# Files in these layouts may be of anybody: of a variant's own publisher, then.
COMMON_LAYOUTS = ("canonical", "arrays")
# Layouts of publishers without checkpoints in the registry, and one whose preprocessing is theirs (read in their code).
SAME_PREPROCESSING = {"asthestarsfalll": "basecls", "official_plus": "official"}


def complete_metadata(checkpoint: Checkpoint, spec: Optional[ModelSpec] = None) -> CheckpointMetadata:
    """Return a checkpoint's metadata with variant, dataset and preprocessing filled in where the file does not say.

    ``spec`` is the variant if it is known; otherwise its arrays tell. ``preprocessing_source`` says where the
    preprocessing is from. A file of another program's with 1000 classes is taken for one of ImageNet-1k, as timm
    does it. What is not known stays None.
    """
    metadata = checkpoint.metadata
    if spec is None:
        spec = find_variant(checkpoint)
    if _has_imagenet_head(checkpoint):
        metadata = replace(metadata, dataset=IMAGENET)
    if spec is not None:
        metadata = replace(metadata, variant=spec.name)
    if metadata.preprocessing is not None:
        return metadata
    preprocessing, source = _publisher_preprocessing(checkpoint, spec)
    return replace(metadata, preprocessing=preprocessing, preprocessing_source=source)


def _has_imagenet_head(checkpoint: Checkpoint) -> bool:
    known = checkpoint.metadata
    is_ours = known.variant is not None or known.dataset is not None or known.class_names
    return not is_ours and class_count(checkpoint.state_dict) == 1000


def variant_of(checkpoint: Checkpoint) -> ModelSpec:
    """Return the variant that the file says it is of, or that its arrays fit; raise LayoutError if there is none."""
    if checkpoint.metadata.variant is not None:
        with suppress(UnknownModelError, PluginError):
            return find_model(checkpoint.metadata.variant)[0]
    return identify_variant(checkpoint)


def find_variant(checkpoint: Checkpoint) -> Optional[ModelSpec]:
    """Return what ``variant_of`` does, or None if the registry has no such variant."""
    try:
        return variant_of(checkpoint)
    except (LayoutError, PluginError):
        return None


def default_preprocessing(spec: Optional[ModelSpec]) -> Tuple[Optional[Preprocessing], Optional[str]]:
    """Return the preprocessing of a variant's default checkpoint, and in words where it is from."""
    if spec is None or spec.default is None:
        return None, None
    checkpoint = spec.checkpoint(spec.default)
    return checkpoint.preprocessing, f"{checkpoint.name}, the default checkpoint of {spec.name}"


def _publisher_preprocessing(
    checkpoint: Checkpoint, spec: Optional[ModelSpec]
) -> Tuple[Optional[Preprocessing], Optional[str]]:
    """Return the preprocessing of the publisher whose layout the file has, and in words where it is from.

    The publisher's checkpoint of the same variant decides, then those of its other variants, of the same image size if
    there are any. One for another number of channels than the stem has is left out.
    """
    layout = SAME_PREPROCESSING.get(checkpoint.layout, checkpoint.layout)
    published = [] if layout in COMMON_LAYOUTS else _checkpoints_in(layout, spec)
    channels = input_channels(checkpoint.state_dict)
    published = [c for c in published if channels in (None, len(c.preprocessing.color_order))]
    own = [] if spec is None else [c for c in published if c.variant == spec.name]
    size = None if spec is None else spec.architecture.image_size
    candidates = own[:1] or [c for c in published if c.preprocessing.image_size == size] or published
    if not candidates:
        return default_preprocessing(spec)
    preprocessing, _ = Counter(c.preprocessing for c in candidates).most_common(1)[0]
    publisher = own[0].name if own else candidates[0].publisher
    return preprocessing, f"{publisher}, as the file has the layout {checkpoint.layout}"


def _checkpoints_in(layout: str, spec: Optional[ModelSpec]) -> List[CheckpointSpec]:
    """Return the checkpoints of this layout: the variant's, and those of the publishers that this package knows."""
    models = shipped_registry().models if spec is None else (spec, *shipped_registry().models)
    return [checkpoint for model in models for checkpoint in model.checkpoints if checkpoint.layout == layout]

"""What an exported file says about its network: ONNX's keys for images, some that people read, and ours as JSON."""

from __future__ import annotations

import json
from typing import Any, Dict, Mapping, Optional

from ..checkpoints.metadata import METADATA_KEY, CheckpointMetadata, from_text, to_text
from ..checkpoints.state_dict import class_count
from ..errors import CheckpointFormatError, PathLike
from ..image.labels import class_labels
from ..inference.target import Target
from ..registry.specs import CheckpointSpec, Preprocessing
from .source import ExportSource

# Of ONNX's MetadataProps.md.
PIXEL_FORMATS = {"RGB": "Rgb8", "BGR": "Bgr8", "L": "Gray8"}


def metadata_entries(source: ExportSource, *, input: str) -> Dict[str, str]:
    """Return the entries of an ONNX file with this dtype of input, without those of which nothing is known."""
    classes = class_count(source.state_dict) or 0
    precision = "float32" if source.quantized is None else "int8"
    return {"form": source.form, "precision": precision, **_entries(source.metadata, source.checkpoint, classes, input)}


def target_entries(target: Target) -> Dict[str, str]:
    """Return the same of a network in the deploy form that is dumped by MegEngine."""
    network = target.network()
    return _entries(target.metadata, target.checkpoint, getattr(network, "num_classes", 0), "float32")


def _entries(
    metadata: CheckpointMetadata, checkpoint: Optional[CheckpointSpec], num_classes: int, input: str
) -> Dict[str, str]:
    entries: Dict[str, Any] = {
        "variant": metadata.variant,
        "checkpoint": metadata.source,
        "source_sha256": metadata.source_sha256,
        **_image_entries(metadata.preprocessing, input),
    }
    if checkpoint is not None:
        entries["license"], entries["publisher"] = checkpoint.license, checkpoint.publisher
        if checkpoint.top1 is not None:
            entries["top1"], entries["top5"] = checkpoint.top1, checkpoint.top5
            entries["accuracy_source"] = ", ".join(checkpoint.provenance)
    labels = class_labels(metadata, num_classes)
    if labels:
        entries["class_names"] = json.dumps([label.name for label in labels])
    entries[METADATA_KEY] = to_text(metadata)
    return {key: str(value) for key, value in entries.items() if value is not None}


def _image_entries(preprocessing: Optional[Preprocessing], input: str) -> Dict[str, Optional[str]]:
    if preprocessing is None:
        return {}
    is_uint8 = input == "uint8"
    order = "RGB" if is_uint8 and preprocessing.color_order != "L" else preprocessing.color_order
    return {
        "Image.BitmapPixelFormat": PIXEL_FORMATS[order],
        "Image.ColorSpaceGamma": "SRGB",
        "Image.NominalPixelRange": "NominalRange_0_255" if is_uint8 else None,
        "color_order": order,
        "mean": None if is_uint8 else json.dumps(preprocessing.mean),
        "std": None if is_uint8 else json.dumps(preprocessing.std),
        "resize": json.dumps({"size": preprocessing.resize, "interpolation": preprocessing.interpolation}),
        "crop": json.dumps(preprocessing.image_size),
    }


def metadata_of_entries(entries: Mapping[str, str], path: PathLike) -> Optional[CheckpointMetadata]:
    """Return our own part of a file's metadata, or None; raise CheckpointFormatError if it is not valid."""
    text = entries.get(METADATA_KEY)
    try:
        return None if text is None else from_text(text)
    except ValueError as error:
        raise CheckpointFormatError(
            f"{METADATA_KEY} in {path} is not valid: {error}", path=path, hint="export the network again"
        ) from None

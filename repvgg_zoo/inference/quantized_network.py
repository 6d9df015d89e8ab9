"""QuantizedNetwork: a network in int8 with what is known about it, and its file."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, Optional, Tuple

from .._arguments import check_local_path
from .._escape import escape
from ..checkpoints import CheckpointMetadata
from ..errors import PathLike, PluginError, UnknownModelError
from ..registry.api import find_model
from ..registry.specs import CheckpointSpec, ModelSpec
from .quantization_report import QuantizationReport
from .quantized import QuantizedWeights
from .quantized_file import is_quantized_file, read_quantized, write_quantized


class QuantizedNetwork:
    """What ``quantize`` returns: a network with int8 weights, which ``save`` writes and ``load`` reads.

    Attributes: ``weights`` (the layers), ``report`` (accuracy, block by block), ``image_size`` (height, width) of the
    images that it was calibrated on, ``in_chans``, ``num_classes``, and ``spec``, ``checkpoint`` and ``metadata`` as of
    networks that ``create`` returns.
    """

    def __init__(
        self,
        weights: QuantizedWeights,
        report: QuantizationReport,
        *,
        image_size: Tuple[int, int],
        spec: Optional[ModelSpec],
        checkpoint: Optional[CheckpointSpec],
        metadata: CheckpointMetadata,
    ) -> None:
        self.weights = weights
        self.report = report
        self.image_size = image_size
        self.spec = spec
        self.checkpoint = checkpoint
        self.metadata = metadata

    @property
    def in_chans(self) -> int:
        """The number of channels of its images."""
        return self.weights.layers[0].in_channels

    @property
    def num_classes(self) -> Optional[int]:
        """The number of logits, or None for a network without a head."""
        return None if self.weights.head is None else len(self.weights.head.bias)

    def save(self, path: PathLike) -> None:
        """Write the network as safetensors, completely or not at all, with all that is known about it.

        The file takes about a quarter of the float one. Raises ArgumentError for a path without the suffix
        ``.safetensors`` or in a folder that does not exist, and OSError from the file system.
        """
        write_quantized(check_local_path("the path", path), self.weights, self.report, self.image_size, self.metadata)

    @classmethod
    def load(cls, path: PathLike) -> QuantizedNetwork:
        """Return the network of a file that ``save`` wrote.

        Raises CheckpointFormatError for any other file and for a damaged one, StateError for arrays that do not fit one
        another, and MissingFileError.
        """
        content = read_quantized(check_local_path("the path", path))
        return cls(
            content.weights,
            content.report,
            image_size=content.image_size,
            spec=_find_spec(content.metadata.variant),
            checkpoint=None,
            metadata=content.metadata,
        )

    def __repr__(self) -> str:
        return f"<QuantizedNetwork {escape(self.metadata.variant or 'RepVGG')}: {self.report.summary()}>"


def as_quantized(model: Any) -> Optional[QuantizedNetwork]:
    """Return a QuantizedNetwork, or the one in the file that a path names, or None for any other model.

    Raises what ``QuantizedNetwork.load`` does for a damaged file.
    """
    if isinstance(model, (str, os.PathLike)) and is_quantized_file(model):
        return QuantizedNetwork.load(model)
    return model if isinstance(model, QuantizedNetwork) else None


def _find_spec(variant: Optional[str]) -> Optional[ModelSpec]:
    with suppress(UnknownModelError, PluginError):
        return None if variant is None else find_model(variant)[0]
    return None

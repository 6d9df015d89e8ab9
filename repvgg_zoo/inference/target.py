"""find_target: the network that compile and quantize are given, whatever names it: its weights and metadata."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Mapping, Optional

import numpy as np
from numpy.typing import NDArray

from .._arguments import check_int, is_module
from .._cpu import usable_cores
from .._derived_cache import DerivedCache, DerivedKey
from .._log import get_logger
from .._settings import read_settings
from ..checkpoints import Checkpoint, CheckpointMetadata, load_checkpoint
from ..checkpoints.load import checkpoint_from_arrays
from ..checkpoints.metadata import default_image_size, metadata_of_spec
from ..checkpoints.network_metadata import architecture_of, metadata_of_network
from ..checkpoints.publisher import complete_metadata, variant_of
from ..checkpoints.state_dict import class_count, input_channels
from ..errors import ArgumentError, PathLike
from ..hub import fetch_verified
from ..registry.model_or_file import find_model_or_file
from ..registry.names import find_checkpoint
from ..registry.specs import Architecture, CheckpointSpec, ModelSpec
from ..reparam.fusion import to_form
from ..weights import load_weights, weights_key
from .ir import NetworkWeights, check_state_dict, weights_from_state_dict

if TYPE_CHECKING:
    from megengine.module import Module

SUPPORTED = "RepVGG and RepVGGplus as repvgg_zoo builds them"

logger = get_logger(__name__)


@dataclass(frozen=True)
class Target:
    """A network to be compiled or quantized; what takes time is computed when it is needed.

    ``load_weights`` returns None for a network that the kernels cannot compute. ``network`` is the MegEngine Module in
    the deploy form. ``weights_key`` tells these weights from all others, where a digest of them is known.
    """

    load_weights: Callable[[], Optional[NetworkWeights]]
    network: Callable[[], Module]
    in_chans: int
    spec: Optional[ModelSpec]
    checkpoint: Optional[CheckpointSpec]
    metadata: CheckpointMetadata
    weights_key: Optional[DerivedKey] = None


def find_target(model: Any) -> Target:
    """Return the network that a name, a path, a Checkpoint, arrays or a MegEngine module stands for.

    Raises ArgumentError for anything else, and what ``fetch`` and ``load_checkpoint`` raise.
    """
    if is_module(model):
        return _from_module(model)
    model = model.name if isinstance(model, CheckpointSpec) else model  # what open_model returns for a name
    if isinstance(model, (str, os.PathLike)):
        model_or_file = find_model_or_file(model)
        if isinstance(model_or_file, Path):
            return _from_checkpoint(load_checkpoint(model_or_file))
        return _from_spec(*model_or_file)
    if isinstance(model, Mapping):
        return _from_checkpoint(checkpoint_from_arrays(model))
    if isinstance(model, Checkpoint):
        return _from_checkpoint(model)
    raise ArgumentError(
        f"{type(model).__name__} is not a name, a path, a Checkpoint, arrays or a MegEngine module",
        expected="a name such as 'RepVGG_A0', or a network",
        actual=type(model).__name__,
    )


def _from_spec(spec: ModelSpec, tag: Optional[str]) -> Target:
    """Return the target for a published checkpoint."""
    checkpoint = find_checkpoint(spec, tag)

    @functools.lru_cache(maxsize=None)
    def network() -> Module:
        from .. import create

        return create(spec.name, pretrained=checkpoint.tag, deploy=True)

    if "/" in spec.architecture.builder:
        return _from_module(network())  # a plugin builds it
    file = fetch_verified(checkpoint.file)

    def weights() -> NetworkWeights:
        state_dict = load_weights(file, checkpoint, deploy=True, cache_dir=read_settings().cache_dir).state_dict
        return _checked_weights(state_dict, spec.architecture, checkpoint.num_classes, file.path)

    return Target(
        weights,
        network,
        spec.architecture.in_chans,
        spec,
        checkpoint,
        metadata_of_spec(checkpoint),
        weights_key(file, checkpoint, "deploy"),
    )


def _from_checkpoint(checkpoint: Checkpoint) -> Target:
    """Return the target for arrays, which decide on the classes and the input channels, and on an unknown variant."""
    spec = variant_of(checkpoint)
    in_chans = input_channels(checkpoint.state_dict) or spec.architecture.in_chans
    architecture = architecture_of(checkpoint, spec)._replace(in_chans=in_chans)

    @functools.lru_cache(maxsize=None)
    def network() -> Module:
        from .. import create

        return create(spec.name, checkpoint=checkpoint, in_chans=in_chans, deploy=True)

    def weights() -> NetworkWeights:
        state_dict = to_form(checkpoint, "deploy").state_dict
        return _checked_weights(state_dict, architecture, class_count(state_dict), checkpoint.path)

    return Target(weights, network, in_chans, spec, None, complete_metadata(checkpoint, spec))


def _checked_weights(
    state_dict: Mapping[str, NDArray[Any]], architecture: Architecture, num_classes: Optional[int], path: PathLike
) -> NetworkWeights:
    state_dict = {key: as_float32(array) for key, array in state_dict.items()}
    check_state_dict(state_dict, architecture, num_classes, path)
    return weights_from_state_dict(state_dict)


def as_float32(array: NDArray[Any]) -> NDArray[Any]:
    """Cast floating-point numbers as ``create`` does; ``check_state_dict`` refuses all others."""
    return array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array


def _from_module(network: Module) -> Target:
    from .eager import deploy_form, extract_weights, has_known_code, input_channels

    deployed = functools.lru_cache(maxsize=None)(lambda: deploy_form(network))
    return Target(
        lambda: extract_weights(deployed()) if has_known_code(deployed()) else None,
        deployed,
        input_channels(network),
        spec=getattr(network, "spec", None),
        checkpoint=getattr(network, "checkpoint", None),
        metadata=metadata_of_network(network),
    )


def kernels_unavailable_reason() -> Optional[str]:
    """Return why this process cannot run kernels, in words, or None if it can."""
    try:
        import llvmlite  # noqa: F401

        from .jit.engine import is_supported
    except (ImportError, OSError):
        return "the kernels need llvmlite, which cannot be imported"
    return None if is_supported() else "the kernels need a processor with AVX2 and FMA, or with NEON"


def why_not_supported(network: Module) -> str:
    """Return the end of a sentence that names the part of a network that the kernels cannot compute, if it is known."""
    from .eager import unsupported_part

    part = unsupported_part(network)
    return "" if part is None else f", and {part}"


def image_size_of(target: Target) -> int:
    """Return the image size of the checkpoint, or else of the variant; raise ArgumentError if neither is known."""
    size = default_image_size(target.metadata, target.spec)
    if size is None:
        raise ArgumentError(
            "image_size is needed for a network that repvgg_zoo.create did not return",
            expected="a number, or (height, width)",
        )
    return size


def limit_threads(threads: Optional[int]) -> int:
    """Return the number of threads: as many as cores by default, and at most."""
    cores = usable_cores()
    if threads is None:
        return cores
    # The threads spin while they wait, so more threads than cores are not a little slower but many times.
    threads = check_int("threads", threads, minimum=1)
    if threads > cores:
        logger.warning("%d threads requested, %d cores usable; using %d", threads, cores, cores)
    return min(threads, cores)


def derived_cache() -> Optional[DerivedCache]:
    """Return the derived cache, or None where no folder for it is known, which arrays and files do not need."""
    try:
        return DerivedCache(read_settings().cache_dir)
    except ArgumentError:
        return None

"""ExportSource: the arrays of a network and how they are used, from whatever ``export`` takes. No MegEngine."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Union

from numpy.typing import NDArray

from .._arguments import is_module
from ..checkpoints import Checkpoint, CheckpointMetadata, load_checkpoint
from ..checkpoints.layouts import AUXILIARY_HEADS
from ..checkpoints.load import checkpoint_from_arrays
from ..checkpoints.network_metadata import architecture_of, metadata_of_network
from ..checkpoints.publisher import complete_metadata, variant_of
from ..checkpoints.state_dict import class_count, format_keys, input_channels, required_tensors
from ..errors import ArgumentError, FormError
from ..inference.ir import NetworkWeights, check_state_dict, weights_from_state_dict, with_geometries
from ..inference.quantized import QuantizedWeights
from ..inference.quantized_file import block_arrays, linear_arrays
from ..inference.quantized_network import QuantizedNetwork, as_quantized
from ..inference.target import SUPPORTED, as_float32, why_not_supported
from ..registry.model_or_file import find_model_or_file
from ..registry.names import find_checkpoint
from ..registry.specs import CheckpointSpec, ModelSpec
from ..reparam.fusion import to_form
from ..weights import fetch_weights

Arrays = Mapping[str, NDArray[Any]]


STAGE_FEATURES = {stage: f"stage{stage}" for stage in range(5)}  # names of the feature maps; 0 is the stem


@dataclass(frozen=True, eq=False)
class ExportSource:
    """A network's arrays by canonical key, in its form, and how they are used.

    They are float32, and those of quantized blocks as in the file of a QuantizedNetwork. ``weights`` is the deploy
    form, whose layers say how each block moves over its input, and which outputs are returned as feature maps.
    """

    state_dict: Arrays
    form: str
    weights: Union[NetworkWeights, QuantizedWeights]
    in_chans: int
    spec: Optional[ModelSpec]
    checkpoint: Optional[CheckpointSpec]
    metadata: CheckpointMetadata
    quantized: Optional[QuantizedNetwork] = None


def export_source(model: Any, *, deploy: bool, features_only: bool) -> ExportSource:
    """Return what ``export`` writes of a model: a name, a path, a Checkpoint, arrays, a QuantizedNetwork, or a Module.

    Raises ArgumentError for anything else, StateError for arrays that do not fit their variant, FormError for the train
    form of deploy weights, and what ``fetch`` and ``load_checkpoint`` raise.
    """
    if is_module(model):
        return _from_module(model, deploy, features_only)
    quantized = as_quantized(model)
    if quantized is not None:
        return _from_quantized(quantized, deploy, features_only)
    if isinstance(model, (str, os.PathLike)):
        model_or_file = find_model_or_file(model)
        if isinstance(model_or_file, Path):
            return _from_checkpoint(load_checkpoint(model_or_file), deploy, features_only)
        return _from_spec(*model_or_file, deploy, features_only)
    if isinstance(model, Mapping):
        model = checkpoint_from_arrays(model)
    if isinstance(model, Checkpoint):
        return _from_checkpoint(model, deploy, features_only)
    raise ArgumentError(
        f"export takes a name, a path, a Checkpoint, arrays or a MegEngine module, not {type(model).__name__}",
        expected="a name such as 'RepVGG_A0', or a network",
        actual=type(model).__name__,
        hint="pass the name, the file or the network that is to be exported",
    )


def _from_spec(spec: ModelSpec, tag: Optional[str], deploy: bool, features_only: bool) -> ExportSource:
    checkpoint = find_checkpoint(spec, tag)
    if "/" in spec.architecture.builder:  # a plugin builds it
        from .. import create

        network = create(spec.name, pretrained=checkpoint.tag, deploy=deploy)
        return _from_module(network, deploy, features_only)
    source = _from_checkpoint(fetch_weights(checkpoint, deploy=deploy), deploy, features_only, spec)
    return replace(source, checkpoint=checkpoint)


def _from_checkpoint(
    checkpoint: Checkpoint, deploy: bool, features_only: bool, spec: Optional[ModelSpec] = None
) -> ExportSource:
    spec = spec or variant_of(checkpoint)
    metadata = complete_metadata(checkpoint, spec)
    checkpoint = to_form(checkpoint, "deploy" if deploy else "train")
    in_chans = input_channels(checkpoint.state_dict) or spec.architecture.in_chans
    architecture = architecture_of(checkpoint, spec)._replace(in_chans=in_chans)
    state_dict = _used_arrays(checkpoint.state_dict, features_only)
    # The train form has valid shapes if what it is fused to has them.
    fused = state_dict if deploy else _used_arrays(to_form(checkpoint, "deploy").state_dict, features_only)
    check_state_dict(fused, architecture, class_count(fused), checkpoint.path, has_head=not features_only)
    return ExportSource(
        state_dict,
        checkpoint.form,
        weights_from_state_dict(fused, STAGE_FEATURES if features_only else {}),
        in_chans=in_chans,
        spec=spec,
        checkpoint=None,
        metadata=replace(metadata, bn_eps=checkpoint.metadata.bn_eps),
    )


def _from_module(network: Any, deploy: bool, features_only: bool) -> ExportSource:
    from ..inference.eager import deploy_form, extract_weights, has_known_code, input_channels

    deployed = deploy_form(network)
    weights: Optional[NetworkWeights] = extract_weights(deployed) if has_known_code(deployed) else None
    if weights is None:
        raise ArgumentError(
            f"only {SUPPORTED} can be exported{why_not_supported(deployed)}",
            actual=type(network).__name__,
            hint="export the trunk that create returns, or dump your own network with megengine.jit.trace",
        )
    if not deploy and deployed is network:
        raise FormError(
            "the network is in the deploy form, from which the train form's branches cannot be recovered",
            expected="train",
            actual="deploy",
            hint="export it with deploy=True",
        )
    state_dict = _used_arrays((deployed if deploy else network).state_dict(), features_only)
    if not deploy:
        _check_branches(state_dict, [layer.name for layer in weights.layers], has_known_code(network))
    if features_only and not weights.returns_features:
        geometries = [(layer.stride, layer.dilation) for layer in weights.layers]
        headless = weights_from_state_dict(_used_arrays(deployed.state_dict(), features_only), STAGE_FEATURES)
        weights = with_geometries(headless, geometries)
    return ExportSource(
        state_dict,
        "deploy" if deploy else "train",
        weights,
        in_chans=input_channels(network),
        spec=getattr(network, "spec", None),
        checkpoint=getattr(network, "checkpoint", None),
        metadata=metadata_of_network(network),
    )


def _from_quantized(network: QuantizedNetwork, deploy: bool, features_only: bool) -> ExportSource:
    for name, value in (("deploy=False", not deploy), ("features_only", features_only)):
        if value:
            raise ArgumentError(
                f"{name} cannot be used for a quantized network", hint=f"leave {name} out, or export the float network"
            )
    state_dict: Dict[str, NDArray[Any]] = {}
    for layer in network.weights.layers:
        arrays = block_arrays(layer.name, layer)
        # SE's layers are convolutions in all other networks' arrays.
        state_dict.update((key, array[..., None, None] if array.ndim == 2 else array) for key, array in arrays.items())
    if network.weights.head is not None:
        state_dict.update(linear_arrays("linear", network.weights.head))
    return ExportSource(
        state_dict,
        "deploy",
        network.weights,
        in_chans=network.in_chans,
        spec=network.spec,
        checkpoint=network.checkpoint,
        metadata=network.metadata,
        quantized=network,
    )


def _check_branches(state_dict: Arrays, blocks: List[str], has_known_code: bool) -> None:
    """Raise ArgumentError for a train form that was changed in a way that the graph does not have."""
    missing = [
        f"{block}.{name}"
        for block in blocks
        for name in required_tensors(
            block, [key[len(block) + 1 :] for key in state_dict if key.startswith(f"{block}.")]
        )
        if f"{block}.{name}" not in state_dict and not name.startswith("rbr_identity")
    ]
    if missing or not has_known_code:
        raise ArgumentError(
            f"this train form cannot be exported: {f'it lacks {format_keys(missing)}' if missing else 'it has hooks'}",
            actual=missing,
            hint="export it with deploy=True",
        )


def _used_arrays(state_dict: Arrays, features_only: bool) -> Dict[str, NDArray[Any]]:
    """Return what the network computes with, in float32; the heads that only training needs are left out."""
    unused = (*AUXILIARY_HEADS, "linear") if features_only else AUXILIARY_HEADS
    return {key: as_float32(array) for key, array in state_dict.items() if key.partition(".")[0] not in unused}

"""ExportSource: the arrays of a network and how they are used, from whatever ``export`` takes. No MegEngine."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

import numpy as np
from numpy.typing import NDArray

from .._arguments import is_module
from .._settings import read_settings
from ..checkpoints import Checkpoint, CheckpointMetadata, load_checkpoint
from ..checkpoints.layouts import AUXILIARY_HEADS, BLOCK, block_sort_key
from ..checkpoints.load import checkpoint_from_arrays
from ..checkpoints.network_metadata import architecture_of, metadata_of_network
from ..checkpoints.publisher import complete_metadata, variant_of
from ..checkpoints.state_dict import class_count, format_keys, input_channels, required_tensors
from ..errors import ArgumentError, FormError
from ..hub import fetch_verified
from ..inference.ir import NetworkWeights, check_state_dict
from ..inference.quantized_file import block_arrays, is_quantized_file, linear_arrays
from ..inference.quantized_network import QuantizedNetwork
from ..registry.model_or_file import find_model_or_file
from ..registry.names import find_checkpoint
from ..registry.specs import CheckpointSpec, ModelSpec
from ..reparam.fusion import to_form
from ..weights import load_weights

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class ExportSource:
    """A network's arrays by canonical key, in its form, and how they are used.

    They are float32, and those of quantized blocks as in the file of a QuantizedNetwork. ``geometries`` has the
    (stride, dilation) of each block in the order in which they run, ``features`` the names under which the outputs of
    some are returned; without any, the head's or the pooled output is.
    """

    state_dict: Arrays
    form: str
    geometries: Mapping[str, Tuple[int, int]]
    features: Mapping[str, str]
    in_chans: int
    spec: Optional[ModelSpec]
    checkpoint: Optional[CheckpointSpec]
    metadata: CheckpointMetadata
    quantized: Optional[QuantizedNetwork] = None

    def channels(self, block: str) -> int:
        """Return how many channels a block's output has."""
        kernel = self.state_dict[f"{block}.{'rbr_reparam' if self.form == 'deploy' else 'rbr_dense.conv'}.weight"]
        return int(np.prod(kernel.shape[:-3]))


def export_source(model: Any, *, deploy: bool, features_only: bool) -> ExportSource:
    """Return what ``export`` writes of a model: a name, a path, a Checkpoint, arrays, a QuantizedNetwork, or a Module.

    Raises ArgumentError for anything else, StateError for arrays that do not fit their variant, FormError for the train
    form of deploy weights, and what ``fetch`` and ``load_checkpoint`` raise.
    """
    if is_module(model):
        return _from_module(model, deploy, features_only)
    if isinstance(model, (str, os.PathLike)) and is_quantized_file(model):
        model = QuantizedNetwork.load(model)
    if isinstance(model, QuantizedNetwork):
        return _from_quantized(model, deploy, features_only)
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
    file = fetch_verified(checkpoint.file)
    weights = load_weights(file, checkpoint, deploy=deploy, cache_dir=read_settings().cache_dir)
    source = _from_checkpoint(weights, deploy, features_only, spec)
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
    blocks = _blocks(state_dict)
    return ExportSource(
        state_dict,
        checkpoint.form,
        geometries={block: (2 if is_first else 1, 1) for block, is_first in zip(blocks, _first_of_stage(blocks))},
        features=_last_of_stage(blocks) if features_only else {},
        in_chans=in_chans,
        spec=spec,
        checkpoint=None,
        metadata=replace(metadata, bn_eps=checkpoint.metadata.bn_eps),
    )


def _from_module(network: Any, deploy: bool, features_only: bool) -> ExportSource:
    from ..inference.eager import deploy_form, extract_weights, has_known_code, input_channels, unsupported_part

    deployed = deploy_form(network)
    weights: Optional[NetworkWeights] = extract_weights(deployed) if has_known_code(deployed) else None
    if weights is None:
        part = unsupported_part(deployed)
        raise ArgumentError(
            "only RepVGG and RepVGGplus as repvgg_zoo builds them can be exported" + (f", and {part}" if part else ""),
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
    blocks = _blocks(state_dict)
    if not deploy:
        _check_branches(state_dict, blocks, has_known_code(network))
    names = {block: layer.feature for block, layer in zip(blocks, weights.layers)}
    features = {block: name for block, name in names.items() if name is not None}
    return ExportSource(
        state_dict,
        "deploy" if deploy else "train",
        geometries={block: (layer.stride, layer.dilation) for block, layer in zip(blocks, weights.layers)},
        features=features or (_last_of_stage(blocks) if features_only else {}),
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
    layers = network.weights.layers
    return ExportSource(
        state_dict,
        "deploy",
        geometries={layer.name: (layer.stride, layer.dilation) for layer in layers},
        features={layer.name: layer.feature for layer in layers if layer.feature is not None},
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
    return {
        key: array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array
        for key, array in state_dict.items()
        if key.partition(".")[0] not in unused
    }


def _blocks(state_dict: Arrays) -> List[str]:
    """Return the blocks in the order in which they run."""
    matches = (BLOCK.match(key) for key in state_dict)
    return sorted({match.group(1) for match in matches if match}, key=block_sort_key)


def _first_of_stage(blocks: List[str]) -> List[bool]:
    """Return for each block whether it is the first of its stage; RepVGGplus's stage 3 is cut into two."""
    stages = [block[len("stage")] for block in blocks]
    return [index == 0 or stages[index - 1] != stage for index, stage in enumerate(stages)]


def _last_of_stage(blocks: List[str]) -> Dict[str, str]:
    """Return the last block of each stage, with the name of the stage's feature map."""
    last = {f"stage{block[len('stage')]}": block for block in blocks}
    return {block: stage for stage, block in last.items()}

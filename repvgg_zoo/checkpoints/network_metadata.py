"""What is known about a network's weights: read from the network, and written to it.

A network is a MegEngine Module, which this module does not import, a compiled network, or anything else with
``metadata``, ``checkpoint`` or ``spec``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Dict, Mapping, Optional

from .._arguments import check_float
from ..errors import ArgumentError, StateError
from ..registry.specs import Architecture, CheckpointSpec, ModelSpec
from ..registry.validation import MAX_BN_EPS
from .identify import state_dict_signature
from .layouts import CLASSIFIERS
from .metadata import DEFAULT_BN_EPS, CheckpointMetadata, metadata_of_spec, uniform_bn_eps
from .state_dict import Checkpoint

# An attribute of the head that the network was created with, which another one does not have.
HEAD_MARK = "is_original_head"
CONVERTED_BY_MEGENGINE = ("megengine.module.qat", "megengine.module.quantized")


def metadata_of_network(network: Any) -> CheckpointMetadata:
    """Return what is known about a network's weights, with the eps of its BN layers.

    A head that its user put in place of the checkpoint's has other classes, even if it has as many.
    """
    known = getattr(network, "metadata", None)
    is_created = isinstance(known, CheckpointMetadata)
    if isinstance(known, CheckpointMetadata):
        metadata = known
    else:
        checkpoint, spec = getattr(network, "checkpoint", None), getattr(network, "spec", None)
        if isinstance(checkpoint, CheckpointSpec):
            metadata = metadata_of_spec(checkpoint)
        else:
            metadata = CheckpointMetadata(variant=None if spec is None else spec.name)
    if not hasattr(network, "named_modules"):
        return metadata
    head = main_head(network)
    is_known = getattr(head, HEAD_MARK, False) or type(head).__module__.startswith(CONVERTED_BY_MEGENGINE)
    if head is not None and is_created and not is_known:
        metadata = metadata.without_classes()
    return replace(metadata, bn_eps=bn_eps_of(network))


def attach_metadata(
    network: Any, metadata: CheckpointMetadata, weights: Optional[Checkpoint], architecture: Optional[Architecture]
) -> None:
    """Set a new network's ``metadata``, without classes if its head is not the one in the weights; mark the head.

    ``architecture`` is that of the network, where it is not the variant's.
    """
    head = main_head(network)
    if head is not None:
        name = f"{main_head_name(network)}.weight"
        loaded = None if weights is None else weights.state_dict.get(name)
        if loaded is None or loaded.shape[:1] != (network.num_classes,):
            metadata = metadata.without_classes()
        setattr(head, HEAD_MARK, True)
    network.metadata = replace(metadata, architecture=architecture, bn_eps={})  # its BN layers have their eps


def main_head(network: Any) -> Any:
    """Return the Module whose outputs are the logits, or None if the network has none, or does not say which it is."""
    part = network
    for name in main_head_name(network).split("."):
        part = getattr(part, name, None)
    return part


def main_head_name(network: Any) -> str:
    """Return the name of the linear layer whose outputs are the logits: the first of those in ``heads``."""
    return str((getattr(network, "heads", None) or CLASSIFIERS)[0])


def bn_eps_of(module: Any) -> Dict[str, float]:
    """Return the eps of those BN layers of a Module that have another one than 1e-5, by their names."""
    layers = ((name, part) for name, part in module.named_modules() if hasattr(part, "running_var"))
    return {name: float(layer.eps) for name, layer in layers if layer.eps != DEFAULT_BN_EPS}


def set_bn_eps(network: Any, eps: Optional[float], by_layer: Mapping[str, float]) -> None:
    """Set the eps of all BN layers, or else that of each; a plugin's network keeps its own where nothing is known."""
    for name, layer in network.named_modules() if eps is not None or by_layer else ():
        if hasattr(layer, "running_var"):
            layer.eps = by_layer.get(name, DEFAULT_BN_EPS) if eps is None else eps


def check_bn_eps(value: Any) -> float:
    """Return the argument ``bn_eps``; raise ArgumentError for anything but a number above 0 and at most 1."""
    eps = check_float("bn_eps", value, above=0)
    if eps > MAX_BN_EPS:
        raise ArgumentError(
            f"bn_eps is {eps:g}", expected=f"at most {MAX_BN_EPS:g}", actual=eps, hint="usual values are 1e-5 and 1e-3"
        )
    return eps


def with_bn_eps(weights: Checkpoint, eps: float) -> Checkpoint:
    """Return the weights with the same eps for all BN layers; raise ArgumentError if they have none any more."""
    if weights.form == "deploy":
        raise ArgumentError(
            f"{weights.path} holds deploy weights, of which bn_eps cannot be changed",
            actual=eps,
            hint="leave bn_eps out: it was used when the weights were fused",
        )
    return replace(weights, metadata=replace(weights.metadata, bn_eps=uniform_bn_eps(weights.state_dict, eps)))


def architecture_of(weights: Checkpoint, spec: ModelSpec) -> Architecture:
    """Return the variant's architecture, or the one that the file says its network had instead.

    Raises StateError if that is not the one of the file's arrays: a file cannot ask for a network larger than itself.
    """
    own = weights.metadata.architecture
    if own is None or weights.metadata.variant != spec.name or own.builder != spec.architecture.builder:
        return spec.architecture
    in_file = state_dict_signature(weights.state_dict).num_blocks
    if any(depth not in (0, stage) for depth, stage in zip(in_file, own.num_blocks)):
        raise StateError(
            f"{weights.path} says that its stages have {own.num_blocks} blocks, and holds {in_file}",
            path=weights.path,
            expected=own.num_blocks,
            actual=in_file,
            hint="pass num_blocks= and width_multiplier= of the network that it was saved from",
        )
    return own

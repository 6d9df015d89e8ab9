"""cost: what a network costs in both forms, from a name, a spec, an architecture, or the network itself."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

import numpy as np

from ._arguments import check_image_size, is_module
from .checkpoints import load_checkpoint
from .checkpoints.identify import architecture_of_arrays
from .checkpoints.layouts import AUXILIARY_HEADS
from .checkpoints.metadata import DEFAULT_IMAGE_SIZE, default_image_size
from .checkpoints.publisher import complete_metadata, find_variant
from .errors import ArgumentError
from .registry.architecture import BlockSpec, refuse_too_large
from .registry.cost import (
    LayerCost,
    NetworkCost,
    architecture_cost,
    auxiliary_heads,
    block_macs,
    block_params,
    total_cost,
)
from .registry.model_or_file import find_model_or_file
from .registry.specs import Architecture, Cost, ModelSpec, SESpec
from .registry.validation import fields_of

ImageSize = Union[int, Tuple[int, int]]
BUILDERS = ("repvgg", "repvggplus")
EXPECTED = "a name such as 'RepVGG_A0', a file, a ModelSpec, an Architecture, or a MegEngine module"


def cost(model: Any, *, image_size: Optional[ImageSize] = None) -> NetworkCost:
    """Return the parameters and multiply-accumulates of a network, in the train form and in the deploy form.

    ``model`` is a name, a checkpoint file, a ModelSpec, an Architecture, or a network; ``image_size`` is one number or
    (height, width), by default that of the architecture, or of the variant that a file is of. ``layers`` of the result
    has the same figures for each block. Of a network they are measured by running it on one image of zeros, so they
    include changes that were made to it; all others are computed, without MegEngine, except those of a plugin's
    network, which is built.

    Raise UnknownModelError, PluginError, what ``load_checkpoint`` raises, and ArgumentError for anything else, for an
    architecture that cannot be built, and without ``image_size`` for a network that ``create`` did not return.

    >>> import repvgg_zoo
    >>> repvgg_zoo.cost("RepVGG_A0").macs
    Cost(train=1512581120, deploy=1361451008)
    >>> repvgg_zoo.cost("RepVGG_A0", image_size=320).macs.deploy
    2777139200
    """
    size = None if image_size is None else check_image_size("image_size", image_size)
    if isinstance(model, (str, os.PathLike)):
        target = find_model_or_file(model)
        model = _architecture_of_file(target) if isinstance(target, Path) else target[0]
    architecture = model.architecture if isinstance(model, ModelSpec) else model
    if isinstance(architecture, Architecture):
        _check_architecture(architecture)
        size = size or (architecture.image_size, architecture.image_size)
        if "/" not in architecture.builder:
            return architecture_cost(architecture, size)
        return _module_cost(_build(architecture), size)
    if not is_module(model):
        raise ArgumentError(
            f"cost takes {EXPECTED}, not {type(model).__name__}",
            expected=EXPECTED,
            actual=model,
            hint=f"pass {EXPECTED}",
        )
    if size is None and isinstance(getattr(model, "spec", None), ModelSpec):
        size = (model.spec.architecture.image_size,) * 2
    if size is None:
        raise ArgumentError(
            "image_size is needed for a network that repvgg_zoo.create did not return",
            expected="a number, or (height, width)",
            hint="pass image_size=224, for example",
        )
    return _module_cost(model, size)


def _architecture_of_file(path: Path) -> Architecture:
    checkpoint = load_checkpoint(path)
    variant = find_variant(checkpoint)
    size = default_image_size(complete_metadata(checkpoint, variant), variant)
    return architecture_of_arrays(checkpoint.state_dict, size or DEFAULT_IMAGE_SIZE)


def _check_architecture(architecture: Architecture) -> None:
    """Raise ArgumentError for a field whose value a registry could not have."""
    _check_fields("architecture", architecture)
    if architecture.se is not None:
        _check_fields("architecture.se", architecture.se)
    builder = architecture.builder
    if not isinstance(builder, str) or ("/" not in builder and builder not in BUILDERS):
        raise _invalid("architecture.builder", architecture.builder, f"one of {', '.join(BUILDERS)}, or a plugin's")
    refuse_too_large(architecture)


def _check_fields(name: str, spec: Any) -> None:
    kind = SESpec if name.endswith(".se") else Architecture
    if not isinstance(spec, kind):
        raise _invalid(name, spec, f"{kind.__name__} or None")
    for field, (_, _, _, validator) in fields_of(kind).items():
        value = getattr(spec, field)
        try:
            has_length = field not in ("num_blocks", "width_multiplier") or len(value) == 4
            is_valid = has_length and (validator is None or validator.is_valid(value))
        except (TypeError, ValueError):
            is_valid = False
        if not is_valid:
            raise _invalid(f"{name}.{field}", value, "4 items" if validator is None else validator.expected)


def _invalid(name: str, value: Any, expected: str) -> ArgumentError:
    return ArgumentError(f"{name} is {value!r}", expected=expected, actual=value, hint=f"pass {expected}")


def _build(architecture: Architecture) -> Any:
    from .models.build import build_network

    return build_network(
        architecture,
        num_classes=architecture.num_classes,
        in_chans=architecture.in_chans,
        deploy=False,
        features_only=False,
        out_indices=None,
        init_weights=False,
    )


def _module_cost(network: Any, size: Tuple[int, int]) -> NetworkCost:
    """Count the parameters of a network's blocks and other layers, and the outputs that they have for one image."""
    from .reparam.to_deploy import find_blocks

    blocks = find_blocks(network)
    positions = _output_positions(network, size, blocks)
    params: Dict[str, int] = {}
    for name, tensor in network.named_parameters():
        owner = next((block for block in blocks if _is_within(name, block)), name.rpartition(".")[0])
        params[owner] = params.get(owner, 0) + int(tensor.size)
    modules = dict(network.named_modules())
    layers: List[LayerCost] = []
    for name, count in params.items():
        if name in blocks:
            layers.append(_block_cost(name, blocks[name], count, positions.get(name, 0)))
            continue
        is_auxiliary = name.partition(".")[0] in AUXILIARY_HEADS
        weight = getattr(modules[name], "weight", None)
        macs = int(weight.size) * positions[name] if name in positions and weight is not None else 0
        layers.append(LayerCost(name, Cost(count, 0 if is_auxiliary else count), Cost(macs, macs)))
    if blocks and all(block.deploy for block in blocks.values()) and type(network).__name__ == "RepVGGplus":
        layers += auxiliary_heads([info.channels for info in network.feature_info], network.num_classes)
    return total_cost(layers, size)


def _block_cost(name: str, block: Any, params: int, positions: int) -> LayerCost:
    spec = BlockSpec(name, block.in_channels, block.out_channels, block.stride, block.groups)
    computed = block_params(spec, None)
    own = computed.deploy if block.deploy else computed.train
    se = params - own
    return LayerCost(name, Cost(computed.train + se, computed.deploy + se), block_macs(spec, positions))


def _output_positions(network: Any, size: Tuple[int, int], blocks: Mapping[str, Any]) -> Dict[str, int]:
    """Return the height times the width of the output of each block, and of each convolution and linear layer."""
    megengine = sys.modules["megengine"]
    from .inference.eager import input_channels
    from .reparam.to_deploy import eval_mode

    positions: Dict[str, int] = {}

    def count(name: str) -> Any:
        def hook(_: Any, inputs: Any, output: Any) -> None:
            positions[name] = positions.get(name, 0) + math.prod(output.shape[2:])

        return hook

    layer_types = (megengine.module.Conv2d, megengine.module.Linear)
    counted = {
        name: module
        for name, module in network.named_modules()
        if name in blocks or (isinstance(module, layer_types) and not any(_is_within(name, block) for block in blocks))
    }
    image = np.zeros((1, input_channels(network), *size))
    weight = next(iter(network.parameters()))
    handles = [module.register_forward_hook(count(name)) for name, module in counted.items()]
    try:
        with eval_mode(network):
            network(megengine.Tensor(image, dtype=weight.dtype, device=weight.device))
    except Exception as error:  # whatever the network's code raises
        raise ArgumentError(
            f"{type(network).__name__} cannot run on an image of {size[0]} x {size[1]}: {error}",
            actual=size,
            hint="pass another image_size",
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return positions


def _is_within(name: str, block: str) -> bool:
    return not block or name.startswith(f"{block}.")

"""extract_weights: the weights of a MegEngine network, where they are all that decides what it computes."""

from __future__ import annotations

import re
from typing import Optional

import megengine.module as M
import numpy as np

from .._tensors import numpy_views
from ..checkpoints.layouts import block_sort_key
from ..errors import StateError
from ..models import RepVGG, RepVGGBlock, RepVGGplus, SEBlock
from ..models.repvggplus import PlusStage
from .ir import NetworkWeights, check_layers, weights_from_state_dict

# A user may have put any module of MegEngine's in any place, and its weights do not say what it computes.
CONTAINERS = (RepVGG, RepVGGplus, RepVGGBlock, SEBlock, PlusStage, M.Sequential)
LEAF_LAYERS = (M.Conv2d, M.Linear)
LAYER_KEY = re.compile(r"linear|stage[^.]+(\.blocks)?(\.\d+)?\.(rbr_reparam|(se|post_se)\.(down|up))")


def extract_weights(network: M.Module) -> Optional[NetworkWeights]:
    """Return the weights of a deploy-form RepVGG or RepVGGplus, or None for any other network.

    The arrays are views of the network's memory, valid as long as it lives. The network's classes must be those of
    this package, see ``network_digest``.
    """
    modules = dict(network.named_modules())
    if type(network) not in (RepVGG, RepVGGplus) or not all(_is_supported(*item) for item in modules.items()):
        return None
    blocks = {name: module for name, module in modules.items() if isinstance(module, RepVGGBlock)}
    strides = [_supported_stride(blocks[name]) for name in sorted(blocks, key=block_sort_key)]
    if None in strides or any(tensor.dtype != np.float32 for tensor in network.tensors()):
        return None
    features = {} if network.linear is not None else {info.index: info.name for info in network.feature_info}
    weights = weights_from_state_dict(numpy_views(dict(network.named_tensors())), features)
    try:
        check_layers(weights)
    except StateError:  # MegEngine may run it all the same, or say why not
        return None
    return weights if [layer.stride for layer in weights.layers] == strides else None


def _is_supported(name: str, module: M.Module) -> bool:
    """Whether the module's weights fully determine its output and its key is a supported layer key."""
    if type(module) in LEAF_LAYERS:
        return module.bias is not None and LAYER_KEY.fullmatch(name) is not None
    return type(module) in CONTAINERS


def _supported_stride(block: RepVGGBlock) -> Optional[int]:
    """Return the stride, or None for a block that is not as this package builds it."""
    convolution = block.rbr_reparam
    if type(convolution) is not M.Conv2d or convolution.bias is None:
        return None
    if convolution.stride[0] != convolution.stride[1]:
        return None
    options = (convolution.kernel_size, convolution.padding, convolution.dilation)
    is_plain = options == ((3, 3), (1, 1), (1, 1)) and convolution.padding_mode == "zeros"
    return int(convolution.stride[0]) if is_plain else None

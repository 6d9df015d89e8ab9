"""What compile needs of MegEngine: a Module's weights, its outputs, and to run it where the kernels cannot.

No other module of this package imports MegEngine.
"""

from __future__ import annotations

import copy
import re
import threading
from contextlib import contextmanager
from typing import Any, Iterator, List, Optional, Tuple

import megengine.functional as F
import megengine.module as M
import numpy as np
from megengine import Tensor
from numpy.typing import NDArray

from .. import models
from .._tensors import input_tensor, numpy_views
from ..checkpoints.layouts import block_sort_key
from ..errors import ArgumentError, StateError
from ..models import RepVGG, RepVGGBlock, RepVGGplus, SEBlock
from ..models.repvgg import as_pair
from ..models.repvggplus import PlusStage
from ..reparam.to_deploy import eval_mode, find_blocks, to_deploy
from .compiled_model import Arrays, OutputSpec
from .explanation import Explanation
from .ir import NetworkWeights, check_layers, weights_from_state_dict, with_geometries

# A user may have put any module of MegEngine's in any place, and its weights do not say what it computes.
CONTAINERS = (RepVGG, RepVGGplus, RepVGGBlock, SEBlock, PlusStage, M.Sequential)
STUBS = (M.QuantStub, M.DequantStub)  # which do nothing
LEAF_LAYERS = (M.Conv2d, M.Linear)
LAYER_KEY = re.compile(r"linear|stage[^.]+(\.blocks)?(\.\d+)?\.(rbr_reparam|(se|post_se)\.(down|up))")

KNOWN_PACKAGES = ("megengine", models.__name__)


@contextmanager
def _errors_of_megengine() -> Iterator[None]:
    """Turn MegEngine's RuntimeErrors into ArgumentErrors."""
    try:
        yield
    except RuntimeError as error:
        in_main_thread = threading.current_thread() is threading.main_thread()
        raise ArgumentError(
            f"MegEngine cannot run this network: {str(error).splitlines()[0]}",
            hint=None if in_main_thread else "MegEngine works only in the thread that imported it: compile there",
        ) from error


class EagerRunner:
    """Runs a copy of a network in MegEngine's eager mode.

    Raises ArgumentError if MegEngine cannot run it, or if it returns anything but tensors.
    """

    def __init__(self, network: M.Module, x: NDArray[Any]) -> None:
        self._network: Optional[M.Module] = private_copy(network)
        self.outputs, _ = run_network(self._network, x)

    def __call__(self, x: NDArray[Any]) -> Arrays:
        assert self._network is not None
        return run_network(self._network, x)[1]

    def explain(self, measure: bool) -> Explanation:
        return Explanation(())

    def close(self) -> None:
        self._network = None


@_errors_of_megengine()
def run_network(network: M.Module, x: NDArray[Any]) -> Tuple[OutputSpec, Arrays]:
    """Return what ``network`` returns for ``x`` in eval mode, as arrays of the caller's own, float32 for float16.

    Raises ArgumentError if MegEngine cannot run it, or if it returns anything but tensors.
    """
    with eval_mode(network):
        spec, tensors = _flatten_outputs(network(input_tensor(network, x)))
        return spec, tuple(_as_array(tensor) for tensor in tensors)


def _as_array(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.numpy()
    return array.astype(np.float32) if array.dtype == np.float16 else array.copy()


@_errors_of_megengine()
def deploy_form(network: M.Module) -> M.Module:
    """Return the network itself if all of its blocks are in the deploy form, else a copy that is."""
    if all(block.deploy for block in find_blocks(network).values()):
        return network
    with eval_mode(network):
        return to_deploy(network)


@_errors_of_megengine()
def input_channels(network: M.Module) -> int:
    """Return ``in_chans`` of a network, or else the input channels of its first convolution."""
    channels = getattr(network, "in_chans", None)
    if channels is None:
        weight = next((p for p in network.parameters() if p.ndim in (4, 5) and p.shape[-1] > 1), None)
        if weight is None:
            raise ArgumentError(f"{type(network).__name__} has no convolution, so its input channels are unknown")
        groups = int(weight.shape[0]) if weight.ndim == 5 else 1
        channels = groups * int(weight.shape[-3])
    return int(channels)


@_errors_of_megengine()
def extract_weights(network: M.Module) -> Optional[NetworkWeights]:
    """Return the weights of a deploy-form RepVGG or RepVGGplus, or None for any other network.

    The arrays are views of the network's memory, valid as long as it lives. The network's code must be that of this
    package, see ``has_known_code``.
    """
    if unsupported_part(network) is not None:
        return None
    blocks = {name: module for name, module in network.named_modules() if isinstance(module, RepVGGBlock)}
    geometries = [supported_geometry(blocks[name]) for name in sorted(blocks, key=block_sort_key)]
    features = {info.index: info.name for info in network.feature_info} if network.features_only else {}
    weights = weights_from_state_dict(numpy_views(dict(network.named_tensors())), features)
    weights = with_geometries(weights, [geometry for geometry in geometries if geometry is not None])
    try:
        check_layers(weights)
    except StateError:  # MegEngine may run it all the same, or say why not
        return None
    return weights


def unsupported_part(network: M.Module) -> Optional[str]:
    """Return what a deploy-form network has that the kernels cannot compute, in words, or None."""
    if type(network) not in (RepVGG, RepVGGplus):
        return f"it is a {type(network).__name__}"
    for name, module in network.named_modules():
        if not _is_supported(name, module):
            return f"{name} is another {type(module).__name__} than that of a RepVGG"
        if isinstance(module, RepVGGBlock) and supported_geometry(module) is None:
            convolution = module.rbr_reparam
            options = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
            values = ", ".join(f"{option}={getattr(convolution, option, None)!r}" for option in options)
            return f"{name}.rbr_reparam has {values}"
    dtype = next((tensor.dtype for tensor in network.tensors() if tensor.dtype != np.float32), None)
    return None if dtype is None else f"it has weights of {np.dtype(dtype).name}"


def has_known_code(network: M.Module) -> bool:
    """Whether weights and plain attributes say what a network computes.

    They do not with classes from elsewhere, forward hooks or a replaced ``forward``.
    """
    return all(map(_is_known, network.modules()))


def _is_known(module: M.Module) -> bool:
    package = type(module).__module__
    is_known = any(package == known or package.startswith(f"{known}.") for known in KNOWN_PACKAGES)
    has_hooks = module._forward_pre_hooks or module._forward_hooks
    return is_known and not has_hooks and "forward" not in vars(module)


def private_copy(network: M.Module, device: Optional[str] = None) -> M.Module:
    """Return a copy with tensors of its own, on its device or on another one."""
    # Copied by MegEngine's own operator: deepcopy would call .numpy() of each tensor, which then keeps that copy too.
    tensors = (*network.parameters(), *network.buffers())
    copies = {id(tensor): type(tensor)(F.copy(tensor, device=device or tensor.device)) for tensor in tensors}
    return copy.deepcopy(network, copies)


def _flatten_outputs(output: Any) -> Tuple[OutputSpec, List[Tensor]]:
    if isinstance(output, Tensor):
        return OutputSpec("array", ("",)), [output]
    if isinstance(output, dict) and output and all(isinstance(value, Tensor) for value in output.values()):
        return OutputSpec("dict", tuple(output)), list(output.values())
    if isinstance(output, (list, tuple)) and output and all(isinstance(value, Tensor) for value in output):
        return OutputSpec("tuple", ("",) * len(output)), list(output)
    raise ArgumentError(
        f"cannot compile a network that returns {type(output).__name__}",
        expected="a tensor, or a dict, list or tuple of tensors",
        actual=type(output).__name__,
    )


def _is_supported(name: str, module: M.Module) -> bool:
    """Whether the module's weights fully determine its output and its key is a supported layer key."""
    if type(module) in LEAF_LAYERS:
        return module.bias is not None and LAYER_KEY.fullmatch(name) is not None
    if type(module) is M.Elemwise:
        return module.method == "relu" and name.endswith(".relu")
    return type(module) in CONTAINERS or type(module) in STUBS


def supported_geometry(block: RepVGGBlock) -> Optional[Tuple[int, int]]:
    """Return stride and dilation of a block in either form, or None for one that the kernels cannot compute."""
    convolution = block.convolution
    if type(convolution) is not M.Conv2d or (block.deploy and convolution.bias is None):
        return None
    names = ("kernel_size", "stride", "padding", "dilation")
    kernel_size, stride, padding, dilation = (as_pair(getattr(convolution, name)) for name in names)
    are_equal = stride[0] == stride[1] and dilation[0] == dilation[1]
    is_plain = kernel_size == (3, 3) and padding == dilation and convolution.padding_mode == "zeros"
    return (int(stride[0]), int(dilation[0])) if are_equal and is_plain else None

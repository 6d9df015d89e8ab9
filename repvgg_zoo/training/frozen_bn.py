"""frozen_bn_features: the features of a network whose BN layers use their running statistics, on the kernels.

With constant statistics, the train form is the deploy form as a function of its parameters. So the forward pass fuses
the branches, the backward pass has one convolution a block, and the chain rule brings its gradient to the branches.
"""

from __future__ import annotations

import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import megengine.module as M
import numpy as np
from megengine import Tensor
from megengine.autodiff import Function
from numpy.typing import NDArray

from .._cpu import lower_sync_thread_priority, usable_cores
from .._tensors import numpy_views, tensors_from_arrays
from ..inference.eager import supported_geometry
from ..inference.ir import NetworkWeights, weights_from_state_dict, with_geometries
from ..reparam.fusion import fuse_branches
from .branches import block_gradients
from .kernel_trunk import KernelTrunk, LayerGradients, se_parameters
from .structure import Block

MAX_IDLE_TRUNKS = 2  # of a network: for whole batches, and for the last one of an epoch

Arrays = Dict[str, NDArray[Any]]
Blocks = Mapping[str, Block]

_idle_trunks: weakref.WeakKeyDictionary[M.Module, List[_Trunk]] = weakref.WeakKeyDictionary()


class _Trunk(NamedTuple):
    """A trunk that no forward pass uses, and what it was made for."""

    key: Tuple[Any, ...]
    trunk: KernelTrunk


def frozen_bn_features(network: M.Module, blocks: Blocks, images: Tensor, *, frozen: int, threads: int) -> Tensor:
    """Return the pooled features, differentiable in the parameters of all blocks but the first ``frozen`` ones."""
    lower_sync_thread_priority()
    trainable = list(blocks.items())[frozen:]
    parameters = {f"{name}.{key}": tensor for name, block in trainable for key, tensor in block.parameters().items()}
    function = _FrozenBN(network, blocks, images, list(parameters), frozen, threads)
    return function(*parameters.values()) if parameters else function.forward()


class _FrozenBN(Function):  # type: ignore[misc]
    """The trunk as a function of the parameters with these names."""

    def __init__(
        self, network: M.Module, blocks: Blocks, images: Tensor, names: Sequence[str], frozen: int, threads: int
    ) -> None:
        super().__init__()
        self._network, self._blocks, self._names = network, blocks, names
        self._frozen, self._threads = frozen, threads
        self._images = images.numpy().astype(np.float32, order="C", copy=False)
        self._device = images.device

    def forward(self, *parameters: Tensor) -> Tensor:
        self._parameters = parameters
        self._arrays = _block_arrays(self._blocks)
        weights = _fuse(self._blocks, self._arrays)
        shape = self._images.shape
        geometry = [(layer.kernel.shape, layer.stride, layer.dilation) for layer in weights.layers]
        key = (shape, self._frozen, self._threads, geometry)
        self._trunk = _take_trunk(self._network, key) or KernelTrunk(
            weights, shape, frozen=self._frozen, threads=self._threads
        )
        # It has the activations of this pass. So it is used again after the backward pass, or once there can be none.
        self._release = weakref.finalize(self, _put_trunk, weakref.ref(self._network), _Trunk(key, self._trunk))
        self._release.atexit = False
        return Tensor(self._trunk.forward(self._images, weights), device=self._device)

    def backward(self, gradient: Tensor) -> Tuple[Optional[Tensor], ...]:
        by_layer = self._trunk.backward(gradient.numpy())
        self._release()
        names = list(self._blocks)

        def of_block(index: int) -> Arrays:
            name = names[index]
            gradients = _block_gradients(self._blocks[name], self._arrays[name], by_layer[index])
            return {f"{name}.{key}": array for key, array in gradients.items()}

        with ThreadPoolExecutor(usable_cores()) as pool:
            gradients = {key: array for part in pool.map(of_block, by_layer) for key, array in part.items()}
        values = [
            (gradients[name].reshape(tuple(parameter.shape)), parameter)
            for name, parameter in zip(self._names, self._parameters)
        ]
        return tuple(tensors_from_arrays(values))


def _take_trunk(network: M.Module, key: Tuple[Any, ...]) -> Optional[KernelTrunk]:
    idle = _idle_trunks.setdefault(network, [])
    for index, each in enumerate(idle):
        if each.key == key:
            return idle.pop(index).trunk
    return None


def _put_trunk(network: weakref.ref[M.Module], trunk: _Trunk) -> None:
    owner = network()
    if owner is not None:
        _idle_trunks[owner] = [*_idle_trunks.get(owner, []), trunk][-MAX_IDLE_TRUNKS:]


def _block_arrays(blocks: Blocks) -> Dict[str, Arrays]:
    """Return the tensors of each block by their keys; large ones are views of MegEngine's memory."""
    tensors = {(name, key): tensor for name, block in blocks.items() for key, tensor in block.tensors().items()}
    views = numpy_views({str(number): tensor for number, tensor in enumerate(tensors.values())})
    arrays: Dict[str, Arrays] = {name: {} for name in blocks}
    for (name, key), array in zip(tensors, views.values()):
        arrays[name][key] = array
    return arrays


def _fuse(blocks: Blocks, arrays: Mapping[str, Arrays]) -> NetworkWeights:
    """Return the deploy form's weights, in the order of the blocks."""

    def fused(name: str) -> Arrays:
        part = arrays[name]
        result = {f"{name}.{key}": array for key, array in part.items() if not key.startswith("rbr_")}
        if blocks[name].module.deploy:
            kernel, bias = part["rbr_reparam.weight"], part["rbr_reparam.bias"]
        else:
            kernel, bias = fuse_branches(part, bn_eps=blocks[name].eps)
        return {**result, f"{name}.rbr_reparam.weight": kernel, f"{name}.rbr_reparam.bias": bias}

    with ThreadPoolExecutor(usable_cores()) as pool:
        state_dict = {key: array for part in pool.map(fused, blocks) for key, array in part.items()}
    geometries = [supported_geometry(block.module) for block in blocks.values()]
    return with_geometries(weights_from_state_dict(state_dict), [each for each in geometries if each is not None])


def _block_gradients(block: Block, arrays: Arrays, layer: LayerGradients) -> Arrays:
    """Return the gradient of each parameter of a block, by its key."""
    prefix = "se" if block.module.se is not None else "post_se"
    se = {} if layer.se is None else {f"{prefix}.{key}": array for key, array in se_parameters(layer.se)}
    if block.module.deploy:
        return {"rbr_reparam.weight": layer.kernel, "rbr_reparam.bias": layer.bias, **se}
    kernel = layer.kernel.reshape(arrays["rbr_dense.conv.weight"].shape)
    return {**block_gradients(arrays, block.eps, kernel, layer.bias), **se}

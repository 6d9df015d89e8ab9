"""kernel_features: the features of a network on the kernels, as one differentiable function of its parameters.

With constant BN statistics, the train form is the deploy form as a function of its parameters. So the forward pass
fuses the branches, the backward pass has one convolution a block, and the chain rule brings its gradient to the
branches. With the statistics of the batch, the branches are computed one by one.
"""

from __future__ import annotations

import weakref
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import megengine.module as M
import numpy as np
from megengine import Tensor
from megengine.autodiff import Function
from numpy.typing import NDArray

from .._cpu import lower_sync_thread_priority, map_on_all_cores
from .._tensors import numpy_views, tensors_from_arrays
from ..inference.eager import supported_geometry
from ..inference.ir import ConvLayer, weights_from_state_dict, with_geometries
from ..reparam.fusion import fuse_branches
from .branches import block_gradients
from .kernel_trunk import DIVERGING, KernelTrunk, LayerGradients
from .lowering import Norm, TrainingLayer
from .structure import Block

MAX_IDLE_TRUNKS = 2  # of a network: for whole batches, and for the last one of an epoch

Arrays = Dict[str, NDArray[Any]]
Blocks = Mapping[str, Block]

_idle_trunks: weakref.WeakKeyDictionary[M.Module, List[_Trunk]] = weakref.WeakKeyDictionary()


class _Trunk(NamedTuple):
    """A trunk that no forward pass uses, and what it was made for."""

    key: Tuple[Any, ...]
    trunk: KernelTrunk


def kernel_features(network: M.Module, blocks: Blocks, images: Tensor, *, bn: str, frozen: int, threads: int) -> Tensor:
    """Return the pooled features, differentiable in the parameters of all blocks but the first ``frozen`` ones."""
    lower_sync_thread_priority()
    trainable = list(blocks.items())[frozen:]
    parameters = {f"{name}.{key}": tensor for name, block in trainable for key, tensor in block.parameters().items()}
    normed = [name for name, block in trainable if bn == "train" and not block.module.deploy]
    function = _TrunkFunction(network, blocks, images, list(parameters), normed, frozen, threads)
    return function(*parameters.values()) if parameters else function.forward()


class _TrunkFunction(Function):
    """The trunk as a function of the parameters with these names; ``normed`` blocks use the batch's statistics."""

    def __init__(
        self,
        network: M.Module,
        blocks: Blocks,
        images: Tensor,
        names: Sequence[str],
        normed: Sequence[str],
        frozen: int,
        threads: int,
    ) -> None:
        super().__init__()
        self._network, self._blocks, self._names, self._normed = network, blocks, names, normed
        self._frozen, self._threads = frozen, threads
        self._images = images.numpy().astype(np.float32, order="C", copy=False)
        self._device = images.device

    def forward(self, *parameters: Tensor) -> Tensor:
        self._parameters = parameters
        self._arrays = _block_arrays(self._blocks)
        layers = _layers(self._blocks, self._arrays, self._normed)
        shape = self._images.shape
        geometry = [(layer.conv.kernel.shape, layer.conv.stride, layer.conv.dilation) for layer in layers]
        eps = [norm.eps for layer in layers for norm in layer.norms.values()]
        key = (shape, self._frozen, self._threads, tuple(self._normed), geometry, eps)
        self._trunk = _take_trunk(self._network, key) or KernelTrunk(
            layers, shape, frozen=self._frozen, threads=self._threads
        )
        # It has the activations of this pass. So it is used again after the backward pass, or once there can be none.
        self._release = weakref.finalize(self, _put_trunk, weakref.ref(self._network), _Trunk(key, self._trunk))
        self._release.atexit = False
        features = self._trunk.forward(self._images, layers)
        self._update_statistics()
        return Tensor(features, device=self._device)

    def _update_statistics(self) -> None:
        """Move the running statistics as MegEngine does: towards the mean and the unbiased variance of the batch."""
        names = list(self._blocks)
        for (index, name), (mean, var, count) in self._trunk.statistics.items():
            norm = self._blocks[names[index]].norms[name]
            values = ("running_mean", mean), ("running_var", var * count / max(count - 1, 1))
            for attribute, value in values:
                running = getattr(norm, attribute)
                moved = norm.momentum * running.numpy().reshape(-1) + (1 - norm.momentum) * value
                with np.errstate(**DIVERGING):
                    running[...] = moved.astype(np.float32).reshape(tuple(running.shape))

    def backward(self, gradient: Tensor) -> Tuple[Optional[Tensor], ...]:
        by_layer = self._trunk.backward(gradient.numpy())
        self._release()
        names = list(self._blocks)

        def of_block(index: int) -> Arrays:
            name = names[index]
            with np.errstate(**DIVERGING):
                gradients = _block_gradients(self._blocks[name], self._arrays[name], by_layer[index])
            return {f"{name}.{key}": array for key, array in gradients.items()}

        parts = map_on_all_cores(of_block, by_layer, self._trunk.nbytes)
        gradients = {key: array for part in parts for key, array in part.items()}
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


def _layers(blocks: Blocks, arrays: Mapping[str, Arrays], normed: Sequence[str]) -> List[TrainingLayer]:
    """Return the layers in the order of the blocks: fused, but for the ``normed`` ones."""

    def convolution(name: str) -> Arrays:
        block, part = blocks[name], arrays[name]
        result = {f"{name}.{key}": array for key, array in part.items() if not key.startswith("rbr_")}
        if block.module.deploy:
            kernel, bias = part["rbr_reparam.weight"], part["rbr_reparam.bias"]
        elif name in normed:
            kernel, bias = part["rbr_dense.conv.weight"], np.zeros(block.module.out_channels, np.float32)
        else:
            with np.errstate(**DIVERGING):
                kernel, bias = fuse_branches(part, bn_eps=block.eps)
        return {**result, f"{name}.rbr_reparam.weight": kernel, f"{name}.rbr_reparam.bias": bias}

    nbytes = sum(array.nbytes for part in arrays.values() for array in part.values())
    state_dict = {key: array for part in map_on_all_cores(convolution, blocks, nbytes) for key, array in part.items()}
    geometries = [supported_geometry(block.module) for block in blocks.values()]
    weights = with_geometries(weights_from_state_dict(state_dict), [each for each in geometries if each is not None])
    return [
        TrainingLayer(conv, *(_norms(blocks[name], arrays[name], conv) if name in normed else ()))
        for name, conv in zip(blocks, weights.layers)
    ]


def _norms(block: Block, arrays: Arrays, conv: ConvLayer) -> Tuple[NDArray[Any], Dict[str, Norm]]:
    """Return the 1x1 branch's kernel (groups, O, I), and the BN layers by name."""
    norms = {
        name: Norm(arrays[f"{name}.weight"].reshape(-1), arrays[f"{name}.bias"].reshape(-1), eps)
        for name, eps in block.eps.items()
    }
    return arrays["rbr_1x1.conv.weight"].reshape(conv.kernel.shape[:3]), norms


def _block_gradients(block: Block, arrays: Arrays, layer: LayerGradients) -> Arrays:
    """Return the gradient of each parameter of a block, by its key."""
    prefix = "se" if block.module.se is not None else "post_se"
    parts = () if layer.se is None else (("down", layer.se.down), ("up", layer.se.up))
    se = {f"{prefix}.{part}.{name}": getattr(linear, name) for part, linear in parts for name in linear._fields}
    if block.module.deploy:
        return {"rbr_reparam.weight": layer.kernel, "rbr_reparam.bias": layer.bias, **se}
    if layer.point is not None:
        norms = {f"{name}.{key}": array for name, pair in layer.norms.items() for key, array in zip(_AFFINE, pair)}
        return {"rbr_dense.conv.weight": layer.kernel, "rbr_1x1.conv.weight": layer.point, **norms, **se}
    kernel = layer.kernel.reshape(arrays["rbr_dense.conv.weight"].shape)
    return {**block_gradients(arrays, block.eps, kernel, layer.bias), **se}


_AFFINE = ("weight", "bias")

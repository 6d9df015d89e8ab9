"""KernelTrunk: the forward and backward pass of a network on the kernels, from NumPy arrays to NumPy arrays."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
from numpy.typing import NDArray

from .._cpu import usable_cores
from ..inference.cost_model import CpuSpeed
from ..inference.cpu_speed import host_cpu_speed
from ..inference.ir import ConvLayer, LinearWeights, NetworkWeights, SEWeights
from ..inference.jit.engine import host_training_config, jit_compile
from ..inference.kernel_runner import KernelRunner
from ..inference.lowering import pack_weights
from ..inference.target import derived_cache
from .lowering import GateGradient, LayerGradient, lower_training


class LayerGradients(NamedTuple):
    """The gradients of a layer: its kernel's and bias's in the layer's own shapes, and those of its SE."""

    kernel: NDArray[Any]
    bias: NDArray[Any]
    se: Optional[SEWeights]


class KernelTrunk:
    """Computes a network for batches of one shape: a forward pass, then the backward pass of the same batch.

    ``frozen`` is the number of the first layers that get no gradient. ``speed`` is the processor's, from which the
    algorithms are chosen; by default it is measured.
    """

    def __init__(
        self,
        weights: NetworkWeights,
        shape: Tuple[int, int, int, int],
        *,
        frozen: int,
        threads: int,
        speed: Optional[CpuSpeed] = None,
    ) -> None:
        self._layers = tuple(map(_private_copy, weights.layers))
        self._frozen = frozen
        config, cache = host_training_config(), derived_cache()
        jit_compile(config, cache)
        self._training = lower_training(
            NetworkWeights(self._layers, None),
            shape,
            frozen=frozen,
            threads=threads,
            config=config,
            speed=speed or host_cpu_speed(config, cache),
        )
        self._runner = KernelRunner(self._training.plan, threads)
        self._images: Optional[NDArray[Any]] = None

    def forward(self, images: NDArray[Any], weights: NetworkWeights) -> NDArray[Any]:
        """Return the pooled features (N, C) of images, with weights of the shapes that this was made with."""
        for layer, new in zip(self._layers, weights.layers):
            for array, value in zip(_arrays(layer), _arrays(new)):
                np.copyto(array, value)
        pack_weights(self._training.packing)
        self._images = images
        self._runner.run_calls(images, 0, self._training.forward_stop)
        return self._training.features.copy()

    def backward(self, gradient: NDArray[Any]) -> Dict[int, LayerGradients]:
        """Return the gradients by the number of the layer, for that of the features (N, C)."""
        training, images = self._training, self._images
        assert images is not None
        top = training.top
        top.interior[...] = (gradient / (top.height * top.width))[:, None, None, :]
        se_gradients: Dict[int, SEWeights] = {}
        start = training.forward_stop
        for number, stop in enumerate(training.stops):
            self._runner.run_calls(images, start, stop)
            start = stop
            if number < len(training.gates):
                index, gate = training.gates[number]
                se_gradients[index] = _gate_gradients(self._layers[index].se, gate)
        self._images = None
        with ThreadPoolExecutor(usable_cores()) as pool:
            items = training.gradients.items()
            results = pool.map(lambda item: _layer_gradients(self._layers[item[0]], item[1]), items)
            return {
                index: LayerGradients(kernel, bias, se_gradients.get(index))
                for (index, _), (kernel, bias) in zip(items, results)
            }


def _layer_gradients(layer: ConvLayer, gradient: LayerGradient) -> Tuple[NDArray[Any], NDArray[Any]]:
    bias = gradient.bias_sums.sum(axis=0, dtype=np.float64)[: len(layer.bias)]
    groups, outs, ins = layer.kernel.shape[:3]
    kernel = np.empty(layer.kernel.shape, np.float32)
    for group in range(groups):
        if len(gradient.kernel[0]) == groups:
            part = gradient.kernel[:, group]
        else:  # they were computed as one
            part = gradient.kernel[:, 0, group * ins :, group * outs :]
        np.copyto(kernel[group].reshape(outs, ins, 9), part[:, :ins, :outs].transpose(2, 1, 0))
    return kernel, bias


def _gate_gradients(se: Optional[SEWeights], part: GateGradient) -> SEWeights:
    """Return the gradients of SE's weights, and set the shift with which the rest of the backward pass goes on.

    The factors are sigmoids s, whose derivative is s (1 - s). What they scale need not be known: times s it is y.
    """
    assert se is not None
    (channels, width), gate = se.up.weight.shape, part.gate
    mean, squeezed, scale = (array.astype(np.float64) for array in gate)
    mean, squeezed, scale = mean[:, :channels], squeezed[:, :width], scale[:, :channels]
    products = part.sums.reshape(len(mean), -1, part.sums.shape[-1]).sum(axis=1, dtype=np.float64)[:, :channels]
    up = products * (1 - scale)
    down = (up @ se.up.weight) * (squeezed > 0)
    part.shift[:, :channels] = (down @ se.down.weight) / part.area
    return SEWeights(
        LinearWeights(down.T @ mean, down.sum(axis=0)), LinearWeights(up.T @ squeezed, up.sum(axis=0)), se.after_relu
    )


def _private_copy(layer: ConvLayer) -> ConvLayer:
    se = layer.se
    if se is not None:
        down, up = (LinearWeights(*map(np.array, part)) for part in (se.down, se.up))
        se = SEWeights(down, up, se.after_relu)
    return ConvLayer(
        np.array(layer.kernel), np.array(layer.bias), layer.stride, se, dilation=layer.dilation, name=layer.name
    )


def _arrays(layer: ConvLayer) -> Iterator[NDArray[Any]]:
    yield from (layer.kernel, layer.bias)
    if layer.se is not None:
        yield from (*layer.se.down, *layer.se.up)


def se_parameters(se: SEWeights) -> List[Tuple[str, NDArray[Any]]]:
    """Return SE's arrays by the keys of its parameters."""
    parts = (("down", se.down), ("up", se.up))
    return [(f"{part}.{name}", array) for part, linear in parts for name, array in zip(("weight", "bias"), linear)]

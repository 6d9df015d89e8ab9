"""KernelTrunk: the forward and backward pass of a network on the kernels, from NumPy arrays to NumPy arrays."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any, Dict, Iterator, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from .._cpu import map_on_all_cores
from ..inference.cost_model import DEFAULT_CPU_SPEED, CpuSpeed
from ..inference.ir import LinearWeights, SEWeights
from ..inference.jit.engine import host_training_config, jit_compile
from ..inference.kernel_runner import KernelRunner
from ..inference.lowering import pack_weights
from ..inference.target import derived_cache
from .batch_norm import BatchNormLowering
from .lowering import LayerGradient, Norm, Step, TrainingLayer

# Training that diverges overflows, which its loss says; NumPy need not.
DIVERGING: Mapping[str, Any] = MappingProxyType({"over": "ignore", "invalid": "ignore"})


class LayerGradients(NamedTuple):
    """The gradients of a layer, in the shapes of its own arrays; ``norms`` are those of gamma and beta."""

    kernel: NDArray[Any]
    bias: NDArray[Any]
    se: Optional[SEWeights]
    point: Optional[NDArray[Any]]
    norms: Mapping[str, Tuple[NDArray[Any], NDArray[Any]]]


class KernelTrunk:
    """Computes a network for batches of one shape: a forward pass, then the backward pass of the same batch.

    ``frozen`` is the number of the first layers that get no gradient. The algorithms are chosen from ``speed``, which
    is a constant and not what is measured, so that the same steps give the same bits in every process. ``statistics``
    has the mean and variance of the last batch by layer and BN layer, and how many numbers they are of. ``nbytes`` are
    those of the kernels.
    """

    def __init__(
        self,
        layers: Sequence[TrainingLayer],
        shape: Tuple[int, int, int, int],
        *,
        frozen: int,
        threads: int,
        speed: CpuSpeed = DEFAULT_CPU_SPEED,
    ) -> None:
        self._layers = tuple(map(_private_copy, layers))
        self.nbytes = sum(layer.conv.kernel.nbytes for layer in layers)
        config, cache = host_training_config(), derived_cache()
        jit_compile(config, cache)
        lowering = BatchNormLowering(shape, config, threads=threads, speed=speed)
        self._training = lowering.lower_both(self._layers, frozen)
        self._runner = KernelRunner(self._training.plan, threads)
        self._images: Optional[NDArray[Any]] = None
        self.statistics = self._training.statistics

    def forward(self, images: NDArray[Any], layers: Sequence[TrainingLayer]) -> NDArray[Any]:
        """Return the pooled features (N, C) of images, with layers of the shapes that this was made with."""
        for layer, new in zip(self._layers, layers):
            for array, value in zip(_arrays(layer), _arrays(new)):
                np.copyto(array, value)
        pack_weights(self._training.packing, self.nbytes)
        self._run(images, 0, self._training.forward)
        self._images = images
        return self._training.features.copy()

    def backward(self, gradient: NDArray[Any]) -> Dict[int, LayerGradients]:
        """Return the gradients by the number of the layer, for that of the features (N, C)."""
        training, images = self._training, self._images
        assert images is not None
        top = training.top
        top.interior[...] = (gradient / (top.height * top.width))[:, None, None, :]
        self._run(images, training.forward[-1].stop, training.backward)
        self._images = None
        numbers = list(training.gradients)
        return dict(zip(numbers, map_on_all_cores(self._layer_gradients, numbers, self.nbytes)))

    def _run(self, images: NDArray[Any], start: int, steps: Sequence[Step]) -> None:
        for stop, then in steps:
            self._runner.run_calls(images, start, stop)
            with np.errstate(**DIVERGING):
                then()
            start = stop

    def _layer_gradients(self, index: int) -> LayerGradients:
        layer, gradient = self._layers[index], self._training.gradients[index]
        return LayerGradients(
            _kernel_gradient(layer.conv.kernel.shape, gradient.kernel),
            gradient.bias_sums.sum(axis=0, dtype=np.float64)[: len(layer.conv.bias)],
            gradient.se,
            None if layer.point is None else _kernel_gradient((*layer.point.shape, 1, 1), _point_of(gradient)),
            dict(gradient.norms),
        )


def _point_of(gradient: LayerGradient) -> NDArray[Any]:
    assert gradient.point is not None
    return gradient.point


def _kernel_gradient(shape: Tuple[int, ...], gradient: NDArray[Any]) -> NDArray[Any]:
    """Return a gradient (taps, groups, I, O), padded, in the shape of the kernel (groups, O, I, side, side)."""
    groups, outs, ins = shape[:3]
    kernel = np.empty(shape, np.float32)
    for group in range(groups):
        if gradient.shape[1] == groups:
            part = gradient[:, group]
        else:  # they were computed as one
            part = gradient[:, 0, group * ins :, group * outs :]
        np.copyto(kernel[group].reshape(outs, ins, -1), part[:, :ins, :outs].transpose(2, 1, 0))
    return kernel


def _private_copy(layer: TrainingLayer) -> TrainingLayer:
    conv, point = layer.conv, layer.point
    se = None
    if conv.se is not None:
        down, up = (LinearWeights(*map(np.array, part)) for part in (conv.se.down, conv.se.up))
        se = SEWeights(down, up, conv.se.after_relu)
    norms = {name: Norm(np.array(norm.gamma), np.array(norm.beta), norm.eps) for name, norm in layer.norms.items()}
    conv = replace(conv, kernel=np.array(conv.kernel), bias=np.array(conv.bias), se=se, feature=None)
    return TrainingLayer(conv, None if point is None else np.array(point), norms)


def _arrays(layer: TrainingLayer) -> Iterator[NDArray[Any]]:
    yield from (layer.conv.kernel, layer.conv.bias)
    if layer.conv.se is not None:
        yield from (*layer.conv.se.down, *layer.conv.se.up)
    if layer.point is not None:
        yield layer.point
    for norm in layer.norms.values():
        yield from (norm.gamma, norm.beta)

"""A quantized network in float: its weights as they were rounded, computed by the float kernels layer by layer.

The kernels add in float32 what the quantized ones add in integers, which is no less exact than matters here: the
difference is a hundredth of that between one step of an activation and the next.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Type

import numpy as np
from numpy.typing import NDArray

from .ir import NetworkWeights
from .jit.engine import host_microkernel_config
from .kernel_runner import KernelRunner
from .lowering import lower
from .quantized import MAX_ACTIVATION, QuantizedConvLayer, QuantizedWeights
from .weight_rounding import to_float

Batches = Iterable[Tuple[NDArray[Any], int]]  # images (batch_size, C, H, W), and how many of them count


class LayerwiseNetwork:
    """A float network that runs one layer at a time, for batches of images of ``shape`` (N, C, H, W)."""

    def __init__(self, weights: NetworkWeights, shape: Tuple[int, int, int, int], threads: int) -> None:
        config = host_microkernel_config()
        self._plan = lower(weights, shape, threads=threads, config=config, low_memory=True)
        self._runner = KernelRunner(self._plan, threads)
        self._images = np.zeros(shape, np.float32)

    @property
    def batch_size(self) -> int:
        """How many images are computed at once."""
        return self._plan.input_shape[0]

    def start(self, images: NDArray[Any]) -> None:
        """Make a batch the first layer's input."""
        self._images = images
        self._runner.run_calls(images, 0, self._plan.layers[0].start)

    def run_layer(self, index: int) -> None:
        """Compute a layer's output from its input, its SE included."""
        calls = self._plan.layers[index]
        self._runner.run_calls(self._images, calls.start, calls.stop)

    def input(self, index: int) -> NDArray[Any]:
        """Return a layer's input (N, H, W, C): a view, which may be written to before the layer runs."""
        return self._plan.layers[index].x.interior

    def output(self, index: int) -> NDArray[Any]:
        """Return a layer's output (N, H, W, C): a view, valid until the layer after the next one runs."""
        return self._plan.layers[index].out.interior

    def head(self) -> Optional[NDArray[Any]]:
        """Compute and return the logits, or the global average without a head; None if it returns feature maps."""
        self._runner.run_calls(self._images, self._plan.layers[-1].stop, len(self._plan.calls))
        return self._plan.outputs.get("")

    def __enter__(self) -> LayerwiseNetwork:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._runner.close()


class Noise(NamedTuple):
    """How far a quantized network is from the float one: sums of squares of signal and noise, whole images counted.

    ``layers`` has (signal, noise) of each layer's output, ``output`` those of the network's. ``agreement`` is the share
    of images whose greatest logit is the same, None without logits.
    """

    layers: List[Tuple[float, float]]
    output: Tuple[float, float]
    agreement: Optional[float]


def simulated(weights: QuantizedWeights) -> NetworkWeights:
    """Return the float network with the rounded weights."""
    layers = (to_float(layer) if isinstance(layer, QuantizedConvLayer) else layer for layer in weights.layers)
    return NetworkWeights(tuple(layers), weights.head)


def batches(images: NDArray[Any], size: int) -> Iterator[Tuple[NDArray[Any], int]]:
    """Yield batches of a size, the last one filled up with zeros."""
    for start in range(0, len(images), size):
        part = images[start : start + size]
        count = len(part)
        if count < size:
            part = np.concatenate([part, np.zeros((size - count, *part.shape[1:]), np.float32)])
        yield np.ascontiguousarray(part, np.float32), count


def round_input(x: NDArray[Any], scale: float, steps: int = MAX_ACTIVATION) -> None:
    """Round an activation in place to the values that a quantized layer with this ``input_scale`` can take.

    With fewer ``steps``, the range stays the same.
    """
    step = scale * (MAX_ACTIVATION / steps)
    x *= np.float32(1 / step)
    np.rint(x, out=x)
    np.minimum(x, steps, out=x)
    x *= np.float32(step)


def simulate(weights: QuantizedWeights, images: NDArray[Any], threads: int, steps: int) -> Dict[str, NDArray[Any]]:
    """Return the feature maps (N, C, H, W) by name, or the one output (N, classes or C) as "".

    The activations have this number of ``steps`` in the range that they were calibrated to.
    """
    outputs = {}
    count, channels, height, width = images.shape
    with LayerwiseNetwork(simulated(weights), (count, channels, height, width), threads) as network:
        network.start(images)
        for index, layer in enumerate(weights.layers):
            if isinstance(layer, QuantizedConvLayer):
                round_input(network.input(index), layer.input_scale, steps)
            network.run_layer(index)
            if layer.feature is not None:
                outputs[layer.feature] = network.output(index).transpose(0, 3, 1, 2).copy()
        output = network.head()
        if output is not None:
            outputs[""] = output.copy()
    return outputs


def measure_noise(
    reference: LayerwiseNetwork, quantized: LayerwiseNetwork, weights: QuantizedWeights, data: Batches, *, alone: bool
) -> Noise:
    """Compare a simulated network with the float one, layer by layer.

    ``alone`` gives each layer the float network's input, so that the noise is the layer's own; otherwise it has that of
    the layers before it as well.
    """
    sums = np.zeros((len(weights.layers), 2))
    output, same, total = np.zeros(2), 0, 0
    for images, count in data:
        reference.start(images)
        quantized.start(images)
        for index, layer in enumerate(weights.layers):
            x = quantized.input(index)
            if alone:
                x[...] = reference.input(index)
            if isinstance(layer, QuantizedConvLayer):
                round_input(x, layer.input_scale)
            reference.run_layer(index)
            quantized.run_layer(index)
            sums[index] += _squares(reference.output(index)[:count], quantized.output(index)[:count])
        logits, actual = reference.head(), quantized.head()
        if logits is not None and actual is not None:
            output += _squares(_centered(logits[:count], weights), _centered(actual[:count], weights))
            same += int((logits[:count].argmax(1) == actual[:count].argmax(1)).sum())
            total += count
    if not total:  # feature maps: the worst one counts
        output = min((sums[i] for i, layer in enumerate(weights.layers) if layer.feature), key=lambda s: decibels(*s))
    return Noise(
        [(float(signal), float(noise)) for signal, noise in sums],
        (float(output[0]), float(output[1])),
        same / total if total and weights.head is not None else None,
    )


def decibels(signal: float, noise: float) -> float:
    """Return a signal-to-noise ratio in dB, infinite without noise."""
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal else float("-inf")


def _centered(logits: NDArray[Any], weights: QuantizedWeights) -> NDArray[Any]:
    """Return logits without their mean, which no probability depends on; pooled features as they are."""
    return logits if weights.head is None else logits - logits.mean(axis=1, keepdims=True)


def _squares(expected: NDArray[Any], actual: NDArray[Any]) -> Sequence[float]:
    signal = float(np.einsum("i,i", *(expected.reshape(-1),) * 2, dtype=np.float64))
    difference = (actual - expected).reshape(-1)
    return signal, float(np.einsum("i,i", difference, difference, dtype=np.float64))

"""The cost model: which algorithm computes a convolution in the least time, and how long it should take."""

from __future__ import annotations

import math
from typing import NamedTuple, Optional, Sequence, Union

from .ir import ConvLayer
from .jit.integer_dot import DotProduct
from .jit.integer_winograd import IntegerWinograd
from .jit.winograd import WinogradTransform
from .plan import ActivationBuffer
from .quantized import QuantizedConvLayer

ConvAlgorithm = Optional[WinogradTransform]  # None is igemm
IntegerAlgorithm = Optional[IntegerWinograd]

# In networks, weights take longer than a mere stream, because activations go through the caches as well.
STREAMS_PER_WEIGHT = 1.5


class CpuSpeed(NamedTuple):
    """What one core does in a second: FMAs of the igemm on data in the cache, and bytes of weights that it streams."""

    fma_per_second: float
    bytes_per_second: float


DEFAULT_CPU_SPEED = CpuSpeed(40e9, 9e9)  # Zen 3; only their ratio decides on the algorithm


def select_conv_algorithm(
    layer: ConvLayer,
    out: ActivationBuffer,
    *,
    threads: int,
    transforms: Sequence[WinogradTransform],
    speed: CpuSpeed = DEFAULT_CPU_SPEED,
) -> ConvAlgorithm:
    """Return the algorithm that should be fastest."""
    algorithms: Sequence[ConvAlgorithm] = [None, *(each for each in transforms if each.stride == layer.stride)]
    return min(algorithms, key=lambda algorithm: conv_seconds(layer, out, algorithm, threads=threads, speed=speed))


def conv_seconds(
    layer: ConvLayer, out: ActivationBuffer, algorithm: ConvAlgorithm, *, threads: int, speed: CpuSpeed
) -> float:
    """Return the time that a convolution should take."""
    transformed = 0
    if algorithm is not None:  # V and M, which are in the second-level cache
        channels = algorithm.num_products * layer.in_channels + algorithm.num_elements * layer.out_channels
        transformed = 4 * _tiles(out, algorithm) * channels
    weights = 4 * _products(algorithm) * (layer.kernel.size // 9)
    return _seconds(conv_fmas(layer, out, algorithm), transformed, weights, threads, speed)


def select_integer_algorithm(
    layer: QuantizedConvLayer,
    out: ActivationBuffer,
    transforms: Sequence[IntegerWinograd],
    *,
    threads: int,
    dot: DotProduct,
    speed: CpuSpeed = DEFAULT_CPU_SPEED,
) -> IntegerAlgorithm:
    """Return the algorithm that should be fastest for a quantized layer."""
    algorithms: Sequence[IntegerAlgorithm] = [None, *transforms]
    return min(algorithms, key=lambda each: integer_conv_seconds(layer, out, each, threads, dot, speed))


def integer_conv_seconds(
    layer: QuantizedConvLayer,
    out: ActivationBuffer,
    algorithm: IntegerAlgorithm,
    threads: int,
    dot: DotProduct,
    speed: CpuSpeed,
) -> float:
    """Return the time that a quantized convolution should take, as ``conv_seconds`` does for a float one."""
    transformed = 0
    if algorithm is not None:
        tile_bytes = 2 * algorithm.num_products * layer.in_channels + 4 * algorithm.num_elements * layer.out_channels
        transformed = _tiles(out, algorithm) * tile_bytes
    weights = dot.bits // 8 * _products(algorithm) * (layer.kernel.size // 9)
    fmas = conv_fmas(layer, out, algorithm) / dot.macs_per_fma
    return _seconds(fmas, transformed, weights, threads, speed)


def _seconds(fmas: float, transformed: int, weights: int, threads: int, speed: CpuSpeed) -> float:
    """Return the time for FMAs, and for the bytes of transformed tiles and of weights.

    The threads share the arithmetic and the transforms. The weights are read once, by all threads together, while
    others are multiplied: the longer of the two times hides most of the shorter one, as in the root of their squares.
    """
    shared = fmas / speed.fma_per_second + transformed / speed.bytes_per_second
    return math.hypot(shared / threads, STREAMS_PER_WEIGHT * weights / speed.bytes_per_second)


def conv_fmas(
    layer: Union[ConvLayer, QuantizedConvLayer],
    out: ActivationBuffer,
    algorithm: Union[ConvAlgorithm, IntegerAlgorithm],
) -> int:
    """Return how many multiply-adds an algorithm does beside its transforms; with igemm, those of the definition."""
    return _products(algorithm) * _tiles(out, algorithm) * (layer.kernel.size // 9)


def _products(algorithm: Union[ConvAlgorithm, IntegerAlgorithm]) -> int:
    return 9 if algorithm is None else algorithm.num_products


def _tiles(out: ActivationBuffer, algorithm: Union[ConvAlgorithm, IntegerAlgorithm]) -> int:
    m = 1 if algorithm is None else algorithm.m
    return out.images * -(-out.height // m) * -(-out.width // m)

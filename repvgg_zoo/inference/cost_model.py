"""The cost model: which algorithm computes a convolution in the least time, and how long it should take."""

from __future__ import annotations

from typing import NamedTuple, Optional, Sequence

from .ir import ConvLayer
from .jit.winograd import WinogradTransform
from .plan import ActivationBuffer

ConvAlgorithm = Optional[WinogradTransform]  # None is igemm


class CpuSpeed(NamedTuple):
    """What one core does in a second: FMAs of the igemm on data in the cache, and bytes of weights that it streams."""

    fma_per_second: float
    bytes_per_second: float


DEFAULT_CPU_SPEED = CpuSpeed(40e9, 20e9)  # Zen 3; only their ratio decides on the algorithm


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
    """Return the time that a convolution should take.

    The threads share the arithmetic and the transforms. The weights are read once, by all threads together, and too
    fast for the cache to hide it: the time for them is added.
    """
    kernels = layer.kernel.size // 9
    if algorithm is None:
        products, tiles, transformed = 9, out.images * out.height * out.width, 0
    else:
        products = algorithm.num_products
        tiles = out.images * -(-out.height // algorithm.m) * -(-out.width // algorithm.m)
        # V and M, which are in the second-level cache
        transformed = 4 * tiles * (products * layer.in_channels + algorithm.num_elements * layer.out_channels)
    arithmetic = products * tiles * kernels / speed.fma_per_second + transformed / speed.bytes_per_second
    return arithmetic / threads + 4 * products * kernels / speed.bytes_per_second

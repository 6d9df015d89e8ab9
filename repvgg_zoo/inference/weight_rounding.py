"""round_weights: from a float convolution to an int8 one whose output differs as little as possible.

Each output channel has a scale of its own. Two things make RepVGG's kernels hard to quantize, and are taken apart here
(see ``quantized``): the identity branch on the diagonal of the center tap, and the 1x1 branch on the rest of that tap.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any, NamedTuple, Optional, Tuple

import numpy as np
from numpy.typing import NDArray

from .ir import ConvLayer
from .quantized import MAX_SHIFT, QuantizedConvLayer, largest_sums

IDENTITY_GAIN = 0.8  # of the error without it, at which a float diagonal is worth its time


class _Rounded(NamedTuple):
    """Integers (groups, O / groups, I / groups, 3, 3) with each channel's scale and shift, and the error (O,)."""

    kernel: NDArray[Any]
    scale: NDArray[Any]
    shift: NDArray[Any]
    error: NDArray[Any]


def round_weights(
    layer: ConvLayer, *, input_scale: float, tap_means: NDArray[Any], bits: int = 8
) -> QuantizedConvLayer:
    """Return a convolution with weights of ``bits`` bits for inputs that are rounded with ``input_scale``.

    Scales, shifts and the use of the identity are those with the smallest squared error of the weights. What the
    rounding changes in the mean of a channel's output is added to its bias; ``tap_means`` (I, 3, 3) are the means of
    what each tap is multiplied with.
    """
    identity = _diagonal(layer)
    rounded = _round(layer.kernel, bits)
    if identity is not None:
        without = layer.kernel.copy()
        _clear_diagonal(without)
        split = _round(without, bits)
        if split.error.sum() < IDENTITY_GAIN * rounded.error.sum():
            rounded = split
        else:
            identity = None
    result = QuantizedConvLayer(
        kernel=rounded.kernel,
        kernel_scale=rounded.scale,
        center_shift=rounded.shift,
        identity=identity,
        bias=layer.bias.copy(),
        input_scale=input_scale,
        stride=layer.stride,
        se=layer.se,
        feature=layer.feature,
        dilation=layer.dilation,
        name=layer.name,
    )
    difference = layer.kernel.astype(np.float64) - float_kernel(result)
    shift = np.einsum("goikl,gikl->go", difference, tap_means.reshape(layer.groups, -1, 3, 3)).reshape(-1)
    return replace(result, bias=(layer.bias + shift).astype(np.float32))


def to_float(layer: QuantizedConvLayer) -> ConvLayer:
    """Return the float convolution that computes the same from inputs that were rounded."""
    kernel = float_kernel(layer).astype(np.float32)
    return ConvLayer(kernel, layer.bias, layer.stride, layer.se, layer.feature, layer.dilation, layer.name)


def float_kernel(layer: QuantizedConvLayer) -> NDArray[Any]:
    """Return the kernel that a quantized layer stands for, float64 (groups, O / groups, I / groups, 3, 3)."""
    groups, outs, ins = layer.kernel.shape[:3]
    kernel: NDArray[Any] = layer.kernel * layer.kernel_scale.astype(np.float64).reshape(groups, outs, 1, 1, 1)
    kernel[..., 1, 1] *= 2.0 ** layer.center_shift.reshape(groups, outs, 1)
    if layer.identity is not None:
        kernel[:, range(outs), range(ins), 1, 1] += layer.identity.reshape(groups, outs)
    return kernel


def _diagonal(layer: ConvLayer) -> Optional[NDArray[Any]]:
    """Return the weight of each channel's own input at the same pixel (O,), if there is such an input."""
    if layer.stride != 1 or layer.in_channels != layer.out_channels:
        return None
    return np.diagonal(layer.kernel[..., 1, 1], axis1=1, axis2=2).reshape(-1).astype(np.float32)


def _clear_diagonal(kernel: NDArray[Any]) -> None:
    outs = kernel.shape[1]
    kernel[:, range(outs), range(outs), 1, 1] = 0


def _round(kernel: NDArray[Any], bits: int) -> _Rounded:
    """Return each channel's integers with the best of some shifts."""
    limit = 2 ** (bits - 1) - 1
    first, *others = (_round_with(kernel, shift, limit) for shift in _shifts(kernel))
    return functools.reduce(_better, others, first)


def _shifts(kernel: NDArray[Any]) -> Tuple[NDArray[Any], ...]:
    """Return the shifts that are tried, uint8 (O,) each.

    Outer taps have the finest scale if the center's largest weight, shifted, is as large as theirs; more would only
    make the center coarser.
    """
    magnitudes = np.abs(kernel).max(axis=2).reshape(-1, 3, 3)
    center = magnitudes[:, 1, 1].copy()
    magnitudes[:, 1, 1] = 0
    outer = magnitudes.max(axis=(1, 2))
    ratios = np.divide(center, outer, out=np.ones_like(center), where=outer > 0)
    full = np.clip(np.ceil(np.log2(np.maximum(ratios, 1))), 0, MAX_SHIFT)
    return tuple(np.maximum(full - less, 0).astype(np.uint8) for less in (0, 1, MAX_SHIFT))


def _round_with(kernel: NDArray[Any], shift: NDArray[Any], limit: int) -> _Rounded:
    groups, outs = kernel.shape[:2]
    factor = np.float32(2) ** shift.reshape(groups, outs, 1).astype(np.float32)
    steps = kernel.copy()
    steps[..., 1, 1] /= factor  # to the scale of the other taps
    scale = np.abs(steps).max(axis=(2, 3, 4)) / np.float32(limit)
    scale[scale < np.finfo(np.float32).tiny] = 1  # of a channel of zeros
    steps /= scale[..., None, None, None]
    integers = np.rint(steps)
    steps -= integers
    steps[..., 1, 1] *= factor
    error = np.einsum("goikl,goikl->go", steps, steps) * scale.astype(np.float64) ** 2
    rounded, error = integers.astype(np.int8), error.reshape(-1)
    error[largest_sums(rounded, shift) >= 2**31] = np.inf
    return _Rounded(rounded, scale.reshape(-1), shift, error)


def _better(a: _Rounded, b: _Rounded) -> _Rounded:
    """Return the better one of two for each channel."""
    use_b = b.error < a.error
    channels = use_b.reshape(a.kernel.shape[:2])[..., None, None, None]
    return _Rounded(
        np.where(channels, b.kernel, a.kernel),
        np.where(use_b, b.scale, a.scale),
        np.where(use_b, b.shift, a.shift),
        np.where(use_b, b.error, a.error),
    )

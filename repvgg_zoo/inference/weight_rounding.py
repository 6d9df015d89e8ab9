"""round_weights: from a float convolution to an int8 one whose output differs as little as possible.

Each output channel has a scale of its own. Two things make RepVGG's kernels hard to quantize, and are taken apart here
(see ``quantized``): the identity branch on the diagonal of the center tap, and the 1x1 branch on the rest of that tap.

Weights are not clipped, as errors of the largest weights of a channel do not average out: it made networks worse.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple, Optional

import numpy as np
from numpy.typing import NDArray

from .ir import ConvLayer
from .quantized import MAX_ACTIVATION, MAX_SHIFT, QuantizedConvLayer, float_kernel

IDENTITY_GAIN = 0.8  # of the error without it, at which a float diagonal is worth its time
SMALLEST_SCALE = 1e-37  # of float32 numbers that are not subnormal, which processors may take for zero
MAX_SUM = 2**31 - 1


class _Scales(NamedTuple):
    """The scale and the shift of the center tap of each channel, (O,), and the error to be expected of all together."""

    scale: NDArray[Any]
    shift: NDArray[Any]
    error: float


def round_weights(
    layer: ConvLayer, *, input_scale: float, tap_means: NDArray[Any], bits: int = 8
) -> QuantizedConvLayer:
    """Return a convolution with weights of ``bits`` bits for inputs that are rounded with ``input_scale``.

    Scales, shifts and the use of the identity are those with the smallest squared error of the weights that is to be
    expected. What the rounding changes in the mean of a channel's output is added to its bias; ``tap_means`` (I, 3, 3)
    are the means of what each tap is multiplied with.
    """
    limit = 2 ** (bits - 1) - 1
    kernel, identity = layer.kernel, _diagonal(layer)
    scales = _choose_scales(kernel, limit)
    if identity is not None:
        without = kernel.copy()
        _clear_diagonal(without)
        split = _choose_scales(without, limit)
        if split.error < IDENTITY_GAIN * scales.error:
            kernel, scales = without, split
        else:
            identity = None
    result = QuantizedConvLayer(
        kernel=_round(kernel, scales, limit),
        kernel_scale=scales.scale,
        center_shift=scales.shift,
        identity=identity,
        bias=layer.bias,
        input_scale=input_scale,
        stride=layer.stride,
        se=layer.se,
        feature=layer.feature,
        dilation=layer.dilation,
        name=layer.name,
    )
    difference, means = layer.kernel - float_kernel(result), tap_means.reshape(layer.groups, -1, 3, 3)
    shift = np.einsum("goikl,gikl->go", difference, means.astype(np.float32)).reshape(-1)
    return replace(result, bias=(layer.bias + shift).astype(np.float32))


def to_float(layer: QuantizedConvLayer) -> ConvLayer:
    """Return the float convolution that computes the same from inputs that were rounded."""
    return ConvLayer(float_kernel(layer), layer.bias, layer.stride, layer.se, layer.feature, layer.dilation, layer.name)


def _diagonal(layer: ConvLayer) -> Optional[NDArray[Any]]:
    """Return the weight of each channel's own input at the same pixel (O,), if there is such an input."""
    if layer.stride != 1 or layer.in_channels != layer.out_channels:
        return None
    return np.diagonal(layer.kernel[..., 1, 1], axis1=1, axis2=2).reshape(-1).astype(np.float32)


def _clear_diagonal(kernel: NDArray[Any]) -> None:
    outs = kernel.shape[1]
    kernel[:, range(outs), range(outs), 1, 1] = 0


def _choose_scales(kernel: NDArray[Any], limit: int) -> _Scales:
    """Return the scales and shifts with the smallest error, for integers up to ``limit``.

    Rounding to steps of size s has a mean squared error of s * s / 12. A center tap that is shifted by k bits has steps
    of s * 2**k, and lets s be as small as the other taps allow.
    """
    ins = kernel.shape[2]
    magnitudes = np.maximum(kernel.max(axis=2), -kernel.min(axis=2)).reshape(-1, 9).astype(np.float64)
    center, outer = magnitudes[:, 4], np.delete(magnitudes, 4, axis=1).max(axis=1)
    powers = 2.0 ** np.arange(MAX_SHIFT + 1)
    fits = limit * MAX_ACTIVATION * ins * (8 + powers) <= MAX_SUM
    powers = powers[: max(1, int(fits.sum()))]
    scales = np.maximum(outer[:, None], center[:, None] / powers) / limit
    errors = scales**2 * (8 + powers**2)
    shift = errors.argmin(axis=1)
    channels = np.arange(len(scales))
    scale = scales[channels, shift].astype(np.float32)
    scale[scale < SMALLEST_SCALE] = 1  # of a channel of zeros
    return _Scales(scale, shift.astype(np.uint8), float(errors[channels, shift].sum()))


def _round(kernel: NDArray[Any], scales: _Scales, limit: int) -> NDArray[Any]:
    groups, outs = kernel.shape[:2]
    steps = kernel / scales.scale.reshape(groups, outs, 1, 1, 1)
    steps[..., 1, 1] /= np.exp2(scales.shift, dtype=np.float32).reshape(groups, outs, 1)
    integers: NDArray[Any] = np.clip(np.rint(steps), -limit, limit).astype(np.int8)
    return integers

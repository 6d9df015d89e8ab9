"""check_plan: what each call of a plan computes, compared with NumPy.

The eager network is not the reference: it needs MegEngine, and a fault in one layer can vanish in the logits. Instead,
the plan runs layer by layer on fixed images, and outputs of each layer are computed again from the layer's own input
with the original weights: all channels of some pixels and all pixels of some channels for convolutions, everything for
the rest. A fault in packing, offsets, borders, transforms or epilogues is at one of these, whichever channel, tile,
register or panel it is about.

Quantized layers have exact integer sums, so they must be much closer to what float64 gives. A rounded output would hide
that: the layer runs once more with a float32 output, of which each rounded value must be the nearest whole number.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any, Callable, List, Optional, Union

import numpy as np
from numpy.typing import NDArray

from ..errors import EquivalenceError
from .ir import ConvLayer, LinearWeights, NetworkWeights, SEWeights
from .jit.all_kernels import ALL_FIELDS
from .packing import aligned_zeros
from .plan import ActivationBuffer, ExecutionPlan, LayerCalls
from .quantized import MAX_ACTIVATION, QuantizedConvLayer, QuantizedWeights, integer_layer

MAX_ERROR = 1e-4  # of the scale of a layer's sums; Winograd in float32 differs from direct convolution by up to 6e-6
EPILOGUE_ERROR = 2e-6  # of that scale: how far the float32 epilogue of a quantized layer may be from float64
CORNER = 8  # pixels on a side of the squares in which all channels are compared: a tile of every transform and MR fit
RANDOM_PIXELS = 24  # and so many more
CHANNELS = 4  # of which all pixels are compared, and the last channel

RunCalls = Callable[[NDArray[Any], int, int], None]


@np.errstate(all="ignore")  # weights may not be finite, which the error says
def check_plan(plan: ExecutionPlan, weights: Union[NetworkWeights, QuantizedWeights], run_calls: RunCalls) -> float:
    """Return the largest error of a layer, relative to the scale of its sums.

    ``run_calls`` runs the calls from one index up to another for a batch of images, in all threads. Raises
    EquivalenceError if an error is above ``MAX_ERROR``, or values are not finite.
    """
    images = probe_images(plan.input_shape)
    random = np.random.RandomState(1)
    errors = []
    first = plan.layers[0].start
    run_calls(images, 0, first)
    errors.append(_difference(plan.layers[0].x.interior, images.transpose(0, 2, 3, 1), 1.0))
    before = plan.layers[0].x
    for index, (calls, layer) in enumerate(zip(plan.layers, weights.layers)):
        if calls.x is not before:
            assert isinstance(layer, QuantizedConvLayer)
            run_calls(images, plan.layers[index - 1].stop, calls.start)
            multiplier = np.float32(1 / layer.input_scale)
            errors.append(_rounding_error(before.interior * multiplier, calls.x.interior))
        if isinstance(layer, ConvLayer):
            run_calls(images, calls.start, calls.conv_stop)
            errors.append(_conv_error(layer, calls.x, calls.out, random))
        else:
            unrounded = _run_unrounded(plan, calls, functools.partial(run_calls, images, calls.start, calls.conv_stop))
            following = None if unrounded is calls.out else weights.layers[index + 1]
            scale = following.input_scale if isinstance(following, QuantizedConvLayer) else 1.0
            error = _conv_error(integer_layer(layer, scale), calls.x, unrounded, random)
            errors.append(error if error <= EPILOGUE_ERROR else float("inf"))
            run_calls(images, calls.start, calls.conv_stop)
            if unrounded is not calls.out:
                errors.append(_rounding_error(unrounded.interior, calls.out.interior))
        if layer.se is not None:
            unscaled = calls.out.interior.copy()
            run_calls(images, calls.conv_stop, calls.stop)
            errors.append(_se_error(layer.se, unscaled, calls.out.interior))
        errors.append(0.0 if _is_padded_with_zeros(calls.out) else float("inf"))
        before = calls.out
    if "" in plan.outputs:
        run_calls(images, plan.layers[-1].stop, len(plan.calls))
        errors.append(_head_error(weights.head, plan.layers[-1].out.interior, plan.outputs[""]))
    # The whole plan in one go: its calls must not disturb one another.
    results = {name: output.copy() for name, output in plan.outputs.items()}
    run_calls(images, 0, len(plan.calls))
    same = all(np.array_equal(output, results[name]) for name, output in plan.outputs.items())
    errors.append(0.0 if same else float("inf"))
    error = max(errors, key=lambda value: float("inf") if np.isnan(value) else value)
    if not error <= MAX_ERROR:
        raise _not_equivalent(error)
    return error


def probe_images(shape: Any) -> NDArray[Any]:
    """Return a batch of images (N, C, H, W), float32: the same in every process, and no two alike."""
    images = np.random.RandomState(0).standard_normal((min(2, shape[0]), *shape[1:])).astype(np.float32)
    batch: NDArray[Any] = images[np.arange(shape[0]) % len(images)]
    # Scaled differently, so that images that are mixed up are noticed.
    batch *= np.linspace(1, 1.5, shape[0], dtype=np.float32)[:, None, None, None]
    return batch


def _run_unrounded(plan: ExecutionPlan, calls: LayerCalls, run: Callable[[], None]) -> ActivationBuffer:
    """Run a quantized layer with a float32 output, which is returned: its own, or else one that takes its place."""
    if calls.out.storage.dtype == np.float32:
        run()
        return calls.out
    out = replace(calls.out, storage=aligned_zeros(calls.out.storage.shape))
    original = [call.arguments.copy() for call in plan.calls[calls.start : calls.conv_stop]]
    for call in plan.calls[calls.start : calls.conv_stop]:
        fields = ALL_FIELDS[call.kernel]
        if "quantize" in fields:
            call.arguments[fields.index("quantize")] = 0
            call.arguments[fields.index("c" if "c" in fields else "out")] = out.storage.ctypes.data
    try:
        run()
    finally:
        for call, arguments in zip(plan.calls[calls.start : calls.conv_stop], original):
            call.arguments[...] = arguments
    return out


def _rounding_error(x: NDArray[Any], rounded: NDArray[Any]) -> float:
    """Return 0 if values are rounded to the nearest whole number, half to even, and limited to their range."""
    return 0.0 if np.array_equal(rounded, np.rint(np.clip(x, 0, MAX_ACTIVATION))) else float("inf")


def _conv_error(layer: ConvLayer, x: ActivationBuffer, out: ActivationBuffer, random: np.random.RandomState) -> float:
    """Compare all channels of some pixels, and all pixels of some channels."""
    relu = layer.se is None or layer.se.after_relu
    first, size, dilation = x.border - layer.dilation, 2 * layer.dilation + 1, layer.dilation
    windows: Any = np.lib.stride_tricks.sliding_window_view(  # type: ignore[call-overload]  # axis may be a tuple
        x.storage[:, first:, first:, : layer.in_channels], (size, size), axis=(1, 2)
    )[..., ::dilation, ::dilation]
    images, ys, xs = _pixels(out, random)
    patches = windows[images, ys * layer.stride, xs * layer.stride]  # (pixels, I, 3, 3)
    groups, outs, ins = layer.kernel.shape[:3]
    columns = patches.reshape(len(patches), groups, ins * 9).transpose(1, 2, 0)
    sums = np.matmul(layer.kernel.reshape(groups, outs, ins * 9), columns).reshape(groups * outs, -1).T + layer.bias
    scale = float(np.abs(sums).max())
    errors = [_difference(out.interior[images, ys, xs], _relu(sums, relu), scale)]
    last = layer.out_channels - 1
    for channel in sorted({*random.randint(0, last + 1, CHANNELS).tolist(), last}):
        sums = _conv_channel(layer, channel, x, out)
        errors.append(_difference(out.interior[..., channel], _relu(sums, relu), scale))
    return float(np.max(errors))  # NaN if one is


def _pixels(out: ActivationBuffer, random: np.random.RandomState) -> List[NDArray[Any]]:
    """Return the images, rows and columns of the pixels that are compared: corners of the batch, and random ones."""
    shape = (out.images, out.height, out.width)
    corner = np.indices((1, min(CORNER, out.height), min(CORNER, out.width))).reshape(3, -1)
    opposite = np.array(shape)[:, None] - 1 - corner
    others = np.stack([random.randint(0, size, RANDOM_PIXELS) for size in shape])
    return list(np.concatenate([corner, opposite, others], axis=1))


def _conv_channel(layer: ConvLayer, channel: int, x: ActivationBuffer, out: ActivationBuffer) -> NDArray[Any]:
    """Return a channel's sums for all pixels, (N, H, W)."""
    group, index = divmod(channel, layer.kernel.shape[1])
    kernel = layer.kernel[group, index]
    ins = slice(group * len(kernel), (group + 1) * len(kernel))
    sums = np.full((out.images, out.height, out.width), layer.bias[channel], kernel.dtype)
    products = x.storage[..., ins] @ kernel.reshape(-1, 9)  # of every pixel with every tap: x is read once
    starts = [x.border + layer.dilation * offset for offset in (-1, 0, 1)]
    for i in range(3):
        for j in range(3):
            ys, xs = (
                slice(at, at + layer.stride * (n - 1) + 1, layer.stride)
                for at, n in ((starts[i], out.height), (starts[j], out.width))
            )
            sums += products[:, ys, xs, 3 * i + j]
    return sums


def _se_error(se: SEWeights, before: NDArray[Any], after: NDArray[Any]) -> float:
    """Compare a block's output before and after its SE, whole."""
    squeezed = _relu(_linear(se.down, _global_avg_pool(before)), True)
    with np.errstate(over="ignore"):
        scale = 1 / (1 + np.exp(-_linear(se.up, squeezed)))
    expected = before * scale[:, None, None, :]
    return _difference(after, _relu(expected, not se.after_relu), float(np.abs(expected).max()))


def _head_error(head: Optional[LinearWeights], x: NDArray[Any], output: NDArray[Any]) -> float:
    pooled = _global_avg_pool(x)
    expected = pooled if head is None else _linear(head, pooled)
    return _difference(output, expected, float(np.abs(expected).max()))


def _linear(linear: LinearWeights, x: NDArray[Any]) -> NDArray[Any]:
    result: NDArray[Any] = x @ linear.weight.T.astype(np.float64) + linear.bias
    return result


def _global_avg_pool(x: NDArray[Any]) -> NDArray[Any]:
    """(N, H, W, C) to (N, C), in float64."""
    result: NDArray[Any] = x.mean(axis=(1, 2), dtype=np.float64)
    return result


def _relu(x: NDArray[Any], apply: bool) -> NDArray[Any]:
    return np.maximum(x, 0) if apply else x


def _is_padded_with_zeros(buffer: ActivationBuffer) -> bool:
    """Whether everything outside of the activation is zero, which the next convolution takes for granted."""
    border, storage = buffer.border, buffer.storage
    y, x = border + buffer.height, border + buffer.width
    rows, columns = (storage[:, :border], storage[:, y:]), (storage[:, :, :border], storage[:, :, x:])
    outside = (*rows, *columns, storage[..., buffer.channels :])
    return not any(part.any() for part in outside)


def _difference(actual: NDArray[Any], expected: NDArray[Any], scale: float) -> float:
    """Return the largest difference relative to ``scale``: NaN if any value is, 0 if nothing differs."""
    difference = float(np.max(np.abs(actual - expected), initial=0.0))
    if difference == 0:
        return 0.0
    return difference / scale if scale else float("inf")


def _not_equivalent(error: float) -> EquivalenceError:
    return EquivalenceError(
        f"the compiled network differs from its weights' convolutions by {error:.1e} of a layer's scale",
        expected=f"at most {MAX_ERROR:g}",
        actual=error,
        hint="weights with values that are not finite do this; otherwise run the network itself, and report it",
    )

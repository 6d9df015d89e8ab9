"""lower_quantized: turn the weights of a quantized network into an execution plan of integer and float kernels."""

from __future__ import annotations

import functools
from typing import Any, Callable, Dict, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from .call_args import (
    CENTER_FIRST,
    WinogradTiles,
    amx_args,
    direct_args,
    input_transform_args,
    int64,
    output_transform_args,
    product_args,
    spatial_args,
    split_tiles,
    tile_columns,
    winograd_tiles,
)
from .cost_model import (
    DEFAULT_CPU_SPEED,
    CpuSpeed,
    IntegerAlgorithm,
    select_conv_algorithm,
    select_integer_algorithm,
)
from .ir import ConvLayer, conv_output_size
from .jit.amx_kernels import MAX_PIXEL_TILES
from .jit.integer_dot import DOT_PRODUCTS
from .jit.integer_kernels import conv_kernel, kc_multiple
from .jit.integer_winograd import INTEGER_TRANSFORMS, IntegerWinograd
from .jit.kernels import MicrokernelConfig
from .jit.winograd import WINOGRAD_TRANSFORMS
from .lowering import AlgorithmSelector, Lowering
from .packing import aligned_zeros, pack_conv_weights, pack_integer_winograd_weights, pack_lanes, pad
from .plan import ActivationBuffer, ExecutionPlan
from .quantized import MAX_ACTIVATION, QuantizedConvLayer, QuantizedWeights, check_quantized_layers

CHUNK_BYTES = 1 << 19  # of V and M together
MIN_TILES_PER_CHUNK = 48

IntegerAlgorithmSelector = Callable[[QuantizedConvLayer, ActivationBuffer, Sequence[IntegerWinograd]], IntegerAlgorithm]


def lower_quantized(
    weights: QuantizedWeights,
    shape: Tuple[int, int, int, int],
    *,
    threads: int,
    config: MicrokernelConfig,
    low_memory: bool = False,
    speed: CpuSpeed = DEFAULT_CPU_SPEED,
    select_algorithm: Optional[IntegerAlgorithmSelector] = None,
) -> ExecutionPlan:
    """Return the plan for images of ``shape`` (N, C, H, W) on ``threads`` threads.

    ``config`` must have the kernels for quantized layers. With ``low_memory``, no convolution uses Winograd.
    ``select_algorithm`` replaces the cost model: it is called with each quantized layer, its output and the transforms
    that are exact for it. Raise StateError if the weights do not fit one another or the images.
    """
    check_quantized_layers(weights, shape[1])
    select_float = functools.partial(
        select_conv_algorithm, threads=threads, transforms=() if low_memory else WINOGRAD_TRANSFORMS, speed=speed
    )
    dot = DOT_PRODUCTS[config.integer_dot]
    select_integer = select_algorithm or functools.partial(
        select_integer_algorithm, threads=threads, dot=dot, speed=speed
    )
    use_winograd = not low_memory and dot.activation == "s16"
    return _QuantizedLowering(shape, config, threads, select_float, use_winograd, select_integer).lower(weights)


def exact_transforms(layer: QuantizedConvLayer) -> Tuple[IntegerWinograd, ...]:
    """Return the transforms that give exactly a layer's sums: nothing that counts leaves 16 or 32 bits."""
    if layer.dilation > 1:
        return ()
    kernel = shifted_kernel(layer).reshape(layer.out_channels, -1)
    # Activations are not negative, so a sum is at most that of the positive weights, and at least that of the others.
    positive = np.maximum(kernel, 0).sum(axis=1)
    negative = positive - kernel.sum(axis=1)
    largest_sum = MAX_ACTIVATION * int(max(positive.max(), negative.max()))
    largest_taps = np.abs(kernel.reshape(-1, 9)).max(axis=0)
    return tuple(
        transform
        for transform in INTEGER_TRANSFORMS
        if transform.stride == layer.stride
        and largest_sum << transform.shift < 2**31
        and transform.largest_weight(largest_taps) < 2**15
    )


def shifted_kernel(layer: QuantizedConvLayer) -> NDArray[Any]:
    """Return the kernel (groups, O / groups, I / groups, 3, 3) with the shifted center tap, int32."""
    kernel = layer.kernel.astype(np.int32)
    kernel[..., 1, 1] <<= layer.center_shift.astype(np.int32).reshape(*kernel.shape[:2], 1)
    return kernel


class _QuantizedLowering(Lowering):
    """Float layers are lowered as usual; quantized ones read and write activations of 8 or 16 bits."""

    def __init__(
        self,
        shape: Tuple[int, int, int, int],
        config: MicrokernelConfig,
        threads: int,
        select_float: AlgorithmSelector,
        use_winograd: bool,
        select_integer: IntegerAlgorithmSelector,
    ) -> None:
        super().__init__(shape, config, threads, select_float)
        self._use_winograd = use_winograd
        self._select_integer = select_integer
        self._dot = DOT_PRODUCTS[config.integer_dot]
        self._is_u8 = self._dot.activation == "u8"
        self._dtype: Any = np.uint8 if self._is_u8 else np.int16
        self._output_scales: Dict[int, float] = {}

    def lower(self, weights: QuantizedWeights) -> ExecutionPlan:
        for layer, following in zip(weights.layers, weights.layers[1:]):
            if isinstance(following, QuantizedConvLayer) and layer.se is None and layer.feature is None:
                self._output_scales[id(layer)] = following.input_scale
        return super().lower(weights)

    def _lower_layer(self, layer: Any, x: ActivationBuffer) -> ActivationBuffer:
        if isinstance(layer, ConvLayer):
            return super()._lower_layer(layer, x)
        rounded = x if x.storage.dtype != np.float32 else self._quantize(x, layer.input_scale)
        out = self._lower_quantized_layer(layer, rounded)
        if rounded is not x:
            self._release(rounded)
        return out

    def _quantize(self, x: ActivationBuffer, scale: float) -> ActivationBuffer:
        out = self._allocate(x.height, x.width, x.channels, dtype=self._dtype)
        multiplier = aligned_zeros((1,))
        multiplier[0] = 1 / scale
        self._plan.emit_call(
            f"quantize_{self._dot.activation}",
            x=x.interior,
            multiplier=multiplier,
            out=out.interior,
            **spatial_args(x),
        )
        return out

    def _lower_quantized_layer(self, layer: QuantizedConvLayer, x: ActivationBuffer) -> ActivationBuffer:
        height, width = (conv_output_size(size, layer.stride) for size in (x.height, x.width))
        output_scale = self._output_scales.get(id(layer))
        dtype = np.float32 if output_scale is None else self._dtype
        out, start = self._allocate(height, width, layer.out_channels, dtype=dtype), len(self._plan.calls)
        available = exact_transforms(layer) if self._use_winograd else ()
        transform = self._select_integer(layer, out, available) if available else None
        if transform is None:
            self._lower_direct(layer, x, out, output_scale)
        else:
            self._lower_integer_winograd(layer, transform, x, out, output_scale)
        self._end_layer(layer, x, out, start)
        return out

    def _lower_direct(
        self, layer: QuantizedConvLayer, x: ActivationBuffer, out: ActivationBuffer, output_scale: Optional[float]
    ) -> None:
        outs = out.storage.shape[-1]
        weights = layer.kernel if self._is_u8 else shifted_kernel(layer)
        packed = pack_conv_weights(weights, x.storage.shape[-1], outs, kc_multiple(self._plan.config))
        arguments = direct_args(layer, packed, x, out, center_first=self._is_u8)
        if self._is_u8:
            packed = packed[:, :, CENTER_FIRST]
            arguments["center_shift"] = pad(layer.center_shift, outs, np.int32)
        w = aligned_zeros((packed.size,), np.int8 if self._is_u8 else np.int16)
        self._packing.append(functools.partial(pack_lanes, packed, self._dot.channels, w))
        columns, mr = np.arange(out.width), self._plan.config.mr
        if self._dot.tiles is not None:
            columns, mr = tile_columns(out.width), MAX_PIXEL_TILES
            arguments.update(amx_args(layer, arguments["kc"], columns, x, out))
        _, center_offsets = self._center(layer, x, np.arange(out.height), columns.ravel())
        epilogue = self._epilogue(layer, x, out, output_scale, 0)
        name = conv_kernel(self._dot)
        self._lower_igemm(name, w=w, mr=mr, center_offsets=center_offsets, **arguments, **epilogue)

    def _lower_integer_winograd(
        self,
        layer: QuantizedConvLayer,
        transform: IntegerWinograd,
        x: ActivationBuffer,
        out: ActivationBuffer,
        output_scale: Optional[float],
    ) -> None:
        ins, outs = x.storage.shape[-1], out.storage.shape[-1]
        packed = pack_conv_weights(shifted_kernel(layer), ins, outs, kc_multiple(self._plan.config))
        w = aligned_zeros((transform.num_products * packed.size // 9,), np.int16)
        self._packing.append(functools.partial(pack_integer_winograd_weights, packed, transform, w))
        tiles = winograd_tiles(layer, transform, x, out)
        epilogue = self._epilogue(layer, x, out, output_scale, transform.shift)
        ys, xs = (np.arange(0, size, transform.m) for size in (out.height, out.width))
        (row_stride, pixel_stride), center_offsets = self._center(layer, x, ys, xs)
        tile_bytes = 2 * transform.num_products * ins + 4 * transform.num_elements * outs
        chunks, m_blocks = split_tiles(len(tiles.inputs), tile_bytes, CHUNK_BYTES, MIN_TILES_PER_CHUNK, self._threads)
        max_tiles = max(stop - start for start, stop in chunks)
        v = self._workspace("integer V", transform.num_products * max_tiles * ins, np.int16)
        m = self._workspace("integer M", transform.num_elements * max_tiles * outs, np.int32)
        for start, stop in chunks:
            chunk = WinogradTiles(*(values[start:stop] for values in tiles))
            self._plan.emit_call(f"input_transform_s16_{transform.name}", **input_transform_args(chunk, x, v))
            products = product_args(transform, packed, v, m, stop - start, m_blocks, ins, outs)
            self._lower_igemm("igemm_s16", w=w, **products)
            self._plan.emit_call(
                f"output_transform_s16_{transform.name}",
                center_offsets=int64(center_offsets[start:stop]),
                center_row_stride=row_stride,
                center_pixel_stride=pixel_stride,
                **output_transform_args(chunk, m, out),
                **epilogue,
            )

    def _epilogue(
        self,
        layer: QuantizedConvLayer,
        x: ActivationBuffer,
        out: ActivationBuffer,
        output_scale: Optional[float],
        shift: int,
    ) -> Dict[str, Any]:
        """Return the arguments of the epilogue for sums that are ``2^shift`` times the convolution.

        The output's scale is part of the factors: ReLU does not mind.
        """
        outs, unit = out.storage.shape[-1], 1.0 if output_scale is None else output_scale
        has_identity = layer.identity is not None
        identity = layer.identity if layer.identity is not None else np.zeros(layer.out_channels)
        factors = {
            "scale": layer.kernel_scale.astype(np.float64) * layer.input_scale / 2**shift,
            "identity": identity.astype(np.float64) * layer.input_scale,
            "bias": layer.bias.astype(np.float64),
        }
        return {
            **{name: pad(values / unit, outs) for name, values in factors.items()},
            "relu": layer.se is None or layer.se.after_relu,
            "quantize": output_scale is not None,
            "center": x.storage if has_identity else self._workspace(f"{outs} zeros", outs, self._dtype),
        }

    def _center(
        self, layer: QuantizedConvLayer, x: ActivationBuffer, ys: NDArray[Any], xs: NDArray[Any]
    ) -> Tuple[Tuple[int, int], NDArray[Any]]:
        """Return strides and offsets of the input's pixels at the outputs' places; without identity, a zero's."""
        offsets = x.offsets(ys, xs)
        return (x.strides[1:], offsets) if layer.identity is not None else ((0, 0), np.zeros_like(offsets))

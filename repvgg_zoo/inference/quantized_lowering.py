"""lower_quantized: turn the weights of a quantized network into an execution plan of integer and float kernels."""

from __future__ import annotations

import functools
import itertools
from typing import Any, Callable, Dict, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from .cost_model import (
    DEFAULT_CPU_SPEED,
    CpuSpeed,
    IntegerAlgorithm,
    select_conv_algorithm,
    select_integer_algorithm,
)
from .ir import ConvLayer, conv_output_size
from .jit.int16_kernels import KC_MULTIPLE
from .jit.integer_winograd import INTEGER_TRANSFORMS, IntegerWinograd
from .jit.kernels import NR, MicrokernelConfig
from .jit.winograd import WINOGRAD_TRANSFORMS
from .lowering import (
    MC,
    AlgorithmSelector,
    Lowering,
    int64,
    row_tiles,
    spatial_args,
    split_evenly,
)
from .packing import aligned_zeros, pack_conv_weights, pack_integer_winograd_weights, pack_pairs, pad
from .plan import ActivationBuffer, ExecutionPlan, LayerCalls
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
    select_integer = select_algorithm or functools.partial(select_integer_algorithm, threads=threads, speed=speed)
    transforms = () if low_memory else INTEGER_TRANSFORMS
    return _QuantizedLowering(shape, config, select_float, transforms, select_integer).lower(weights)


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
    """Float layers are lowered as usual; quantized ones read and write int16 activations."""

    def __init__(
        self,
        shape: Tuple[int, int, int, int],
        config: MicrokernelConfig,
        select_float: AlgorithmSelector,
        transforms: Sequence[IntegerWinograd],
        select_integer: IntegerAlgorithmSelector,
    ) -> None:
        super().__init__(shape, config, select_float)
        self._transforms = transforms
        self._select_integer = select_integer
        self._output_scales: Dict[int, float] = {}

    def lower(self, weights: QuantizedWeights) -> ExecutionPlan:
        for layer, following in zip(weights.layers, weights.layers[1:]):
            if isinstance(following, QuantizedConvLayer) and layer.se is None and layer.feature is None:
                self._output_scales[id(layer)] = following.input_scale
        return super().lower(weights)

    def _lower_layer(self, layer: Any, x: ActivationBuffer) -> ActivationBuffer:
        if isinstance(layer, ConvLayer):
            return super()._lower_layer(layer, x)
        rounded = x if x.storage.dtype == np.int16 else self._quantize(x, layer.input_scale)
        out = self._lower_quantized_layer(layer, rounded)
        if rounded is not x:
            self._release(rounded)
        return out

    def _quantize(self, x: ActivationBuffer, scale: float) -> ActivationBuffer:
        out = self._allocate(x.height, x.width, x.channels, dtype=np.int16)
        multiplier = aligned_zeros((1,))
        multiplier[0] = 1 / scale
        self._plan.emit_call("quantize", x=x.interior, multiplier=multiplier, out=out.interior, **spatial_args(x))
        return out

    def _lower_quantized_layer(self, layer: QuantizedConvLayer, x: ActivationBuffer) -> ActivationBuffer:
        height, width = (conv_output_size(size, layer.stride) for size in (x.height, x.width))
        output_scale = self._output_scales.get(id(layer))
        dtype = np.float32 if output_scale is None else np.int16
        out, start = self._allocate(height, width, layer.out_channels, dtype=dtype), len(self._plan.calls)
        available = [transform for transform in exact_transforms(layer) if transform in self._transforms]
        transform = self._select_integer(layer, out, available) if available else None
        if transform is None:
            self._lower_direct(layer, x, out, output_scale)
        else:
            self._lower_integer_winograd(layer, transform, x, out, output_scale)
        conv_stop = len(self._plan.calls)
        if layer.se is not None:
            self._lower_se(layer.se, out)
        self._plan.layers.append(LayerCalls(x, out, start, conv_stop, len(self._plan.calls)))
        return out

    def _lower_direct(
        self, layer: QuantizedConvLayer, x: ActivationBuffer, out: ActivationBuffer, output_scale: Optional[float]
    ) -> None:
        packed = pack_conv_weights(shifted_kernel(layer), x.storage.shape[-1], out.storage.shape[-1], KC_MULTIPLE)
        groups, panels, _, in_channels, _ = packed.shape
        w = aligned_zeros((packed.size,), np.int16)
        self._packing.append(functools.partial(pack_pairs, packed, w))
        _, row_stride, pixel_stride = x.strides
        taps = range(0, 3 * layer.dilation, layer.dilation)
        if groups == layer.dilation == 1:  # the three pixels of a row are contiguous
            kc, tap_offsets = 3 * in_channels, [row_stride * i for i in taps]
        else:
            kc, tap_offsets = in_channels, [row_stride * i + pixel_stride * j for i in taps for j in taps]
        ys, xs = np.arange(out.height), np.arange(out.width)
        self._lower_int16_igemm(
            "conv_s16",
            a=x.storage,
            w=w,
            c=out.storage,
            kc=kc,
            tap_offsets=tap_offsets,
            a_group_offsets=[in_channels * group for group in range(groups)],
            c_group_offsets=[NR * panels * group for group in range(groups)],
            panels=panels,
            a_offsets=x.offsets(ys * layer.stride - layer.dilation, xs * layer.stride - layer.dilation),
            c_offsets=out.offsets(ys, xs),
            mc=MC,
            center_offsets=self._center(layer, x, out, ys, xs)[1],
            **self._epilogue(layer, x, out, output_scale, 0),
        )

    def _lower_integer_winograd(
        self,
        layer: QuantizedConvLayer,
        transform: IntegerWinograd,
        x: ActivationBuffer,
        out: ActivationBuffer,
        output_scale: Optional[float],
    ) -> None:
        ins, outs = x.storage.shape[-1], out.storage.shape[-1]
        packed = pack_conv_weights(shifted_kernel(layer), ins, outs, KC_MULTIPLE)
        groups, panels, _, group_ins, _ = packed.shape
        counts = [len(products) for products in transform.products]
        w = aligned_zeros((transform.num_products * packed.size // 9,), np.int16)
        self._packing.append(functools.partial(pack_integer_winograd_weights, packed, transform, w))
        ys, xs = (np.arange(0, size, transform.m) for size in (out.height, out.width))
        in_offsets = x.offsets(ys * layer.stride - 1, xs * layer.stride - 1)
        out_offsets = out.offsets(ys, xs)
        heights = np.tile(np.repeat(out.height - ys, len(xs)), out.images)
        widths = np.tile(np.tile(out.width - xs, len(ys)), out.images)
        epilogue = self._epilogue(layer, x, out, output_scale, transform.shift)
        center_strides, center_offsets = self._center(layer, x, out, ys, xs)
        tile_bytes = 2 * transform.num_products * ins + 4 * transform.num_elements * outs
        bounds = split_evenly(len(in_offsets), max(MIN_TILES_PER_CHUNK, CHUNK_BYTES // tile_bytes))
        max_tiles = max(stop - start for start, stop in zip(bounds, bounds[1:]))
        v = self._workspace("integer V", transform.num_products * max_tiles * ins, np.int16)
        m = self._workspace("integer M", transform.num_elements * max_tiles * outs, np.int32)
        # Each element of the tiles is a matrix product of its own, or a sum of some, and so is each group.
        starts = [0, *itertools.accumulate(counts)]
        elements = [(element, group) for element in range(transform.num_elements) for group in range(groups)]
        for start, stop in zip(bounds, bounds[1:]):
            tiles = stop - start
            self._plan.emit_call(
                f"input_transform_s16_{transform.name}",
                x=x.storage,
                tile_offsets=int64(in_offsets[start:stop]),
                row_stride=x.strides[1],
                pixel_stride=x.strides[2],
                out=v,
                tiles=tiles,
                channels=ins,
                element_stride=tiles * ins,
            )
            self._lower_int16_igemm(
                "igemm_s16",
                a=v,
                w=w,
                c=m,
                kc=group_ins,
                ks=[counts[element] for element, _ in elements],
                tap_offsets=np.arange(max(counts)) * tiles * ins,
                a_group_offsets=[tiles * ins * starts[element] + group_ins * group for element, group in elements],
                c_group_offsets=[tiles * outs * element + NR * panels * group for element, group in elements],
                panels=panels,
                a_offsets=np.arange(tiles) * ins,
                c_offsets=np.arange(tiles) * outs,
                mc=tiles,
            )
            self._plan.emit_call(
                f"output_transform_s16_{transform.name}",
                x=m,
                element_stride=tiles * outs,
                tiles=tiles,
                channels=outs,
                out=out.storage,
                tile_offsets=int64(out_offsets[start:stop]),
                row_stride=out.strides[1],
                pixel_stride=out.strides[2],
                heights=int64(heights[start:stop]),
                widths=int64(widths[start:stop]),
                center_offsets=int64(center_offsets[start:stop]),
                center_row_stride=center_strides[0],
                center_pixel_stride=center_strides[1],
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
            "center": x.storage if has_identity else self._workspace(f"{outs} zeros", outs, np.int16),
        }

    def _center(
        self, layer: QuantizedConvLayer, x: ActivationBuffer, out: ActivationBuffer, ys: NDArray[Any], xs: NDArray[Any]
    ) -> Tuple[Tuple[int, int], NDArray[Any]]:
        """Return strides and offsets of the input's pixels at the outputs' places; without identity, a zero's."""
        offsets = x.offsets(ys, xs)
        return (x.strides[1:], offsets) if layer.identity is not None else ((0, 0), np.zeros_like(offsets))

    def _lower_int16_igemm(
        self,
        kernel: str,
        *,
        a_offsets: NDArray[Any],
        mc: int,
        ks: Optional[Sequence[int]] = None,
        **arguments: Any,
    ) -> None:
        groups = len(arguments["a_group_offsets"])
        group_ks = np.array([len(arguments["tap_offsets"])] * groups if ks is None else ks)
        sizes = arguments["panels"] * group_ks * arguments["kc"] * NR
        m_tiles, block_tiles = row_tiles(len(a_offsets), mc, self._plan.config.mr)
        names = ("tap_offsets", "a_group_offsets", "c_group_offsets", "c_offsets", "center_offsets")
        tables = {name: int64(arguments.pop(name)) for name in names if name in arguments}
        self._plan.emit_call(
            kernel,
            ks=int64(group_ks),
            groups=groups,
            w_group_offsets=int64(np.cumsum(sizes) - sizes),
            a_offsets=int64(a_offsets),
            m_tiles=int64(m_tiles),
            m_blocks=len(block_tiles) - 1,
            block_tiles=int64(block_tiles),
            **tables,
            **arguments,
        )

"""lower: turn the weights of a network into an execution plan: kernel calls, memory, and packed weights."""

from __future__ import annotations

import functools
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from .._cpu import map_on_all_cores
from .bounds import check_bounds
from .call_args import (
    AnyLayer,
    WinogradTiles,
    direct_args,
    input_transform_args,
    int64,
    output_transform_args,
    product_args,
    round_up,
    row_tiles,
    spatial_args,
    split_tiles,
    winograd_tiles,
)
from .cost_model import DEFAULT_CPU_SPEED, ConvAlgorithm, CpuSpeed, select_conv_algorithm
from .ir import ConvLayer, LinearWeights, NetworkWeights, SEWeights, check_layers, conv_output_size
from .jit.kernels import NR, UNROLLED, MicrokernelConfig
from .jit.winograd import WINOGRAD_TRANSFORMS, WinogradTransform
from .packing import aligned_zeros, pack_conv_weights, pack_linear_weights, pack_winograd_weights
from .plan import ActivationBuffer, ExecutionPlan, LayerCalls

WINOGRAD_CHUNK_BYTES = 1 << 20  # of V and M together, so that they stay in the second-level cache
MIN_TILES_PER_CHUNK = 64  # fewer would stream the weights too often

AlgorithmSelector = Callable[[ConvLayer, ActivationBuffer], ConvAlgorithm]


def lower(
    weights: NetworkWeights,
    shape: Tuple[int, int, int, int],
    *,
    threads: int,
    config: MicrokernelConfig,
    low_memory: bool = False,
    speed: CpuSpeed = DEFAULT_CPU_SPEED,
    select_algorithm: Optional[AlgorithmSelector] = None,
) -> ExecutionPlan:
    """Return the plan for images of ``shape`` (N, C, H, W) on ``threads`` threads.

    With ``low_memory``, no convolution uses Winograd, whose weights take up to four times as much memory.
    ``speed`` is the cost model's. ``select_algorithm`` replaces that model: it is called with each convolution that
    Winograd can compute and with its output, and returns a transform of the convolution's stride, or None. Raise
    StateError if the weights do not fit one another or the images.
    """
    transforms = () if low_memory else WINOGRAD_TRANSFORMS
    by_cost = functools.partial(select_conv_algorithm, threads=threads, transforms=transforms, speed=speed)
    check_layers(weights, shape[1])
    return Lowering(shape, config, threads, select_algorithm or by_cost).lower(weights)


class Gate(NamedTuple):
    """What SE computes for a batch, each (N, channels): the means, the squeezed values, and the factors."""

    mean: NDArray[Any]
    squeezed: NDArray[Any]
    scale: NDArray[Any]


class Lowering:
    """The plan that is being made, and its memory."""

    def __init__(
        self,
        shape: Tuple[int, int, int, int],
        config: MicrokernelConfig,
        threads: int,
        select_algorithm: AlgorithmSelector,
    ) -> None:
        self._images, self._channels, self._height, self._width = shape
        self._threads = threads
        self._select_algorithm = select_algorithm
        self._plan = ExecutionPlan(config, shape)
        self._free_storages: Dict[Any, List[NDArray[Any]]] = {}
        self._workspaces: Dict[str, NDArray[Any]] = {}
        self._border = 1
        # What writes the weights to their memory takes most of the time, so all cores share it in the end.
        self._packing: List[Callable[[], None]] = []

    def lower(self, weights: Any) -> ExecutionPlan:
        """Return the plan for weights that have been checked."""
        self._border = max(layer.dilation for layer in weights.layers)
        outputs = self._plan.outputs
        x = self._lower_input()
        for layer in weights.layers:
            out = self._lower_layer(layer, x)
            if layer.feature is not None:
                outputs[layer.feature] = out.interior
            # An output keeps its storage; any other can be used again by the layer after the next.
            if not any(x.storage.base is output.base for output in outputs.values()):
                self._release(x)
            x = out
        if weights.head is not None:
            logits = self._lower_linear(weights.head, self._lower_global_avg_pool(x), relu=False)
            outputs[""] = logits[:, : len(weights.head.bias)]
        elif not weights.returns_features:
            outputs[""] = self._lower_global_avg_pool(x)[:, : x.channels]
        check_bounds(self._plan)
        pack_weights(self._packing, sum(layer.kernel.nbytes for layer in weights.layers))
        return self._plan

    def _lower_input(self) -> ActivationBuffer:
        x = self._allocate(self._height, self._width, self._channels, multiple=UNROLLED)
        image_stride, row_stride, pixel_stride = x.strides
        self._plan.emit_call(
            "nchw_to_nhwc",
            x=0,
            images=self._images,
            height=self._height,
            width=self._width,
            channels=self._channels,
            out=x.interior,
            image_stride=image_stride,
            row_stride=row_stride,
            pixel_stride=pixel_stride,
        )
        return x

    def _lower_layer(self, layer: ConvLayer, x: ActivationBuffer) -> ActivationBuffer:
        height, width = (conv_output_size(size, layer.stride) for size in (x.height, x.width))
        out, start = self._allocate(height, width, layer.out_channels), len(self._plan.calls)
        self._lower_conv(layer, x, out, relu=layer.se is None or layer.se.after_relu)
        self._end_layer(layer, x, out, start)
        return out

    def _lower_conv(self, layer: ConvLayer, x: ActivationBuffer, out: ActivationBuffer, relu: bool) -> None:
        transform = self._select_algorithm(layer, out) if can_use_winograd(layer, x) else None
        if transform is None:
            self._lower_igemm_conv(layer, x, out, relu)
        else:
            self._lower_winograd_conv(layer, transform, x, out, relu)

    def _end_layer(self, layer: AnyLayer, x: ActivationBuffer, out: ActivationBuffer, start: int) -> None:
        """Lower the SE of a layer whose convolution is lowered, and note its calls."""
        conv_stop = len(self._plan.calls)
        if layer.se is not None:
            self._lower_se(layer.se, out)
        self._plan.layers.append(LayerCalls(x, out, start, conv_stop, len(self._plan.calls)))

    def _lower_igemm_conv(self, layer: ConvLayer, x: ActivationBuffer, out: ActivationBuffer, relu: bool) -> None:
        ins, outs = x.storage.shape[-1], out.storage.shape[-1]
        packed = pack_conv_weights(layer.kernel, ins, outs)
        w, bias = aligned_zeros(packed.shape), self._pack_bias(layer.bias, outs)
        self._packing.append(lambda: np.copyto(w, pack_conv_weights(layer.kernel, ins, outs)))
        self._lower_igemm("igemm", w=w, bias=bias, bias_stride=NR, relu=relu, **direct_args(layer, packed, x, out))

    def _lower_winograd_conv(
        self, layer: ConvLayer, transform: WinogradTransform, x: ActivationBuffer, out: ActivationBuffer, relu: bool
    ) -> None:
        ins, outs = x.storage.shape[-1], out.storage.shape[-1]
        packed = pack_conv_weights(layer.kernel, ins, outs)
        w, bias = aligned_zeros((transform.num_products * packed.size // 9,)), self._pack_bias(layer.bias, outs)
        self._packing.append(lambda: pack_winograd_weights(pack_conv_weights(layer.kernel, ins, outs), transform, w))
        tiles = winograd_tiles(layer, transform, x, out)
        tile_bytes = 4 * (transform.num_products * ins + transform.num_elements * outs)
        chunks, m_blocks = split_tiles(
            len(tiles.inputs), tile_bytes, WINOGRAD_CHUNK_BYTES, MIN_TILES_PER_CHUNK, self._threads
        )
        max_tiles = max(stop - start for start, stop in chunks)
        v = self._workspace("V", transform.num_products * max_tiles * ins)
        m = self._workspace("M", transform.num_elements * max_tiles * outs)
        zeros = self._workspace("zeros", NR)
        for start, stop in chunks:
            chunk = WinogradTiles(*(values[start:stop] for values in tiles))
            self._plan.emit_call(f"input_transform_{transform.name}", **input_transform_args(chunk, x, v))
            products = product_args(transform, packed, v, m, stop - start, m_blocks, ins, outs)
            self._lower_igemm("igemm", w=w, bias=zeros, bias_stride=0, relu=False, **products)
            arguments = output_transform_args(chunk, m, out)
            self._plan.emit_call(f"output_transform_{transform.name}", bias=bias, relu=relu, **arguments)

    def _lower_se(self, se: SEWeights, x: ActivationBuffer) -> Gate:
        mean = self._lower_global_avg_pool(x)
        squeezed = self._lower_linear(se.down, mean, relu=True)
        scale = self._lower_linear(se.up, squeezed, relu=False)
        self._plan.emit_call("sigmoid", x=scale, count=scale.size)
        relu = not se.after_relu
        self._plan.emit_call("channel_scale", x=x.interior, scale=scale, relu=relu, **spatial_args(x))
        return Gate(mean, squeezed, scale)

    def _lower_global_avg_pool(self, x: ActivationBuffer) -> NDArray[Any]:
        """Return the averages, (N, C')."""
        out = aligned_zeros((x.images, x.storage.shape[-1]))
        self._plan.emit_call("global_avg_pool", x=x.interior, out=out, **spatial_args(x))
        return out

    def _lower_linear(self, linear: LinearWeights, x: NDArray[Any], relu: bool) -> NDArray[Any]:
        """Return the outputs (N, O') for inputs (N, I'), both padded to a multiple of NR."""
        ins, outs = x.shape[1], round_up(len(linear.bias), NR)
        out, w = aligned_zeros((len(x), outs)), aligned_zeros((outs // NR, ins, NR))
        self._packing.append(functools.partial(pack_linear_weights, linear.weight, w))
        self._lower_igemm(
            "igemm",
            a=x,
            w=w,
            bias=self._pack_bias(linear.bias, outs),
            bias_stride=NR,
            c=out,
            kc=ins,
            tap_offsets=[0],
            a_group_offsets=[0],
            c_group_offsets=[0],
            panels=outs // NR,
            a_offsets=np.arange(len(x)) * ins,
            c_offsets=np.arange(len(x)) * outs,
            mc=len(x),
            relu=relu,
        )
        return out

    def _pack_bias(self, bias: NDArray[Any], size: int) -> NDArray[Any]:
        packed = aligned_zeros((size,))
        self._packing.append(lambda: np.copyto(packed[: len(bias)], bias))
        return packed

    def _lower_igemm(
        self,
        kernel: str,
        *,
        a_offsets: NDArray[Any],
        mc: int,
        mr: Optional[int] = None,
        ks: Optional[Sequence[int]] = None,
        **arguments: Any,
    ) -> None:
        """Emit a call of an igemm kernel: its rows in blocks of at most ``mc``, and those in tiles of at most ``mr``.

        ``mr`` is that of the configuration by default. ``ks`` is how many taps each group has, by default all of them.
        """
        groups = len(arguments["a_group_offsets"])
        taps = np.array([len(arguments["tap_offsets"])] * groups if ks is None else ks)
        sizes = arguments["panels"] * taps * arguments["kc"] * NR
        m_tiles, block_tiles = row_tiles(len(a_offsets), mc, mr or self._plan.config.mr)
        names = ("tap_offsets", "a_group_offsets", "c_group_offsets", "c_offsets", "center_offsets")
        tables = {name: int64(arguments.pop(name)) for name in names if name in arguments}
        self._plan.emit_call(
            kernel,
            ks=int64(taps),
            groups=groups,
            w_group_offsets=int64(np.cumsum(sizes) - sizes),
            a_offsets=int64(a_offsets),
            m_tiles=int64(m_tiles),
            m_blocks=len(block_tiles) - 1,
            block_tiles=int64(block_tiles),
            **tables,
            **arguments,
        )

    def _allocate(
        self, height: int, width: int, channels: int, multiple: int = NR, dtype: Any = np.float32
    ) -> ActivationBuffer:
        largest = max(transform.m * transform.stride for transform in WINOGRAD_TRANSFORMS)
        sides = (round_up(size, largest) + 2 * self._border for size in (height, width))
        shape = (self._images, *sides, round_up(channels, multiple))
        # Only a storage of the same height and width has zeros where the padding must be.
        free = self._free_storages.get((dtype, shape, height, width))
        storage = free.pop() if free else aligned_zeros(shape, dtype)
        return ActivationBuffer(storage, height, width, channels, self._border)

    def _release(self, x: ActivationBuffer) -> None:
        """Let a later layer use the storage of an activation."""
        key = (x.storage.dtype.type, x.storage.shape, x.height, x.width)
        self._free_storages.setdefault(key, []).append(x.storage)

    def _workspace(self, name: str, size: int, dtype: Any = np.float32) -> NDArray[Any]:
        """Return memory that all layers share: no two of them use it at the same time."""
        if name not in self._workspaces or self._workspaces[name].size < size:
            self._workspaces[name] = aligned_zeros((size,), dtype)
        return self._workspaces[name]


def can_use_winograd(layer: ConvLayer, x: ActivationBuffer) -> bool:
    """Return whether there is a transform for a layer's stride, its dilation, and the channels of its input."""
    has_transform = any(layer.stride == transform.stride for transform in WINOGRAD_TRANSFORMS)
    # The transforms take whole vectors of channels, which images do not have.
    return has_transform and layer.dilation == 1 and x.storage.shape[-1] % NR == 0


def pack_weights(packing: Sequence[Callable[[], None]], nbytes: int) -> None:
    """Call what writes the weights, of so many bytes, to their memory, on all cores."""
    map_on_all_cores(lambda pack: pack(), packing, nbytes)

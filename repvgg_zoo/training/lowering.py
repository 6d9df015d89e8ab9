"""lower_training: the execution plan of a network's forward and backward pass.

The network is in the deploy form: what training changes are its kernels and biases. Gradients take the way back of the
activations, each in a storage of its activation's shape. The data gradient of a convolution is a convolution with the
kernel turned around; where the stride is 2, it is four of them, one for each phase of the input's rows and columns.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from ..inference.bounds import check_bounds
from ..inference.cost_model import CpuSpeed, conv_seconds, select_conv_algorithm
from ..inference.ir import ConvLayer, NetworkWeights
from ..inference.jit.kernels import NR, MicrokernelConfig
from ..inference.jit.winograd import WINOGRAD_TRANSFORMS, WinogradTransform
from ..inference.lowering import (
    MC,
    WINOGRAD_CHUNK_BYTES,
    Gate,
    Lowering,
    WinogradTiles,
    can_use_winograd,
    ceil_div,
    direct_args,
    input_transform_args,
    int64,
    spatial_args,
    split_evenly,
    winograd_tiles,
)
from ..inference.packing import aligned_zeros, pack_conv_weights
from ..inference.plan import ActivationBuffer, ExecutionPlan

# Others lose more digits than training should: their weights and transforms have entries from 1/24 to 8.
TRANSFORMS = tuple(transform for transform in WINOGRAD_TRANSFORMS if transform.m == 2)
CHUNK_BYTES = 1 << 21  # of what a chunk of tiles takes; smaller ones read and write the sums more often
MIN_TILES_PER_CHUNK = 64
MIN_ROWS_PER_CHUNK = 256  # with fewer, reading and writing the sums takes longer than adding to them


class LayerGradient(NamedTuple):
    """The gradient of a layer: of its kernel, (9, groups, I, O) and padded, and sums (rows, O) of that of its bias."""

    kernel: NDArray[Any]
    bias_sums: NDArray[Any]


class GateGradient(NamedTuple):
    """What stands between two parts of the backward pass of a layer with SE.

    ``sums`` (N * height, O) are what the first part computes, ``scale`` and ``shift`` (N, O) what the second one needs.
    """

    gate: Gate
    sums: NDArray[Any]
    shift: NDArray[Any]
    area: int


@dataclass(eq=False)
class TrainingPlan:
    """Both passes: calls up to ``forward_stop``, then those up to each of ``stops``.

    ``packing`` writes the layers' weights to their memory, which must be called before the first run and after each
    change. ``features`` (N, C) are the result of the forward pass, ``top`` is the gradient of the last activation, with
    which the backward pass begins. ``gates`` has for each of ``stops`` the layer whose SE comes then, and its values;
    for the last one there is none.
    """

    plan: ExecutionPlan
    packing: List[Callable[[], None]]
    features: NDArray[Any]
    top: ActivationBuffer
    forward_stop: int
    stops: List[int] = field(default_factory=list)
    gates: List[Tuple[int, GateGradient]] = field(default_factory=list)
    gradients: Dict[int, LayerGradient] = field(default_factory=dict)


def lower_training(
    weights: NetworkWeights,
    shape: Tuple[int, int, int, int],
    *,
    frozen: int,
    threads: int,
    config: MicrokernelConfig,
    speed: CpuSpeed,
) -> TrainingPlan:
    """Return the plan for images of ``shape`` (N, C, H, W), without gradients of the first ``frozen`` layers.

    ``config`` must have the kernels of the backward pass. The plan reads the weights from these very arrays.
    """
    return _TrainingLowering(shape, config, threads, speed).lower_both(weights.layers, frozen)


class _TrainingLowering(Lowering):
    """The plan that is being made, which keeps all activations that the backward pass needs."""

    def __init__(
        self,
        shape: Tuple[int, int, int, int],
        config: MicrokernelConfig,
        threads: int,
        speed: CpuSpeed,
    ) -> None:
        select = functools.partial(select_conv_algorithm, threads=threads, transforms=TRANSFORMS, speed=speed)
        super().__init__(shape, config, select)
        self._seconds = functools.partial(conv_seconds, threads=threads, speed=speed)
        self._gates: Dict[int, Gate] = {}

    def lower_both(self, layers: Sequence[ConvLayer], frozen: int) -> TrainingPlan:
        self._border = max(layer.dilation for layer in layers)
        activations = [self._lower_input()]
        for index, layer in enumerate(layers):
            activations.append(self._lower_layer(layer, activations[-1]))
            if index < frozen:
                self._release(activations[-2])
        last = activations[-1]
        features = self._lower_global_avg_pool(last)
        self._plan.outputs[""] = features[:, : last.channels]
        top = self._allocate(last.height, last.width, last.channels)
        forward_stop = len(self._plan.calls)
        result = TrainingPlan(self._plan, self._packing, self._plan.outputs[""], top, forward_stop)
        gradient = top
        for index in reversed(range(frozen, len(layers))):
            x, out = activations[index : index + 2]
            result.gradients[index] = self._lower_layer_gradient(result, index, layers[index], x, out, gradient)
            if index > frozen:
                below = self._allocate(x.height, x.width, x.channels)
                self._lower_data_gradient(layers[index], gradient, below)
                self._release(gradient)
                gradient = below
        result.stops.append(len(self._plan.calls))
        check_bounds(self._plan)
        return result

    def _lower_se(self, se: Any, x: ActivationBuffer) -> Gate:
        self._gates[id(x)] = gate = super()._lower_se(se, x)
        return gate

    def _lower_layer_gradient(
        self,
        result: TrainingPlan,
        index: int,
        layer: ConvLayer,
        x: ActivationBuffer,
        out: ActivationBuffer,
        gradient: ActivationBuffer,
    ) -> LayerGradient:
        """Lower all but the data gradient; ``gradient`` becomes that of the convolution's output."""
        channels = out.storage.shape[-1]
        sums = aligned_zeros((out.images * out.height, channels))
        maps = {"y": out.interior, "gradient": gradient.interior, **spatial_args(out)}
        if layer.se is None:
            scale, shift, image_step = np.ones(channels, np.float32), aligned_zeros((channels,)), 0
        else:
            gate, shift = self._gates[id(out)], aligned_zeros((out.images, channels))
            scale, image_step = gate.scale, channels
            gate_sums = aligned_zeros(sums.shape)
            self._plan.emit_call("gate_gradient", sums=gate_sums, **maps)
            result.stops.append(len(self._plan.calls))
            result.gates.append((index, GateGradient(gate, gate_sums, shift, out.height * out.width)))
        after_relu = layer.se is not None and layer.se.after_relu
        self._plan.emit_call(
            "relu_gradient", scale=scale, shift=shift, image_step=image_step, after_relu=after_relu, sums=sums, **maps
        )
        return LayerGradient(self._lower_weight_gradient(layer, x, gradient), sums)

    # The weight gradient -----------------------------------------------------------------------------------------

    def _lower_weight_gradient(self, layer: ConvLayer, x: ActivationBuffer, gradient: ActivationBuffer) -> NDArray[Any]:
        """Return the memory of the kernel's gradient, (9, groups, I, O)."""
        packed = pack_conv_weights(layer.kernel, x.storage.shape[-1], gradient.storage.shape[-1])
        groups, panels, _, ins, _ = packed.shape
        out = aligned_zeros((9, groups, ins, panels * NR))
        transform = self._select_weight_gradient(layer, x, gradient)
        if transform is None:
            self._lower_direct_weight_gradient(direct_args(layer, packed, x, gradient), out)
        else:
            self._lower_winograd_weight_gradient(layer, transform, x, gradient, out)
        return out

    def _select_weight_gradient(
        self, layer: ConvLayer, x: ActivationBuffer, gradient: ActivationBuffer
    ) -> Optional[WinogradTransform]:
        if not can_use_winograd(layer, x):
            return None
        choices = [None, *(transform for transform in TRANSFORMS if transform.stride == layer.stride)]
        return min(choices, key=lambda transform: self._seconds(layer, gradient, transform))

    def _lower_direct_weight_gradient(self, conv: Dict[str, Any], out: NDArray[Any]) -> None:
        """Sum the outer products of pixels; ``conv`` are the arguments of the convolution."""
        groups = len(conv["a_group_offsets"])
        rows = len(conv["a_offsets"])
        taps = np.repeat(int64(conv["tap_offsets"]), groups)
        x_bytes = 4 * conv["a"].size // rows
        bounds = split_evenly(rows, max(MIN_ROWS_PER_CHUNK, WINOGRAD_CHUNK_BYTES // (2 * x_bytes)))
        for start, stop in zip(bounds, bounds[1:]):
            self._emit_weight_gradient(
                x=conv["a"],
                x_offsets=conv["a_offsets"][start:stop],
                x_group_offsets=taps + np.tile(int64(conv["a_group_offsets"]), len(conv["tap_offsets"])),
                gradient=conv["c"],
                gradient_offsets=conv["c_offsets"][start:stop],
                gradient_group_offsets=np.tile(int64(conv["c_group_offsets"]), len(conv["tap_offsets"])),
                kc=conv["kc"],
                panels=conv["panels"],
                out=out,
                accumulate=start > 0,
            )

    def _lower_winograd_weight_gradient(
        self,
        layer: ConvLayer,
        transform: WinogradTransform,
        x: ActivationBuffer,
        gradient: ActivationBuffer,
        out: NDArray[Any],
    ) -> None:
        """Sum G^T [(B^T x B) (A y A^T)] G over tiles, where y is the gradient: what the chain rule makes of F(m, 3)."""
        _, groups, ins, outs = out.shape
        all_ins, all_outs = groups * ins, groups * outs
        tiles = winograd_tiles(layer, transform, x, gradient)
        tile_bytes = 4 * (transform.num_products * all_ins + transform.num_elements * all_outs)
        bounds = split_evenly(len(tiles.inputs), max(MIN_TILES_PER_CHUNK, CHUNK_BYTES // tile_bytes))
        chunks = list(zip(bounds, bounds[1:]))
        most = max(stop - start for start, stop in chunks)
        v = self._workspace("V", transform.num_products * most * all_ins)
        m = self._workspace("M", transform.num_elements * most * all_outs)
        u = self._workspace("U", transform.num_products * groups * ins * outs)
        elements = np.repeat(np.arange(transform.num_elements), [len(each) for each in transform.products])
        for start, stop in chunks:
            chunk, count = WinogradTiles(*(values[start:stop] for values in tiles)), stop - start
            self._plan.emit_call(f"input_transform_{transform.name}", **input_transform_args(chunk, x, v))
            self._plan.emit_call(
                f"gradient_transform_{transform.name}",
                x=gradient.storage,
                tile_offsets=int64(chunk.outputs),
                row_stride=gradient.strides[1],
                pixel_stride=gradient.strides[2],
                out=m,
                tiles=count,
                channels=all_outs,
                element_stride=count * all_outs,
            )
            group = np.arange(groups)
            self._emit_weight_gradient(
                x=v,
                x_offsets=np.arange(count) * all_ins,
                x_group_offsets=np.add.outer(np.arange(transform.num_products) * count * all_ins, group * ins),
                gradient=m,
                gradient_offsets=np.arange(count) * all_outs,
                gradient_group_offsets=np.add.outer(elements * count * all_outs, group * outs),
                kc=ins,
                panels=outs // NR,
                out=u,
                accumulate=start > 0,
            )
        self._plan.emit_call(f"kernel_transform_{transform.name}", x=u, out=out, count=out[0].size)

    def _emit_weight_gradient(self, **arguments: Any) -> None:
        for name in ("x_offsets", "x_group_offsets", "gradient_offsets", "gradient_group_offsets"):
            arguments[name] = int64(arguments[name]).reshape(-1)
        rows, groups = len(arguments["x_offsets"]), len(arguments["x_group_offsets"])
        self._plan.emit_call("weight_gradient", rows=rows, groups=groups, **arguments)

    # The data gradient -------------------------------------------------------------------------------------------

    def _lower_data_gradient(self, layer: ConvLayer, gradient: ActivationBuffer, out: ActivationBuffer) -> None:
        swapped = layer.kernel.swapaxes(1, 2)
        if layer.stride == 1:
            no_bias = np.zeros(layer.in_channels, np.float32)
            turned = ConvLayer(swapped[..., ::-1, ::-1], no_bias, stride=1, dilation=layer.dilation)
            self._lower_conv(turned, gradient, out, relu=False)
            return
        for row in range(min(2, out.height)):
            for column in range(min(2, out.width)):
                self._lower_phase(swapped, gradient, out, row, column)

    def _lower_phase(
        self, kernel: NDArray[Any], gradient: ActivationBuffer, out: ActivationBuffer, row: int, column: int
    ) -> None:
        """Lower the data gradient of stride 2 for every other row and column of the input, from these on."""
        taps = [(i, j, di, dj) for i, di in _PHASES[row] for j, dj in _PHASES[column]]
        selected = [3 * i + j for i, j, _, _ in taps]
        ins, outs = gradient.storage.shape[-1], out.storage.shape[-1]
        groups, panels, _, group_ins, _ = pack_conv_weights(kernel, ins, outs).shape
        w = aligned_zeros((groups, panels, len(taps), group_ins, NR))
        self._packing.append(lambda: np.copyto(w, pack_conv_weights(kernel, ins, outs)[:, :, selected]))
        ys, xs = np.arange(ceil_div(out.height - row, 2)), np.arange(ceil_div(out.width - column, 2))
        _, row_stride, pixel_stride = gradient.strides
        self._lower_igemm(
            "igemm",
            a=gradient.storage,
            w=w,
            bias=self._workspace("zeros", NR),
            bias_stride=0,
            c=out.storage,
            kc=group_ins,
            tap_offsets=[row_stride * di + pixel_stride * dj for _, _, di, dj in taps],
            a_group_offsets=[group_ins * group for group in range(groups)],
            c_group_offsets=[NR * panels * group for group in range(groups)],
            panels=panels,
            a_offsets=gradient.offsets(ys, xs),
            c_offsets=out.offsets(2 * ys + row, 2 * xs + column),
            mc=MC,
            relu=False,
        )


# Which rows of the kernel a row of the input was multiplied with, and the output's row relative to half of it.
_PHASES = (((1, 0),), ((2, 0), (0, 1)))

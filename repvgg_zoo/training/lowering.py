"""TrainingLowering: the execution plan of a network's forward and backward pass.

The network is in the deploy form: what training changes are its kernels and biases. Gradients take the way back of the
activations, each in a storage of its activation's shape. The data gradient of a convolution is a convolution with the
kernel turned around; where the stride is 2, it is four of them, one for each phase of the input's rows and columns.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from ..inference.bounds import check_bounds
from ..inference.call_args import (
    MC,
    WinogradTiles,
    ceil_div,
    direct_args,
    input_transform_args,
    int64,
    spatial_args,
    split_evenly,
    winograd_tiles,
)
from ..inference.cost_model import CpuSpeed, conv_seconds, select_conv_algorithm
from ..inference.ir import ConvLayer, LinearWeights, SEWeights
from ..inference.jit.kernels import NR, MicrokernelConfig
from ..inference.jit.winograd import WINOGRAD_TRANSFORMS, WinogradTransform
from ..inference.lowering import WINOGRAD_CHUNK_BYTES, Gate, Lowering, can_use_winograd
from ..inference.packing import aligned_zeros, pack_conv_weights
from ..inference.plan import ActivationBuffer, ExecutionPlan

# Others lose more digits than training should: their weights and transforms have entries from 1/24 to 8.
TRANSFORMS = tuple(transform for transform in WINOGRAD_TRANSFORMS if transform.m == 2)
CHUNK_BYTES = 1 << 21  # of what a chunk of tiles takes; smaller ones read and write the sums more often
MIN_TILES_PER_CHUNK = 64
MIN_ROWS_PER_CHUNK = 256  # with fewer, reading and writing the sums takes longer than adding to them


class Norm(NamedTuple):
    """A BN layer that uses the statistics of the batch: gamma and beta (O,), and eps."""

    gamma: NDArray[Any]
    beta: NDArray[Any]
    eps: float


@dataclass(frozen=True, eq=False)
class TrainingLayer:
    """A block: one convolution; or, with ``norms``, its branches.

    Then ``conv`` is the 3x3 branch without a bias, ``point`` (groups, O, I) the kernel of the 1x1 branch, and ``norms``
    has the BN layers by name.
    """

    conv: ConvLayer
    point: Optional[NDArray[Any]] = None
    norms: Mapping[str, Norm] = MappingProxyType({})


@dataclass(eq=False)
class LayerGradient:
    """The memory of a layer's gradients: kernels (taps, groups, I, O), padded, and sums (rows, O) of that of the bias.

    ``norms`` are those of gamma and beta, once the backward pass has computed them.
    """

    kernel: NDArray[Any]
    bias_sums: NDArray[Any]
    point: Optional[NDArray[Any]] = None
    norms: Dict[str, Tuple[NDArray[Any], NDArray[Any]]] = field(default_factory=dict)
    se: Optional[SEWeights] = None


class Step(NamedTuple):
    """Calls of a plan up to ``stop``, and what NumPy computes after them."""

    stop: int
    then: Callable[[], None]


@dataclass(eq=False)
class TrainingPlan:
    """Both passes: the steps of the forward pass, then those of the backward pass, which begins after the last call.

    ``packing`` writes the layers' weights to their memory, which must be called before the first run and after each
    change. ``features`` (N, C) are the result of the forward pass, ``top`` is the gradient of the last activation, with
    which the backward pass begins. ``statistics`` are mean and variance of the batch by layer and BN layer, and how
    many numbers they are of.
    """

    plan: ExecutionPlan
    packing: List[Callable[[], None]]
    features: NDArray[Any]
    top: ActivationBuffer
    forward: List[Step]
    backward: List[Step] = field(default_factory=list)
    gradients: Dict[int, LayerGradient] = field(default_factory=dict)
    statistics: Dict[Tuple[int, str], Tuple[NDArray[Any], NDArray[Any], int]] = field(default_factory=dict)


def done() -> None:
    """Compute nothing after the last calls of a pass."""


class TrainingLowering(Lowering):
    """The plan of both passes for images of ``shape`` (N, C, H, W), without gradients of the first ``frozen`` layers.

    ``config`` must have the kernels of the backward pass. The plan reads the weights from the layers' own arrays.
    """

    def __init__(
        self, shape: Tuple[int, int, int, int], config: MicrokernelConfig, *, threads: int, speed: CpuSpeed
    ) -> None:
        select = functools.partial(select_conv_algorithm, threads=threads, transforms=TRANSFORMS, speed=speed)
        super().__init__(shape, config, threads, select)
        self._seconds = functools.partial(conv_seconds, threads=threads, speed=speed)
        self._gates: Dict[int, Gate] = {}
        self._steps: List[Step] = []
        self._statistics: Dict[Tuple[int, str], Tuple[NDArray[Any], NDArray[Any], int]] = {}

    def lower_both(self, layers: Sequence[TrainingLayer], frozen: int) -> TrainingPlan:
        """Return the plan."""
        self._border = max(layer.conv.dilation for layer in layers)
        activations = [self._lower_input()]
        for index, layer in enumerate(layers):
            activations.append(self._lower_forward(index, layer, activations[-1]))
            if index < frozen:
                self._release(activations[-2])
        last = activations[-1]
        features = self._lower_global_avg_pool(last)[:, : last.channels]
        self._plan.outputs[""] = features
        self._end_step(done)
        forward, self._steps = self._steps, []
        gradient = top = self._allocate(last.height, last.width, last.channels)
        gradients = {}
        for index in reversed(range(frozen, len(layers))):
            x, out = activations[index : index + 2]
            gradients[index] = self._lower_activation_gradient(layers[index].conv, out, gradient)
            below = self._lower_backward(index, layers[index], x, gradient, gradients[index], with_data=index > frozen)
            self._release(gradient)
            gradient = below or gradient
        self._end_step(done)
        check_bounds(self._plan)
        return TrainingPlan(self._plan, self._packing, features, top, forward, self._steps, gradients, self._statistics)

    def _lower_forward(self, index: int, layer: TrainingLayer, x: ActivationBuffer) -> ActivationBuffer:
        return self._lower_layer(layer.conv, x)

    def _lower_backward(
        self,
        index: int,
        layer: TrainingLayer,
        x: ActivationBuffer,
        gradient: ActivationBuffer,
        result: LayerGradient,
        with_data: bool,
    ) -> Optional[ActivationBuffer]:
        """Lower what comes before the activation, and return the gradient of x if it is asked for."""
        result.kernel = self._lower_weight_gradient(layer.conv, x, gradient)
        if not with_data:
            return None
        below = self._allocate(x.height, x.width, x.channels)
        self._lower_data_gradient(layer.conv, gradient, below)
        return below

    def _end_step(self, then: Callable[[], None]) -> None:
        self._steps.append(Step(len(self._plan.calls), then))

    def _lower_se(self, se: SEWeights, x: ActivationBuffer) -> Gate:
        self._gates[id(x)] = gate = super()._lower_se(se, x)
        return gate

    def _lower_activation_gradient(
        self, layer: ConvLayer, out: ActivationBuffer, gradient: ActivationBuffer
    ) -> LayerGradient:
        """Lower the gradient of SE and of ReLU, in place."""
        channels = out.storage.shape[-1]
        result = LayerGradient(aligned_zeros((0,)), aligned_zeros((out.images * out.height, channels)))
        maps = {"y": out.interior, "gradient": gradient.interior, **spatial_args(out)}
        if layer.se is None:
            scale, shift, image_step = np.ones(channels, np.float32), aligned_zeros((channels,)), 0
        else:
            gate, shift = self._gates[id(out)], aligned_zeros((out.images, channels))
            scale, image_step = gate.scale, channels
            sums = aligned_zeros(result.bias_sums.shape)
            self._plan.emit_call("gate_gradient", sums=sums, **maps)
            area = out.height * out.width
            self._end_step(functools.partial(_set_gate_gradient, layer.se, gate, sums, shift, area, result))
        after_relu = layer.se is not None and layer.se.after_relu
        self._plan.emit_call(
            "relu_gradient",
            scale=scale,
            shift=shift,
            image_step=image_step,
            after_relu=after_relu,
            sums=result.bias_sums,
            **maps,
        )
        return result

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
                taps = [(3 * i + j, di, dj) for i, di in _PHASES[row] for j, dj in _PHASES[column]]
                ys, xs = np.arange(ceil_div(out.height - row, 2)), np.arange(ceil_div(out.width - column, 2))
                pixels = gradient.offsets(ys, xs), out.offsets(2 * ys + row, 2 * xs + column)
                self._lower_taps(swapped, taps, gradient, out, *pixels)

    def _lower_taps(
        self,
        kernel: NDArray[Any],
        taps: Sequence[Tuple[int, int, int]],
        x: ActivationBuffer,
        out: ActivationBuffer,
        x_offsets: NDArray[Any],
        out_offsets: NDArray[Any],
    ) -> None:
        """Lower the sum of some taps of a 3x3 kernel, each a number, a row and a column, for these pixels."""
        selected = [tap for tap, _, _ in taps]
        ins, outs = x.storage.shape[-1], out.storage.shape[-1]
        groups, panels, _, group_ins, _ = pack_conv_weights(kernel, ins, outs).shape
        w = aligned_zeros((groups, panels, len(taps), group_ins, NR))
        self._packing.append(lambda: np.copyto(w, pack_conv_weights(kernel, ins, outs)[:, :, selected]))
        _, row_stride, pixel_stride = x.strides
        self._lower_igemm(
            "igemm",
            a=x.storage,
            w=w,
            bias=self._workspace("zeros", NR),
            bias_stride=0,
            c=out.storage,
            kc=group_ins,
            tap_offsets=[row_stride * i + pixel_stride * j for _, i, j in taps],
            a_group_offsets=[group_ins * group for group in range(groups)],
            c_group_offsets=[NR * panels * group for group in range(groups)],
            panels=panels,
            a_offsets=x_offsets,
            c_offsets=out_offsets,
            mc=MC,
            relu=False,
        )


# Which rows of the kernel a row of the input was multiplied with, and the output's row relative to half of it.
_PHASES = (((1, 0),), ((2, 0), (0, 1)))


def _set_gate_gradient(
    se: SEWeights, gate: Gate, sums: NDArray[Any], shift: NDArray[Any], area: int, result: LayerGradient
) -> None:
    """Compute the gradients of SE's weights, and the shift with which the backward pass goes on.

    The factors are sigmoids s, whose derivative is s (1 - s). What they scale need not be known: times s it is y.
    """
    (channels, width) = se.up.weight.shape
    mean, squeezed, scale = (array.astype(np.float64) for array in gate)
    mean, squeezed, scale = mean[:, :channels], squeezed[:, :width], scale[:, :channels]
    products = sums.reshape(len(mean), -1, sums.shape[-1]).sum(axis=1, dtype=np.float64)[:, :channels]
    up = products * (1 - scale)
    down = (up @ se.up.weight) * (squeezed > 0)
    shift[:, :channels] = (down @ se.down.weight) / area
    result.se = SEWeights(
        LinearWeights(down.T @ mean, down.sum(axis=0)), LinearWeights(up.T @ squeezed, up.sum(axis=0)), se.after_relu
    )

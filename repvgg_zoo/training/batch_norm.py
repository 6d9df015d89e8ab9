"""BatchNormLowering: the plan of both passes for blocks whose BN layers use the statistics of the batch.

The branches are computed one by one, and summed with the factors that their BN layers amount to for this batch. Between
the kernels, NumPy computes statistics and factors of the channels, in float64.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Dict, List, Optional

import numpy as np
from numpy.typing import NDArray

from ..inference.call_args import spatial_args
from ..inference.ir import conv_output_size
from ..inference.jit.kernels import NR
from ..inference.packing import aligned_zeros, pack_conv_weights
from ..inference.plan import ActivationBuffer
from .lowering import LayerGradient, Norm, TrainingLayer, TrainingLowering

CENTER = 4  # the number of the tap of a 3x3 kernel that a 1x1 kernel is


@dataclass(eq=False)
class _Branch:
    """A branch: its output before BN, sums of its rows, and factors of the channels.

    Forward, it adds scale * y to the block. Its own gradient is scale * gradient + of_y * y + shift.
    """

    norm: Norm
    y: ActivationBuffer
    sums: NDArray[Any]
    squares: NDArray[Any]
    scale: NDArray[Any]
    of_y: NDArray[Any]
    shift: NDArray[Any]
    mean: NDArray[Any]
    std: NDArray[Any]


class BatchNormLowering(TrainingLowering):
    """Lowers layers with ``norms``, and others as its base class does."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._branches: Dict[int, Dict[str, _Branch]] = {}

    def _lower_forward(self, index: int, layer: TrainingLayer, x: ActivationBuffer) -> ActivationBuffer:
        if layer.point is None:
            return super()._lower_forward(index, layer, x)
        conv, start = layer.conv, len(self._plan.calls)
        height, width = (conv_output_size(size, conv.stride) for size in (x.height, x.width))
        out, dense, point = (self._allocate(height, width, conv.out_channels) for _ in range(3))
        self._lower_conv(conv, x, dense, relu=False)
        pixels = _pixels(x, conv.stride, point), _pixels(point, 1, point)
        self._lower_taps(_as_3x3(layer.point), [(CENTER, 0, 0)], x, point, *pixels)
        outputs = {"rbr_dense.bn": dense, "rbr_1x1.bn": point, "rbr_identity": x}
        branches = {name: self._branch(norm, outputs[name]) for name, norm in layer.norms.items()}
        for branch in branches.values():
            self._plan.emit_call(
                "row_moments",
                x=branch.y.interior,
                sums=branch.sums,
                squares=branch.squares,
                **spatial_args(branch.y),
            )
        shift = aligned_zeros((out.storage.shape[-1],))
        self._end_step(functools.partial(self._set_statistics, index, branches, shift))
        relu = conv.se is None or conv.se.after_relu
        terms = {branch.y: branch.scale for branch in branches.values()}
        self._lower_affine_sum(out, list(terms), list(terms.values()), shift, relu)
        self._branches[index] = branches
        self._end_layer(conv, x, out, start)
        return out

    def _lower_backward(
        self,
        index: int,
        layer: TrainingLayer,
        x: ActivationBuffer,
        gradient: ActivationBuffer,
        result: LayerGradient,
        with_data: bool,
    ) -> Optional[ActivationBuffer]:
        if layer.point is None:
            return super()._lower_backward(index, layer, x, gradient, result, with_data)
        branches = self._branches[index]
        for branch in branches.values():
            self._plan.emit_call(
                "gate_gradient",
                y=branch.y.interior,
                gradient=gradient.interior,
                sums=branch.sums,
                **spatial_args(branch.y),
            )
        self._end_step(functools.partial(_set_gradients, branches, gradient, result))
        dense, point = branches["rbr_dense.bn"], branches["rbr_1x1.bn"]
        for branch in (dense, point):
            factors = [branch.scale, branch.of_y]
            self._lower_affine_sum(branch.y, [gradient, branch.y], factors, branch.shift, relu=False)
        result.kernel = self._lower_weight_gradient(layer.conv, x, dense.y)
        result.point = self._lower_point_weight_gradient(layer, x, point.y)
        below = self._lower_branch_data(layer, branches, x, gradient) if with_data else None
        self._release(dense.y)
        self._release(point.y)
        return below

    def _lower_branch_data(
        self, layer: TrainingLayer, branches: Dict[str, _Branch], x: ActivationBuffer, gradient: ActivationBuffer
    ) -> ActivationBuffer:
        """Lower the gradient of x: the sum of those of all branches."""
        assert layer.point is not None
        below, stride = self._allocate(x.height, x.width, x.channels), layer.conv.stride
        self._lower_data_gradient(layer.conv, branches["rbr_dense.bn"].y, below)
        # With a stride, most pixels are never written to, and must stay zeros.
        storage = (
            self._allocate(x.height, x.width, x.channels).storage if stride == 1 else aligned_zeros(below.storage.shape)
        )
        of_point, y = ActivationBuffer(storage, x.height, x.width, x.channels, x.border), branches["rbr_1x1.bn"].y
        pixels = _pixels(y, 1, y), _pixels(of_point, stride, y)
        self._lower_taps(_as_3x3(layer.point.swapaxes(1, 2)), [(CENTER, 0, 0)], y, of_point, *pixels)
        one, zero = np.ones(below.storage.shape[-1], np.float32), aligned_zeros((below.storage.shape[-1],))
        inputs, factors, shift = [below, of_point], [one, one], zero
        if "rbr_identity" in branches:
            identity = branches["rbr_identity"]
            inputs, factors, shift = [*inputs, gradient, x], [*factors, identity.scale, identity.of_y], identity.shift
        self._lower_affine_sum(below, inputs, factors, shift, relu=False)
        if stride == 1:
            self._release(of_point)
        return below

    def _lower_point_weight_gradient(
        self, layer: TrainingLayer, x: ActivationBuffer, gradient: ActivationBuffer
    ) -> NDArray[Any]:
        assert layer.point is not None
        packed = pack_conv_weights(_as_3x3(layer.point), x.storage.shape[-1], gradient.storage.shape[-1])
        groups, panels, _, ins, _ = packed.shape
        out = aligned_zeros((1, groups, ins, panels * NR))
        conv = {
            "a": x.storage,
            "c": gradient.storage,
            "kc": ins,
            "tap_offsets": [0],
            "a_group_offsets": [ins * group for group in range(groups)],
            "c_group_offsets": [NR * panels * group for group in range(groups)],
            "panels": panels,
            "a_offsets": _pixels(x, layer.conv.stride, gradient),
            "c_offsets": _pixels(gradient, 1, gradient),
        }
        self._lower_direct_weight_gradient(conv, out)
        return out

    def _lower_affine_sum(
        self,
        out: ActivationBuffer,
        inputs: List[ActivationBuffer],
        factors: List[NDArray[Any]],
        shift: NDArray[Any],
        relu: bool,
    ) -> None:
        missing = 4 - len(inputs)
        inputs, factors = inputs + [inputs[0]] * missing, factors + [aligned_zeros(shift.shape)] * missing
        arguments = {f"x{number}": each.interior for number, each in enumerate(inputs)}
        arguments.update({f"c{number}": each for number, each in enumerate(factors)})
        self._plan.emit_call("affine_sum", out=out.interior, shift=shift, relu=relu, **arguments, **spatial_args(out))

    def _branch(self, norm: Norm, y: ActivationBuffer) -> _Branch:
        channels = y.storage.shape[-1]
        sums, squares = (aligned_zeros((y.images * y.height, channels)) for _ in range(2))
        scale, of_y, shift = (aligned_zeros((channels,)) for _ in range(3))
        return _Branch(norm, y, sums, squares, scale, of_y, shift, mean=np.zeros(0), std=np.ones(0))

    def _set_statistics(self, index: int, branches: Dict[str, _Branch], shift: NDArray[Any]) -> None:
        """Compute the statistics of the batch, whose sums are relative to the first pixel, and the factors."""
        shift[...] = 0
        for name, branch in branches.items():
            y, size = branch.y, branch.y.channels
            count = y.images * y.height * y.width
            distance, square = (
                rows[:, :size].sum(axis=0, dtype=np.float64) / count for rows in (branch.sums, branch.squares)
            )
            mean, var = y.interior[0, 0, 0] + distance, np.maximum(square - distance**2, 0)
            branch.mean, branch.std = mean, np.sqrt(var + branch.norm.eps)
            scale = branch.norm.gamma / branch.std
            branch.scale[:size] = scale
            shift[:size] += branch.norm.beta - mean * scale
            self._statistics[index, name] = mean, var, count


def _set_gradients(branches: Dict[str, _Branch], gradient: ActivationBuffer, result: LayerGradient) -> None:
    """Compute the gradients of BN's parameters, and the factors of those of the branches' outputs."""
    size = gradient.channels
    count = gradient.images * gradient.height * gradient.width
    beta = result.bias_sums[:, :size].sum(axis=0, dtype=np.float64)
    for name, branch in branches.items():
        gamma = (branch.sums[:, :size].sum(axis=0, dtype=np.float64) - branch.mean * beta) / branch.std
        scale = branch.norm.gamma / branch.std
        of_y = -scale * gamma / (count * branch.std)
        branch.of_y[:size] = of_y
        branch.shift[:size] = -scale * beta / count - of_y * branch.mean
        result.norms[name] = gamma, beta


def _as_3x3(point: NDArray[Any]) -> NDArray[Any]:
    """Return a view of 1x1 kernels (groups, O, I) as 3x3 kernels, of which only the center counts."""
    return np.broadcast_to(point[..., None, None], (*point.shape, 3, 3))


def _pixels(buffer: ActivationBuffer, stride: int, like: ActivationBuffer) -> NDArray[Any]:
    """Return the offsets of as many pixels as another activation has, this far apart."""
    return buffer.offsets(np.arange(like.height) * stride, np.arange(like.width) * stride)

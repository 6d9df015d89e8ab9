"""A deploy network rewritten in MegEngine's NCHW88 layout, by hand: each convolution in the form that is fastest.

MegEngine's own pass turns any network into NCHW88 and serves every convolution that is not dense and of stride 1 with
oneDNN, which it runs on one thread. Here, in addition:

- a grouped convolution becomes one dense convolution for each group, which winograd can run, on all threads;
- the last convolution, of 7x7 results, becomes nine strided slices and a 1x1 convolution, which oneDNN runs at 80
  instead of 50 GFLOP/s a core;
- SE works on the blocked layout, so that nothing is laid out anew.

Activations are (N, C / 8, H, W, 8); the picture is (N, C, H, W) with fewer than 8 channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, List, Optional, Sequence, Tuple

import megengine.functional as F
import megengine.module as M
import numpy as np
from megengine import Parameter, Tensor
from megengine.core._imperative_rt.core2 import apply
from megengine.core.ops import builtin
from numpy.typing import NDArray

from ..models import RepVGG, RepVGGBlock
from .algorithms import Convolution

LANES = 8
SMALL = 8  # pixels a side: from here on down the 1x1 form is faster, because oneDNN blocks a 3x3 one over a row


@dataclass(frozen=True)
class Block:
    """The numbers of a deploy block: kernel (O, I, 3, 3) or (groups, O / groups, I / groups, 3, 3), bias (O,), and
    SE's two matrices and biases where the block has SE before its ReLU."""

    kernel: NDArray[Any]
    bias: NDArray[Any]
    stride: int
    gate: Optional[Tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]] = None

    @property
    def groups(self) -> int:
        return len(self.kernel) if self.kernel.ndim == 5 else 1

    @property
    def in_channels(self) -> int:
        return int(self.kernel.shape[-3]) * self.groups

    @property
    def out_channels(self) -> int:
        return len(self.bias)

    def channels(self, start: int, stop: int) -> Block:
        """A dense block without SE that computes output channels ``start`` to ``stop`` only."""
        assert self.groups == 1
        assert self.gate is None
        return replace(self, kernel=self.kernel[start:stop], bias=self.bias[start:stop])


@dataclass(frozen=True)
class Head:
    """The classifier: weight (classes, channels) and bias (classes,), applied to the mean over height and width."""

    weight: NDArray[Any]
    bias: NDArray[Any]


def numbers_of(network: M.Module) -> Optional[Tuple[Tuple[Block, ...], Head]]:
    """The blocks of a deploy-form RepVGG classifier and its head; None for any other network."""
    if not isinstance(network, RepVGG) or network.linear is None or network.linear.bias is None:
        return None
    blocks: List[Block] = []
    for module in (network.stage0, *(block for stage in range(1, 5) for block in getattr(network, f"stage{stage}"))):
        if not isinstance(module, RepVGGBlock) or not module.deploy or module.post_se is not None:
            return None
        conv, gate = module.rbr_reparam, None
        if module.se is not None:
            (down, down_bias), (up, up_bias) = map(_matrix, (module.se.down, module.se.up))
            gate = down, down_bias, up, up_bias
        blocks.append(Block(conv.weight.numpy(), conv.bias.numpy().reshape(-1), module.stride, gate))
    picture, *rest = blocks
    widths = [block.kernel.shape[axis] for block in rest for axis in (-3, -4)]
    if picture.in_channels >= LANES or picture.groups > 1 or any(width % LANES for width in widths):
        return None
    if picture.out_channels % LANES or any(block.groups > 1 and block.stride > 1 for block in rest):
        return None
    return tuple(blocks), Head(network.linear.weight.numpy(), network.linear.bias.numpy().reshape(1, -1))


def _matrix(conv1x1: Any) -> Tuple[NDArray[Any], NDArray[Any]]:
    return conv1x1.weight.numpy()[:, :, 0, 0], conv1x1.bias.numpy().reshape(1, -1)


class Segment(M.Module):
    """Some blocks of a network, then maybe its head, for inputs of one shape (without it, (N, C / 8, H, W, 8)).

    ``convolutions`` are those whose algorithm is free to choose. The input is a picture if the first block takes fewer
    than 8 channels.
    """

    def __init__(
        self, blocks: Sequence[Block], batch: int, height: int, width: int, head: Optional[Head] = None
    ) -> None:
        super().__init__()
        self.convolutions: List[Convolution] = []
        self.layers = []
        for block in blocks:
            layer = _layer(block, batch, height, width)
            height, width = after(height, block.stride), after(width, block.stride)
            self.layers.append(layer)
            self.convolutions += layer.convolutions
        self.head = _Head(head, batch) if head is not None else None

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x if self.head is None else self.head(x)


def after(size: int, stride: int) -> int:
    """What a 3x3 convolution with padding 1 leaves of a height or width."""
    return (size - 1) // stride + 1


def _layer(block: Block, batch: int, height: int, width: int) -> Any:
    if block.groups > 1:
        return _Grouped(block, batch, height, width)
    small = max(after(height, block.stride), after(width, block.stride)) < SMALL
    if block.stride > 1 and small and block.in_channels >= LANES and block.gate is None:
        return _Gathered(block, height, width)
    return _Dense(block, batch, height, width)


class _Dense(M.Module):
    """One 3x3 convolution, SE where the block has it, and ReLU."""

    def __init__(self, block: Block, batch: int, height: int, width: int) -> None:
        super().__init__()
        self.stride = block.stride
        self.weight = Parameter(_packed(block.kernel))
        self.bias = Parameter(block.bias.reshape(1, -1, 1, 1, LANES))
        self.gate = None if block.gate is None else _Gate(block.gate, batch)
        self.convolutions = []
        if block.stride == 1 and block.in_channels >= LANES:
            relu = self.gate is None
            sizes = (block.in_channels, block.out_channels, height, width)
            self.convolutions.append(Convolution(batch, *sizes, relu=relu))

    def forward(self, x: Tensor) -> Tensor:
        out = _convolve(x, self.weight, self.bias, self.stride, relu=self.gate is None)
        return out if self.gate is None else F.relu(self.gate(out))


class _Grouped(M.Module):
    """A grouped convolution as one dense one for each group: slices of whole channel blocks lie together."""

    def __init__(self, block: Block, batch: int, height: int, width: int) -> None:
        super().__init__()
        biases = np.split(block.bias, block.groups)
        self.parts = [
            _Dense(Block(kernel, bias, block.stride), batch, height, width)
            for kernel, bias in zip(block.kernel, biases)
        ]
        self.width = block.in_channels // block.groups // LANES
        self.gate = None if block.gate is None else _Gate(block.gate, batch)
        assert self.gate is None, "no published variant has both groups and SE"
        self.convolutions = self.parts[0].convolutions

    def forward(self, x: Tensor) -> Tensor:
        step = self.width
        return F.concat([part(x[:, i * step : (i + 1) * step]) for i, part in enumerate(self.parts)], axis=1)


class _Gathered(M.Module):
    """A 3x3 convolution as a 1x1 convolution of nine shifted, strided copies of the input."""

    convolutions: Tuple[Convolution, ...] = ()

    def __init__(self, block: Block, height: int, width: int) -> None:
        super().__init__()
        outs, ins = block.kernel.shape[:2]
        blocked = block.kernel.reshape(outs // LANES, LANES, ins // LANES, LANES, 3, 3).transpose(0, 4, 5, 2, 3, 1)
        weight = blocked.reshape(outs // LANES, 9 * ins // LANES, 1, 1, LANES, LANES)
        self.weight = Parameter(np.ascontiguousarray(weight))
        self.bias = Parameter(block.bias.reshape(1, -1, 1, 1, LANES))
        self.stride = block.stride
        # The last row and column that a shifted copy takes, counted from its first.
        self.rows = block.stride * (after(height, block.stride) - 1) + 1
        self.columns = block.stride * (after(width, block.stride) - 1) + 1

    def forward(self, x: Tensor) -> Tensor:
        x = F.nn.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)])
        step = self.stride
        copies = [x[:, :, i : i + self.rows : step, j : j + self.columns : step] for i in range(3) for j in range(3)]
        return _convolve(F.concat(copies, axis=1), self.weight, self.bias, stride=1, relu=True, padding=0)


class _Gate(M.Module):
    """SE on the blocked layout: the mean over height and width, two matrix products, and a product for each channel."""

    def __init__(self, gate: Tuple[NDArray[Any], ...], batch: int) -> None:
        super().__init__()
        self.down, self.down_bias, self.up, self.up_bias = (Parameter(np.ascontiguousarray(part)) for part in gate)
        self.batch = batch

    def forward(self, x: Tensor) -> Tensor:
        squeezed = F.mean(x, axis=[2, 3]).reshape(self.batch, -1)
        hidden = F.relu(F.matmul(squeezed, self.down, transpose_b=True) + self.down_bias)
        scale = F.sigmoid(F.matmul(hidden, self.up, transpose_b=True) + self.up_bias)
        return x * scale.reshape(self.batch, -1, 1, 1, LANES)


class _Head(M.Module):
    def __init__(self, head: Head, batch: int) -> None:
        super().__init__()
        self.weight = Parameter(np.ascontiguousarray(head.weight))
        self.bias = Parameter(head.bias)
        self.batch = batch

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.mean(x, axis=[2, 3]).reshape(self.batch, -1)
        return F.matmul(pooled, self.weight, transpose_b=True) + self.bias


def _packed(kernel: NDArray[Any]) -> NDArray[Any]:
    """(O, I, 3, 3) as oneDNN and winograd read it: (O / 8, I / 8, 3, 3, 8, 8), or (O / 8, 3, 3, I, 8) for a picture."""
    outs, ins = kernel.shape[:2]
    if ins < LANES:
        return np.ascontiguousarray(kernel.reshape(outs // LANES, LANES, ins, 3, 3).transpose(0, 3, 4, 2, 1))
    blocked = kernel.reshape(outs // LANES, LANES, ins // LANES, LANES, 3, 3)
    return np.ascontiguousarray(blocked.transpose(0, 2, 4, 5, 3, 1))


def _convolve(x: Tensor, weight: Tensor, bias: Tensor, stride: int, *, relu: bool, padding: int = 1) -> Tensor:
    operator = builtin.ConvBias(
        nonlineMode="relu" if relu else "identity",
        mode="cross_correlation",
        sparse="dense",
        format="NCHW88",
        pad_h=padding,
        pad_w=padding,
        stride_h=stride,
        stride_w=stride,
        dilate_h=1,
        dilate_w=1,
        strategy=1,
        workspace_limit=2**62,
    )
    return apply(operator, x, weight, bias)[0]

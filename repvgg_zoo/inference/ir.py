"""The numbers of a deploy-form RepVGG as plain arrays: what the kernels compute it from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, List, Mapping, Optional, Tuple

import megengine.module as M
import numpy as np
from numpy.typing import NDArray

from .._tensors import borrow
from ..models import RepVGG, RepVGGBlock, RepVGGplus
from ..models.layers import Conv2d, Linear, SEBlock
from ..models.module import Sequential
from ..models.repvggplus import PlusStage

Matrix = Tuple[NDArray[Any], NDArray[Any]]  # (outputs, inputs), and a bias (outputs,)

# A user may have put a module of MegEngine's in any place, which then computes what numbers do not tell.
HOLDERS = (RepVGG, RepVGGplus, RepVGGBlock, SEBlock, PlusStage, Sequential, M.Sequential)
LAYERS = (Conv2d, Linear, M.Conv2d, M.Linear)
LAYER = re.compile(r"linear|stage[^.]+(\.blocks)?(\.\d+)?\.(rbr_reparam|(se|post_se)\.(down|up))")


@dataclass(frozen=True, eq=False)
class Gate:
    """SE's two matrices; ``after_relu`` says on which side of the block's ReLU it stands."""

    down: Matrix
    up: Matrix
    after_relu: bool


@dataclass(frozen=True, eq=False)
class Block:
    """A deploy block: kernel (groups, O / groups, I / groups, 3, 3) and bias (O,); ``feature`` is the name under which
    its output is given out, if it is."""

    kernel: NDArray[Any]
    bias: NDArray[Any]
    stride: int
    gate: Optional[Gate] = None
    feature: Optional[str] = None

    @property
    def groups(self) -> int:
        return len(self.kernel)

    @property
    def in_channels(self) -> int:
        return int(self.kernel.shape[2]) * self.groups

    @property
    def out_channels(self) -> int:
        return len(self.bias)


@dataclass(frozen=True, eq=False)
class Numbers:
    """A network: blocks in a row, then the head on the mean over height and width, or none and named feature maps."""

    blocks: Tuple[Block, ...]
    head: Optional[Matrix]


def numbers_of(network: M.Module) -> Optional[Numbers]:
    """The numbers of a deploy-form RepVGG or RepVGGplus, valid as long as it lives; None for any other network.

    It must be one whose code is ours alone, see ``network_digest``.
    """
    if type(network) not in (RepVGG, RepVGGplus) or not all(_is_usual(*pair) for pair in network.named_modules()):
        return None
    blocks = {name: module for name, module in network.named_modules() if isinstance(module, RepVGGBlock)}
    strides = {name: _usual_stride(block) for name, block in blocks.items()}
    if None in strides.values() or any(tensor.dtype != np.float32 for tensor in network.tensors()):
        return None
    wanted = {} if network.linear is not None else {info.index: info.name for info in network.feature_info}
    numbers = numbers_from(borrow(dict(network.named_tensors())), wanted)
    built = [strides[name] for name in sorted(blocks, key=_place)]
    return numbers if [block.stride for block in numbers.blocks] == built else None


def numbers_from(arrays: Mapping[str, NDArray[Any]], features: Mapping[int, str] = MappingProxyType({})) -> Numbers:
    """The numbers of deploy-form arrays with this package's names; ``features`` has the names of stages to give out."""
    suffix = ".rbr_reparam.weight"
    names = sorted((key[: -len(suffix)] for key in arrays if key.endswith(suffix)), key=_place)
    blocks: List[Block] = []
    for name, following in zip(names, [*names[1:], None]):
        kernel = arrays[name + suffix]
        first = not blocks or _stage(name) != _stage(names[len(blocks) - 1])
        last = following is None or _stage(following) != _stage(name)
        blocks.append(
            Block(
                kernel if kernel.ndim == 5 else kernel[None],
                arrays[f"{name}.rbr_reparam.bias"].reshape(-1),
                stride=2 if first else 1,
                gate=_gate(arrays, name),
                feature=features.get(_stage(name)) if last else None,
            )
        )
    return Numbers(tuple(blocks), _matrix(arrays, "linear") if "linear.weight" in arrays else None)


def _place(name: str) -> Tuple[Any, ...]:
    """What sorts blocks as they run: stage3.10 comes after stage3.9, and stage3_second after stage3_first."""
    stage, *rest = name.split(".")
    return (stage, *(int(part) for part in rest if part.isdigit()))


def _stage(name: str) -> int:
    return int(name[len("stage")])


def _gate(arrays: Mapping[str, NDArray[Any]], name: str) -> Optional[Gate]:
    for part in ("se", "post_se"):
        if f"{name}.{part}.down.weight" in arrays:
            down, up = (_matrix(arrays, f"{name}.{part}.{layer}") for layer in ("down", "up"))
            return Gate(down, up, after_relu=part == "post_se")
    return None


def _matrix(arrays: Mapping[str, NDArray[Any]], name: str) -> Matrix:
    weight = arrays[f"{name}.weight"]
    return weight.reshape(len(weight), -1), arrays[f"{name}.bias"].reshape(-1)


def _is_usual(name: str, module: M.Module) -> bool:
    """Whether a module is one that numbers tell all of, in a place where they look for it."""
    if type(module) in LAYERS:
        return module.bias is not None and LAYER.fullmatch(name) is not None
    return type(module) in HOLDERS


def _usual_stride(block: RepVGGBlock) -> Optional[int]:
    """The stride, None for a block that is not as this package builds it."""
    convolution = block.rbr_reparam
    if convolution is None or convolution.bias is None or convolution.stride[0] != convolution.stride[1]:
        return None
    same = (convolution.kernel_size, convolution.padding, convolution.dilation) == ((3, 3), (1, 1), (1, 1))
    return int(convolution.stride[0]) if same and convolution.padding_mode == "zeros" else None

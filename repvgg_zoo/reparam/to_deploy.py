"""to_deploy: convert any module that holds RepVGG blocks from the train form to the deploy form."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Dict, Iterator, List, Mapping, Tuple, Type

import megengine.module as M
import numpy as np
from megengine import Parameter, Tensor
from numpy.typing import NDArray

from .._arguments import check_flag
from .._log import get_logger
from .._tensors import numpy_views, tensors_from_arrays
from ..checkpoints.network_metadata import bn_eps_of
from ..errors import ArgumentError, EquivalenceError
from ..models import RepVGGBlock
from ..models.repvgg import as_pair
from .fusion import BLOCK_BOUNDS, fuse_block, raise_if_invalid, relative_error, validate_block

logger = get_logger(__name__)

Fused = Tuple[NDArray[Any], NDArray[Any]]

BN = (M.BatchNorm2d, M.SyncBatchNorm)
QUANTIZED = (M.qat.QATModule, M.quantized.QuantizedModule)
BRANCH_LAYERS: Mapping[str, Tuple[Type[M.Module], ...]] = MappingProxyType(
    {
        "rbr_dense.conv": (M.Conv2d,),
        "rbr_dense.bn": BN,
        "rbr_1x1.conv": (M.Conv2d,),
        "rbr_1x1.bn": BN,
        "rbr_identity": BN,
    }
)


def to_deploy(module: M.Module, *, inplace: bool = False, check: bool = True) -> M.Module:
    """Re-parameterize every RepVGG block in ``module`` and return the result in eval mode.

    Blocks may be in Sequentials, lists, dicts and other networks; the rest of the module stays as it is, except
    parts that only training needs, which a module drops in its own ``switch_to_deploy()`` method. Running statistics
    are fused, in float64, and stored in the model's dtype on its device. Strides, padding and dilation that were
    changed in a block's convolutions are kept. Works on a copy unless ``inplace``; blocks that are in the deploy form
    already stay as they are. ``check`` runs each block in both forms on a small random input.

    Raises ArgumentError if there is no block, EquivalenceError if a block's branches cannot be one convolution (their
    strides differ, BN keeps no running statistics, they are quantized ...), if weights are not finite, a variance is
    negative, or the check fails; the module is then untouched.
    """
    inplace, check = check_flag("inplace", inplace), check_flag("check", check)
    check_module("to_deploy", module)
    blocks = find_blocks(module)
    if not blocks:
        raise ArgumentError(
            f"{type(module).__name__} holds no RepVGG block",
            hint="pass the network itself, for example the result of repvgg_zoo.create(name)",
        )
    if module.training and any(not block.deploy for block in blocks.values()):
        logger.warning(
            "the module is in training mode: its running statistics are fused, and the result is in eval mode"
        )

    # Everything is fused before the first write, so that an invalid block leaves every other one as it was.
    fused = fuse_all(blocks)
    if check:
        check_all(blocks, fused)
    convolutions = as_convolutions(fused, blocks)
    target = module if inplace else copy_without_branches(module, [blocks[name] for name in convolutions])
    for name, block in find_blocks(target).items():
        if name in convolutions:
            block.switch_to_deploy(convolutions[name])
    for part in target.modules():
        if hasattr(part, "switch_to_deploy") and not isinstance(part, RepVGGBlock):
            part.switch_to_deploy()
    target.eval()
    return target


def check_module(function: str, module: Any) -> None:
    """Raise ArgumentError for anything but a MegEngine module."""
    if not isinstance(module, M.Module):
        raise ArgumentError(
            f"{function} takes a MegEngine module, not a {type(module).__name__}",
            expected="megengine.module.Module",
            actual=module,
            hint="pass the network itself, for example the result of repvgg_zoo.create(name)",
        )


def find_blocks(module: M.Module) -> Dict[str, RepVGGBlock]:
    """Return every block in ``module`` by its dotted name, shared ones once."""
    return {name: part for name, part in module.named_modules() if isinstance(part, RepVGGBlock)}


def fuse_all(blocks: Dict[str, RepVGGBlock]) -> Dict[str, Fused]:
    """Return the fused kernel and bias of each train-form block; raise EquivalenceError for all invalid tensors."""
    train = {name: block for name, block in blocks.items() if not block.deploy}
    raise_if_not_one_convolution(_with_names({name: branch_problems(block) for name, block in train.items()}))
    arrays = {name: block_arrays(block) for name, block in train.items()}
    raise_if_invalid(_with_names({name: validate_block(arrays[name]) for name in train}))
    return {name: fuse_block(arrays[name], bn_eps=bn_eps_of(block)) for name, block in train.items()}


def _with_names(problems: Dict[str, List[str]]) -> List[str]:
    return [f"{name}.{line}" if name else line for name, lines in problems.items() for line in lines]


def branch_problems(block: RepVGGBlock) -> List[str]:
    """Return one line for each attribute with which the branches of a train-form block are not one convolution."""
    parts = {name: part for name, part in block.named_modules() if name.startswith("rbr_")}
    converted = [
        f"{name} is a {type(part).__module__}.{type(part).__name__}"
        for name, part in parts.items()
        if isinstance(part, QUANTIZED)
    ]
    replaced = [
        f"{name} is a {type(parts[name]).__name__}, not a {expected[0].__name__}"
        for name, expected in BRANCH_LAYERS.items()
        if name in parts and not isinstance(parts[name], expected)
    ]
    without_statistics = [
        f"{name} keeps no running statistics (track_running_stats=False)"
        for name, bn in batch_norms(block).items()
        if bn.running_mean is None or not bn.track_running_stats
    ]
    problems = converted or replaced or without_statistics
    missing = not {"rbr_dense.conv", "rbr_1x1.conv"} <= set(parts)  # validate_block names their tensors
    return problems if problems or missing else _geometry_problems(block)


def _geometry_problems(block: RepVGGBlock) -> List[str]:
    """Return one line for each reason why a branch does not see the pixels of the 3x3 kernel's center."""
    dense, point = block.rbr_dense.conv, block.rbr_1x1.conv
    stride, padding, dilation = (as_pair(value) for value in (dense.stride, dense.padding, dense.dilation))
    center = (padding[0] - dilation[0], padding[1] - dilation[1])
    layout = f"padding={padding} and dilation={dilation}"
    problems = []
    if as_pair(point.stride) != stride:
        problems.append(f"rbr_1x1.conv.stride is {point.stride}, and that of rbr_dense.conv {dense.stride}")
    if as_pair(point.padding) != center:
        problems.append(f"rbr_1x1.conv.padding is {point.padding}, but rbr_dense.conv with {layout} needs {center}")
    if any(as_pair(point.padding)) and point.padding_mode != dense.padding_mode:
        modes = f"{point.padding_mode!r}, and that of rbr_dense.conv {dense.padding_mode!r}"
        problems.append(f"rbr_1x1.conv.padding_mode is {modes}")
    if block.rbr_identity is not None:
        if stride != (1, 1):
            problems.append(f"rbr_dense.conv.stride is {dense.stride}, but there is an identity branch")
        if center != (0, 0):
            problems.append(f"rbr_dense.conv has {layout}, which differ, but there is an identity branch")
    return problems


def batch_norms(block: RepVGGBlock) -> Dict[str, M.BatchNorm2d]:
    """Return the BN layers of a block's branches by their names."""
    return {name: part for name, part in block.named_modules() if name in BRANCH_LAYERS and isinstance(part, BN)}


def raise_if_not_one_convolution(problems: List[str]) -> None:
    """Raise EquivalenceError if ``branch_problems`` found any."""
    if problems:
        raise EquivalenceError(
            f"cannot fuse: {'; '.join(problems[:10])}" + (f"; and {len(problems) - 10} more" if problems[10:] else ""),
            actual=problems,
            hint="branches are float convolutions that move over the image alike, and BN with running statistics; "
            "quantize after to_deploy",
        )


def as_convolutions(fused: Dict[str, Fused], blocks: Dict[str, RepVGGBlock]) -> Dict[str, M.Conv2d]:
    """Return convolutions with the fused kernels and biases, of their block's dtype and on its device."""
    likes = {name: blocks[name].rbr_dense.conv.weight for name in fused}
    tensors = iter(tensors_from_arrays([(array, likes[name]) for name, pair in fused.items() for array in pair]))
    return {
        name: blocks[name].equivalent_convolution(Parameter(kernel), Parameter(bias))
        for kernel, bias, name in zip(tensors, tensors, fused)
    }


def copy_without_branches(module: M.Module, blocks: List[RepVGGBlock]) -> M.Module:
    """Return a deep copy without the branches of these blocks, which are most of the memory and not needed."""
    branches = [part for block in blocks for part in (block.rbr_dense, block.rbr_1x1, block.rbr_identity)]
    return copy.deepcopy(module, {id(branch): None for branch in branches})


def block_arrays(block: RepVGGBlock) -> Dict[str, NDArray[Any]]:
    """Return the tensors of a block by their state keys, as if BN had all of its parameters and no convolution a bias.

    Large ones are views of MegEngine's memory.
    """
    arrays = numpy_views(dict(block.named_tensors()))
    for name, bn in batch_norms(block).items():
        if bn.weight is None:  # affine=False
            arrays[f"{name}.weight"] = np.ones_like(arrays[f"{name}.running_var"])
        if bn.bias is None:
            arrays[f"{name}.bias"] = np.zeros_like(arrays[f"{name}.running_mean"])
        bias = arrays.pop(f"{name[:-2]}conv.bias", None) if name.endswith(".bn") else None
        if bias is not None:
            mean = arrays[f"{name}.running_mean"]
            arrays[f"{name}.running_mean"] = mean.astype(np.float64) - bias.reshape(mean.shape)
    return arrays


def check_all(blocks: Dict[str, RepVGGBlock], fused: Dict[str, Fused]) -> None:
    """Run each block's branches and its fused convolution on one random 3x3 image; raise EquivalenceError."""
    for name, (kernel, bias) in fused.items():
        error = fusion_error(blocks[name], kernel, bias)
        bound = BLOCK_BOUNDS.get(kernel.dtype.name, BLOCK_BOUNDS["float32"])
        if not error <= bound:
            raise EquivalenceError(
                f"block {name or '(root)'} changes its output by {error:.2e} of its scale when fused",
                expected=f"at most {bound:g}",
                actual=error,
                hint="compare_forms(model) reports every block",
            )


def fusion_error(block: RepVGGBlock, kernel: NDArray[Any], bias: NDArray[Any]) -> float:
    """Return max |fused - branches| / max |branches| before SE and ReLU, on one small random image in eval mode."""
    if block.rbr_dense.conv.weight.dtype == np.float16:
        block = in_float32(block)
    options = {"device": block.rbr_dense.conv.weight.device}
    size = [2 * dilation + 1 for dilation in as_pair(block.rbr_dense.conv.dilation)]
    x = np.random.RandomState(0).standard_normal((1, block.in_channels, *size)).astype(np.float32)
    x = Tensor(x, **options)
    with eval_mode(block):
        reference = block.forward_branches(x).numpy().astype(np.float64)
    kernel, bias = (array.astype(np.float32) for array in (kernel, bias))
    convolution = block.equivalent_convolution(Parameter(kernel, **options), Parameter(bias, **options))
    return relative_error(reference, convolution(x).numpy().astype(np.float64))[2]


def in_float32(block: RepVGGBlock) -> RepVGGBlock:
    """Return a copy whose sums are float32: those of a float16 block round by more than its fusion does."""
    block = copy.deepcopy(block)
    for tensor in block.tensors():
        tensor._reset(type(tensor)(tensor.numpy().astype(np.float32), device=tensor.device))
    return block


@contextmanager
def eval_mode(*modules: M.Module) -> Iterator[None]:
    """Set eval mode, and restore each part's own mode on exit."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, training in modes:
            part.training = training

"""to_deploy: convert any module that holds RepVGG blocks from the train form to the deploy form."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Tuple

import megengine.functional as F
import megengine.module as M
import numpy as np
from megengine import Parameter, Tensor
from numpy.typing import NDArray

from .._log import get_logger
from .._tensors import numpy_views, tensors_from_arrays
from ..errors import ArgumentError, EquivalenceError
from ..models import RepVGGBlock
from .fusion import BLOCK_BOUNDS, fuse_block, raise_if_invalid, relative_error, validate_block

logger = get_logger(__name__)

Fused = Tuple[NDArray[Any], NDArray[Any]]


def to_deploy(module: M.Module, *, inplace: bool = False, check: bool = True) -> M.Module:
    """Re-parameterize every RepVGG block in ``module`` and return the result in eval mode.

    Blocks may be in Sequentials, lists, dicts and other networks; the rest of the module stays as it is, except
    parts that only training needs, which a module drops in its own ``switch_to_deploy()`` method. Running statistics
    are fused, in float64, and stored in the model's dtype on its device. Works on a copy unless ``inplace``; blocks
    that are in the deploy form already stay as they are. ``check`` runs each block in both forms on a small random
    input.

    Raises ArgumentError if there is no block, EquivalenceError if weights are not finite, a variance is negative, or
    the check fails; the module is then untouched.
    """
    if not isinstance(module, M.Module):
        raise ArgumentError(
            f"to_deploy takes a MegEngine module, not a {type(module).__name__}", expected="megengine.module.Module"
        )
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
    parameters = as_parameters(fused, blocks)
    target = module if inplace else copy_without_branches(module, [blocks[name] for name in parameters])
    for name, block in find_blocks(target).items():
        if name in parameters:
            block.switch_to_deploy(*parameters[name])
    for part in target.modules():
        if hasattr(part, "switch_to_deploy") and not isinstance(part, RepVGGBlock):
            part.switch_to_deploy()
    target.eval()
    return target


def find_blocks(module: M.Module) -> Dict[str, RepVGGBlock]:
    """Return every block in ``module`` by its dotted name, shared ones once."""
    return {name: part for name, part in module.named_modules() if isinstance(part, RepVGGBlock)}


def fuse_all(blocks: Dict[str, RepVGGBlock]) -> Dict[str, Fused]:
    """Return the fused kernel and bias of each train-form block; raise EquivalenceError for all invalid tensors."""
    train = {name: block_arrays(block) for name, block in blocks.items() if not block.deploy}
    problems: List[str] = []
    for name, arrays in train.items():
        problems += [f"{name}.{problem}" if name else problem for problem in validate_block(arrays)]
    raise_if_invalid(problems)
    return {name: fuse_block(arrays, eps=blocks[name].rbr_dense.bn.eps) for name, arrays in train.items()}


def as_parameters(fused: Dict[str, Fused], blocks: Dict[str, RepVGGBlock]) -> Dict[str, Tuple[Parameter, Parameter]]:
    """Return fused kernels and biases as parameters with their block's dtype and device."""
    likes = {name: blocks[name].rbr_dense.conv.weight for name in fused}
    tensors = iter(tensors_from_arrays([(array, likes[name]) for name, pair in fused.items() for array in pair]))
    return {name: (Parameter(kernel), Parameter(bias)) for kernel, bias, name in zip(tensors, tensors, fused)}


def copy_without_branches(module: M.Module, blocks: List[RepVGGBlock]) -> M.Module:
    """Return a deep copy without the branches of these blocks, which are most of the memory and not needed."""
    branches = [part for block in blocks for part in (block.rbr_dense, block.rbr_1x1, block.rbr_identity)]
    return copy.deepcopy(module, {id(branch): None for branch in branches})


def block_arrays(block: RepVGGBlock) -> Dict[str, NDArray[Any]]:
    """Return the tensors of a block by their state keys; large ones are views of MegEngine's memory."""
    return numpy_views(dict(block.named_tensors()))


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
    """Return max |fused - branches| / max |branches| before SE and ReLU, on one random 3x3 image in eval mode."""
    weight = block.rbr_dense.conv.weight
    options = {"dtype": weight.dtype, "device": weight.device}
    x = Tensor(np.random.RandomState(0).standard_normal((1, block.in_channels, 3, 3)), **options)
    with eval_mode(block):
        reference = block.forward_branches(x).numpy().astype(np.float64)
    fused = F.conv2d(x, Tensor(kernel, **options), Tensor(bias, **options), block.stride, 1, groups=block.groups)
    return relative_error(reference, fused.numpy().astype(np.float64))[2]


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

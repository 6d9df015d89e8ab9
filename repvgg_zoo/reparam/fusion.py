"""Fusion of plain state_dict: three branches with BN become one 3x3 kernel and bias (paper, section 3.3).

It needs NumPy only, so that files can be converted where MegEngine is not installed.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Dict, List, Mapping, Optional, Tuple

import numpy as np
from numpy.typing import NDArray

from .._cpu import map_on_all_cores
from ..checkpoints import Checkpoint
from ..checkpoints.layouts import AUXILIARY_HEADS, BLOCK, BN_TENSORS, as_vector, has_identity
from ..checkpoints.metadata import DEFAULT_BN_EPS
from ..errors import EquivalenceError, FormError

# Raised whenever `fuse` would return something else for the same weights.
FUSE_VERSION = 1

BRANCHES = tuple(
    f"{branch}.{tensor}"
    for branch in ("rbr_dense", "rbr_1x1")
    for tensor in ("conv.weight", *(f"bn.{name}" for name in BN_TENSORS))
)
_BRANCH = re.compile(r"rbr_(dense|1x1|identity)\.")
IDENTITY = tuple(f"rbr_identity.{name}" for name in BN_TENSORS)


def to_form(checkpoint: Checkpoint, form: str) -> Checkpoint:
    """Return the checkpoint in the form "train" or "deploy"; raise FormError for the train form of deploy weights."""
    if checkpoint.form == form:
        return checkpoint
    if form == "train":
        raise FormError(
            f"{checkpoint.path} holds deploy weights, from which the train form's branches cannot be recovered",
            path=checkpoint.path,
            expected="train",
            actual="deploy",
            hint="create the network with deploy=True, or load a train-form checkpoint",
        )
    return fuse(checkpoint)


def fuse(checkpoint: Checkpoint) -> Checkpoint:
    """Return the deploy form of a train-form checkpoint; raise EquivalenceError as ``fuse_state_dict`` does."""
    state_dict = fuse_state_dict(checkpoint.state_dict, checkpoint.metadata.bn_eps)
    metadata = replace(checkpoint.metadata, bn_eps={})
    return replace(checkpoint, state_dict=MappingProxyType(state_dict), form="deploy", metadata=metadata)


def fuse_state_dict(
    state_dict: Mapping[str, NDArray[Any]], bn_eps: Mapping[str, float] = MappingProxyType({})
) -> Dict[str, NDArray[Any]]:
    """Return the deploy form's state dict of a train form's, with the same dtypes.

    ``bn_eps`` has the eps of each BN layer (``"stage0.rbr_dense.bn"``) that differs from 1e-5.

    Every block (found by the keys of its branches) gets ``rbr_reparam.weight`` and ``.bias`` in place of its
    branches; RepVGGplus's auxiliary heads are left out; all other arrays are returned uncopied. Raises
    EquivalenceError, which names every wrong tensor, when one is missing, unexpected, of another shape or not finite,
    or a variance is negative: once a branch is fused, or left out, nothing shows any more that it was wrong.
    """
    parts = BRANCHES + IDENTITY
    prefixes = list(dict.fromkeys(key[: -len(part)] for key in state_dict for part in parts if key.endswith(part)))
    removed = {f"{prefix}{branch}" for prefix in prefixes for branch in ("rbr_dense.", "rbr_1x1.", "rbr_identity.")}
    heads = tuple(f"{head}." for head in AUXILIARY_HEADS)
    fused = {
        key: value
        for key, value in state_dict.items()
        if not key.startswith(heads) and removed.isdisjoint(key[: match.end()] for match in _BRANCH.finditer(key))
    }

    def validate(prefix: str) -> List[str]:
        block = BLOCK.fullmatch(prefix)
        return validate_block(state_dict, prefix, identity=has_identity(block.group(1)) if block else None)

    nbytes = sum(state_dict[key].nbytes for key in state_dict.keys() - fused.keys())
    raise_if_invalid([problem for problems in map_on_all_cores(validate, prefixes, nbytes) for problem in problems])
    pairs = map_on_all_cores(lambda prefix: fuse_block(state_dict, prefix, bn_eps), prefixes, nbytes)
    for prefix, (kernel, bias) in zip(prefixes, pairs):
        fused[f"{prefix}rbr_reparam.weight"], fused[f"{prefix}rbr_reparam.bias"] = kernel, bias
    return fused


def fuse_block(
    state_dict: Mapping[str, NDArray[Any]], prefix: str = "", bn_eps: Mapping[str, float] = MappingProxyType({})
) -> Tuple[NDArray[Any], NDArray[Any]]:
    """Return the kernel (out, in, 3, 3), or 5-D when grouped, and the bias (1, out, 1, 1) of the block at ``prefix``.

    Running statistics, scales, biases and the kernel's center, where three branches meet, are computed in float64; the
    outer eight positions are one float32 product each, which float64 would not make more exact once it is stored. The
    result has the branch kernel's dtype. ``bn_eps`` is as in ``fuse_state_dict``. Raises EquivalenceError if the result
    overflows that dtype.
    """
    kernel, bias = fuse_branches(state_dict, prefix, bn_eps)
    if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
        raise EquivalenceError(
            f"fusing block {prefix.rstrip('.') or '(root)'} overflows {kernel.dtype.name}",
            hint="fuse the model in float32, then convert it",
        )
    return kernel, bias


def fuse_branches(
    state_dict: Mapping[str, NDArray[Any]], prefix: str = "", bn_eps: Mapping[str, float] = MappingProxyType({})
) -> Tuple[NDArray[Any], NDArray[Any]]:
    """Return what ``fuse_block`` does, whether it is finite or not."""
    dense = state_dict[f"{prefix}rbr_dense.conv.weight"]
    scale_3x3, bias = _fuse_bn(state_dict, f"{prefix}rbr_dense.bn", bn_eps)
    scale_1x1, bias_1x1 = _fuse_bn(state_dict, f"{prefix}rbr_1x1.bn", bn_eps)
    bias = bias + bias_1x1

    channels = dense.shape[:-3]  # (out,), or (groups, out / groups)
    work = dense.dtype if dense.dtype.itemsize > 2 else np.dtype(np.float32)
    kernel = np.multiply(dense, scale_3x3.reshape(*channels, 1, 1, 1).astype(work), dtype=work)
    center = dense[..., 1, 1] * scale_3x3.reshape(*channels, 1)
    center += state_dict[f"{prefix}rbr_1x1.conv.weight"][..., 0, 0] * scale_1x1.reshape(*channels, 1)
    if f"{prefix}rbr_identity.weight" in state_dict:
        scale_id, bias_id = _fuse_bn(state_dict, f"{prefix}rbr_identity", bn_eps)
        bias = bias + bias_id
        per_group = center.shape[-1]
        diagonal = np.arange(per_group)
        # A grouped block has as many inputs as outputs in each group, so each group's identity is its own diagonal.
        center.reshape(-1, per_group, per_group)[:, diagonal, diagonal] += scale_id.reshape(-1, per_group)
    kernel[..., 1, 1] = center

    with np.errstate(over="ignore"):
        kernel, bias = kernel.astype(dense.dtype, copy=False), bias.astype(dense.dtype)
    return kernel, bias.reshape(1, -1, 1, 1)


def validate_block(
    state_dict: Mapping[str, NDArray[Any]], prefix: str = "", identity: Optional[bool] = None
) -> List[str]:
    """Return one line for each tensor that makes the block at ``prefix`` impossible to fuse.

    ``identity`` says whether the block must have that branch; with None it must if any of its tensors is present.
    """
    tensors = {key: state_dict.get(f"{prefix}{key}") for key in BRANCHES + IDENTITY}
    if identity is None:
        identity = any(tensors[key] is not None for key in IDENTITY)
    problems = []
    for key, value in tensors.items():
        required = identity or key not in IDENTITY
        if value is None:
            if required:
                problems.append(f"{prefix}{key} is missing")
        elif not required:
            problems.append(f"{prefix}{key} is unexpected: a stage's first block has no identity branch")
        elif not np.isfinite(value).all():
            problems.append(f"{prefix}{key} holds NaN or infinity")
        elif key.endswith("running_var") and (value < 0).any():
            problems.append(f"{prefix}{key} is negative ({value.min():.3g})")
    return problems + _shape_problems({key: value.shape for key, value in tensors.items() if value is not None}, prefix)


def _shape_problems(shapes: Mapping[str, Tuple[int, ...]], prefix: str) -> List[str]:
    """Return one line for each shape that contradicts the block's 3x3 kernel, from which every other follows."""
    dense = shapes.get("rbr_dense.conv.weight")
    if dense is None:
        return []
    if len(dense) not in (4, 5) or dense[-2:] != (3, 3):
        return [f"{prefix}rbr_dense.conv.weight of shape {dense} is not a 3x3 kernel"]
    outputs = math.prod(dense[:-3])
    inputs = math.prod(dense[:-4]) * dense[-3]  # a 5-D kernel counts them for each group
    problems = []
    for key, shape in shapes.items():
        if key == "rbr_1x1.conv.weight" and shape != (*dense[:-2], 1, 1):
            problems.append(f"{prefix}{key} of shape {shape} does not match {prefix}rbr_dense.conv.weight of {dense}")
        elif ".conv." not in key and as_vector(shape) != (outputs,):
            problems.append(f"{prefix}{key} of shape {shape} does not match {outputs} channels")
    if IDENTITY[0] in shapes and inputs != outputs:
        problems.append(f"{prefix}rbr_identity cannot join {inputs} channels to {outputs}")
    return problems


def raise_if_invalid(problems: List[str]) -> None:
    """Raise EquivalenceError if ``validate_block`` found problems."""
    if problems:
        raise EquivalenceError(
            f"cannot fuse: {'; '.join(problems[:10])}" + (f"; and {len(problems) - 10} more" if problems[10:] else ""),
            actual=problems,
            hint="these weights are damaged or training diverged; load another checkpoint",
        )


def _fuse_bn(
    state_dict: Mapping[str, NDArray[Any]], bn: str, bn_eps: Mapping[str, float]
) -> Tuple[NDArray[Any], NDArray[Any]]:
    """Return the scale and the shift, float64 (C,), that the BN layer called ``bn`` amounts to in eval mode."""
    gamma, beta, mean, var = (state_dict[f"{bn}.{name}"].astype(np.float64).reshape(-1) for name in BN_TENSORS)
    scale = gamma / np.sqrt(var + bn_eps.get(bn, DEFAULT_BN_EPS))
    return scale, beta - mean * scale


# How exact a fusion is ---------------------------------------------------------------------------------------

# The measured error of a block fused in float32 is about 5e-7 of its output's scale; float16 stores 1e-3.
BLOCK_BOUNDS = {"float32": 1e-5, "float16": 1e-2}

_PATCHES = 8
_DENSE = "rbr_dense.conv.weight"


def fusion_errors(
    train: Mapping[str, NDArray[Any]],
    deploy: Mapping[str, NDArray[Any]],
    bn_eps: Mapping[str, float] = MappingProxyType({}),
) -> Dict[str, float]:
    """Return max |fused - branches| / max |branches| of each block, before SE and ReLU, on random 3x3 patches.

    ``train`` is a state dict of the train form, ``deploy`` what ``fuse_state_dict`` returned for it. Both are evaluated
    in float64, so this is the cost of storing the fused kernel in its dtype.
    """
    prefixes = [key[: -len(_DENSE)] for key in train if key.endswith(_DENSE)]
    return {prefix.rstrip("."): _block_error(train, deploy, prefix, bn_eps) for prefix in prefixes}


def block_bound(state_dict: Mapping[str, NDArray[Any]]) -> float:
    """Return the largest error that a correct fusion into these arrays' dtypes has."""
    names = {array.dtype.name for array in state_dict.values()}
    return max((BLOCK_BOUNDS.get(name, BLOCK_BOUNDS["float32"]) for name in names), default=0.0)


def relative_error(reference: NDArray[Any], other: NDArray[Any]) -> Tuple[float, float, float]:
    """Return max |reference - other|, max |reference| and their ratio.

    The ratio is infinite if either is not finite, and all three are if the shapes differ.
    """
    if reference.shape != other.shape:
        return float("inf"), float("inf"), float("inf")
    difference = float(np.max(np.abs(reference - other), initial=0.0))
    scale = float(np.max(np.abs(reference), initial=0.0))
    if not np.isfinite(difference) or not np.isfinite(scale):
        return difference, scale, float("inf")
    if scale == 0:
        return difference, scale, 0.0 if difference == 0 else float("inf")
    return difference, scale, difference / scale


def _block_error(
    train: Mapping[str, NDArray[Any]], deploy: Mapping[str, NDArray[Any]], prefix: str, bn_eps: Mapping[str, float]
) -> float:
    dense = _grouped(train[f"{prefix}{_DENSE}"])
    x = np.random.RandomState(0).standard_normal((_PATCHES, dense.shape[0], dense.shape[2], 3, 3))
    center = x[..., 1, 1]
    branches = _apply_bn(train, f"{prefix}rbr_dense.bn", bn_eps, np.einsum("goixy,ngixy->ngo", dense, x))
    point = _grouped(train[f"{prefix}rbr_1x1.conv.weight"])[..., 0, 0]
    branches = branches + _apply_bn(train, f"{prefix}rbr_1x1.bn", bn_eps, np.einsum("goi,ngi->ngo", point, center))
    if f"{prefix}rbr_identity.weight" in train:
        branches = branches + _apply_bn(train, f"{prefix}rbr_identity", bn_eps, center)
    kernel = _grouped(deploy[f"{prefix}rbr_reparam.weight"])
    fused = np.einsum("goixy,ngixy->ngo", kernel, x).reshape(_PATCHES, -1)
    fused = fused + deploy[f"{prefix}rbr_reparam.bias"].astype(np.float64).reshape(-1)
    return relative_error(branches, fused)[2]


def _grouped(kernel: NDArray[Any]) -> NDArray[Any]:
    kernel = kernel.astype(np.float64)
    return kernel if kernel.ndim == 5 else kernel[None]


def _apply_bn(
    state_dict: Mapping[str, NDArray[Any]], bn: str, bn_eps: Mapping[str, float], x: NDArray[Any]
) -> NDArray[Any]:
    gamma, beta, mean, var = (state_dict[f"{bn}.{name}"].astype(np.float64).reshape(-1) for name in BN_TENSORS)
    eps = bn_eps.get(bn, DEFAULT_BN_EPS)
    normalized: NDArray[Any] = (x.reshape(_PATCHES, -1) - mean) / np.sqrt(var + eps) * gamma + beta
    return normalized

"""Branch fusion on plain arrays: three branches with BN become one 3x3 kernel and bias (paper, section 3.3).

Needs NumPy only, so that files can be converted where MegEngine is not installed.
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, Mapping, Optional, Tuple

import numpy as np
from numpy.typing import NDArray

from ..checkpoints.block_keys import BLOCK, has_identity
from ..checkpoints.layouts import BN_TENSORS, as_vector
from ..errors import EquivalenceError

BN_EPS = 1e-5
BRANCHES = tuple(
    f"{branch}.{tensor}"
    for branch in ("rbr_dense", "rbr_1x1")
    for tensor in ("conv.weight", *(f"bn.{name}" for name in BN_TENSORS))
)
IDENTITY = tuple(f"rbr_identity.{name}" for name in BN_TENSORS)
TRAINING_ONLY = ("stage1_aux.", "stage2_aux.", "stage3_first_aux.")


def fuse_arrays(arrays: Mapping[str, NDArray[Any]]) -> Dict[str, NDArray[Any]]:
    """Turns the native arrays of a train form into those of its deploy form, dtype kept.

    Every block (found by the keys of its branches) gets ``rbr_reparam.weight`` and ``.bias`` in place of its
    branches; RepVGGplus's auxiliary heads are left out; all else is passed on uncopied. Raises EquivalenceError, which
    names every offending tensor, when one is missing, superfluous, of another shape or not finite, or a variance is
    negative: once a branch is fused, or left out, nothing shows any more that it was wrong.
    """
    parts = BRANCHES + IDENTITY
    prefixes = list(dict.fromkeys(key[: -len(part)] for key in arrays for part in parts if key.endswith(part)))
    branches = tuple(f"{prefix}{branch}." for prefix in prefixes for branch in ("rbr_dense", "rbr_1x1", "rbr_identity"))
    fused = {key: value for key, value in arrays.items() if not key.startswith(branches + TRAINING_ONLY)}
    problems: List[str] = []
    for prefix in prefixes:
        block = BLOCK.fullmatch(prefix)
        problems += find_problems(arrays, prefix, identity=has_identity(block.group(1)) if block else None)
    raise_problems(problems)
    for prefix in prefixes:
        fused[f"{prefix}rbr_reparam.weight"], fused[f"{prefix}rbr_reparam.bias"] = fuse_block(arrays, prefix)
    return fused


def fuse_block(
    arrays: Mapping[str, NDArray[Any]], prefix: str = "", eps: float = BN_EPS
) -> Tuple[NDArray[Any], NDArray[Any]]:
    """The kernel (out, in, 3, 3), or 5-D when grouped, and the bias (1, out, 1, 1) of the block under ``prefix``.

    Running statistics, scales, biases and the kernel's centre, where three branches meet, are computed in float64; the
    outer eight positions are one float32 product each, which float64 would not make more exact once it is stored. The
    result has the branch kernel's dtype. Raises EquivalenceError if it overflows that dtype.
    """
    dense = arrays[f"{prefix}rbr_dense.conv.weight"]
    scale_3x3, bias = _fold(arrays, f"{prefix}rbr_dense.bn.", eps)
    scale_1x1, bias_1x1 = _fold(arrays, f"{prefix}rbr_1x1.bn.", eps)
    bias = bias + bias_1x1

    channels = dense.shape[:-3]  # (out,), or (groups, out / groups)
    work = dense.dtype if dense.dtype.itemsize > 2 else np.dtype(np.float32)
    kernel = np.multiply(dense, scale_3x3.reshape(*channels, 1, 1, 1).astype(work), dtype=work)
    centre = dense[..., 1, 1] * scale_3x3.reshape(*channels, 1)
    centre += arrays[f"{prefix}rbr_1x1.conv.weight"][..., 0, 0] * scale_1x1.reshape(*channels, 1)
    if f"{prefix}rbr_identity.weight" in arrays:
        scale_id, bias_id = _fold(arrays, f"{prefix}rbr_identity.", eps)
        bias = bias + bias_id
        per_group = centre.shape[-1]
        diagonal = np.arange(per_group)
        # A grouped block has as many inputs as outputs in each group, so each group's identity is its own diagonal.
        centre.reshape(-1, per_group, per_group)[:, diagonal, diagonal] += scale_id.reshape(-1, per_group)
    kernel[..., 1, 1] = centre

    with np.errstate(over="ignore"):
        kernel, bias = kernel.astype(dense.dtype, copy=False), bias.astype(dense.dtype)
    if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
        raise EquivalenceError(
            f"fusing block {prefix.rstrip('.') or '(root)'} overflows {dense.dtype.name}",
            hint="fuse the model in float32, then convert it",
        )
    return kernel, bias.reshape(1, -1, 1, 1)


def find_problems(arrays: Mapping[str, NDArray[Any]], prefix: str = "", identity: Optional[bool] = None) -> List[str]:
    """What makes the block under ``prefix`` impossible to fuse: one line for each tensor, none if all is well.

    ``identity`` says whether the block must have that branch; None takes it as there if any of its tensors is.
    """
    given = {key: arrays.get(f"{prefix}{key}") for key in BRANCHES + IDENTITY}
    if identity is None:
        identity = any(given[key] is not None for key in IDENTITY)
    problems = []
    for key, value in given.items():
        wanted = identity or key not in IDENTITY
        if value is None:
            if wanted:
                problems.append(f"{prefix}{key} is missing")
        elif not wanted:
            problems.append(f"{prefix}{key} is there, but a stage's first block has no identity branch")
        elif not np.isfinite(value).all():
            problems.append(f"{prefix}{key} holds NaN or infinity")
        elif key.endswith("running_var") and (value < 0).any():
            problems.append(f"{prefix}{key} is negative ({value.min():.3g})")
    return problems + _shape_problems({key: value.shape for key, value in given.items() if value is not None}, prefix)


def _shape_problems(shapes: Mapping[str, Tuple[int, ...]], prefix: str) -> List[str]:
    """What does not fit the block's 3x3 kernel, from which every other shape follows."""
    dense = shapes.get("rbr_dense.conv.weight")
    if dense is None:
        return []
    if len(dense) not in (4, 5) or dense[-2:] != (3, 3):
        return [f"{prefix}rbr_dense.conv.weight of shape {dense} is no 3x3 kernel"]
    outputs = math.prod(dense[:-3])
    inputs = math.prod(dense[:-4]) * dense[-3]  # a 5-D kernel counts them for each group
    problems = []
    for key, shape in shapes.items():
        if key == "rbr_1x1.conv.weight" and shape != (*dense[:-2], 1, 1):
            problems.append(f"{prefix}{key} of shape {shape} does not go with {prefix}rbr_dense.conv.weight of {dense}")
        elif ".conv." not in key and as_vector(shape) != (outputs,):
            problems.append(f"{prefix}{key} of shape {shape} does not go with {outputs} channels")
    if IDENTITY[0] in shapes and inputs != outputs:
        problems.append(f"{prefix}rbr_identity cannot join {inputs} channels to {outputs}")
    return problems


def raise_problems(problems: List[str]) -> None:
    """Raises EquivalenceError for the problems found, if any."""
    if problems:
        raise EquivalenceError(
            f"cannot fuse: {'; '.join(problems[:10])}" + (f"; and {len(problems) - 10} more" if problems[10:] else ""),
            actual=problems,
            hint="these weights are damaged or training diverged; load a sound checkpoint",
        )


def _fold(arrays: Mapping[str, NDArray[Any]], bn: str, eps: float) -> Tuple[NDArray[Any], NDArray[Any]]:
    gamma, beta, mean, var = (arrays[f"{bn}{name}"].astype(np.float64).reshape(-1) for name in BN_TENSORS)
    scale = gamma / np.sqrt(var + eps)
    return scale, beta - mean * scale

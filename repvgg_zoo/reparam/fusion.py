"""Branch fusion on plain arrays: three branches with BN become one 3x3 kernel and bias (paper, section 3.3).

Needs NumPy only, so that files can be converted where MegEngine is not installed.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Tuple

import numpy as np
from numpy.typing import NDArray

from ..errors import EquivalenceError

BN_EPS = 1e-5
BN_TENSORS = ("weight", "bias", "running_mean", "running_var")
TRAINING_ONLY = ("stage1_aux.", "stage2_aux.", "stage3_first_aux.")


def fuse_arrays(arrays: Mapping[str, NDArray[Any]]) -> Dict[str, NDArray[Any]]:
    """Turns the native arrays of a train form into those of its deploy form, dtype kept.

    Every block (found by its key ``rbr_dense.conv.weight``) gets ``rbr_reparam.weight`` and ``.bias`` in place of its
    branches; RepVGGplus's auxiliary heads are left out; all else is passed on uncopied. Raises EquivalenceError, which
    names every offending tensor, when weights are not finite or a variance is negative.
    """
    marker = "rbr_dense.conv.weight"
    prefixes = [key[: -len(marker)] for key in arrays if key.endswith(marker)]
    branches = tuple(f"{prefix}{branch}." for prefix in prefixes for branch in ("rbr_dense", "rbr_1x1", "rbr_identity"))
    fused = {key: value for key, value in arrays.items() if not key.startswith(branches + TRAINING_ONLY)}
    problems: List[str] = []
    for prefix in prefixes:
        problems += find_problems(arrays, prefix)
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


def find_problems(arrays: Mapping[str, NDArray[Any]], prefix: str = "") -> List[str]:
    """What makes the block under ``prefix`` impossible to fuse: one line for each tensor, none if all is well."""
    problems = []
    for branch in ("rbr_dense", "rbr_1x1", "rbr_identity"):
        keys = [f"{prefix}{branch}.conv.weight", *(f"{prefix}{branch}.bn.{name}" for name in BN_TENSORS)]
        if branch == "rbr_identity":
            keys = [f"{prefix}{branch}.{name}" for name in BN_TENSORS]
        for key in keys:
            value = arrays.get(key)
            if value is None:
                if branch != "rbr_identity":
                    problems.append(f"{key} is missing")
            elif not np.isfinite(value).all():
                problems.append(f"{key} holds NaN or infinity")
            elif key.endswith("running_var") and (value < 0).any():
                problems.append(f"{key} is negative ({value.min():.3g})")
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

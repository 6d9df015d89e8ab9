"""How exact a fusion of plain arrays is, block by block; needs NumPy only."""

from __future__ import annotations

from typing import Any, Dict, Mapping

import numpy as np
from numpy.typing import NDArray

from ..checkpoints.layouts import BN_TENSORS
from .fusion import BN_EPS

# Measured block error of a float32 fusion is about 5e-7 of the output's scale; float16 stores 1e-3.
BLOCK_BOUNDS = {"float32": 1e-5, "float16": 1e-2}

_PATCHES = 8
_DENSE = "rbr_dense.conv.weight"


def fusion_errors(train: Mapping[str, NDArray[Any]], deploy: Mapping[str, NDArray[Any]]) -> Dict[str, float]:
    """max |fused - branches| / max |branches| of each block, before SE and ReLU, on random 3x3 patches.

    ``train`` are native arrays of the train form, ``deploy`` what ``fuse_arrays`` made of them. Both are evaluated in
    float64, so this is what storing the fused kernel in its dtype costs.
    """
    blocks = [key[: -len(_DENSE)] for key in train if key.endswith(_DENSE)]
    return {prefix.rstrip("."): _error(train, deploy, prefix) for prefix in blocks}


def bound_of(arrays: Mapping[str, NDArray[Any]]) -> float:
    """The largest error that a sound fusion into these arrays' dtypes has."""
    return max((BLOCK_BOUNDS.get(array.dtype.name, BLOCK_BOUNDS["float32"]) for array in arrays.values()), default=0.0)


def _error(train: Mapping[str, NDArray[Any]], deploy: Mapping[str, NDArray[Any]], prefix: str) -> float:
    dense = _grouped(train[f"{prefix}{_DENSE}"])
    x = np.random.RandomState(0).standard_normal((_PATCHES, dense.shape[0], dense.shape[2], 3, 3))
    centre = x[..., 1, 1]
    branches = _bn(train, f"{prefix}rbr_dense.bn.", np.einsum("goixy,ngixy->ngo", dense, x))
    point = _grouped(train[f"{prefix}rbr_1x1.conv.weight"])[..., 0, 0]
    branches = branches + _bn(train, f"{prefix}rbr_1x1.bn.", np.einsum("goi,ngi->ngo", point, centre))
    if f"{prefix}rbr_identity.weight" in train:
        branches = branches + _bn(train, f"{prefix}rbr_identity.", centre)
    kernel = _grouped(deploy[f"{prefix}rbr_reparam.weight"])
    fused = np.einsum("goixy,ngixy->ngo", kernel, x).reshape(_PATCHES, -1)
    fused = fused + deploy[f"{prefix}rbr_reparam.bias"].astype(np.float64).reshape(-1)
    scale = float(np.abs(branches).max())
    difference = float(np.abs(fused - branches).max())
    return difference / scale if scale else (0.0 if not difference else float("inf"))


def _grouped(kernel: NDArray[Any]) -> NDArray[Any]:
    kernel = kernel.astype(np.float64)
    return kernel if kernel.ndim == 5 else kernel[None]


def _bn(arrays: Mapping[str, NDArray[Any]], prefix: str, x: NDArray[Any]) -> NDArray[Any]:
    gamma, beta, mean, var = (arrays[f"{prefix}{name}"].astype(np.float64).reshape(-1) for name in BN_TENSORS)
    normalised: NDArray[Any] = (x.reshape(_PATCHES, -1) - mean) / np.sqrt(var + BN_EPS) * gamma + beta
    return normalised

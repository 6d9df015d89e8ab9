"""block_gradients: from the gradient of a block's one convolution to those of its branches, by the chain rule.

With running statistics, a block is a convolution whose kernel and bias depend on the parameters of the branches as
``fuse_block`` computes them: each branch adds scale * kernel and beta - mean * scale, where scale is gamma / std.
"""

from __future__ import annotations

from typing import Any, Dict, Mapping

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


def block_gradients(
    arrays: Arrays, bn_eps: Mapping[str, float], kernel: NDArray[Any], bias: NDArray[Any]
) -> Dict[str, NDArray[Any]]:
    """Return the gradient of each parameter of a block's branches, by its key.

    ``arrays`` are the block's by key, ``kernel`` and ``bias`` the gradients of the one convolution, in the shapes of
    ``rbr_dense.conv.weight`` and (O,). The kernel's array becomes the gradient of that of the 3x3 branch. Sums are
    float64; results are float32 for convolutions, and float64 for BN.
    """
    center = kernel[..., 1, 1].copy()
    point = arrays["rbr_1x1.conv.weight"][..., 0, 0]
    sums = {
        "rbr_dense.bn": _sum_products(kernel, arrays["rbr_dense.conv.weight"], bias.size),
        "rbr_1x1.bn": _sum_products(center, point, bias.size),
    }
    if "rbr_identity.weight" in arrays:
        size = center.shape[-1]
        sums["rbr_identity"] = np.einsum("gii->gi", center.reshape(-1, size, size)).reshape(-1)
    gradients: Dict[str, NDArray[Any]] = {}
    scales = {}
    for bn, total in sums.items():
        gamma, mean, var = (arrays[f"{bn}.{key}"].astype(np.float64).reshape(-1) for key in _KEYS)
        std = np.sqrt(var + bn_eps[bn])
        gradients[f"{bn}.weight"] = (total - mean * bias) / std
        gradients[f"{bn}.bias"] = bias
        scales[bn] = (gamma / std).astype(np.float32)
    channels = kernel.shape[:-3]
    kernel *= scales["rbr_dense.bn"].reshape(*channels, 1, 1, 1)
    center *= scales["rbr_1x1.bn"].reshape(*channels, 1)
    gradients["rbr_dense.conv.weight"] = kernel
    gradients["rbr_1x1.conv.weight"] = center[..., None, None]
    return gradients


_KEYS = ("weight", "running_mean", "running_var")


def _sum_products(a: NDArray[Any], b: NDArray[Any], channels: int) -> NDArray[Any]:
    total: NDArray[Any] = (a * b).reshape(channels, -1).sum(axis=1, dtype=np.float64)
    return total

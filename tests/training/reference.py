"""The pooled features of a train-form network in float64, and central differences; nothing here is differentiated."""

from __future__ import annotations

import numpy as np

from repvgg_zoo.training.structure import structure_of

EPS = 1e-5


def features64(network, images, bn="frozen", moves=None):
    """The features of a network, with some of its tensors moved by float64 arrays, which a function returns."""
    x = images.astype(np.float64)
    for name, block in structure_of(network).blocks.items():
        part = {}
        for key, tensor in block.tensors().items():
            part[key] = tensor.numpy().astype(np.float64)
            if moves is not None:
                part[key] += moves(f"{name}.{key}")
        x = _block(block.module, part, x, bn)
    return x.mean(axis=(2, 3))


def _block(block, part, x, bn):
    if "rbr_reparam.weight" in part:
        out = _conv(x, part["rbr_reparam.weight"], block.stride) + part["rbr_reparam.bias"].reshape(1, -1, 1, 1)
    else:
        out = _bn(_conv(x, part["rbr_dense.conv.weight"], block.stride), part, "rbr_dense.bn", bn)
        out = out + _bn(_conv(x, part["rbr_1x1.conv.weight"], block.stride), part, "rbr_1x1.bn", bn)
        if "rbr_identity.weight" in part:
            out = out + _bn(x, part, "rbr_identity", bn)
    if "se.up.bias" in part:
        out = out * _gate(out, part, "se")
    out = np.maximum(out, 0)
    return out * _gate(out, part, "post_se") if "post_se.up.bias" in part else out


def _conv(x, kernel, stride):
    groups, outs, ins, side, _ = (kernel if kernel.ndim == 5 else kernel[None]).shape
    n, _, height, width = x.shape
    padded = np.pad(x.swapaxes(0, 1), ((0, 0), (0, 0), (side // 2,) * 2, (side // 2,) * 2))
    shifts = [(i, j) for i in range(side) for j in range(side)]
    pixels = np.stack([padded[..., i : i + height : stride, j : j + width : stride] for i, j in shifts], axis=1)
    # One product of matrices a group, which BLAS computes.
    out = kernel.reshape(groups, outs, -1) @ pixels.reshape(groups, ins * side * side, -1)
    return out.reshape(groups * outs, n, *pixels.shape[3:]).swapaxes(0, 1)


def _bn(x, part, name, bn):
    mean, var = part[f"{name}.running_mean"], part[f"{name}.running_var"]
    if bn == "train":
        mean, var = (getattr(x, statistic)(axis=(0, 2, 3)) for statistic in ("mean", "var"))
    gamma, beta, mean, var = (
        value.reshape(1, -1, 1, 1) for value in (part[f"{name}.weight"], part[f"{name}.bias"], mean, var)
    )
    return (x - mean) / np.sqrt(var + EPS) * gamma + beta


def _gate(x, part, name):
    down, up = (part[f"{name}.{layer}.weight"][:, :, 0, 0] for layer in ("down", "up"))
    squeezed = np.maximum(x.mean(axis=(2, 3)) @ down.T + part[f"{name}.down.bias"].reshape(-1), 0)
    return 1 / (1 + np.exp(-(squeezed @ up.T + part[f"{name}.up.bias"].reshape(-1))))[:, :, None, None]


def directional_derivative(network, directions, images, weights, step, bn="frozen"):
    """The derivative of the sum of features * weights as tensors move in these directions."""

    def loss(step):
        def moves(name):
            return step * directions[name].astype(np.float64) if name in directions else 0.0

        return (features64(network, images, bn, moves) * weights).sum()

    return (loss(step) - loss(-step)) / (2 * step)

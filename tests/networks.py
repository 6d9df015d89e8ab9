"""Helpers for tests on networks: realistic random weights, and counting."""

from __future__ import annotations

import megengine.module as M
import numpy as np
from megengine import Tensor


def randomised(module: M.Module, seed: int = 0) -> M.Module:
    """Gives every BN its own statistics and scales, as training would, so that no branch is trivial; returns it."""
    random = np.random.RandomState(seed)
    for bn in (part for part in module.modules() if isinstance(part, M.BatchNorm2d)):
        shape = bn.running_mean.shape
        bn.running_mean[...] = random.normal(0, 0.5, shape).astype(np.float32)
        bn.running_var[...] = random.uniform(0.5, 2, shape).astype(np.float32)
        bn.weight[...] = random.normal(1, 0.3, shape).astype(np.float32)
        bn.bias[...] = random.normal(0, 0.3, shape).astype(np.float32)
    return module


def fill(tensor: Tensor, value: float) -> None:
    """Sets every number, shape and dtype kept (MegEngine's ``tensor[...] = scalar`` keeps neither)."""
    tensor[...] = np.full(tensor.shape, value, dtype=tensor.dtype)


def count_params(module: M.Module) -> int:
    """Trainable numbers."""
    return sum(int(np.prod(tensor.shape)) for tensor in module.parameters())


def count_macs(network: M.Module, image_size: int) -> int:
    """Multiply-accumulates of 3x3 and 1x1 branch convolutions and of the head for one image.

    As the published figures do, it leaves out SE, BN, bias and the auxiliary heads.
    """
    total = 0

    def count(layer: M.Module, inputs: tuple, output: Tensor) -> None:
        nonlocal total
        positions = int(np.prod(output.shape[2:])) if len(output.shape) == 4 else 1
        total += int(np.prod(layer.weight.shape)) * positions

    left_out = {"se", "post_se", "stage1_aux", "stage2_aux", "stage3_first_aux"}
    layers = [
        part
        for name, part in network.named_modules()
        if isinstance(part, (M.Conv2d, M.Linear)) and left_out.isdisjoint(name.split("."))
    ]
    handles = [layer.register_forward_hook(count) for layer in layers]
    network.eval()
    network(Tensor(np.zeros((1, network.in_chans, image_size, image_size), np.float32)))
    for handle in handles:
        handle.remove()
    return total

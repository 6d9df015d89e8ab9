"""forward_features: what the head of a network gets, differentiable in the parameters of all blocks."""

from __future__ import annotations

from typing import Optional

import megengine.module as M
from megengine import Tensor

from ..errors import ArgumentError
from ..inference.target import kernels_unavailable_reason, limit_threads
from ..models.layers import global_avg_pool
from ..reparam.to_deploy import eval_mode
from .structure import Structure, structure_of
from .trunk_function import kernel_features

BN_MODES = ("frozen", "train")
STAGES = ("stage0", "stage1", "stage2", "stage3", "stage4")


def forward_features(
    network: M.Module,
    images: Tensor,
    *,
    bn: str = "frozen",
    freeze_until: Optional[str] = None,
    threads: Optional[int] = None,
) -> Tensor:
    """Return the pooled features (N, C) of images (N, in_chans, H, W), which are what ``network.linear`` takes.

    They are differentiable in the parameters of every block, but not in the images. With ``bn="frozen"``, BN
    layers use their running statistics, whatever mode the network is in; with ``bn="train"``, they use those of the
    batch and update the running ones. The stages up to and including ``freeze_until``, such as ``"stage2"``, are
    constant: their BN layers use their running statistics, and the backward pass ends before them. ``threads`` is by
    default the number of cores that this process may use.

    Raises ArgumentError for another ``bn`` and for a stage that does not exist.
    """
    if bn not in BN_MODES:
        raise ArgumentError(f"bn is {bn!r}", expected="'frozen' or 'train'", actual=bn, hint="pass 'frozen' or 'train'")
    structure = structure_of(network)
    frozen = frozen_blocks(structure, freeze_until)
    threads = limit_threads(threads)
    if structure.has_kernels and kernels_unavailable_reason() is None:
        return kernel_features(network, structure.blocks, images, bn=bn, frozen=frozen, threads=threads)
    return forward_eager(network, images, bn=bn, frozen=frozen)


def frozen_blocks(structure: Structure, freeze_until: Optional[str]) -> int:
    """Return how many of the blocks, in the order in which data flows through them, are constant."""
    if freeze_until is None:
        return 0
    if freeze_until not in STAGES:
        raise ArgumentError(
            f"freeze_until is {freeze_until!r}",
            expected=f"one of {', '.join(STAGES)}, or None",
            actual=freeze_until,
            hint="name the last stage that stays as it is; stage0 is the stem",
        )
    return sum(block.stage <= freeze_until for block in structure.blocks.values())


def forward_eager(network: M.Module, images: Tensor, *, bn: str, frozen: int = 0) -> Tensor:
    """Return what ``forward_features`` does, computed by MegEngine's own operators."""
    blocks, x = [block.module for block in structure_of(network).blocks.values()], images
    with eval_mode(*blocks):
        for index, block in enumerate(blocks):
            block.train(bn == "train" and index >= frozen)
            x = block(x)
            if index < frozen:
                x = x.detach()
    return global_avg_pool(x)

"""forward_features: what the head of a network gets, differentiable in the parameters of all blocks."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

import megengine.module as M
from megengine import Tensor

from ..checkpoints.layouts import block_sort_key
from ..errors import ArgumentError
from ..models import RepVGGBlock
from ..models.layers import global_avg_pool
from ..reparam.to_deploy import eval_mode, find_blocks

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
    return _forward_eager(network, images, bn, frozen_blocks(network, freeze_until))


def frozen_blocks(network: M.Module, freeze_until: Optional[str]) -> int:
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
    return sum(name[: len("stage0")] <= freeze_until for name in ordered_blocks(network))


def ordered_blocks(network: M.Module) -> Dict[str, RepVGGBlock]:
    """Return the blocks by name in the order in which data flows through them, which that of MegEngine is not."""
    blocks = find_blocks(network)
    return {name: blocks[name] for name in sorted(blocks, key=block_sort_key)}


def _forward_eager(network: M.Module, x: Tensor, bn: str, frozen: int) -> Tensor:
    """Compute the features by MegEngine's own operators."""
    blocks: List[Any] = list(ordered_blocks(network).values())
    with eval_mode(*blocks):
        for index, block in enumerate(blocks):
            block.train(bn == "train" and index >= frozen)
            x = block(x)
            if index < frozen:
                x = x.detach()
    return global_avg_pool(x)

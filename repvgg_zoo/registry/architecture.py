"""The layers of a variant and the shapes of its deploy-form weights, computed from its ``Architecture``."""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from ..errors import ArgumentError
from .specs import Architecture

STAGE_WIDTHS = (64, 128, 256, 512)  # of stages 1 to 4 at a multiplier of 1 (paper, table 2)
SECOND_HALF = "stage3_second.blocks"
MAX_BLOCKS = 999  # in a stage: their indices have up to three digits in every layout
MAX_WIDTH = 64.0  # of a stage, as a multiple of STAGE_WIDTHS; the widest published network has 5
MAX_WEIGHTS = 1 << 30  # of a network's 3x3 kernels; RepVGG_B3 has 120 million


class BlockSpec(NamedTuple):
    """One block: ``key`` is its prefix in a state dict, such as ``stage1.0``."""

    key: str
    in_channels: int
    out_channels: int
    stride: int
    groups: int


def stage_channels(width_multiplier: Sequence[float]) -> Tuple[int, ...]:
    """Return the output channels of the stem and of the four stages; the stem has at most 64 (paper, section 3.4)."""
    stages = tuple(int(width * factor) for width, factor in zip(STAGE_WIDTHS, width_multiplier))
    return (min(STAGE_WIDTHS[0], stages[0]), *stages)


def is_too_large(architecture: Architecture) -> bool:
    """Return whether a network would have more weights than any real one: building it would fill the memory."""
    if max(architecture.num_blocks) > MAX_BLOCKS or not all(0 < w <= MAX_WIDTH for w in architecture.width_multiplier):
        return True
    widths = stage_channels(architecture.width_multiplier)[1:]
    return sum(9 * depth * width**2 for depth, width in zip(architecture.num_blocks, widths)) > MAX_WEIGHTS


def refuse_too_large(architecture: Architecture) -> None:
    """Raise ArgumentError for a network that is too large to be built."""
    if is_too_large(architecture):
        raise ArgumentError(
            "the network would be larger than any real one",
            actual=architecture,
            hint="check num_blocks and width_multiplier",
        )


def block_specs(architecture: Architecture) -> List[BlockSpec]:
    """Return the blocks of a built-in variant, the stem first, in the order in which data flows through them."""
    widths = stage_channels(architecture.width_multiplier)
    blocks = [BlockSpec("stage0", architecture.in_chans, widths[0], stride=2, groups=1)]
    for prefix, stage, depth in _stages(architecture):
        for index in range(depth):
            is_first = index == 0 and prefix != SECOND_HALF
            is_grouped = architecture.builder == "repvgg" and len(blocks) % 2 == 0 and stage < 4
            blocks.append(
                BlockSpec(
                    f"{prefix}.{index}",
                    widths[stage - 1] if is_first else widths[stage],
                    widths[stage],
                    stride=2 if is_first else 1,
                    groups=architecture.groups if is_grouped else 1,
                )
            )
    return blocks


def deploy_shapes(architecture: Architecture, num_classes: Optional[int] = None) -> Dict[str, Tuple[int, ...]]:
    """Return the canonical keys and shapes of all weights of a built-in variant's deploy form.

    A grouped kernel is (groups, out / groups, in / groups, 3, 3), any other (out, in, 3, 3). ``num_classes`` is by
    default that of the architecture.
    """
    shapes: Dict[str, Tuple[int, ...]] = {}
    for block in block_specs(architecture):
        groups, ins, outs = block.groups, block.in_channels, block.out_channels
        kernel = (outs, ins, 3, 3) if groups == 1 else (groups, outs // groups, ins // groups, 3, 3)
        shapes[f"{block.key}.rbr_reparam.weight"] = kernel
        shapes[f"{block.key}.rbr_reparam.bias"] = (1, outs, 1, 1)
        if architecture.se is not None:
            prefix = f"{block.key}.{'se' if architecture.se.position == 'before_relu' else 'post_se'}"
            squeezed = outs // architecture.se.reduction
            shapes.update(
                {
                    f"{prefix}.down.weight": (squeezed, outs, 1, 1),
                    f"{prefix}.down.bias": (1, squeezed, 1, 1),
                    f"{prefix}.up.weight": (outs, squeezed, 1, 1),
                    f"{prefix}.up.bias": (1, outs, 1, 1),
                }
            )
    classes = architecture.num_classes if num_classes is None else num_classes
    shapes["linear.weight"] = (classes, stage_channels(architecture.width_multiplier)[-1])
    shapes["linear.bias"] = (classes,)
    return shapes


def _stages(architecture: Architecture) -> List[Tuple[str, int, int]]:
    """Return the key prefix of each list of blocks, the number of its stage, and how many blocks it has."""
    depths = architecture.num_blocks
    if architecture.builder == "repvgg":
        return [(f"stage{stage}", stage, depth) for stage, depth in enumerate(depths, start=1)]
    # RepVGGplus's stage 3 is cut in half, so that an auxiliary head can stand between the halves (official code).
    half = depths[2] // 2
    lists = [
        ("stage1.blocks", 1, depths[0]),
        ("stage2.blocks", 2, depths[1]),
        ("stage3_first.blocks", 3, half),
        (SECOND_HALF, 3, depths[2] - half),
        ("stage4.blocks", 4, depths[3]),
    ]
    return [(prefix, stage, max(1, depth)) for prefix, stage, depth in lists]  # a list has at least one block

"""The names of blocks in the native layout, and what a name alone says of its block."""

from __future__ import annotations

import re
from typing import Tuple

# No network has a thousand blocks in a stage; a hostile file's index of a million digits takes minutes to convert.
BLOCK = re.compile(r"(stage0|stage[1-4]\.[0-9]{1,3}|stage(?:1|2|3_first|3_second|4)\.blocks\.[0-9]{1,3})\.")


def block_order(block: str) -> Tuple[str, int]:
    """Its stage and its index in it, which sort blocks as data flows through them."""
    stage, *rest = block.split(".")
    return stage, int(rest[-1]) if rest else 0


def has_identity(block: str) -> bool:
    """Whether the block has an identity branch: all but the first of a stage, which halves the size, have one.

    RepVGGplus's stage 3 is cut into two, of which only the first begins so (official code).
    """
    stage, index = block_order(block)
    return index > 0 or stage == "stage3_second"

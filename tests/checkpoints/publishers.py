"""What each publisher's file of each variant holds, written out by hand and apart from the tables under test.

Sources: the paper's tables 2 and 3 for the variants, the publishers' code for names and shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np

Shape = Tuple[int, ...]
BN = ("weight", "bias", "running_mean", "running_var")
A, B, L = (2, 4, 14, 1), (4, 6, 16, 1), (8, 14, 24, 1)


@dataclass(frozen=True)
class Variant:
    depths: Tuple[int, int, int, int]
    widths: Tuple[float, float, float, float]
    groups: int = 1
    reduction: Optional[int] = None
    plus: bool = False


VARIANTS = {
    "A0": Variant(A, (0.75, 0.75, 0.75, 2.5)),
    "A1": Variant(A, (1, 1, 1, 2.5)),
    "A2": Variant(A, (1.5, 1.5, 1.5, 2.75)),
    "B0": Variant(B, (1, 1, 1, 2.5)),
    "B1": Variant(B, (2, 2, 2, 4)),
    "B1g2": Variant(B, (2, 2, 2, 4), groups=2),
    "B1g4": Variant(B, (2, 2, 2, 4), groups=4),
    "B2": Variant(B, (2.5, 2.5, 2.5, 5)),
    "B2g2": Variant(B, (2.5, 2.5, 2.5, 5), groups=2),
    "B2g4": Variant(B, (2.5, 2.5, 2.5, 5), groups=4),
    "B3": Variant(B, (3, 3, 3, 5)),
    "B3g2": Variant(B, (3, 3, 3, 5), groups=2),
    "B3g4": Variant(B, (3, 3, 3, 5), groups=4),
    "D2se": Variant(L, (2.5, 2.5, 2.5, 5), reduction=16),
    "L2pse": Variant(L, (2.5, 2.5, 2.5, 5), reduction=4, plus=True),
}
# Small enough to fill with distinct numbers; every kind of block is in them.
SMALL = {
    "plain": Variant((2, 3, 4, 1), (0.25, 0.25, 0.25, 0.5)),
    "g2": Variant((2, 3, 4, 1), (0.25, 0.25, 0.25, 0.5), groups=2),
    "g4": Variant((4, 3, 4, 1), (0.25, 0.25, 0.25, 0.5), groups=4),
    "se": Variant((2, 3, 4, 1), (0.25, 0.25, 0.25, 0.5), reduction=4),
    "plus": Variant((2, 3, 4, 1), (0.25, 0.25, 0.25, 0.5), reduction=4, plus=True),
}


class Block(NamedTuple):
    stage: int
    index: int
    within: int  # position in its half, for RepVGGplus's stage 3
    half: str
    inside: int
    outside: int
    groups: int
    identity: bool


class Names(NamedTuple):
    """One publisher's names; {s} is a block's stage from 1, {z} the same from 0, {b} its index in the stage."""

    stem: str
    block: str
    dense: str
    pointwise: str
    identity: str
    norm: str
    reparam: str
    down: str
    up: str
    head: str
    mean: str = "running_mean"
    variance: str = "running_var"
    megengine: bool = False


OFFICIAL = Names(
    "stage0",
    "stage{s}.{b}",
    "rbr_dense",
    "rbr_1x1",
    "rbr_identity",
    "bn",
    ".rbr_reparam",
    ".se.down",
    ".se.up",
    "linear",
)
PUBLISHERS: Dict[str, Names] = {
    "canonical": OFFICIAL._replace(megengine=True),
    "official": OFFICIAL,
    "timm": Names(
        "stem",
        "stages.{z}.{b}",
        "conv_kxk",
        "conv_1x1",
        "identity",
        "bn",
        ".reparam_conv",
        ".attn.fc1",
        ".attn.fc2",
        "head.fc",
    ),
    "openmmlab": Names(
        "backbone.stem",
        "backbone.stage_{s}.{b}",
        "branch_3x3",
        "branch_1x1",
        "branch_norm",
        "norm",
        ".branch_reparam",
        ".se_layer.conv1.conv",
        ".se_layer.conv2.conv",
        "head.fc",
    ),
    "basecls": OFFICIAL._replace(down=".se.f_ex.0", up=".se.f_ex.2", head="head.fc", megengine=True),
    "paddleclas": OFFICIAL._replace(mean="_mean", variance="_variance"),
    "asthestarsfalll": OFFICIAL._replace(
        dense="dense", pointwise="pointwise", identity="identity", reparam=".reparam", megengine=True
    ),
    "zcls": OFFICIAL._replace(
        stem="backbone.stage0",
        block="backbone.stage{s}.{b}",
        dense="0.rbr_dense",
        pointwise="0.rbr_1x1",
        identity="0.rbr_identity",
        reparam=".0",
        down=".1.excitation.0",
        up=".1.excitation.2",
        head="head.fc",
    ),
}


class Entry(NamedTuple):
    canonical: str
    canonical_shape: Shape
    publisher_key: str
    publisher_shape: Shape


def blocks(variant: Variant) -> Iterator[Block]:
    inside, layer = 3, 0
    stem = min(64, int(64 * variant.widths[0]))
    yield Block(0, 0, 0, "", inside, stem, 1, False)
    inside = stem
    for stage, (depth, base, factor) in enumerate(zip(variant.depths, (64, 128, 256, 512), variant.widths), start=1):
        outside = int(base * factor)
        for index in range(depth):
            layer += 1
            groups = variant.groups if layer % 2 == 0 else 1
            second = stage == 3 and index >= depth // 2
            half = ("_second" if second else "_first") if stage == 3 else ""
            within = index - depth // 2 if second else index
            yield Block(stage, index, within, half, inside, outside, groups, index > 0)
            inside = outside


def entries(publisher: str, variant: Variant, form: str, classes: int = 1000) -> List[Entry]:
    """Every tensor of the file by canonical key and shape, and by the publisher's."""
    return list(_entries(PUBLISHERS[publisher], publisher, variant, form, classes))


def _entries(names: Names, publisher: str, variant: Variant, form: str, classes: int) -> Iterator[Entry]:
    def conv(canonical: str, published: str, b: Block, k: int) -> Iterator[Entry]:
        torch = (b.outside, b.inside // b.groups, k, k)
        five = (b.groups, b.outside // b.groups, b.inside // b.groups, k, k) if b.groups > 1 else torch
        yield Entry(f"{canonical}.weight", five, f"{published}.weight", five if names.megengine else torch)

    def bias(canonical: str, published: str, c: int) -> Iterator[Entry]:
        yield Entry(f"{canonical}.bias", (1, c, 1, 1), f"{published}.bias", (1, c, 1, 1) if names.megengine else (c,))

    def bn(canonical: str, published: str, c: int) -> Iterator[Entry]:
        for name, published_name in zip(BN, ("weight", "bias", names.mean, names.variance)):
            yield Entry(f"{canonical}.{name}", (c,), f"{published}.{published_name}", (c,))

    def linear(canonical: str, published: str, width: int) -> Iterator[Entry]:
        shape = (classes, width)
        transposed = publisher == "paddleclas"
        yield Entry(f"{canonical}.weight", shape, f"{published}.weight", shape[::-1] if transposed else shape)
        yield Entry(f"{canonical}.bias", (classes,), f"{published}.bias", (classes,))

    outside = 0
    for b in blocks(variant):
        outside = b.outside
        if b.stage == 0:
            canonical, published = "stage0", names.stem
        elif variant.plus:
            canonical = published = f"stage{b.stage}{b.half}.blocks.{b.within}"
        else:
            canonical = f"stage{b.stage}.{b.index}"
            published = names.block.format(s=b.stage, z=b.stage - 1, b=b.index)
        if form == "train":
            for name, published_name, k in (("rbr_dense", names.dense, 3), ("rbr_1x1", names.pointwise, 1)):
                yield from conv(f"{canonical}.{name}.conv", f"{published}.{published_name}.conv", b, k)
                yield from bn(f"{canonical}.{name}.bn", f"{published}.{published_name}.{names.norm}", b.outside)
            if b.identity:
                yield from bn(f"{canonical}.rbr_identity", f"{published}.{names.identity}", b.outside)
        else:
            yield from conv(f"{canonical}.rbr_reparam", f"{published}{names.reparam}", b, 3)
            yield from bias(f"{canonical}.rbr_reparam", f"{published}{names.reparam}", b.outside)
        if variant.reduction:
            q = b.outside // variant.reduction
            gate = ".post_se" if variant.plus else ".se"
            flat = publisher == "zcls"
            for name, published_name, shape in (
                (".down", names.down, (q, b.outside, 1, 1)),
                (".up", names.up, (b.outside, q, 1, 1)),
            ):
                module = f"{canonical}{gate}{name}"
                published_module = f"{published}{gate}{name}" if variant.plus else f"{published}{published_name}"
                yield Entry(f"{module}.weight", shape, f"{published_module}.weight", shape[:2] if flat else shape)
                yield from bias(module, published_module, shape[0])
    yield from linear("linear", names.head, outside)
    if variant.plus and form == "train":
        widths = [int(base * factor) for base, factor in zip((64, 128, 256), variant.widths)]
        for head, c in zip(("stage1_aux", "stage2_aux", "stage3_first_aux"), widths):
            yield Entry(f"{head}.0.conv.weight", (c, c, 3, 3), f"{head}.0.conv.weight", (c, c, 3, 3))
            yield from bn(f"{head}.0.bn", f"{head}.0.bn", c)
            yield from linear(f"{head}.3", f"{head}.3", c)


def weightless(rows: List[Entry]) -> Dict[str, np.ndarray]:
    """The publisher's file as arrays that take up no memory: one number each, repeated."""
    return {row.publisher_key: np.broadcast_to(np.float16(0), row.publisher_shape) for row in rows}


def numbered(rows: List[Entry], publisher: str) -> Tuple[Dict[str, np.ndarray], Dict[str, np.ndarray]]:
    """The canonical and the published state dict, with a different number in every place."""
    canonical, published, start = {}, {}, 0
    for row in rows:
        size = int(np.prod(row.canonical_shape))
        canonical[row.canonical] = np.arange(start, start + size, dtype=np.float64).reshape(row.canonical_shape)
        start += size
        stored = canonical[row.canonical]
        if publisher == "paddleclas" and row.canonical == "linear.weight":
            stored = stored.transpose()
        published[row.publisher_key] = np.array(stored).reshape(row.publisher_shape)
    return canonical, published

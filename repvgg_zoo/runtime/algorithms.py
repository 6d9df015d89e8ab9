"""Which algorithm MegEngine runs each convolution with, written as the table that its fast-run keeps.

Fast-run measures every algorithm once and keeps the fastest. That costs 0.3 to 7 seconds, and on a busy machine it
keeps whatever was lucky. The choice can be reasoned out instead, and Lite takes a table from anyone. The format is that
of MegEngine 1.13: a table that another version cannot read is ignored entry by entry, and fast-run measures as before.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Iterable, Optional, Tuple

CATEGORY = b"profile:plat=cpu:ConvBiasForwardv5X0"
TILE_BLOCKS = (8, 16, 24)  # how many winograd tiles MegEngine multiplies at once
IDENTITY, RELU = 0, 1  # MegEngine's numbers of what is fused behind a convolution
NCHW88 = 6

# What a Zen 3 core was seen to do. Only the proportions matter.
MULTIPLY_ADDS = 35e9  # a second, in winograd's matrix products
TRANSFORMED = {6: 20e9, 2: 60e9}  # bytes a second, of tiles on their way into and out of winograd's domain
STREAMED = 8e9  # bytes a second, of weights: once for each block of tiles, from outside the core's own caches


@dataclass(frozen=True)
class Convolution:
    """A dense 3x3 convolution of stride 1 and padding 1 in the layout NCHW88, with a bias."""

    batch: int
    in_channels: int
    out_channels: int
    height: int
    width: int
    relu: bool = True

    def key(self) -> bytes:
        """The table's key: the layouts of input, kernel, bias, nothing, output; then the operator's parameters."""
        ins, outs = self.in_channels // 8, self.out_channels // 8
        layouts = (
            f"{self.batch},{ins},{self.height},{self.width},8",
            f"{outs},{ins},3,3,8,8",
            f"1,{outs},1,1,8",
            "",
            f"{self.batch},{outs},{self.height},{self.width},8",
        )
        # Non-linearity, cross-correlation, dense, format, padding, stride and dilation (each twice), compute mode.
        parameters = (RELU if self.relu else IDENTITY, 0, 0, NCHW88, 1, 1, 1, 1, 1, 1, 0)
        return "".join(f"{layout};Float32|" for layout in layouts).encode() + struct.pack("<11I", *parameters)


@dataclass(frozen=True)
class Winograd:
    """Winograd's F(output, 3): ``output`` x ``output`` results from one tile, ``block`` tiles multiplied at once."""

    output: int
    block: int

    def entry(self) -> bytes:
        """The table's value for this choice: one algorithm, with a time and workspace that nobody compares."""
        name = b"WINOGRAD:X86_F32MK8_8X8:8:%d:%d:3" % (self.output, self.block)
        x86, kind = 2, {6: 0x102, 2: 0x103}[self.output]
        descriptor = struct.pack("<5I", x86, kind, 4, len(name), self.block) + name
        return struct.pack("<I", 1) + _sized(descriptor) + _sized(b":1;0.001;0:\0")


def table(convolutions: Iterable[Convolution], threads: int) -> bytes:
    """The table for these convolutions, as ``LiteGlobal.set_persistent_cache`` reads it from a file."""
    rows = {one.key(): choose(one, threads).entry() for one in convolutions}
    body = b"".join(_sized(key) + _sized(value) for key, value in sorted(rows.items()))
    return struct.pack("<I", 1) + _sized(CATEGORY) + struct.pack("<I", len(rows)) + body


def choose(one: Convolution, threads: int) -> Winograd:
    """The variant of winograd that should finish first on this many threads."""
    best: Optional[Tuple[float, Winograd]] = None
    for output in (6, 2):
        for block in TILE_BLOCKS:
            variant = Winograd(output, block)
            seconds = _seconds(one, variant, threads)
            if best is None or seconds < best[0]:
                best = seconds, variant
    assert best is not None
    return best[1]


def _seconds(one: Convolution, variant: Winograd, threads: int) -> float:
    """A model of the run time: each block of tiles is a task; with too few of them, output channels are shared out."""
    points = (variant.output + 2) ** 2
    tiles = math.ceil(one.height / variant.output) * math.ceil(one.width / variant.output)
    blocks = [min(variant.block, tiles - start) for start in range(0, tiles, variant.block)]
    shares = threads if len(blocks) < threads else 1
    outs = one.out_channels / shares
    weights = points * one.in_channels * outs
    busy = [0.0] * threads
    for block in blocks * shares * one.batch:
        multiply = max(block * weights / MULTIPLY_ADDS, 4 * weights / STREAMED)
        transform = 4 * points * block * (one.in_channels + outs) * 3 / TRANSFORMED[variant.output]
        idle = busy.index(min(busy))
        busy[idle] += multiply + transform
    return max(busy)


def _sized(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data

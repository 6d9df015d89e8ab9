"""One batch on several cores at once: every stretch of the network is shared out in the way that suits it.

MegEngine spreads only winograd over threads; what oneDNN computes (the picture's convolution and those of stride 2)
runs on one while the others wait. Here such stretches are cut into parts, each a network of its own on a core of its
own: the first blocks by rows of the picture, a single block by output channels. Between them, networks that use all
threads run the blocks of stride 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Callable, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from .algorithms import table
from .nchw88 import LANES, Block, Head, Segment, after
from .plans import Part, Step

Shape = Tuple[int, ...]
# Dumps a segment for an input of this shape, and gives the graph's SHA-256.
Dump = Callable[[Segment, Shape], str]


def stages(blocks: Sequence[Block], head: Head, shape: Shape, threads: int, dump: Dump) -> Optional[Tuple[Step, ...]]:
    """The steps for inputs of ``shape`` (N, C, H, W), or None for a network or a size that cannot be cut like this."""
    if threads < 2 or any(block.gate is not None for block in blocks):
        return None  # SE needs every row and every channel
    halving = [block for block in blocks if block.stride > 1]
    if len(halving) < 4 or blocks[-1].stride == 1 or min(block.out_channels for block in halving) < LANES * threads:
        return None
    spans = row_spans(blocks[: _first_stretch(blocks)], shape[2], threads)
    return None if spans is None else tuple(_Cutter(threads, dump).cut(blocks, head, shape, spans))


def rewritten(
    blocks: Sequence[Block], head: Head, shape: Shape, threads: int, dump: Dump, parts: int
) -> Tuple[Step, ...]:
    """The step for inputs of ``shape``: ``parts`` networks, each with its share of the batch and of the threads."""
    batch, channels, height, width = shape
    share = (batch // parts, channels, height, width)
    segment = Segment(blocks, share[0], height, width, head)
    algorithms = table(segment.convolutions, threads // parts)
    return (side_by_side(dump(segment, share), share, threads, parts, algorithms),)


def side_by_side(graph: str, shape: Shape, threads: int, parts: int, algorithms: Optional[bytes] = None) -> Step:
    """``parts`` networks of one graph, each with ``shape`` and its share of the threads."""
    spans = [(shape[0] * part, shape[0] * (part + 1)) for part in range(parts)]
    return Step(tuple(Part(graph, shape, threads // parts, algorithms, reads=span) for span in spans))


@dataclass(frozen=True)
class RowSpan:
    """One part of a picture: it reads rows ``first`` to ``last``; of its results, those from ``skip`` on, ``keep`` of
    them, are right. The others lie at a cut, where the network took padding for rows it did not get."""

    first: int
    last: int
    skip: int
    keep: int


def row_spans(blocks: Sequence[Block], height: int, parts: int) -> Optional[Tuple[RowSpan, ...]]:
    """The smallest equal shares of a picture that give every row of the blocks' result; None if it has too few."""
    scale, results, skip = 1, height, 0
    for block in blocks:
        scale, results = scale * block.stride, after(results, block.stride)
        skip = skip // block.stride + 1

    def needed(count: int) -> int:
        """How many rows from the top the first ``count`` results depend on."""
        for block in reversed(blocks):
            count = block.stride * (count - 1) + 2
        return min(count, height)

    for limit in range(1, height + 1):
        spans: List[RowSpan] = []
        done = 0
        while len(spans) < parts and done < results:
            first = scale * (done - skip) if spans else 0
            if first < 0:
                break
            fitting = [count for count in range(done + 1, results + 1) if needed(count) - first <= limit]
            if not fitting or (fitting[-1] < results and len(spans) == parts - 1):
                break
            spans.append(RowSpan(first, needed(fitting[-1]), skip if spans else 0, fitting[-1] - done))
            done = fitting[-1]
        if done == results and len(spans) == parts:
            return tuple(spans)
    return None


@dataclass(frozen=True)
class _Cutter:
    threads: int
    dump: Dump

    def cut(self, blocks: Sequence[Block], head: Head, shape: Shape, spans: Sequence[RowSpan]) -> Iterator[Step]:
        batch, _, height, width = shape
        first = _first_stretch(blocks)
        yield self._by_rows(blocks[:first], shape, spans)
        for block in blocks[:first]:
            height, width = after(height, block.stride), after(width, block.stride)
        for run in _stretches(blocks[first:]):
            inputs = (batch, run[0].in_channels // LANES, height, width, LANES)
            if run[0].stride > 1:
                yield self._by_channels(run[0], head if run[0] is blocks[-1] else None, inputs)
                height, width = after(height, run[0].stride), after(width, run[0].stride)
            else:
                yield Step((self._part(Segment(run, batch, height, width), inputs, self.threads),), join=1)

    def _by_rows(self, blocks: Sequence[Block], shape: Shape, spans: Sequence[RowSpan]) -> Step:
        batch, channels, _, width = shape
        parts = []
        for span in spans:
            rows = span.last - span.first
            part = self._part(Segment(blocks, batch, rows, width), (batch, channels, rows, width))
            parts.append(replace(part, reads=(span.first, span.last), keeps=(span.skip, span.skip + span.keep)))
        return Step(tuple(parts), cut=2, join=2)

    def _by_channels(self, block: Block, head: Optional[Head], inputs: Shape) -> Step:
        batch, _, height, width, _ = inputs
        edges = [LANES * (block.out_channels // LANES * part // self.threads) for part in range(self.threads + 1)]
        parts = []
        for start, stop in zip(edges, edges[1:]):
            share = None
            if head is not None:  # the bias belongs to the sum of the shares
                share = Head(head.weight[:, start:stop], head.bias if start == 0 else np.zeros_like(head.bias))
            parts.append(self._part(Segment([block.channels(start, stop)], batch, height, width, share), inputs))
        return Step(tuple(parts), join=1 if head is None else None)

    def _part(self, segment: Segment, shape: Shape, threads: int = 1) -> Part:
        algorithms = table(segment.convolutions, threads)
        return Part(self.dump(segment, shape), shape, threads, algorithms)


def _first_stretch(blocks: Sequence[Block]) -> int:
    """How many blocks are cut by rows: to the second of stride 2; to the third if only one block lies between."""
    halving = [index for index, block in enumerate(blocks) if block.stride > 1]
    return halving[2] + 1 if halving[2] - halving[1] <= 2 else halving[1] + 1


def _stretches(blocks: Sequence[Block]) -> List[List[Block]]:
    """Each block of stride 2 by itself, the blocks of stride 1 between them together."""
    runs: List[List[Block]] = []
    for block in blocks:
        if block.stride > 1 or not runs or runs[-1][0].stride > 1:
            runs.append([])
        runs[-1].append(block)
    return runs

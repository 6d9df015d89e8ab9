"""One batch on several cores at once: every stretch of the network is shared out in the way that suits it.

MegEngine spreads only winograd over threads; what oneDNN computes (the picture's convolution and those of stride 2)
runs on one while the others wait. Here such stretches are cut into parts, each a network of its own on a core of its
own: the first blocks by rows of the picture, a single block by output channels. Between them, networks that use all
threads run the blocks of stride 1.
"""

from __future__ import annotations

import io
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, List, Optional, Sequence, Tuple

import megengine.module as M
import numpy as np
from megengine import Tensor
from megengine.core._imperative_rt.core2 import _clear_algorithm_cache
from megengine.jit import trace
from numpy.typing import NDArray

from .algorithms import table
from .nchw88 import LANES, Block, Head, Segment, after, numbers_of


def staged(network: M.Module, shape: Tuple[int, int, int, int], threads: int) -> Optional[Stages]:
    """A runner for inputs of ``shape`` (N, C, H, W), or None for a network or a size that cannot be cut like this.

    Raises RuntimeError if MegEngine cannot build it.
    """
    numbers = numbers_of(network)
    if numbers is None or threads < 2:
        return None
    blocks, head = numbers
    if any(block.gate is not None for block in blocks):
        return None  # SE needs every row and every channel
    halving = [block for block in blocks if block.stride > 1]
    if len(halving) < 4 or blocks[-1].stride == 1 or min(block.out_channels for block in halving) < LANES * threads:
        return None
    spans = row_spans(blocks[: _first_stretch(blocks)], shape[2], threads)
    return None if spans is None else Stages(blocks, head, shape, threads, spans)


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


class Stages:
    """Runs float32 arrays of one shape, not for several threads at once; ``close`` gives its threads back."""

    def __init__(
        self,
        blocks: Sequence[Block],
        head: Head,
        shape: Tuple[int, int, int, int],
        threads: int,
        spans: Sequence[RowSpan],
    ) -> None:
        self._threads = threads
        self._picture = np.zeros(shape, np.float32)
        self._helpers = ThreadPoolExecutor(threads - 1)
        cut = _first_stretch(blocks)
        self._steps = [self._by_rows(blocks[:cut], spans)]
        for run in _stretches(blocks[cut:]):
            if run[0].stride > 1:
                self._steps.append(self._by_channels(run[0], head if run[0] is blocks[-1] else None))
            else:
                self._steps.append(self._whole(run))

    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:
        """The logits of a batch; the result is the caller's own."""
        self._picture[...] = x
        for networks in self._steps:
            others = [self._helpers.submit(network.run) for network in networks[1:]]
            networks[0].run()
            for other in others:
                other.result()
        return np.asarray(sum(network.output for network in self._steps[-1]))

    def close(self) -> None:
        """Gives threads and memory back."""
        self._helpers.shutdown()
        self._steps = []

    def _by_rows(self, blocks: Sequence[Block], spans: Sequence[RowSpan]) -> List[_Network]:
        batch, _, _, width = self._picture.shape
        networks = []
        for span in spans:
            rows = self._picture[:, :, span.first : span.last]
            segment = Segment(blocks, batch, span.last - span.first, width)
            network = _Network(segment, [(np.s_[...], rows)], rows.shape, threads=1)
            network.output = network.output[:, :, span.skip : span.skip + span.keep]
            networks.append(network)
        self._axis = 2
        return networks

    def _by_channels(self, block: Block, head: Optional[Head]) -> List[_Network]:
        sources, shape = self._sources()
        batch, _, height, width, _ = shape
        edges = [LANES * (block.out_channels // LANES * part // self._threads) for part in range(self._threads + 1)]
        networks = []
        for start, stop in zip(edges, edges[1:]):
            share = None
            if head is not None:  # the bias belongs to the sum of the shares
                share = Head(head.weight[:, start:stop], head.bias if start == 0 else np.zeros_like(head.bias))
            segment = Segment([block.channels(start, stop)], batch, height, width, share)
            networks.append(_Network(segment, sources, shape, threads=1))
        self._axis = 1
        return networks

    def _whole(self, blocks: Sequence[Block]) -> List[_Network]:
        sources, shape = self._sources()
        batch, _, height, width, _ = shape
        segment = Segment(blocks, batch, height, width)
        self._axis = 1
        return [_Network(segment, sources, shape, self._threads)]

    def _sources(self) -> Tuple[List[_Source], Tuple[int, ...]]:
        """Where the next step finds its input: the last step's outputs, and where each of them goes."""
        sources: List[_Source] = []
        done = 0
        for network in self._steps[-1]:
            size = network.output.shape[self._axis]
            place = (slice(None),) * self._axis + (slice(done, done + size),)
            sources.append((place, network.output))
            done += size
        shape = list(network.output.shape)
        shape[self._axis] = done
        return sources, tuple(shape)


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


_Source = Tuple[Any, NDArray[Any]]  # a place in a network's input, and the array that goes there


class _Network:
    """A segment in MegEngine Lite, which has run once: oneDNN keeps what it prepares in a map without a lock."""

    def __init__(self, segment: Segment, sources: List[_Source], shape: Tuple[int, ...], threads: int) -> None:
        import megenginelite as lite

        options = lite.LiteOptions()
        options.weight_preprocess = options.comp_node_seq_record_level = 1
        network = lite.LiteNetwork(lite.LiteConfig(device_type=lite.LiteDeviceType.LITE_CPU, option=options))
        network.threads_number = threads
        strategy = lite.LiteAlgoSelectStrategy
        # Together these say: the table's algorithm, else the usual one, and no measuring.
        network.set_network_algo_policy(strategy.LITE_ALGO_PROFILE | strategy.LITE_ALGO_HEURISTIC)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "algorithms")
            path.write_bytes(table(segment.convolutions, threads))
            lite.LiteGlobal.set_persistent_cache(str(path))
            network.load(io.BufferedReader(io.BytesIO(_dumped(segment, shape))))
            entry = network.get_io_tensor("data")
            entry.set_data_by_copy(np.zeros(shape, np.float32))
            network.forward()
            network.wait()
        self._network = network
        self._sources = sources
        self._input = entry.get_data_by_share()
        self.output: NDArray[Any] = network.get_io_tensor("output").get_data_by_share()

    def run(self) -> None:
        for place, array in self._sources:
            self._input[place] = array
        self._network.forward()
        self._network.wait()


def _dumped(segment: Segment, shape: Tuple[int, ...]) -> bytes:
    for tensor in segment.parameters():  # MegEngine's dump takes no other device
        tensor._reset(Tensor(tensor.numpy(), device="xpux"))
    forward: Callable[..., Any] = trace(segment.forward, symbolic=True, capture_as_const=True)
    forward(Tensor(np.zeros(shape, np.float32), device="xpux"))
    stream = io.BytesIO()
    forward.dump(stream, arg_names=["data"], output_names=["output"], optimize_for_inference=False)  # type: ignore[attr-defined]
    # Tracing ran every convolution with MegEngine's usual algorithm and noted how much memory that needs, by shape;
    # the table's would be given as much.
    _clear_algorithm_cache()
    return stream.getvalue()

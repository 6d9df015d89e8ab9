"""From a network's numbers to a program for the kernels: which steps, on which memory, with which weights."""

from __future__ import annotations

import math
import mmap
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from .ir import ConvLayer, LinearWeights, NetworkWeights, SEWeights, check_layers
from .jit.kernels import FIELDS, PANEL, UNROLLED, Registers
from .jit.winograd import TILES, Tile

# What decides between the convolutions; measured on Zen 3, and only the proportion matters.
MULTIPLY_ADDS = 45e9  # a second, on one core
STREAMED = 5e9  # bytes of weights a second that are read beside the computing, on all cores together

ROW_BLOCK = 96  # rows of a direct convolution that are computed with each panel of weights before the next
HUGE = 1 << 21  # bytes of a huge page

TILE_BYTES = 1 << 20  # of points and products at once: they shall stay near the core
LEAST_TILES = 64  # but the weights shall not be read again for fewer tiles than these


@dataclass(frozen=True)
class Call:
    """One step: a kernel and its arguments, in the order of its fields."""

    kernel: str
    arguments: NDArray[Any]


@dataclass(frozen=True, eq=False)
class Map:
    """An activation: ``memory`` (N, H', W', C') holds (N, height, width, channels) behind one row and column of zeros,
    and zeros around it. C' is channels filled up to a multiple of ``PANEL`` (of ``UNROLLED`` for a picture)."""

    memory: NDArray[Any]
    height: int
    width: int
    channels: int

    @property
    def images(self) -> int:
        return len(self.memory)

    @property
    def strides(self) -> Tuple[int, int, int]:
        """Numbers from one image, row and pixel to the next."""
        _, height, width, channels = self.memory.shape
        return height * width * channels, width * channels, channels

    @property
    def inside(self) -> NDArray[Any]:
        """(N, height, width, channels), a view."""
        return self.memory[:, 1 : self.height + 1, 1 : self.width + 1, : self.channels]

    def places(self, y: Any, x: Any) -> NDArray[Any]:
        """Where the pixels (y, x), counted from the border, begin, for all images: ``y`` and ``x`` are lists."""
        image, row, column = self.strides
        images = np.arange(self.images)[:, None, None] * image
        places: NDArray[Any] = (images + np.asarray(y)[:, None] * row + np.asarray(x) * column).reshape(-1)
        return places


@dataclass(eq=False)
class Program:
    """Steps in order; the first argument of the first call is the images' address.

    It is for kernels made for the same ``registers``. ``outputs`` are views of the results, (N, classes) or
    (N, H, W, C), by feature name or "" for logits. ``arrays`` is all memory that the calls use.
    """

    registers: Registers
    calls: List[Call] = field(default_factory=list)
    outputs: Dict[str, NDArray[Any]] = field(default_factory=dict)
    arrays: List[NDArray[Any]] = field(default_factory=list)

    def add(self, kernel: str, **arguments: Any) -> None:
        """Appends a step; arrays become addresses."""
        values = []
        for name in FIELDS[kernel]:
            value = arguments.pop(name)
            if isinstance(value, np.ndarray):
                self.arrays.append(value)
                value = value.ctypes.data
            values.append(int(value))
        assert not arguments, arguments
        self.calls.append(Call(kernel, np.array(values, np.int64)))


def program_of(
    weights: NetworkWeights, shape: Tuple[int, int, int, int], threads: int, low_memory: bool, registers: Registers
) -> Program:
    """The program for images of ``shape`` (N, C, H, W) on so many threads; with ``low_memory`` without winograd."""
    return _Writer(shape[0], threads, low_memory, registers).write(weights, shape)


class _Writer:
    def __init__(self, images: int, threads: int, low_memory: bool, registers: Registers) -> None:
        self._images = images
        self._threads = threads
        self._tiles = () if low_memory else TILES
        self._program = Program(registers)
        self._free: Dict[Any, List[NDArray[Any]]] = {}
        self._scratch: Dict[str, NDArray[Any]] = {}

    def write(self, weights: NetworkWeights, shape: Tuple[int, int, int, int]) -> Program:
        _, channels, height, width = shape
        check_layers(weights, channels)
        x = self._map(height, width, channels, UNROLLED)
        image, row, column = x.strides
        self._program.add(
            "picture",
            x=0,
            images=self._images,
            height=height,
            width=width,
            channels=channels,
            out=x.inside,
            image=image,
            row=row,
            column=column,
        )
        for layer in weights.layers:
            height, width = _after(x.height, layer.stride), _after(x.width, layer.stride)
            out = self._map(height, width, layer.out_channels)
            relu = layer.se is None or layer.se.after_relu
            # A picture is filled up to less than the whole vectors that winograd takes.
            suits = layer.stride == 1 and x.memory.shape[-1] % PANEL == 0
            tile = self._choose(layer, out) if suits else None
            if tile is None:
                self._direct(layer, x, out, relu)
            else:
                self._winograd(layer, tile, x, out, relu)
            if layer.se is not None:
                self._se(layer.se, out)
            if layer.feature is not None:
                self._program.outputs[layer.feature] = out.inside
            # A map that is given out must last; any other is free for the next but one block.
            if not any(x.memory.base is kept.base for kept in self._program.outputs.values()):
                self._free.setdefault((x.memory.shape, x.height, x.width), []).append(x.memory)
            x = out
        if weights.head is not None:
            logits = self._matrix(weights.head, self._mean(x), relu=False)
            self._program.outputs[""] = logits[:, : len(weights.head[1])]
        return self._program

    def _map(self, height: int, width: int, channels: int, multiple: int = PANEL) -> Map:
        largest = max(tile.size for tile in TILES)
        sides = (_up(size, largest) + 2 for size in (height, width))
        shape = (self._images, *sides, _up(channels, multiple))
        free = self._free.get((shape, height, width))  # of the same size, so that the border is still zeros
        return Map(free.pop() if free else aligned(shape), height, width, channels)

    def _choose(self, layer: ConvLayer, out: Map) -> Optional[Tile]:
        """The tile that should be fastest, None for a direct convolution."""
        products = layer.kernel.size // 9

        def seconds(points: int, tiles: int) -> float:
            return max(points * tiles * products / MULTIPLY_ADDS / self._threads, 4 * points * products / STREAMED)

        times: List[Tuple[float, Optional[Tile]]] = [(seconds(9, out.images * out.height * out.width), None)]
        for tile in self._tiles:
            count = out.images * math.ceil(out.height / tile.size) * math.ceil(out.width / tile.size)
            times.append((seconds(tile.points, count), tile))
        return min(times, key=lambda time: time[0])[1]

    def _direct(self, layer: ConvLayer, x: Map, out: Map, relu: bool) -> None:
        kernel = _by_panels(layer.kernel, x.memory.shape[-1], out.memory.shape[-1])
        groups, panels, _, channels, _ = kernel.shape
        _, row, column = x.strides
        if groups == 1:  # the pixels of a row lie together
            length, places = 3 * channels, [row * i for i in range(3)]
        else:
            length, places = channels, [row * i + column * j for i in range(3) for j in range(3)]
        ys, xs = np.arange(out.height), np.arange(out.width)
        self._product(
            x=x.memory,
            weights=_packed(kernel),
            bias=_filled(layer.bias, out.memory.shape[-1]),
            out=out.memory,
            channels=length,
            tap_places=places,
            group_in=[channels * group for group in range(groups)],
            group_out=[PANEL * panels * group for group in range(groups)],
            panels=panels,
            row_in=x.places(ys * layer.stride, xs * layer.stride),
            row_out=out.places(ys + 1, xs + 1),
            block=ROW_BLOCK,
            relu=relu,
        )

    def _winograd(self, layer: ConvLayer, tile: Tile, x: Map, out: Map, relu: bool) -> None:
        kernel = _by_panels(layer.kernel, x.memory.shape[-1], out.memory.shape[-1])
        groups, panels, _, channels, _ = kernel.shape
        ins, outs = x.memory.shape[-1], out.memory.shape[-1]
        flat = np.ascontiguousarray(kernel.transpose(2, 0, 1, 3, 4)).reshape(9, -1)
        weights = aligned((tile.points, flat.shape[1]))
        tile.weights(flat, weights)
        bias = _filled(layer.bias, outs)
        ys, xs = (np.arange(0, size, tile.size) for size in (out.height, out.width))
        tile_in, tile_out = x.places(ys, xs), out.places(ys + 1, xs + 1)
        heights = np.tile(np.repeat(out.height - ys, len(xs)), out.images)
        widths = np.tile(np.tile(out.width - xs, len(ys)), out.images)
        total = len(tile_in)
        most = max(LEAST_TILES, TILE_BYTES // (4 * tile.points * (ins + outs)))
        edges = _even(total, most)
        most = max(stop - start for start, stop in zip(edges, edges[1:]))
        spread = self._scratch_of("points", tile.points * most * ins)
        products = self._scratch_of("products", tile.points * most * outs)
        pairs = [(point, group) for point in range(tile.points) for group in range(groups)]
        for start, stop in zip(edges, edges[1:]):
            count = stop - start
            self._program.add(
                f"spread{tile.size}",
                x=x.memory,
                tile_in=_ints(tile_in[start:stop]),
                row=x.strides[1],
                column=x.strides[2],
                out=spread,
                tiles=count,
                channels=ins,
                point=count * ins,
            )
            self._product(
                x=spread,
                weights=weights,
                bias=self._scratch_of("zeros", PANEL),
                out=products,
                channels=channels,
                tap_places=[0],
                group_in=[count * ins * point + channels * group for point, group in pairs],
                group_out=[count * outs * point + PANEL * panels * group for point, group in pairs],
                panels=panels,
                row_in=np.arange(count) * ins,
                row_out=np.arange(count) * outs,
                block=count,
                relu=False,
                bias_step=0,
            )
            self._program.add(
                f"gather{tile.size}",
                x=products,
                point=count * outs,
                tiles=count,
                channels=outs,
                bias=bias,
                relu=relu,
                out=out.memory,
                tile_out=_ints(tile_out[start:stop]),
                row=out.strides[1],
                column=out.strides[2],
                heights=_ints(heights[start:stop]),
                widths=_ints(widths[start:stop]),
            )

    def _se(self, se: SEWeights, x: Map) -> None:
        factors = self._matrix(se.up, self._matrix(se.down, self._mean(x), relu=True), relu=False)
        self._program.add("sigmoid", x=factors, count=factors.size)
        self._program.add("gate", x=x.inside, gate=factors, relu=not se.after_relu, **self._area(x))

    def _mean(self, x: Map) -> NDArray[Any]:
        out = aligned((x.images, x.memory.shape[-1]))
        self._program.add("mean", x=x.inside, out=out, **self._area(x))
        return out

    def _area(self, x: Map) -> Dict[str, int]:
        image, row, channels = x.strides
        size = {"images": x.images, "height": x.height, "width": x.width}
        return {**size, "channels": channels, "image": image, "row": row}

    def _matrix(self, linear: LinearWeights, x: NDArray[Any], relu: bool) -> NDArray[Any]:
        """(N, C') to (N, O'), each filled up."""
        weight, bias = linear
        ins, outs = x.shape[1], _up(len(weight), PANEL)
        filled = aligned((outs, ins))
        filled[: weight.shape[0], : weight.shape[1]] = weight
        out = aligned((len(x), outs))
        self._product(
            x=x,
            weights=_packed(filled.reshape(-1, PANEL, ins).transpose(0, 2, 1)),
            bias=_filled(bias, outs),
            out=out,
            channels=ins,
            tap_places=[0],
            group_in=[0],
            group_out=[0],
            panels=outs // PANEL,
            row_in=np.arange(len(x)) * ins,
            row_out=np.arange(len(x)) * outs,
            block=len(x),
            relu=relu,
        )
        return out

    def _product(self, *, row_in: NDArray[Any], block: int, **arguments: Any) -> None:
        """Adds a product whose rows are cut into blocks of at most ``block``, and those into cuts for the kernel."""
        cuts, block_cuts = [0], [0]
        edges = _even(len(row_in), block)
        for start, stop in zip(edges, edges[1:]):
            cuts += [start + cut for cut in _even(stop - start, self._program.registers.rows)[1:]]
            block_cuts.append(len(cuts) - 1)
        lists = {name: _ints(arguments.pop(name)) for name in ("tap_places", "group_in", "group_out", "row_out")}
        self._program.add(
            "product",
            taps=len(lists["tap_places"]),
            groups=len(lists["group_in"]),
            row_in=_ints(row_in),
            cuts=_ints(cuts),
            blocks=len(block_cuts) - 1,
            block_cuts=_ints(block_cuts),
            bias_step=arguments.pop("bias_step", PANEL),
            **lists,
            **arguments,
        )

    def _scratch_of(self, name: str, size: int) -> NDArray[Any]:
        """Memory that layers share, for their lifetimes do not overlap."""
        if name not in self._scratch or self._scratch[name].size < size:
            self._scratch[name] = aligned((size,))
        return self._scratch[name]


def aligned(shape: Sequence[int]) -> NDArray[Any]:
    """Zeros that begin at a multiple of 64 bytes; large ones ask for huge pages, where the system has them."""
    size = 4 * int(np.prod(shape))
    if size < HUGE:
        raw = np.zeros(size + 64, np.uint8)
        start = -raw.ctypes.data % 64
    else:
        memory = _private_memory(size + HUGE)
        with suppress(AttributeError, OSError):  # not Linux, or an old kernel
            memory.madvise(mmap.MADV_HUGEPAGE)
        raw = np.frombuffer(memory, np.uint8)
        start = -raw.ctypes.data % HUGE
    return raw[start : start + size].view(np.float32).reshape(shape)


def _private_memory(size: int) -> mmap.mmap:
    # mmap's default is MAP_SHARED, for which Linux ignores the advice unless shmem_enabled says otherwise.
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _by_panels(kernel: NDArray[Any], ins: int, outs: int) -> NDArray[Any]:
    """(groups, O, I, 3, 3) to (groups, panels, 9, I, PANEL), filled up with zeros to ``ins`` and ``outs`` channels.

    Groups that are no whole panels become one group with zeros between them.
    """
    groups, wide, deep = kernel.shape[:3]
    if groups > 1 and (wide % PANEL or deep % UNROLLED):
        dense = np.zeros((1, groups * wide, groups * deep, 3, 3), np.float32)
        for group in range(groups):
            dense[0, group * wide : (group + 1) * wide, group * deep : (group + 1) * deep] = kernel[group]
        kernel, groups = dense, 1
    if groups == 1 and (outs, ins) != kernel.shape[1:3]:
        filled = np.zeros((1, outs, ins, 3, 3), np.float32)
        filled[:, : kernel.shape[1], : kernel.shape[2]] = kernel
        kernel = filled
    _, wide, deep = kernel.shape[:3]
    return kernel.reshape(groups, wide // PANEL, PANEL, deep, 9).transpose(0, 1, 4, 3, 2)


def _packed(array: NDArray[Any]) -> NDArray[Any]:
    """A copy that lies together."""
    copied = aligned(array.shape)
    copied[...] = array
    return copied


def _filled(bias: NDArray[Any], size: int) -> NDArray[Any]:
    filled = aligned((size,))
    filled[: len(bias)] = bias
    return filled


def _ints(values: Any) -> NDArray[Any]:
    return np.ascontiguousarray(values, np.int64)


def _even(total: int, most: int) -> List[int]:
    """The edges of the fewest parts of at most ``most``, as equal as can be."""
    parts = max(1, -(-total // most))
    return [total * part // parts for part in range(parts + 1)]


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _after(size: int, stride: int) -> int:
    """What a 3x3 convolution with padding 1 leaves of a height or width."""
    return (size - 1) // stride + 1

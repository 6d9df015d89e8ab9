"""check_bounds: no call of a plan can touch memory outside of the plan's arrays.

Machine code checks nothing: a wrong offset or count in a plan would corrupt the heap. So what each kernel reads and
writes is computed from its arguments, as the range from the first to the last element, before the plan is first run.
"""

from __future__ import annotations

import bisect
import math
from types import MappingProxyType
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from .jit.all_kernels import ALL_FIELDS
from .jit.amx_kernels import MAX_PIXEL_TILES, tile_sizes
from .jit.amx_tiles import CONFIG_BYTES, TILE_BYTES, TILE_ROWS, tile_config
from .jit.integer_kernels import kc_multiple
from .jit.integer_winograd import INTEGER_TRANSFORMS, IntegerWinograd
from .jit.kernels import NR, UNROLLED
from .jit.winograd import WINOGRAD_TRANSFORMS, WinogradTransform
from .plan import ExecutionPlan

MAX_STRIDE = 1 << 40  # so that no sum of offsets overflows
Span = Tuple[int, int]  # the first and the last element, relative to an address


class BoundsError(AssertionError):
    """A plan would touch memory outside of its arrays: a bug in repvgg-zoo, whatever the weights are."""


def check_bounds(plan: ExecutionPlan) -> None:
    """Raise BoundsError if a call of the plan reads or writes outside of the array that its address points into."""
    memory = Memory(plan.arrays)
    for index in range(len(plan.calls)):
        used_spans(plan, index, memory)


def used_spans(plan: ExecutionPlan, index: int, memory: Memory) -> Mapping[str, Span]:
    """Return the elements that a call reads and writes, by argument; raise BoundsError if they are not in one array."""
    checker = _CallChecker(plan, index, memory)
    _CHECKS[plan.calls[index].kernel](checker)
    return checker.spans


class _Region(NamedTuple):
    """The addresses of one array, or of several that overlap: from ``start`` up to ``stop``."""

    start: int
    stop: int
    array: NDArray[Any]


class Memory:
    """The address ranges of arrays, sorted."""

    def __init__(self, arrays: Sequence[NDArray[Any]]) -> None:
        self._regions: List[_Region] = []
        distinct = {id(array): array for array in arrays}
        for start, stop, _, array in sorted((*_extent(array), key, array) for key, array in distinct.items()):
            last = self._regions[-1] if self._regions else None
            if last is not None and start < last.stop:
                self._regions[-1] = _Region(last.start, max(last.stop, stop), last.array)
            else:
                self._regions.append(_Region(start, stop, array))
        self._starts = [region.start for region in self._regions]

    def find(self, address: int) -> Optional[_Region]:
        """Return the last region that begins at or before an address, or None."""
        index = bisect.bisect_right(self._starts, address) - 1
        return None if index < 0 else self._regions[index]


def _extent(array: NDArray[Any]) -> Tuple[int, int]:
    start = array.ctypes.data
    length = sum((size - 1) * stride for size, stride in zip(array.shape, array.strides)) + array.itemsize
    return start, start + (length if array.size else 0)


class _CallChecker:
    """The arguments of one call, and checks of the memory that they point to."""

    def __init__(self, plan: ExecutionPlan, index: int, memory: Memory) -> None:
        call = plan.calls[index]
        self.spans: Dict[str, Span] = {}
        self.config = plan.config
        self._input_size = math.prod(plan.input_shape)
        self._index = index
        self.kernel = call.kernel
        self._arguments = dict(zip(ALL_FIELDS[call.kernel], call.arguments.tolist()))
        self._memory = memory

    def __getitem__(self, field: str) -> int:
        return int(self._arguments[field])

    def count(self, field: str, multiple: int = 1) -> int:
        """Return an argument that must be a positive multiple."""
        value = self[field]
        if value <= 0 or value % multiple:
            raise self.error(f"{field} is {value}")
        return value

    def floats(self, field: str, *spans: Span) -> None:
        """Check that the floats whose offset is a sum of one offset from each span are in one array."""
        self.elements(field, np.float32, *spans)

    def elements(self, field: str, dtype: Any, *spans: Span) -> None:
        """Check that the elements whose offset is a sum of one offset from each span are in one array."""
        first, last = sum(span[0] for span in spans), sum(span[1] for span in spans)
        self.spans[field] = first, last
        if self._index == 0 and field == "x":  # the images, whose address is set before each run
            if first < 0 or last >= self._input_size:
                raise self.error(f"the elements {first} to {last} are used of {self._input_size} of the images")
        else:
            self._region(field, dtype, first, last)

    def table(self, field: str, count: int) -> NDArray[Any]:
        """Return the first ``count`` integers of a table, and check that it has as many."""
        return self.values(field, np.int64, count)

    def values(self, field: str, dtype: Any, count: int) -> NDArray[Any]:
        """Return the first ``count`` elements of an array, and check that it has as many."""
        region = self._region(field, dtype, 0, count - 1)
        start = (self[field] - region.start) // np.dtype(dtype).itemsize
        values: NDArray[Any] = region.array.reshape(-1)[start : start + count]
        if not region.array.flags.c_contiguous or len(values) != count:
            raise self.error(f"{field} is not one array")
        return values

    def require(self, condition: bool, message: str) -> None:
        if not condition:
            raise self.error(message)

    def error(self, message: str) -> BoundsError:
        return BoundsError(f"call {self._index} ({self.kernel}) of a plan: {message}; this is a bug in repvgg-zoo")

    def _region(self, field: str, dtype: Any, first: int, last: int) -> _Region:
        address, size = self[field], np.dtype(dtype).itemsize
        region = self._memory.find(address)
        if region is None or region.array.dtype != dtype or address % size:
            raise self.error(f"{field} does not point to {np.dtype(dtype)}")
        if address + size * first < region.start or address + size * (last + 1) > region.stop:
            lowest, highest = (region.start - address) // size, (region.stop - address) // size - 1
            raise self.error(f"{field} uses the elements {first} to {last} of those from {lowest} to {highest}")
        return region


def _steps(count: int, stride: int) -> Span:
    """Return the span of ``count`` offsets that are ``stride`` apart, the first of which is 0."""
    last = (count - 1) * stride
    return min(0, last), max(0, last)


def _values(table: NDArray[Any]) -> Span:
    return int(table.min()), int(table.max())


def _check_igemm(call: _CallChecker) -> None:
    call.floats("c", *_check_products(call, np.float32, np.float32, UNROLLED))
    panels = call["groups"] * call["panels"]
    call.floats("bias", _steps(panels, call["bias_stride"]), _steps(NR, 1))


def _check_products(call: _CallChecker, dtype: Any, weight_dtype: Any, multiple: int) -> Tuple[Span, Span, Span]:
    """Check all of an igemm but its output; return the spans of the output's groups, rows and columns."""
    groups, panels = (call.count(field) for field in ("groups", "panels"))
    kc, ks = call.count("kc", multiple=multiple), call.table("ks", groups)
    call.require(bool((ks > 0).all()), "a group has no taps")
    tiles = _pixel_tiles(call)
    rows = _igemm_rows(call, tiles.mr)
    tap_offsets, a_offsets = call.table("tap_offsets", int(ks.max())), call.table("a_offsets", rows)
    c_offsets = call.table("c_offsets", rows * tiles.rows)
    pixels = _steps(tiles.rows, tiles.pixel_stride)
    names = ("a_group_offsets", "w_group_offsets", "c_group_offsets")
    a_group_offsets, w_group_offsets, c_group_offsets = (call.table(field, groups) for field in names)
    call.elements("a", dtype, _values(a_group_offsets), _values(a_offsets), _values(tap_offsets), pixels, _steps(kc, 1))
    w_stops = w_group_offsets + panels * ks * kc * NR
    call.elements("w", weight_dtype, (int(w_group_offsets.min()), int(w_stops.max()) - 1))
    return _values(c_group_offsets), _values(c_offsets), _steps(panels * NR, 1)


class _PixelTiles(NamedTuple):
    """What a row of an igemm is: ``rows`` pixels, and at most ``mr`` of them are multiplied at once."""

    mr: int
    rows: int
    pixel_stride: int


def _pixel_tiles(call: _CallChecker) -> _PixelTiles:
    """Return what the rows of a kernel are: single pixels, or AMX tiles, whose configuration is checked."""
    if call.kernel != "conv_u8_amx":
        return _PixelTiles(call.config.mr, 1, 0)
    rows, k_step = call.count("tile_rows"), call.count("k_step", multiple=4)
    call.require(rows <= TILE_ROWS and k_step <= TILE_BYTES, "a tile is too large")
    call.require(call["kc"] % k_step == 0, "kc is not a number of k_steps")
    config = call.values("tile_config", np.uint8, CONFIG_BYTES)
    call.require(np.array_equal(config, tile_config(*tile_sizes(rows, k_step))), "tile_config is not that of the tiles")
    return _PixelTiles(MAX_PIXEL_TILES, rows, call["pixel_stride"])


def _igemm_rows(call: _CallChecker, mr: int) -> int:
    """Return the number of rows, once the tables that cut them into tiles of at most ``mr`` have been checked."""
    block_tiles = call.table("block_tiles", call.count("m_blocks") + 1)
    call.require(block_tiles[0] >= 0 and bool((np.diff(block_tiles) >= 0).all()), "block_tiles are not in order")
    m_tiles = call.table("m_tiles", int(block_tiles[-1]) + 1)
    sizes = np.diff(m_tiles)
    call.require(m_tiles[0] >= 0 and bool(((sizes > 0) & (sizes <= mr)).all()), "m_tiles have wrong sizes")
    rows = int(m_tiles[-1])
    call.require(rows > 0, "there are no rows")
    return rows


def _check_tile_transform(call: _CallChecker, side: int, products: int) -> None:
    tiles, channels = call.count("tiles"), call.count("channels", multiple=call.config.vector_width)
    offsets = call.table("tile_offsets", tiles)
    rows, pixels = _steps(side, call["row_stride"]), _steps(side, call["pixel_stride"])
    call.floats("x", _values(offsets), rows, pixels, _steps(channels, 1))
    call.floats("out", _steps(tiles, channels), _steps(products, call["element_stride"]), _steps(channels, 1))


def _check_output_transform(call: _CallChecker, transform: WinogradTransform) -> None:
    tiles, channels = call.count("tiles"), call.count("channels", multiple=call.config.vector_width)
    elements = _steps(transform.num_elements, call["element_stride"])
    call.floats("x", _steps(tiles, channels), elements, _steps(channels, 1))
    call.floats("bias", _steps(channels, 1))
    call.floats("out", _tile_pixels(call, transform.m, "tile_offsets", ""), _steps(channels, 1))


def _check_nchw_to_nhwc(call: _CallChecker) -> None:
    images, height, width, channels = (call.count(field) for field in ("images", "height", "width", "channels"))
    call.floats("x", _steps(images * channels * height * width, 1))
    call.floats("out", *_pixels(call, call["pixel_stride"]), _steps(channels, 1))


def _check_global_avg_pool(call: _CallChecker) -> None:
    images, channels = call.count("images"), call.count("channels", multiple=NR)
    call.floats("x", *_pixels(call, channels), _steps(channels, 1))
    call.floats("out", _steps(images * channels, 1))


def _check_channel_scale(call: _CallChecker) -> None:
    images, channels = call.count("images"), call.count("channels", multiple=call.config.vector_width)
    call.floats("x", *_pixels(call, channels), _steps(channels, 1))
    call.floats("scale", _steps(images * channels, 1))


def _check_sigmoid(call: _CallChecker) -> None:
    call.floats("x", _steps(call.count("count"), 1))


def _check_weight_gradient(call: _CallChecker) -> None:
    rows, groups, kc, panels = (call.count(field) for field in ("rows", "groups", "kc", "panels"))
    for field, size in (("x", kc), ("gradient", panels * NR)):
        group_offsets, offsets = call.table(f"{field}_group_offsets", groups), call.table(f"{field}_offsets", rows)
        call.floats(field, _values(group_offsets), _values(offsets), _steps(size, 1))
    call.floats("out", _steps(groups * kc * panels * NR, 1))


def _check_rows(call: _CallChecker, arrays: Sequence[str], results: Sequence[str]) -> None:
    """Check arrays of images that lie alike, and results for each row."""
    images, height = call.count("images"), call.count("height")
    channels = call.count("channels", multiple=call.config.vector_width)
    for field in arrays:
        call.floats(field, *_pixels(call, channels), _steps(channels, 1))
    for field in results:
        call.floats(field, _steps(images * height * channels, 1))


def _check_relu_gradient(call: _CallChecker) -> None:
    _check_rows(call, ("y", "gradient"), ("sums",))
    for field in ("scale", "shift"):
        call.floats(field, _steps(call["images"], call["image_step"]), _steps(call["channels"], 1))


def _check_affine_sum(call: _CallChecker) -> None:
    _check_rows(call, ("out", "x0", "x1", "x2", "x3"), ())
    for field in ("c0", "c1", "c2", "c3", "shift"):
        call.floats(field, _steps(call["channels"], 1))


def _check_kernel_transform(call: _CallChecker, transform: WinogradTransform) -> None:
    count = call.count("count", multiple=call.config.vector_width)
    call.floats("x", _steps(transform.num_products * count, 1))
    call.floats("out", _steps(9 * count, 1))


def _check_conv(call: _CallChecker, dtype: Any, weight_dtype: Any) -> None:
    groups, rows, columns = _check_products(call, dtype, weight_dtype, kc_multiple(call.config))
    call.elements("c", _output_type(call, dtype), groups, rows, columns)
    tiles = _pixel_tiles(call)
    centers = _values(call.table("center_offsets", _igemm_rows(call, tiles.mr) * tiles.rows))
    channels = groups[0] + columns[0], groups[1] + columns[1]
    _check_epilogue(call, dtype, channels, centers)
    if dtype == np.uint8:
        call.elements("center_shift", np.int32, channels)


def _check_epilogue(call: _CallChecker, dtype: Any, channels: Span, *centers: Span) -> None:
    for field in ("scale", "identity", "bias"):
        call.floats(field, channels)
    call.elements("center", dtype, channels, *centers)


def _output_type(call: _CallChecker, dtype: Any) -> Any:
    return dtype if call["quantize"] else np.float32


def _check_input_transform_s16(call: _CallChecker, transform: IntegerWinograd) -> None:
    tiles, channels = call.count("tiles"), call.count("channels", multiple=NR)
    rows, pixels = (_steps(transform.side, call[field]) for field in ("row_stride", "pixel_stride"))
    call.elements("x", np.int16, _values(call.table("tile_offsets", tiles)), rows, pixels, _steps(channels, 1))
    products = _steps(transform.num_products, call["element_stride"])
    call.elements("out", np.int16, _steps(tiles, channels), products, _steps(channels, 1))


def _check_output_transform_s16(call: _CallChecker, transform: IntegerWinograd) -> None:
    tiles, channels = call.count("tiles"), call.count("channels", multiple=call.config.vector_width)
    elements = _steps(transform.num_elements, call["element_stride"])
    call.elements("x", np.int32, _steps(tiles, channels), elements, _steps(channels, 1))
    pixels = _tile_pixels(call, transform.m, "tile_offsets", "")
    call.elements("out", _output_type(call, np.int16), pixels, _steps(channels, 1))
    _check_epilogue(call, np.int16, _steps(channels, 1), _tile_pixels(call, transform.m, "center_offsets", "center_"))


def _tile_pixels(call: _CallChecker, m: int, table: str, prefix: str) -> Span:
    """Return the span of the offsets of the pixels of all tiles of m x m pixels, without those beyond the image."""
    offsets, heights, widths = (call.table(field, call["tiles"]) for field in (table, "heights", "widths"))
    call.require(min(heights.min(), widths.min()) > 0, "a tile has no pixels")
    row_stride, pixel_stride = call[f"{prefix}row_stride"], call[f"{prefix}pixel_stride"]
    call.require(min(row_stride, pixel_stride) >= 0 and max(row_stride, pixel_stride) < MAX_STRIDE, "wrong strides")
    # A tile at the border has fewer pixels, but begins later; so the last pixel is looked for tile by tile.
    last = offsets + (np.minimum(heights, m) - 1) * row_stride + (np.minimum(widths, m) - 1) * pixel_stride
    return int(offsets.min()), int(last.max())


def _check_quantize(call: _CallChecker, dtype: Any) -> None:
    channels = call.count("channels", multiple=NR)
    call.floats("x", *_pixels(call, channels), _steps(channels, 1))
    call.elements("out", dtype, *_pixels(call, channels), _steps(channels, 1))
    call.floats("multiplier", _steps(1, 1))


def _pixels(call: _CallChecker, pixel_stride: int) -> Tuple[Span, Span, Span]:
    """Return the spans of the images, their rows, and the pixels of a row."""
    return (
        _steps(call.count("images"), call["image_stride"]),
        _steps(call.count("height"), call["row_stride"]),
        _steps(call.count("width"), pixel_stride),
    )


def _winograd_checks(transform: WinogradTransform) -> Mapping[str, Callable[[_CallChecker], None]]:
    return {
        f"input_transform_{transform.name}": lambda call: _check_tile_transform(
            call, transform.side, transform.num_products
        ),
        f"output_transform_{transform.name}": lambda call: _check_output_transform(call, transform),
        f"gradient_transform_{transform.name}": lambda call: _check_tile_transform(
            call, transform.m, transform.num_elements
        ),
        f"kernel_transform_{transform.name}": lambda call: _check_kernel_transform(call, transform),
    }


def _winograd_s16_checks(transform: IntegerWinograd) -> Mapping[str, Callable[[_CallChecker], None]]:
    return {
        f"input_transform_s16_{transform.name}": lambda call: _check_input_transform_s16(call, transform),
        f"output_transform_s16_{transform.name}": lambda call: _check_output_transform_s16(call, transform),
    }


def _check_igemm_s16(call: _CallChecker) -> None:
    call.elements("c", np.int32, *_check_products(call, np.int16, np.int16, kc_multiple(call.config)))


_CHECKS: Mapping[str, Callable[[_CallChecker], None]] = MappingProxyType(
    {
        "igemm": _check_igemm,
        "nchw_to_nhwc": _check_nchw_to_nhwc,
        "global_avg_pool": _check_global_avg_pool,
        "sigmoid": _check_sigmoid,
        "channel_scale": _check_channel_scale,
        "weight_gradient": _check_weight_gradient,
        "relu_gradient": _check_relu_gradient,
        "gate_gradient": lambda call: _check_rows(call, ("y", "gradient"), ("sums",)),
        "row_moments": lambda call: _check_rows(call, ("x",), ("sums", "squares")),
        "affine_sum": _check_affine_sum,
        **{name: check for transform in WINOGRAD_TRANSFORMS for name, check in _winograd_checks(transform).items()},
        "igemm_s16": _check_igemm_s16,
        "conv_s16": lambda call: _check_conv(call, np.int16, np.int16),
        "conv_u8": lambda call: _check_conv(call, np.uint8, np.int8),
        "conv_u8_amx": lambda call: _check_conv(call, np.uint8, np.int8),
        "quantize_s16": lambda call: _check_quantize(call, np.int16),
        "quantize_u8": lambda call: _check_quantize(call, np.uint8),
        **{name: check for integer in INTEGER_TRANSFORMS for name, check in _winograd_s16_checks(integer).items()},
    }
)

"""The machine code that computes a RepVGG: a few kernels, which LLVM makes for the processor at hand.

Activations are (N, H, W, C), with a border of zeros. Every kernel is ``void(arguments, thread, threads)`` and does its
share of the work. Its arguments are 64-bit numbers, named in ``FIELDS``: addresses in bytes, lengths and strides in
float32 values. ``run`` goes through a list of kernels with its partners; after each one they wait for one another.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Callable, Dict, Sequence, Tuple

from llvmlite import ir

from .ir_builder import FLOAT, FLOATS, INT, INTS, LINE, Code
from .winograd import TILES, Tile

PANEL = 16  # output channels that product computes at once
UNROLLED = 4  # steps of its innermost loop that are written out
SPINS = 2000  # looks at the barrier before a thread lets others run


@dataclass(frozen=True)
class Registers:
    """The processor's vectors: how many numbers one has, and of how many rows and panels product keeps the sums."""

    lanes: int
    rows: int
    panels: int


AVX2 = Registers(lanes=8, rows=6, panels=1)  # 12 sums, 2 weights and a value fill its 16 registers
# More sums would fit, but not the addresses of more rows. With one panel, each value is loaded for one sum only, and
# processors that multiply two vectors at once wait for their loads.
AVX512 = Registers(lanes=16, rows=8, panels=2)

# A matrix product: for each group, rows gathered from x (their values, ``channels`` long, at several ``taps`` from the
# row's place) times the weights (groups, panels, taps, channels, PANEL), plus bias, maybe ReLU. Rows come in blocks of
# cuts of at most as many as the registers take.
PRODUCT = (
    *("x", "weights", "bias", "out", "channels", "taps", "tap_places", "groups", "group_in", "group_out"),
    *("panels", "row_in", "row_out", "cuts", "blocks", "block_cuts", "bias_step", "relu"),
)
# Winograd's transforms, of tiles of x into (points, tiles, channels) and back, plus bias, maybe ReLU.
SPREAD = ("x", "tile_in", "row", "column", "out", "tiles", "channels", "point")
GATHER = ("x", "point", "tiles", "channels", "bias", "relu", "out", "tile_out", "row", "column", "heights", "widths")
PICTURE = ("x", "images", "height", "width", "channels", "out", "image", "row", "column")  # (N, C, H, W) to ours
MEAN = ("x", "images", "height", "width", "channels", "image", "row", "out")  # over height and width
SIGMOID = ("x", "count")  # in place
GATE = ("x", "images", "height", "width", "channels", "image", "row", "gate", "relu")  # times (N, C), in place
FIELDS: Dict[str, Tuple[str, ...]] = {
    "product": PRODUCT,
    **{f"spread{tile.size}": SPREAD for tile in TILES},
    **{f"gather{tile.size}": GATHER for tile in TILES},
    "picture": PICTURE,
    "mean": MEAN,
    "sigmoid": SIGMOID,
    "gate": GATE,
}

_KERNEL = ir.FunctionType(ir.VoidType(), [INTS, INT, INT])
Begin = Callable[..., Code]  # begins a function of the module


def module(registers: Registers) -> ir.Module:
    """All kernels, and ``run``."""
    made = ir.Module("repvgg_zoo")
    begin = functools.partial(Code, made, registers.lanes)
    parts = [
        [_emit_part(begin, rows, panels) for rows in range(1, registers.rows + 1)]
        for panels in range(1, registers.panels + 1)
    ]
    _emit_product(begin, parts)
    for tile in TILES:
        _emit_spread(begin, tile)
        _emit_gather(begin, tile)
    for emit in (_emit_picture, _emit_mean, _emit_sigmoid, _emit_gate, _emit_run):
        emit(begin)
    return made


def _emit_part(begin: Begin, rows: int, panels: int) -> ir.Function:
    """The heart of product: ``rows`` rows of as many ``panels``, all sums in registers."""
    kinds = [FLOATS, INTS, FLOATS, FLOATS, INT, INT, INT, INTS, FLOATS, INT, FLOATS, INTS, INT]
    code = begin(f"rows{rows}panels{panels}", ir.FunctionType(ir.VoidType(), kinds))
    code.function.linkage = "internal"
    x, row_in, weights, ahead, size, channels, taps, tap_places, bias, bias_step, out, row_out, relu = code.arguments
    bases = [code.at(x, code.number(row_in, INT(row))) for row in range(rows)]
    halves = range(0, PANEL, code.lanes)
    start = [code.vector(code.at(bias, *[bias_step] * panel, half)) for panel in range(panels) for half in halves]
    wide = len(start)
    with code.loop(INT(0), taps, [*start * rows, ahead, weights]) as (tap, carried):
        place = code.number(tap_places, tap)
        places = [code.at(base, place) for base in bases]
        with code.loop(INT(0), channels, carried, UNROLLED) as (channel, values):
            for panel in range(panels):
                code.prefetch(code.at(values[-2], *[size] * panel))
            values[-2] = code.at(values[-2], LINE)
            for step in range(UNROLLED):
                here = [code.at(values[-1], *[size] * panel, PANEL * step) for panel in range(panels)]
                factors = [code.vector(code.at(pointer, half)) for pointer in here for half in halves]
                for row in range(rows):
                    value = code.broadcast(code.to.load(code.at(places[row], channel, step)))
                    for index, factor in enumerate(factors, start=row * wide):
                        values[index] = code.multiply_add(value, factor, values[index])
            values[-1] = code.at(values[-1], PANEL * UNROLLED)
        carried[:] = values
    floor = code.floor_of(relu)
    for row in range(rows):
        place = code.at(out, code.number(row_out, INT(row)))
        for index in range(wide):
            code.put(code.at_least(carried[row * wide + index], floor), code.at(place, code.lanes * index))
    code.to.ret_void()
    return code.function


def _emit_product(begin: Begin, parts: Sequence[Sequence[ir.Function]]) -> None:
    """``parts`` has the functions for one, two ... panels, each for one, two ... rows."""
    code = begin("product", _KERNEL, PRODUCT)
    to = code.to
    channels, taps, panels, blocks = (code.field(name) for name in ("channels", "taps", "panels", "blocks"))
    relu, bias_step = code.field("relu"), code.field("bias_step")
    x, weights, bias, out = (code.floats(name) for name in ("x", "weights", "bias", "out"))
    names = ("tap_places", "group_in", "group_out", "row_in", "row_out", "cuts", "block_cuts")
    tap_places, group_in, group_out, row_in, row_out, cuts, block_cuts = (code.ints(name) for name in names)
    size = to.mul(to.mul(taps, channels), INT(PANEL))
    most, most_rows = INT(len(parts)), len(parts[0])
    strips = to.sdiv(to.add(panels, INT(len(parts) - 1)), most)
    units = to.mul(to.mul(code.field("groups"), blocks), strips)
    with code.loop(*code.share(units)) as (unit, _):
        outer, strip = code.split(unit, strips)
        group, block = code.split(outer, blocks)
        panel = to.mul(strip, most)
        left = to.sub(panels, panel)
        count = to.select(to.icmp_signed("<", left, most), left, most)
        number = to.add(to.mul(group, panels), panel)
        here = code.at(weights, to.mul(number, size))
        source = code.at(x, code.number(group_in, group))
        target = code.at(out, code.number(group_out, group), to.mul(panel, INT(PANEL)))
        bias_here = code.at(bias, to.mul(number, bias_step))
        first, last = code.number(block_cuts, block), code.number(block_cuts, to.add(block, INT(1)))
        # While these weights are used, the next ones are fetched: each of the first cuts asks for its part of them.
        ahead = code.at(here, to.mul(size, count))
        stretch = to.sdiv(size, INT(UNROLLED))
        with code.loop(first, last) as (cut, _):
            turn = to.sub(cut, first)
            turn = to.select(to.icmp_signed("<", turn, INT(UNROLLED)), turn, INT(UNROLLED - 1))
            start, stop = code.number(cuts, cut), code.number(cuts, to.add(cut, INT(1)))
            ins, outs = code.at(row_in, start), code.at(row_out, start)
            arguments = [
                source,
                ins,
                here,
                code.at(ahead, to.mul(stretch, turn)),
                size,
                channels,
                taps,
                tap_places,
                bias_here,
                bias_step,
                target,
                outs,
                relu,
            ]
            after = code.function.append_basic_block()
            rows = to.sub(stop, start)
            switch = to.switch(to.add(to.mul(to.sub(count, INT(1)), INT(most_rows)), rows), after)
            for case, function in enumerate((function for part in parts for function in part), start=1):
                switch.add_case(INT(case), code.function.append_basic_block())
                to.position_at_end(switch.cases[-1][1])
                to.call(function, arguments)
                to.branch(after)
            to.position_at_end(after)
    to.ret_void()


def _emit_spread(begin: Begin, tile: Tile) -> None:
    """Winograd's transform of the input: a tile's pixels, with one more around, to its points."""
    code = begin(f"spread{tile.size}", _KERNEL, SPREAD)
    to = code.to
    x, out, tile_in = code.floats("x"), code.floats("out"), code.ints("tile_in")
    row, column, point, channels = (code.field(name) for name in ("row", "column", "point", "channels"))
    vectors = to.sdiv(channels, INT(code.lanes))
    side = range(tile.size + 2)
    with code.loop(*code.share(to.mul(code.field("tiles"), vectors))) as (unit, _):
        index, place = code.split(unit, vectors)
        channel = to.mul(place, INT(code.lanes))
        source = code.at(x, code.number(tile_in, index), channel)
        target = code.at(out, to.mul(index, channels), channel)
        rows = [code.at(source, to.mul(row, INT(i))) for i in side]
        pixels = [[code.vector(code.at(rows[i], to.mul(column, INT(j)))) for j in side] for i in side]
        for i, line in enumerate(code.transform(tile.spread, pixels)):
            for j, value in enumerate(line):
                code.put(value, code.at(target, to.mul(point, INT(i * len(side) + j))))
    to.ret_void()


def _emit_gather(begin: Begin, tile: Tile) -> None:
    """Winograd's transform of the output: a tile's points to its pixels, without those beyond the picture."""
    code = begin(f"gather{tile.size}", _KERNEL, GATHER)
    to = code.to
    x, bias, out = (code.floats(name) for name in ("x", "bias", "out"))
    tile_out, heights, widths = (code.ints(name) for name in ("tile_out", "heights", "widths"))
    row, column, point, channels = (code.field(name) for name in ("row", "column", "point", "channels"))
    floor = code.floor_of(code.field("relu"))
    vectors = to.sdiv(channels, INT(code.lanes))
    side = range(tile.size + 2)
    with code.loop(*code.share(to.mul(code.field("tiles"), vectors))) as (unit, _):
        index, place = code.split(unit, vectors)
        channel = to.mul(place, INT(code.lanes))
        source = code.at(x, to.mul(index, channels), channel)
        target = code.at(out, code.number(tile_out, index), channel)
        height, width = code.number(heights, index), code.number(widths, index)
        points = [[code.vector(code.at(source, to.mul(point, INT(i * len(side) + j)))) for j in side] for i in side]
        added = code.vector(code.at(bias, channel))
        for i, line in enumerate(code.transform(tile.gather, points)):
            for j, value in enumerate(line):
                inside = to.and_(to.icmp_signed("<", INT(i), height), to.icmp_signed("<", INT(j), width))
                with to.if_then(inside):
                    pixel = code.at(target, to.mul(row, INT(i)), to.mul(column, INT(j)))
                    code.put(code.at_least(to.fadd(value, added), floor), pixel)
    to.ret_void()


def _emit_picture(begin: Begin) -> None:
    code = begin("picture", _KERNEL, PICTURE)
    to = code.to
    x, out = code.floats("x"), code.floats("out")
    height, width, channels = (code.field(name) for name in ("height", "width", "channels"))
    image, row, column = (code.field(name) for name in ("image", "row", "column"))
    with code.loop(*code.share(to.mul(code.field("images"), height))) as (line, _):
        n, y = code.split(line, height)
        target = code.at(out, to.mul(n, image), to.mul(y, row))
        with code.loop(INT(0), channels) as (channel, _):
            source = code.at(x, to.mul(to.add(to.mul(to.add(to.mul(n, channels), channel), height), y), width))
            with code.loop(INT(0), width) as (place, _):
                to.store(code.number(source, place), code.at(target, to.mul(place, column), channel))
    to.ret_void()


def _emit_mean(begin: Begin) -> None:
    code = begin("mean", _KERNEL, MEAN)
    to = code.to
    x, out = code.floats("x"), code.floats("out")
    height, width, channels = (code.field(name) for name in ("height", "width", "channels"))
    image, row = code.field("image"), code.field("row")
    panels = to.sdiv(channels, INT(PANEL))  # a panel is a line of the cache
    halves = range(0, PANEL, code.lanes)
    zeros = [code.constant(0.0) for _ in halves]
    area = code.broadcast(to.sitofp(to.mul(height, width), FLOAT))
    with code.loop(*code.share(to.mul(code.field("images"), panels))) as (unit, _):
        n, panel = code.split(unit, panels)
        channel = to.mul(panel, INT(PANEL))
        source = code.at(x, to.mul(n, image), channel)
        with code.loop(INT(0), height, zeros) as (y, totals):
            line = code.at(source, to.mul(y, row))
            # A sum for each row keeps rounding small: it grows with the longer side, not with the area.
            with code.loop(INT(0), width, zeros) as (place, parts):
                pixel = code.at(line, to.mul(place, channels))
                parts[:] = [to.fadd(part, code.vector(code.at(pixel, half))) for part, half in zip(parts, halves)]
            totals[:] = [to.fadd(total, part) for total, part in zip(totals, parts)]
        target = code.at(out, to.mul(n, channels), channel)
        for total, half in zip(totals, halves):
            code.put(to.fdiv(total, area), code.at(target, half))
    to.ret_void()


def _emit_sigmoid(begin: Begin) -> None:
    code = begin("sigmoid", _KERNEL, SIGMOID)
    to = code.to
    x, one = code.floats("x"), ir.Constant(FLOAT, 1.0)
    with code.loop(*code.share(code.field("count"))) as (index, _):
        place = code.at(x, index)
        power = code.exponential(to.fsub(ir.Constant(FLOAT, 0.0), to.load(place)))
        to.store(to.fdiv(one, to.fadd(one, power)), place)
    to.ret_void()


def _emit_gate(begin: Begin) -> None:
    code = begin("gate", _KERNEL, GATE)
    to = code.to
    x, gate = code.floats("x"), code.floats("gate")
    height, width, channels = (code.field(name) for name in ("height", "width", "channels"))
    image, row = code.field("image"), code.field("row")
    floor = code.floor_of(code.field("relu"))
    with code.loop(*code.share(to.mul(code.field("images"), height))) as (line, _):
        n, y = code.split(line, height)
        pixels, factors = code.at(x, to.mul(n, image), to.mul(y, row)), code.at(gate, to.mul(n, channels))
        with code.loop(INT(0), width) as (place, _):
            pixel = code.at(pixels, to.mul(place, channels))
            with code.loop(INT(0), channels, step=code.lanes) as (channel, _):
                here = code.at(pixel, channel)
                scaled = to.fmul(code.vector(here), code.vector(code.at(factors, channel)))
                code.put(code.at_least(scaled, floor), here)
    to.ret_void()


def _emit_run(begin: Begin) -> None:
    """``void run(list, count, thread, threads, barrier, let_others_run)``; the list has a kernel's address, then its
    arguments', for each step; barrier is two numbers, which begin as zeros: who has arrived, and the round."""
    pause = ir.FunctionType(ir.VoidType(), [])
    kinds = [INTS, INT, INT, INT, INTS, pause.as_pointer()]
    code = begin("run", ir.FunctionType(ir.VoidType(), kinds))
    to = code.to
    steps, count, thread, threads, barrier, let_others_run = code.arguments
    arrived, round_ = barrier, code.at(barrier, 8)  # on a cache line of its own
    with code.loop(INT(0), count) as (step, _):
        kernel = to.inttoptr(code.number(steps, to.mul(step, INT(2))), _KERNEL.as_pointer())
        arguments = to.inttoptr(code.number(steps, to.add(to.mul(step, INT(2)), INT(1))), INTS)
        to.call(kernel, [arguments, thread, threads])
        now = to.load_atomic(round_, "acquire", 8)
        before_me = to.atomic_rmw("add", arrived, INT(1), "acq_rel")
        with to.if_else(to.icmp_signed("==", to.add(before_me, INT(1)), threads)) as (last, others):
            with last:
                to.store_atomic(INT(0), arrived, "release", 8)
                to.store_atomic(to.add(now, INT(1)), round_, "release", 8)
            with others:
                _wait(code, round_, now, let_others_run)
    to.ret_void()


def _wait(code: Code, place: Any, old: Any, let_others_run: Any) -> None:
    """Looks at a number until it has changed."""
    to = code.to
    before = to.block
    look, idle, again, done = (code.function.append_basic_block() for _ in range(4))
    to.branch(look)
    to.position_at_end(look)
    looks = to.phi(INT)
    looks.add_incoming(INT(1), before)
    to.cbranch(to.icmp_signed("!=", to.load_atomic(place, "acquire", 8), old), done, again)
    to.position_at_end(again)
    next_ = to.add(looks, INT(1))
    looks.add_incoming(next_, again)
    to.cbranch(to.icmp_signed("==", to.srem(looks, INT(SPINS)), INT(0)), idle, look)
    to.position_at_end(idle)
    to.call(let_others_run, [])
    looks.add_incoming(next_, idle)
    to.branch(look)
    to.position_at_end(done)

"""Programs and kernels: what the definition gives in float64, for every shape, way and number of threads."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repvgg_zoo.inference.jit.engine import registers_here
from repvgg_zoo.inference.jit.kernels import AVX2, AVX512
from repvgg_zoo.inference.jit.winograd import TILES
from repvgg_zoo.inference.lowering import HUGE, _Writer, aligned, program_of
from repvgg_zoo.inference.runners import KernelRunner
from tests.inference.reference import Layer, compute, images, random_weights

F2, F4 = TILES
WAYS = {"direct": None, "F2": F2, "F4": F4}
# Of the outputs' scale. float32 rounds by 6e-8. Through the blocks of these networks that was seen to grow to 5e-7, and
# with F4, whose factors are up to 8, to 3e-6; the bounds are four times as much.
BOUNDS = {"direct": 2e-6, "F2": 2e-6, "F4": 1.2e-5}
# On a processor that has not as many, LLVM makes several registers of one.
either_registers = st.sampled_from([AVX2, AVX512])


class Forced(_Writer):
    """Takes the given way wherever it can be taken, fast or not."""

    def __init__(self, count, threads, way, registers):
        super().__init__(count, threads, low_memory=False, registers=registers)
        self._way = WAYS[way]

    def _choose(self, block, out):
        return self._way


def forced(weights, shape, way, threads=1, registers=None):
    return Forced(shape[0], threads, way, registers or registers_here()).write(weights, shape)


def run(program, *batches, threads=1):
    """The outputs by name, of the last batch."""
    runner = KernelRunner(program, threads)
    try:
        for batch in batches:
            found = runner(batch)
    finally:
        runner.close()
    return dict(zip(program.outputs, found))


def distance(expected, found):
    """The largest difference, of the outputs' scale; that is 1 by how numbers are drawn, if not larger."""
    assert expected.keys() == found.keys()
    distances = []
    for name, array in expected.items():
        assert array.shape == found[name].shape
        distances.append(np.abs(array - found[name]).max() / max(1, np.abs(array).max()))
    return max(distances)


def same_bits(one, other):
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


# Shape of the images, blocks, and classes.
NETWORKS = {
    "one block": ((1, 3, 8, 8), [Layer(16, 2)], 10),
    "channels that are no whole panels": ((2, 3, 9, 7), [Layer(17, 2), Layer(33), Layer(5), Layer(20)], 7),
    "one channel and one class": ((1, 1, 5, 5), [Layer(1, 2), Layer(1), Layer(16), Layer(1)], 1),
    "a single pixel": ((3, 3, 1, 1), [Layer(16, 2), Layer(16), Layer(16)], 5),
    "two pixels": ((1, 3, 2, 1), [Layer(16), Layer(16), Layer(32, 2), Layer(32)], 5),
    "a row": ((2, 3, 1, 23), [Layer(16), Layer(24), Layer(16, 2), Layer(16)], 5),
    "a column": ((2, 3, 21, 1), [Layer(16), Layer(24), Layer(16, 2), Layer(16)], 5),
    "sides that are no whole tiles": ((2, 3, 11, 13), [Layer(16), Layer(16), Layer(16), Layer(32, 2), Layer(32)], 3),
    "more channels than a picture has": ((1, 9, 6, 6), [Layer(16, 2), Layer(16)], 3),
    "many channels and a first block of stride 1": ((1, 20, 6, 6), [Layer(16), Layer(16)], 3),
    "groups": ((2, 3, 10, 9), [Layer(64, 2), Layer(64, groups=2), Layer(64, groups=4), Layer(128, 2, groups=4)], 4),
    "groups of an odd number of panels": ((1, 3, 7, 9), [Layer(96, 2), Layer(96, groups=2), Layer(80)], 40),
    "groups that are no whole panels": ((2, 3, 9, 9), [Layer(24, 2), Layer(24, groups=3), Layer(48, groups=6)], 4),
    "groups of a few channels each": ((1, 3, 7, 7), [Layer(20), Layer(80, groups=5), Layer(10, 2, groups=10)], 4),
    "a channel to each group": ((1, 3, 6, 6), [Layer(18), Layer(18, groups=18), Layer(18, groups=9)], 4),
    "SE before ReLU": ((2, 3, 9, 8), [Layer(20, 2, se="before"), Layer(20, se="before"), Layer(20)], 4),
    "SE after ReLU": ((3, 3, 9, 8), [Layer(20, 2, se="after"), Layer(40, se="after"), Layer(40)], 4),
    "SE that squeezes to one": ((1, 3, 3, 3), [Layer(3, se="after"), Layer(3, se="before")], 4),
    "features and no head": (
        (2, 3, 14, 14),
        [Layer(16, 2, feature=True), Layer(16), Layer(16, se="after", feature=True), Layer(16, 2, feature=True)],
        None,
    ),
    "features and a head": ((1, 3, 8, 8), [Layer(16, feature=True), Layer(16), Layer(16, feature=True)], 6),
    "a feature of one pixel": ((1, 3, 2, 2), [Layer(16, feature=True), Layer(24, 2, feature=True)], None),
    "memory that later blocks take over": ((3, 3, 9, 9), [Layer(16, feature=i == 3) for i in range(9)], 5),
    "maps of other sizes in memory of the same": (
        (2, 3, 4, 4),
        [Layer(16), Layer(16), Layer(16, 2), Layer(16), Layer(16), Layer(16, 2), Layer(16), Layer(16)],
        5,
    ),
    "several blocks of rows and tiles": ((2, 3, 41, 38), [Layer(64), Layer(64), Layer(64, groups=2)], 5),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_program_computes_what_the_definition_says(kind, way):
    shape, layers, classes = NETWORKS[kind]
    weights = random_weights(shape[1], layers, classes)
    x = images(*shape)
    found = run(forced(weights, shape, way, threads=2), x, threads=2)
    assert distance(compute(weights, x), found) < BOUNDS[way]


@st.composite
def networks(draw):
    """A shape of images and layers for them."""
    size = st.integers(1, 19)
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 6), size, size))
    channels, layers = shape[1], []
    for _ in range(draw(st.integers(1, 5))):
        groups = draw(st.sampled_from([count for count in (1, 2, 3, 4, 8) if channels % count == 0]))
        outs = groups * draw(st.integers(1, 40 // groups))
        gate = draw(st.sampled_from([None, None, "before", "after"]))
        layers.append(Layer(outs, draw(st.sampled_from([1, 1, 2])), groups, gate, draw(st.booleans())))
        channels = outs
    return shape, layers, draw(st.integers(1, 20))


@settings(max_examples=100, deadline=None)
@given(networks(), st.sampled_from(sorted(WAYS)), st.integers(1, 4), st.integers(0, 100), either_registers)
def test_any_program_computes_what_the_definition_says(network, way, threads, seed, registers):
    shape, layers, classes = network
    weights = random_weights(shape[1], layers, classes, seed)
    x = images(*shape, seed=seed)
    found = run(forced(weights, shape, way, threads, registers), x, threads=threads)
    assert distance(compute(weights, x), found) < BOUNDS[way]


@settings(max_examples=20, deadline=None)
@given(networks(), st.booleans(), st.integers(1, 4), either_registers)
def test_the_way_that_is_chosen_is_a_right_one(network, low_memory, threads, registers):
    shape, layers, classes = network
    weights = random_weights(shape[1], layers, classes)
    x = images(*shape)
    program = program_of(weights, shape, threads, low_memory, registers)
    assert distance(compute(weights, x), run(program, x, threads=threads)) < BOUNDS["F4"]


def kernels_of(shape, layers, threads=1, low_memory=False):
    program = program_of(random_weights(shape[1], layers, 10), shape, threads, low_memory, AVX2)
    return {call.kernel for call in program.calls}


# Images, blocks, and the kernels of winograd that the program for them has.
CHOICES = {
    "large maps take the large tile": ((1, 3, 32, 32), [Layer(64), Layer(64)], {"spread4", "gather4"}),
    "maps of a tile take the small one": ((1, 3, 2, 2), [Layer(64), Layer(64)], set()),
    "a batch makes small maps worth it": ((64, 3, 2, 2), [Layer(64), Layer(64)], {"spread2", "gather2"}),
    "stride 2 is for none": ((1, 3, 32, 32), [Layer(64, 2), Layer(64, 2)], set()),
    "a picture is for none": ((1, 3, 32, 32), [Layer(64), Layer(64, 2)], set()),
    "few channels are filled up": ((1, 3, 32, 32), [Layer(8), Layer(64)], {"spread4", "gather4"}),
}


@pytest.mark.parametrize("kind", CHOICES)
def test_what_is_chosen_depends_on_the_size(kind):
    shape, layers, expected = CHOICES[kind]
    others = {"picture", "product", "mean"}
    assert kernels_of(shape, layers) == others | expected
    assert kernels_of(shape, layers, low_memory=True) == others


# A network in which every kernel has work.
SHAPE = (2, 3, 13, 11)
MIXED = random_weights(
    3,
    [
        Layer(32, feature=True),
        Layer(32, se="before"),
        Layer(40, se="after"),
        Layer(40, 2, feature=True),
        Layer(40, groups=5),
    ],
    9,
)


@pytest.mark.parametrize("way", WAYS)
def test_the_number_of_threads_changes_no_bit(way):
    x = images(*SHAPE)
    program = forced(MIXED, SHAPE, way)
    alone = run(program, x)
    for threads in (2, 3, 4, 7):
        # Many times, since a thread that does not wait for the others is mostly lucky.
        assert all(same_bits(alone, found) for found in repeated(program, x, threads, 25))


def repeated(program, x, threads, count):
    runner = KernelRunner(program, threads)
    for _ in range(count):
        yield dict(zip(program.outputs, runner(x)))
    runner.close()


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_left_of_the_images_before(way):
    program = forced(MIXED, SHAPE, way, threads=2)
    x = images(*SHAPE)
    first = run(program, x, threads=2)
    assert distance(compute(MIXED, x), first) < BOUNDS[way]
    others = [images(*SHAPE, seed=seed) * 10.0**seed for seed in range(6)]
    others += [np.full(SHAPE, value, np.float32) for value in (np.nan, np.inf, -np.inf)]
    with np.errstate(all="ignore"):
        assert same_bits(first, run(program, *others, x, threads=2))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_a_pixel_that_is_not_finite_is_seen_in_its_image_and_in_no_other(way, value):
    x = images(3, *SHAPE[1:])
    program = forced(MIXED, x.shape, way, threads=2)
    clean = run(program, x, threads=2)
    x[1, 2, 6, 5] = value
    spoiled, expected = run(program, x, threads=2), compute(MIXED, x)
    for name, array in spoiled.items():
        assert np.array_equal(array[[0, 2]], clean[name][[0, 2]])
        # Winograd's tiles and channels of zeros spread it further, but nowhere is it lost.
        assert not np.isfinite(array[~np.isfinite(expected[name])]).any()
        assert not np.isfinite(array[1]).all()
    assert np.isnan(spoiled["layer0"][1]).any() == np.isnan(value)
    assert np.isnan(spoiled[""][1]).all()


def test_outputs_are_the_callers_own():
    shape = (1, 3, 2, 2)  # the last map is one pixel
    weights = random_weights(3, [Layer(16, feature=True), Layer(16, 2, feature=True)], 4)
    runner = KernelRunner(program_of(weights, shape, 1, False, registers_here()), 1)
    found = runner(images(*shape))
    kept = [array.copy() for array in found]
    runner(images(*shape, seed=2))
    assert all(np.array_equal(*pair) for pair in zip(found, kept))
    assert all(array.flags.c_contiguous and array.flags.writeable for array in found)


def test_images_may_lie_anywhere():
    x = images(*SHAPE)
    program = forced(MIXED, SHAPE, "direct")
    expected = run(program, x)
    room = np.zeros(x.size + 16, np.float32)
    for offset in range(1, 16, 5):
        moved = room[offset : offset + x.size].reshape(SHAPE)
        moved[...] = x
        assert same_bits(expected, run(program, moved))


SMAPS = Path("/proc/self/smaps")


def mapping_of(address):
    """The permissions and the flags of the mapping that holds an address."""
    for entry in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", SMAPS.read_text()):
        bounds, permissions = entry.split()[:2]
        start, stop = (int(bound, 16) for bound in bounds.split("-"))
        if start <= address < stop:
            return permissions, re.findall(r"VmFlags: (.*)", entry)[0].split()
    raise AssertionError(hex(address))


@pytest.mark.skipif(not SMAPS.exists(), reason="only Linux describes its mappings in /proc")
def test_large_memory_is_private_so_that_it_may_get_huge_pages():
    array = aligned((HUGE // 2,))
    assert array.ctypes.data % HUGE == 0
    permissions, flags = mapping_of(array.ctypes.data)
    assert permissions == "rw-p"
    assert ("hg" in flags) == Path("/sys/kernel/mm/transparent_hugepage").exists()

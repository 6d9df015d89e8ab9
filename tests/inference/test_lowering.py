"""Plans and kernels compute what the definition says in float64, for every shape, algorithm and number of threads."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repvgg_zoo.inference.jit.engine import host_microkernel_config
from repvgg_zoo.inference.jit.kernels import AVX2, AVX512, FIELDS
from repvgg_zoo.inference.jit.winograd import WINOGRAD_TRANSFORMS
from repvgg_zoo.inference.kernel_runner import KernelRunner
from repvgg_zoo.inference.lowering import lower
from repvgg_zoo.inference.packing import HUGE_PAGE_BYTES, aligned_zeros
from tests.inference.reference import Layer, compute, images, random_weights

F2, F4, F2_STRIDE_2 = WINOGRAD_TRANSFORMS
# By the stride of the convolution.
ALGORITHMS = {"igemm": {}, "F2": {1: F2, 2: F2_STRIDE_2}, "F4": {1: F4}}
# Of the outputs' scale. float32 rounds by 6e-8. Through the layers of these networks that was seen to grow to 5e-7, and
# with F4, whose factors are up to 8, to 3e-6; the bounds are four times as much.
BOUNDS = {"igemm": 2e-6, "F2": 2e-6, "F4": 1.2e-5}
# On a processor that has not as many, LLVM makes several registers of one.
any_config = st.sampled_from([AVX2, AVX512])


def lower_with(algorithm, weights, shape, threads=1, config=None):
    """A plan with the given algorithm wherever it can be used, fast or not."""
    return lower(
        weights,
        shape,
        threads=threads,
        config=config or host_microkernel_config(),
        select_algorithm=lambda layer, out: ALGORITHMS[algorithm].get(layer.stride),
    )


def run(plan, *batches, threads=1):
    """The outputs by name, of the last batch."""
    runner = KernelRunner(plan, threads)
    try:
        for batch in batches:
            outputs = runner(batch)
    finally:
        runner.close()
    return dict(zip(plan.outputs, outputs))


def distance(expected, actual):
    """The largest difference, of the outputs' scale, which is at least 1 by how the weights are drawn."""
    assert expected.keys() == actual.keys()
    distances = []
    for name, array in expected.items():
        assert array.shape == actual[name].shape
        distances.append(np.abs(array - actual[name]).max() / max(1, np.abs(array).max()))
    return max(distances)


def same_bits(one, other):
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


# Shape of the images, layers, and classes.
NETWORKS = {
    "one layer": ((1, 3, 8, 8), [Layer(16, 2)], 10),
    "channels that are not whole panels": ((2, 3, 9, 7), [Layer(17, 2), Layer(33), Layer(5), Layer(20)], 7),
    "one channel and one class": ((1, 1, 5, 5), [Layer(1, 2), Layer(1), Layer(16), Layer(1)], 1),
    "a single pixel": ((3, 3, 1, 1), [Layer(16, 2), Layer(16), Layer(16)], 5),
    "two pixels": ((1, 3, 2, 1), [Layer(16), Layer(16), Layer(32, 2), Layer(32)], 5),
    "a row": ((2, 3, 1, 23), [Layer(16), Layer(24), Layer(16, 2), Layer(16)], 5),
    "a column": ((2, 3, 21, 1), [Layer(16), Layer(24), Layer(16, 2), Layer(16)], 5),
    "sides that are not whole tiles": ((2, 3, 11, 13), [Layer(16), Layer(16), Layer(16), Layer(32, 2), Layer(32)], 3),
    "more channels than an image has": ((1, 9, 6, 6), [Layer(16, 2), Layer(16)], 3),
    "many channels and a first layer of stride 1": ((1, 20, 6, 6), [Layer(16), Layer(16)], 3),
    "groups": ((2, 3, 10, 9), [Layer(64, 2), Layer(64, groups=2), Layer(64, groups=4), Layer(128, 2, groups=4)], 4),
    "groups of an odd number of panels": ((1, 3, 7, 9), [Layer(96, 2), Layer(96, groups=2), Layer(80)], 40),
    "groups that are not whole panels": ((2, 3, 9, 9), [Layer(24, 2), Layer(24, groups=3), Layer(48, groups=6)], 4),
    "groups of a few channels each": ((1, 3, 7, 7), [Layer(20), Layer(80, groups=5), Layer(10, 2, groups=10)], 4),
    "a channel to each group": ((1, 3, 6, 6), [Layer(18), Layer(18, groups=18), Layer(18, groups=9)], 4),
    "SE before ReLU": ((2, 3, 9, 8), [Layer(20, 2, se="before"), Layer(20, se="before"), Layer(20)], 4),
    "SE after ReLU": ((3, 3, 9, 8), [Layer(20, 2, se="after"), Layer(40, se="after"), Layer(40)], 4),
    "SE that squeezes to one": ((1, 3, 3, 3), [Layer(3, se="after"), Layer(3, se="before")], 4),
    "pooled features": ((2, 3, 9, 11), [Layer(20, 2), Layer(20, se="after")], None),
    "features and no head": (
        (2, 3, 14, 14),
        [Layer(16, 2, feature=True), Layer(16), Layer(16, se="after", feature=True), Layer(16, 2, feature=True)],
        None,
    ),
    "features and a head": ((1, 3, 8, 8), [Layer(16, feature=True), Layer(16), Layer(16, feature=True)], 6),
    "a feature of one pixel": ((1, 3, 2, 2), [Layer(16, feature=True), Layer(24, 2, feature=True)], None),
    "storage that later layers use again": ((3, 3, 9, 9), [Layer(16, feature=i == 3) for i in range(9)], 5),
    "activations of other sizes in storage of the same": (
        (2, 3, 4, 4),
        [Layer(16), Layer(16), Layer(16, 2), Layer(16), Layer(16), Layer(16, 2), Layer(16), Layer(16)],
        5,
    ),
    "several blocks of rows and chunks of tiles": ((2, 3, 41, 38), [Layer(64), Layer(64), Layer(64, groups=2)], 5),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_plan_computes_what_the_definition_says(kind, algorithm):
    shape, layers, classes = NETWORKS[kind]
    weights = random_weights(shape[1], layers, classes)
    x = images(*shape)
    outputs = run(lower_with(algorithm, weights, shape, threads=2), x, threads=2)
    assert distance(compute(weights, x), outputs) < BOUNDS[algorithm]


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
@given(networks(), st.sampled_from(sorted(ALGORITHMS)), st.integers(1, 4), st.integers(0, 100), any_config)
def test_any_plan_computes_what_the_definition_says(network, algorithm, threads, seed, config):
    shape, layers, classes = network
    weights = random_weights(shape[1], layers, classes, seed)
    x = images(*shape, seed=seed)
    outputs = run(lower_with(algorithm, weights, shape, threads, config), x, threads=threads)
    assert distance(compute(weights, x), outputs) < BOUNDS[algorithm]


@settings(max_examples=20, deadline=None)
@given(networks(), st.booleans(), st.integers(1, 4), any_config)
def test_the_plan_of_the_cost_model_computes_what_the_definition_says(network, low_memory, threads, config):
    shape, layers, classes = network
    weights = random_weights(shape[1], layers, classes)
    x = images(*shape)
    plan = lower(weights, shape, threads=threads, low_memory=low_memory, config=config)
    assert distance(compute(weights, x), run(plan, x, threads=threads)) < BOUNDS["F4"]


def kernels_of(shape, layers, low_memory=False):
    plan = lower(random_weights(shape[1], layers, 10), shape, threads=1, low_memory=low_memory, config=AVX2)
    return {call.kernel for call in plan.calls}


F2_KERNELS = {"input_transform_2", "output_transform_2"}
STRIDE_2_KERNELS = {"input_transform_2s2", "output_transform_2s2"}
F4_KERNELS = {"input_transform_4", "output_transform_4"}

# Shape of the images, layers, and the Winograd kernels in the plan for them.
CHOICES = {
    "large activations take the large tile": (
        (1, 3, 32, 32),
        [Layer(64), Layer(64)],
        F4_KERNELS,
    ),
    "activations of one tile take neither": ((1, 3, 2, 2), [Layer(64), Layer(64)], set()),
    "a batch makes small activations worth it": (
        (64, 3, 2, 2),
        [Layer(64), Layer(64)],
        F2_KERNELS,
    ),
    "stride 2 takes tiles of its own": ((1, 3, 64, 64), [Layer(64, 2), Layer(64, 2)], STRIDE_2_KERNELS),
    "few tiles of stride 2 take neither": ((1, 3, 32, 32), [Layer(64, 2), Layer(64, 2)], set()),
    "an image takes neither": ((1, 3, 32, 32), [Layer(64)], set()),
    "few channels are padded": ((1, 3, 32, 32), [Layer(8), Layer(64)], F4_KERNELS),
}


@pytest.mark.parametrize("kind", CHOICES)
def test_the_selected_algorithm_depends_on_the_size(kind):
    shape, layers, expected = CHOICES[kind]
    others = {"nchw_to_nhwc", "igemm", "global_avg_pool"}
    assert kernels_of(shape, layers) == others | expected
    assert kernels_of(shape, layers, low_memory=True) == others


# A network that uses every kernel.
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


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_number_of_threads_changes_no_bit(algorithm):
    x = images(*SHAPE)
    plan = lower_with(algorithm, MIXED, SHAPE)
    alone = run(plan, x)
    for threads in (2, 3, 4, 7):
        # Many times, since a thread that does not wait for the others is mostly lucky.
        assert all(same_bits(alone, outputs) for outputs in run_repeatedly(plan, x, threads, 25))


@pytest.mark.parametrize("algorithm", ["F2", "F4"])
def test_a_product_has_a_block_for_each_thread_where_there_are_tiles_enough_and_the_same_bits(algorithm):
    shape, layers = (2, 16, 96, 70), [Layer(32), Layer(32, groups=2)]
    weights, x = random_weights(shape[1], layers, 3), images(*shape)
    alone = run(lower_with(algorithm, weights, shape), x)
    for threads in (2, 3):
        plan = lower_with(algorithm, weights, shape, threads)
        assert blocks_of_products(plan) == {threads}
        assert same_bits(alone, run(plan, x, threads=threads))
    assert blocks_of_products(lower_with(algorithm, weights, shape, threads=64)) == {1}


def blocks_of_products(plan):
    """In how many blocks the rows of the products of all Winograd convolutions are."""
    fields = FIELDS["igemm"]
    products = [
        after.arguments
        for call, after in zip(plan.calls, plan.calls[1:])
        if call.kernel.startswith("input_transform") and after.kernel == "igemm"
    ]
    assert products
    return {int(arguments[fields.index("m_blocks")]) for arguments in products}


def run_repeatedly(plan, x, threads, count):
    runner = KernelRunner(plan, threads)
    for _ in range(count):
        yield dict(zip(plan.outputs, runner(x)))
    runner.close()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nothing_is_left_of_the_images_before(algorithm):
    plan = lower_with(algorithm, MIXED, SHAPE, threads=2)
    x = images(*SHAPE)
    first = run(plan, x, threads=2)
    assert distance(compute(MIXED, x), first) < BOUNDS[algorithm]
    others = [images(*SHAPE, seed=seed) * 10.0**seed for seed in range(6)]
    others += [np.full(SHAPE, value, np.float32) for value in (np.nan, np.inf, -np.inf)]
    with np.errstate(all="ignore"):
        assert same_bits(first, run(plan, *others, x, threads=2))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_a_pixel_that_is_not_finite_affects_its_image_and_no_other(algorithm, value):
    x = images(3, *SHAPE[1:])
    plan = lower_with(algorithm, MIXED, x.shape, threads=2)
    clean = run(plan, x, threads=2)
    x[1, 2, 6, 5] = value
    spoiled, expected = run(plan, x, threads=2), compute(MIXED, x)
    for name, array in spoiled.items():
        assert np.array_equal(array[[0, 2]], clean[name][[0, 2]])
        # Winograd's tiles and channels of zeros spread it further, but it is lost nowhere.
        assert not np.isfinite(array[~np.isfinite(expected[name])]).any()
        assert not np.isfinite(array[1]).all()
    assert np.isnan(spoiled["layer0"][1]).any() == np.isnan(value)
    assert np.isnan(spoiled[""][1]).all()


def test_outputs_are_the_callers_own():
    shape = (1, 3, 2, 2)  # the last activation is one pixel
    weights = random_weights(3, [Layer(16, feature=True), Layer(16, 2, feature=True)], 4)
    runner = KernelRunner(lower(weights, shape, threads=1, config=host_microkernel_config()), 1)
    outputs = runner(images(*shape))
    copies = [array.copy() for array in outputs]
    runner(images(*shape, seed=2))
    assert all(np.array_equal(*pair) for pair in zip(outputs, copies))
    assert all(array.flags.c_contiguous and array.flags.writeable for array in outputs)


def test_images_may_have_any_alignment():
    x = images(*SHAPE)
    plan = lower_with("igemm", MIXED, SHAPE)
    expected = run(plan, x)
    memory = np.zeros(x.size + 16, np.float32)
    for offset in range(1, 16, 5):
        moved = memory[offset : offset + x.size].reshape(SHAPE)
        moved[...] = x
        assert same_bits(expected, run(plan, moved))


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
    array = aligned_zeros((HUGE_PAGE_BYTES // 2,))
    assert array.ctypes.data % HUGE_PAGE_BYTES == 0
    permissions, flags = mapping_of(array.ctypes.data)
    assert permissions == "rw-p"
    assert ("hg" in flags) == Path("/sys/kernel/mm/transparent_hugepage").exists()

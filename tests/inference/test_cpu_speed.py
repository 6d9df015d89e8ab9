"""The processor's speed is measured once for each processor, and algorithms follow from the figures alone.

The kind: figures that are not there, damaged, senseless, or of another processor are measured again, and where nothing
can be kept or measured, compiling works all the same.
"""

from __future__ import annotations

import json
import math

import pytest

from repvgg_zoo._derived_cache import HEADER_BYTES, DerivedCache
from repvgg_zoo.inference.cost_model import DEFAULT_CPU_SPEED, CpuSpeed
from repvgg_zoo.inference.cpu_speed import load_or_measure, measure_cpu_speed, speed_key, speed_of
from repvgg_zoo.inference.jit.engine import host_microkernel_config
from repvgg_zoo.inference.jit.kernels import AVX2
from repvgg_zoo.inference.lowering import lower
from tests.inference.reference import Layer, random_weights

KEY = speed_key("0" * 64, "znver3 +avx2")
FIRST, SECOND = CpuSpeed(40e9, 20e9), CpuSpeed(90.5e9, 31.25e9)


@pytest.fixture
def cache(tmp_path):
    cache = DerivedCache(tmp_path)
    assert load_or_measure(lambda: FIRST, cache, KEY) == FIRST
    return cache


def entry(cache):
    (path,) = cache.folder.glob("speed-*.derived")
    return path


def test_what_was_measured_once_is_read(cache):
    assert load_or_measure(lambda: SECOND, cache, KEY) == FIRST


@pytest.mark.parametrize(
    "key",
    [speed_key("0" * 64, "znver4 +avx512f"), speed_key("1" * 64, "znver3 +avx2")],
    ids=["another processor", "other machine code"],
)
def test_other_figures_are_measured_for_others(cache, key):
    assert load_or_measure(lambda: SECOND, cache, key) == SECOND
    assert load_or_measure(lambda: SECOND, cache, KEY) == FIRST


def test_a_damaged_entry_is_measured_again(cache):
    content = bytearray(entry(cache).read_bytes())
    content[HEADER_BYTES] ^= 1
    entry(cache).write_bytes(content)
    assert load_or_measure(lambda: SECOND, cache, KEY) == SECOND


@pytest.mark.parametrize("figures", [[], [1.0], [1.0, -2.0], [0.0, 1.0], [1.0, math.inf], [math.nan, 1.0], "no", {}])
def test_figures_that_make_no_sense_are_measured_again(tmp_path, figures):
    cache = DerivedCache(tmp_path)
    assert cache.write(KEY, lambda stream: stream.write(json.dumps(figures).encode()))
    assert load_or_measure(lambda: SECOND, cache, KEY) == SECOND


def test_without_a_cache_that_can_be_written_to_nothing_is_kept(tmp_path):
    assert load_or_measure(lambda: FIRST, None, KEY) == FIRST
    (tmp_path / "file").touch()
    cache = DerivedCache(tmp_path / "file")
    assert load_or_measure(lambda: FIRST, cache, KEY) == FIRST
    assert load_or_measure(lambda: SECOND, cache, KEY) == SECOND


# Multiply-adds and seconds in the cache, the same with streamed weights, their bytes, and the speed.
TIMES = {
    "weights take time beside the arithmetic": ((400, 10.0, 160, 5.0, 30), CpuSpeed(40, 10)),
    "weights that take no time take a tenth": ((400, 10.0, 160, 3.9, 30), CpuSpeed(40, 75)),
    "a clock that has not moved": ((400, 0.0, 80, 3.0, 50), DEFAULT_CPU_SPEED),
    "a clock that goes back": ((400, 10.0, 80, -1.0, 50), DEFAULT_CPU_SPEED),
}


@pytest.mark.parametrize("kind", TIMES)
def test_the_speed_explains_both_times(kind):
    times, expected = TIMES[kind]
    assert speed_of(*times) == pytest.approx(expected)


def test_this_processor_is_measured():
    speed = measure_cpu_speed(host_microkernel_config())
    assert 1e8 < speed.fma_per_second < 1e13
    assert 1e7 < speed.bytes_per_second < 1e15


# Shape of the images, and bytes in a second for 40e9 FMAs, by the Winograd kernel that the last layer then has.
CHOICES = {
    (1, 3, 14, 14): {0.5e9: "igemm", 12e9: "input_transform_2", 50e9: "input_transform_4"},
    (1, 3, 7, 7): {1e9: "igemm", 30e9: "input_transform_2", 200e9: "input_transform_4"},
}


@pytest.mark.parametrize(
    ("shape", "bandwidth", "kernel"),
    [(shape, bandwidth, kernel) for shape, kinds in CHOICES.items() for bandwidth, kernel in kinds.items()],
)
def test_the_slower_weights_are_the_fewer_of_them_are_read(shape, bandwidth, kernel):
    weights = random_weights(3, [Layer(256), Layer(256)])
    for speed in (CpuSpeed(40e9, bandwidth), CpuSpeed(80e9, 2 * bandwidth)):  # only the ratio counts
        plan = lower(weights, shape, threads=1, config=AVX2, speed=speed)
        assert plan.calls[plan.layers[1].start].kernel == kernel

"""explain: every part of every kind of network, with the algorithm that its plan has and multiply-adds that add up."""

from __future__ import annotations

import numpy as np
import pytest

import repvgg_zoo
from repvgg_zoo.errors import ArgumentError, ClosedError
from repvgg_zoo.inference.cost_model import CpuSpeed
from repvgg_zoo.inference.explain import explain_plan, part_ranges, time_parts
from repvgg_zoo.inference.explanation import ExplainedLayer, Explanation
from repvgg_zoo.inference.jit.kernels import AVX2
from repvgg_zoo.inference.kernel_runner import KernelRunner
from repvgg_zoo.inference.lowering import lower
from tests.inference.reference import Layer, images, random_weights

SPEED = CpuSpeed(40e9, 20e9)


def explained(shape, layers, classes, threads=1, speed=SPEED, **options):
    weights = random_weights(shape[1], layers, classes)
    plan = lower(weights, shape, threads=threads, config=AVX2, speed=speed, **options)
    return plan, explain_plan(plan, weights, threads=threads, speed=speed)


# Shape of the images, layers, classes, and each part's name, algorithm, MACs and FMAs.
NETWORKS = {
    "a head": (
        (2, 3, 8, 8),
        [Layer(16, 2)],
        10,
        [
            ("input", "nchw_to_nhwc", 0, 0),
            ("layer0", "igemm", 2 * 16 * 3 * 16 * 9, 2 * 16 * 3 * 16 * 9),
            ("head", "global_avg_pool, igemm", 2 * 160, 2 * 160),
        ],
    ),
    "pooled features": (
        (1, 3, 8, 8),
        [Layer(16)],
        None,
        [
            ("input", "nchw_to_nhwc", 0, 0),
            ("layer0", "igemm", 64 * 3 * 16 * 9, 64 * 3 * 16 * 9),
            ("head", "global_avg_pool", 0, 0),
        ],
    ),
    "features, groups and an SE": (
        (1, 4, 6, 6),
        [Layer(16, groups=2, se="after", feature=True)],
        None,
        [
            ("input", "nchw_to_nhwc", 0, 0),
            ("layer0", "igemm", 36 * 2 * 16 * 9, 36 * 2 * 16 * 9),
            ("layer0.se", "igemm", 2 * 16 * 4, 2 * 16 * 4),
        ],
    ),
    "Winograd of both strides and sizes": (
        (1, 3, 64, 64),
        [Layer(64), Layer(64), Layer(64, 2), Layer(64, 2)],
        None,
        [
            ("input", "nchw_to_nhwc", 0, 0),
            ("layer0", "igemm", 64**2 * 3 * 64 * 9, 64**2 * 3 * 64 * 9),
            ("layer1", "Winograd F(4x4, 3x3)", 64**4 * 9, 16**2 * 64**2 * 36),
            ("layer2", "Winograd F(2x2, 3x3)", 32**2 * 64**2 * 9, 16**2 * 64**2 * 25),
            ("layer3", "Winograd F(2x2, 3x3)", 16**2 * 64**2 * 9, 8**2 * 64**2 * 25),
            ("head", "global_avg_pool", 0, 0),
        ],
    ),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_part_is_explained(kind):
    shape, layers, classes, expected = NETWORKS[kind]
    plan, explanation = explained(shape, layers, classes)
    assert [(part.name, part.algorithm, part.macs, part.fmas) for part in explanation.layers] == expected
    assert all((part.expected_ms is None) == (not part.name[-1].isdigit()) for part in explanation.layers)
    ranges = part_ranges(plan)
    assert [call for start, stop in ranges for call in range(start, stop)] == list(range(len(plan.calls)))
    assert len(ranges) == len(expected)


def test_the_expected_times_are_those_of_the_processor_and_the_threads():
    network = (1, 3, 64, 64), [Layer(64), Layer(64)], 10
    _, slow = explained(*network)
    _, fast = explained(*network, speed=CpuSpeed(80e9, 40e9))
    _, two = explained(*network, threads=2)
    assert (slow.peak_gflops, fast.peak_gflops, two.peak_gflops) == (80, 160, 160)
    for one, other, shared in zip(slow.layers[1:3], fast.layers[1:3], two.layers[1:3]):
        assert one.expected_ms == pytest.approx(2 * other.expected_ms)
        assert other.expected_ms < shared.expected_ms < one.expected_ms  # the weights are read once, however many


@pytest.mark.parametrize("threads", [1, 2])
def test_measuring_times_each_part_and_changes_no_output(threads):
    shape = (1, 3, 32, 32)
    plan, explanation = explained(shape, [Layer(64), Layer(64, se="before"), Layer(64, 2)], 10, threads)
    runner, x = KernelRunner(plan, threads, explanation), images(*shape)
    try:
        (before,), measured, (after,) = runner(x), runner.explain(measure=True), runner(x)
        assert runner.explain(measure=False) == explanation
    finally:
        runner.close()
    assert np.array_equal(before, after)
    assert [part.name for part in measured.layers] == [part.name for part in explanation.layers]
    convolutions = [part for part in measured.layers if part.expected_ms is not None]
    assert len(convolutions) == 3
    for part in convolutions:
        assert part.gflops == pytest.approx(2e-6 * part.fmas / part.measured_ms)
        assert part.peak_share == pytest.approx(part.gflops / measured.peak_gflops)


def test_the_time_that_it_takes_to_start_the_threads_is_not_counted():
    plan, explanation = explained((1, 3, 8, 8), [Layer(16)], 10)
    measured = time_parts(explanation, plan, lambda images, start, stop: None)  # takes as long for no call as for many
    assert max(part.measured_ms for part in measured.layers) < 0.1


def test_the_table_has_a_row_for_each_part_and_their_sum():
    layers = (
        ExplainedLayer("stage0", (1, 8, 8, 16), "igemm", 2000000, 2000000, 0.5, 1.0, 4.0, 0.5),
        ExplainedLayer("head", (1, 10), "global_avg_pool", 0, 0),
    )
    assert str(Explanation(layers, 2, 8.0)).splitlines() == [
        "layer   output    algorithm        MMACs  expected ms  measured ms  GF/s  of peak",
        "stage0  1x8x8x16  igemm              2.0        0.500        1.000   4.0      50%",
        "head    1x10      global_avg_pool      -            -            -     -        -",
        "total                                2.0        0.500        1.000   4.0      50%",
        "2 threads, the igemm's peak is 8 GF/s",
    ]
    html = Explanation(layers, 1, 8.0)._repr_html_()
    assert html.count("<tr>") == 4
    assert "1 thread, " in html


def test_a_compiled_network_explains_itself_with_the_names_of_its_blocks(tmp_path, monkeypatch):
    monkeypatch.setenv("REPVGG_ZOO_HOME", str(tmp_path))
    model = repvgg_zoo.compile("RepVGG_N0", threads=1)
    explanation = model.explain()
    assert [part.name for part in explanation.layers][:3] == ["input", "stage0", "stage1.0"]
    assert sum(part.macs for part in explanation.layers) == repvgg_zoo.cost("RepVGG_N0").macs.deploy
    assert all(part.measured_ms is not None for part in model.explain(measure=True).layers)
    with pytest.raises(ArgumentError, match="measure"):
        model.explain(measure="yes")
    model.close()
    with pytest.raises(ClosedError):
        model.explain()


def test_a_network_in_eager_mode_has_nothing_to_explain():
    text = str(Explanation(()))
    assert "eager" in text
    assert "eager" in Explanation(())._repr_html_()

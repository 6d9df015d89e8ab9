"""Networks rewritten by hand and shared out over cores give what the eager network gives."""

from __future__ import annotations

import megengine.module as M
import numpy as np
import pytest
from megengine import Tensor
from numpy.typing import NDArray

from repvgg_zoo.models import RepVGG
from repvgg_zoo.registry.spec import SESpec
from repvgg_zoo.runtime.nchw88 import Block, Segment, numbers_of
from repvgg_zoo.runtime.stages import _Network, row_spans, staged

BOUND = 2e-5  # of the logits' scale; winograd F(6, 3) in float32 was seen to differ by up to 8e-6


def network(**options: object) -> RepVGG:
    """A small deploy network whose logits depend on its input: default weights would leave little but biases."""
    settings = {"num_blocks": [2, 3, 3, 1], "width_multiplier": [0.5] * 4, "num_classes": 20, **options}
    made = RepVGG(**settings, deploy=True)
    made.eval()
    for tensor in made.parameters():
        if tensor.ndim >= 4 and tensor.shape[-1] == 3:
            tensor[...] = tensor * 6**0.5
    return made


def pictures(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def distance(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(
    ("options", "shape", "threads"),
    [
        ({}, (1, 3, 64, 64), 2),
        ({}, (2, 3, 72, 40), 2),
        ({}, (1, 3, 97, 83), 3),
        ({"num_blocks": [4, 2, 2, 1]}, (1, 3, 64, 64), 2),
        ({"groups": 2, "num_blocks": [2, 2, 2, 1]}, (1, 3, 64, 64), 2),
        ({"in_chans": 1}, (1, 1, 64, 64), 2),
    ],
    ids=str,
)
def test_stages_give_the_eager_networks_logits_for_every_input(options: dict, shape: tuple, threads: int) -> None:
    eager = network(**options)
    stages = staged(eager, shape, threads)
    assert stages is not None
    for seed in range(2):
        x = pictures(*shape, seed=seed)
        assert distance(stages(x), eager(Tensor(x)).numpy()) < BOUND
    stages.close()


def test_earlier_results_stay_as_they_were() -> None:
    stages = staged(network(), (1, 3, 64, 64), 2)
    assert stages is not None
    first = stages(pictures(1, 3, 64, 64))
    kept = first.copy()
    stages(pictures(1, 3, 64, 64, seed=1))
    assert np.array_equal(first, kept)
    stages.close()


@pytest.mark.parametrize(
    "options",
    [{}, {"se": SESpec(reduction=16, position="before_relu")}, {"groups": 2, "num_blocks": [2, 2, 2, 1]}],
    ids=["dense", "SE", "grouped"],
)
def test_a_segment_of_the_whole_network_gives_its_logits(options: dict) -> None:
    eager = network(**options)
    numbers = numbers_of(eager)
    assert numbers is not None
    blocks, head = numbers
    x = pictures(3, 3, 64, 64)
    alone = _Network(Segment(blocks, 3, 64, 64, head), [(np.s_[...], x)], x.shape, threads=2)
    alone.run()
    assert distance(alone.output, eager(Tensor(x)).numpy()) < BOUND


@pytest.mark.parametrize(
    "other",
    [
        lambda: M.Linear(3, 3),
        lambda: RepVGG([1, 1, 1, 1], [0.25] * 4),
        lambda: network(features_only=True),
        lambda: network(width_multiplier=[0.3] * 4),
        lambda: network(in_chans=8),
    ],
    ids=["no RepVGG", "train form", "no head", "channels that are no multiple of 8", "8 input channels"],
)
def test_networks_that_cannot_be_rewritten_are_left_alone(other: object) -> None:
    assert numbers_of(other()) is None


def test_se_needs_the_whole_picture_so_it_is_not_shared_out() -> None:
    assert staged(network(se=SESpec(reduction=16, position="before_relu")), (1, 3, 64, 64), 2) is None


@pytest.mark.parametrize("height", [16, 57, 64, 224, 225])
@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("strides", [(2, 2), (2, 2, 1, 2), (2, 1, 1, 2, 1)], ids=str)
def test_row_spans_give_every_result_once_from_rows_it_depends_on(height: int, parts: int, strides: tuple) -> None:
    kernel, bias = np.zeros((8, 8, 3, 3), np.float32), np.zeros(8, np.float32)
    blocks = [Block(kernel, bias, stride) for stride in strides]

    def passed(rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Marks each row with a number that only the same neighbourhood in the whole picture gives."""
        for stride in strides:
            padded = np.concatenate([[0], rows, [0]])
            mixed = (padded[:-2] * 3 + padded[1:-1] * 5 + padded[2:] * 7) % 1000003
            rows = mixed[::stride]
        return rows

    picture = np.random.RandomState(0).randint(1, 1000, height)
    spans = row_spans(blocks, height, parts)
    if spans is None:
        assert len(passed(picture)) < 2 * parts + 4, "only small pictures cannot be cut"
        return
    pieces = [passed(picture[span.first : span.last])[span.skip : span.skip + span.keep] for span in spans]
    assert np.array_equal(np.concatenate(pieces), passed(picture))

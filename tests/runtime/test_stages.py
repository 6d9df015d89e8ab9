"""Networks rewritten by hand and shared out over cores give what the eager network gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Tuple

import megengine.module as M
import numpy as np
import pytest
from megengine import Tensor
from numpy.typing import NDArray

from repvgg_zoo.models import RepVGG
from repvgg_zoo.registry.spec import SESpec
from repvgg_zoo.runtime import compile as compile_module
from repvgg_zoo.runtime.compile import CompiledModel, compile
from repvgg_zoo.runtime.nchw88 import Block, numbers_of
from repvgg_zoo.runtime.stages import row_spans

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


GROUPED = {"groups": 2, "num_blocks": [2, 2, 2, 1]}
SE = {"se": SESpec(reduction=16, position="before_relu")}
MAPS = {"features_only": True, "out_indices": [3]}


@pytest.fixture(autouse=True)
def own_cache_and_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPVGG_ZOO_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(compile_module, "usable_cores", lambda: 4)


def compiled(eager: RepVGG, shape: Tuple[int, ...], threads: int, low_memory: bool = False) -> CompiledModel:
    return compile(eager, batch_size=shape[0], image_size=shape[2:], threads=threads, low_memory=low_memory)


def only(output: Any) -> Any:
    """A network's one output, be it logits or a feature map."""
    return next(iter(output.values())) if isinstance(output, dict) else output


@pytest.mark.parametrize(
    ("plan", "options", "shape", "threads"),
    [
        ("stages", {}, (1, 3, 64, 64), 2),
        ("stages", {}, (2, 3, 72, 40), 2),
        ("stages", {}, (1, 3, 97, 83), 3),
        ("stages", {"num_blocks": [4, 2, 2, 1]}, (1, 3, 64, 64), 2),
        ("stages", GROUPED, (1, 3, 64, 64), 2),
        ("stages", {"in_chans": 1}, (1, 1, 64, 64), 2),
        ("rewritten", {}, (3, 3, 64, 64), 1),
        ("rewritten", {}, (1, 3, 16, 64), 4),  # too few rows to be cut
        ("rewritten", SE, (1, 3, 64, 64), 2),
        ("rewritten", GROUPED, (1, 3, 64, 64), 1),
        ("rewritten-split", SE, (4, 3, 64, 64), 2),
        ("whole", MAPS, (1, 3, 64, 64), 2),
        ("whole-split", MAPS, (4, 3, 64, 64), 2),
        ("stages-low-memory", {}, (1, 3, 64, 64), 2),
        ("rewritten-low-memory", SE, (2, 3, 64, 64), 2),
        ("whole-low-memory", MAPS, (2, 3, 64, 64), 2),
    ],
    ids=str,
)
def test_every_plan_gives_the_eager_networks_logits_on_this_start_and_the_next(
    plan: str, options: dict, shape: tuple, threads: int
) -> None:
    eager = network(**options)
    inputs = [pictures(*shape, seed=seed) for seed in range(2)]
    answers = []
    for _ in range(2):
        with compiled(eager, shape, threads, plan.endswith("low-memory")) as model:
            assert model.plan == plan
            answers.append([only(model(x)) for x in inputs])
    for x, first, second in zip(inputs, *answers):
        assert distance(first, only(eager(Tensor(x))).numpy()) < BOUND
        assert np.array_equal(first, second)


@pytest.mark.parametrize("threads", [1, 2])
def test_earlier_results_stay_as_they_were(threads: int) -> None:
    model = compiled(network(), (1, 3, 64, 64), threads)
    first = model(pictures(1, 3, 64, 64))
    kept = first.copy()
    model(pictures(1, 3, 64, 64, seed=1))
    assert np.array_equal(first, kept)
    model.close()


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

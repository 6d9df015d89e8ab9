"""compare and bench: networks are built, run, and reported."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import repvgg_zoo
from repvgg_zoo.cli.commands import bench
from repvgg_zoo.cli.megengine_setup import has_gpu

from .conftest import piped


def test_compare_of_trained_weights_is_within_the_bound(run):
    payload = run("compare", "RepVGG_N0", "--pretrained", "--json").json
    assert payload["within_bound"] and payload["above"] == [] and payload["weights"] == "RepVGG_N0.digits"
    errors = {block["name"]: block["relative"] for block in payload["blocks"]}
    assert len(errors) == 9 and payload["worst_block"] == max(errors, key=errors.get)
    assert 0 < payload["end_to_end"]["relative"] < 1e-5


def test_compare_above_its_bound_has_exit_code_1(run):
    result = run("compare", "RepVGG_N0.digits", "--bound", "1e-12")
    assert result.code == 1 and "10 of 10 are above 1e-12" in result.out
    assert len(run("compare", "RepVGG_N0", "--blocks").out.splitlines()) == 5 + 10


def test_compare_takes_a_file_and_finds_its_variant(run):
    run("convert", "RepVGG_N0", "own.pkl", "--layout", "timm")
    payload = run("compare", "own.pkl", "--json").json
    assert payload["name"] == "RepVGG_N0" and payload["weights"] == "own.pkl"
    run("convert", "own.pkl", "deploy.pkl", "--deploy")
    error = run("compare", "deploy.pkl", "--json")
    assert error.code == 6 and error.json["error"]["type"] == "FormError"


@pytest.mark.skipif(has_gpu(), reason="there is no banner with a GPU")
@pytest.mark.skipif(sys.version_info < (3, 9), reason="MegEngine for Python 3.8 prints it whatever the device")
def test_megengine_prints_no_banner_without_a_gpu(monkeypatch):
    monkeypatch.delenv("MGE_DEFAULT_DEVICE")
    result = piped("compare", "RepVGG_N0")
    assert (result.code, result.err) == (0, "")


def test_compare_says_that_weights_are_random(run):
    assert "random weights (see --pretrained)" in run("compare", "n0").out
    assert run("compare", "n0", "--json").json["weights"] is None


def test_compare_of_an_unknown_architecture_is_an_error(run):
    network = repvgg_zoo.create("RepVGG_N0", width_multiplier=(0.5, 0.5, 0.5, 0.5))
    repvgg_zoo.save_checkpoint("own.pkl", network)
    assert run("compare", "own.pkl").code == 0, "the file says how its network is built"
    repvgg_zoo.save_checkpoint("odd.pkl", dict(network.state_dict()))
    error = run("compare", "odd.pkl", "--json")
    assert error.code == 6 and "fits no variant" in error.json["error"]["message"]


def test_bench_measures_both_forms_and_the_compiled_network(run):
    payload = run("bench", "n0", "--rounds", "3", "--batch", "2", "--image-size", "16", "--warm-up", "1", "--json").json
    assert [(row["name"], row["form"]) for row in payload["rows"]] == [
        ("RepVGG_N0", form) for form in ("train", "deploy", "compiled")
    ]
    for row in payload["rows"]:
        assert row["input"] == [2, 1, 16, 16] and row["rounds"] == 3 and row["p99_ms"] is None
        assert 0 < row["min_ms"] <= row["p50_ms"] <= row["p90_ms"] <= row["max_ms"]
        assert row["images_per_second"] == pytest.approx(2000 / row["p50_ms"])
    assert any(item.startswith("p99") for item in payload["not_measured"])
    assert payload["machine"]["megengine"].startswith("1.13") and payload["machine"]["cores"] >= 1


def test_bench_with_100_rounds_has_a_99th_percentile(run):
    rows = run("bench", "n0", "--rounds", "100", "--image-size", "8", "--json").json["rows"]
    assert all(row["p99_ms"] >= row["p90_ms"] for row in rows)


def test_bench_explains_the_layers_of_the_compiled_network(run):
    argv = ("bench", "n0", "--rounds", "1", "--image-size", "16", "--explain")
    *others, compiled = run(*argv, "--json").json["rows"]
    assert all(row["explanation"] is None for row in others)
    layers = compiled["explanation"]["layers"]
    assert [layer["name"] for layer in layers][::9] == ["input", "stage4.0"]
    assert all(layer["measured_ms"] > 0 for layer in layers[1:])
    printed = run(*argv).out
    assert "RepVGG_N0 compiled, layer by layer:\nlayer" in printed
    assert "\nstage4.0  1x1x1x128  igemm" in printed


def test_bench_restores_the_number_of_threads(run):
    import megengine

    before = megengine.get_default_device()
    payload = run("bench", "n0", "--rounds", "1", "--image-size", "8", "--threads", "2", "--json").json
    assert payload["machine"]["device"] == "multithread2:0" and megengine.get_default_device() == before


@pytest.mark.parametrize("argv", [["--batch", "0"], ["--threads", "-1"], ["--rounds", "0"], ["--image-size", "0"]])
def test_bench_refuses_invalid_numbers(run, argv):
    assert run("bench", "n0", *argv).code == 2
    assert run("bench", "nonsense").code == 3


class Clock:
    """A clock that only calls advance."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_calls_are_interleaved_and_the_warm_up_is_not_timed():
    clock, order = Clock(), []

    def runner(form, seconds):
        def call():
            order.append(form)
            clock.now += seconds

        return bench.Runner(form, call)

    class Args:
        warm_up, rounds, seconds = 2, None, 30.0

    measured = bench.time_interleaved([runner("a", 1.0), runner("b", 2.0)], Args, clock)
    assert measured == {"a": [1.0] * 10, "b": [2.0] * 10}, "ten rounds of three seconds"
    assert order == ["a", "b"] * 2 + ["a", "b", "b", "a"] * 5


def test_percentiles_are_nearest_ranks():
    seconds = np.random.RandomState(0).permutation(np.arange(1, 201)) / 1000.0
    row = bench.summarize("x", "train", (4, 3, 8, 8), list(seconds))
    percentiles = [row[f"{name}_ms"] for name in ("min", "p50", "p90", "p99", "max")]
    assert percentiles == pytest.approx([1.0, 100.0, 180.0, 198.0, 200.0]) and row["rounds"] == 200
    assert bench.summarize("x", "train", (1, 3, 8, 8), [0.5])["p90_ms"] == 500

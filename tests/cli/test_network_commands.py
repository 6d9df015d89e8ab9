"""compare and bench: networks are built, run, and told about honestly."""

from __future__ import annotations

import numpy as np
import pytest

import repvgg_zoo
from repvgg_zoo.cli.commands import bench


def test_compare_finds_trained_forms_equal_and_names_the_worst_block(run):
    facts = run("compare", "RepVGG_N0", "--pretrained", "--json").json
    assert facts["within_bound"] and facts["above"] == [] and facts["weights"] == "RepVGG_N0.digits"
    errors = {block["name"]: block["relative"] for block in facts["blocks"]}
    assert len(errors) == 9 and facts["worst_block"] == max(errors, key=errors.get)
    assert 0 < facts["end_to_end"]["relative"] < 1e-5


def test_compare_above_its_bound_has_exit_code_1(run):
    shown = run("compare", "RepVGG_N0.digits", "--bound", "1e-12")
    assert shown.code == 1 and "10 of 10 are above 1e-12" in shown.out
    assert len(run("compare", "RepVGG_N0", "--blocks").out.splitlines()) == 5 + 10


def test_compare_takes_a_file_and_finds_its_variant(run):
    run("convert", "RepVGG_N0", "own.pkl", "--layout", "timm")
    facts = run("compare", "own.pkl", "--json").json
    assert facts["name"] == "RepVGG_N0" and facts["weights"] == "own.pkl"
    run("convert", "own.pkl", "deploy.pkl", "--deploy")
    error = run("compare", "deploy.pkl", "--json")
    assert error.code == 6 and error.json["error"]["type"] == "FormError"


def test_random_weights_are_called_random(run):
    assert "random weights (--pretrained takes trained ones)" in run("compare", "n0").out
    assert run("compare", "n0", "--json").json["weights"] is None


def test_arrays_of_another_width_fit_no_variant(run):
    network = repvgg_zoo.create("RepVGG_N0", width_multiplier=(0.5, 0.5, 0.5, 0.5))
    repvgg_zoo.save_checkpoint("odd.pkl", network)
    error = run("compare", "odd.pkl", "--json")
    assert error.code == 6 and "fits no variant" in error.json["error"]["message"]


def test_bench_times_both_forms_and_the_compiled_network_and_says_what_it_did_not_measure(run):
    facts = run("bench", "n0", "--rounds", "3", "--batch", "2", "--image-size", "16", "--warm-up", "1", "--json").json
    assert [(row["name"], row["form"]) for row in facts["rows"]] == [
        ("RepVGG_N0", form) for form in ("train", "deploy", "compiled")
    ]
    for row in facts["rows"]:
        assert row["input"] == [2, 1, 16, 16] and row["rounds"] == 3 and row["p99_ms"] is None
        assert 0 < row["min_ms"] <= row["p50_ms"] <= row["p90_ms"] <= row["max_ms"]
        assert row["images_per_second"] == pytest.approx(2000 / row["p50_ms"])
    assert any(what.startswith("p99") for what in facts["not_measured"])
    assert facts["machine"]["megengine"].startswith("1.13") and facts["machine"]["cores"] >= 1


def test_bench_with_100_rounds_has_a_99th_percentile(run):
    rows = run("bench", "n0", "--rounds", "100", "--image-size", "8", "--json").json["rows"]
    assert all(row["p99_ms"] >= row["p90_ms"] for row in rows)


def test_benchs_threads_end_with_it(run):
    import megengine

    before = megengine.get_default_device()
    facts = run("bench", "n0", "--rounds", "1", "--image-size", "8", "--threads", "2", "--json").json
    assert facts["machine"]["device"] == "multithread2:0" and megengine.get_default_device() == before


@pytest.mark.parametrize("argv", [["--batch", "0"], ["--threads", "-1"], ["--rounds", "0"], ["--image-size", "0"]])
def test_bench_refuses_numbers_that_mean_nothing(run, argv):
    assert run("bench", "n0", *argv).code == 2
    assert run("bench", "nonsense").code == 3


class Clock:
    """Time that a call takes, and nothing else does."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_forms_are_taken_in_turns_and_warm_up_is_not_timed():
    clock, order = Clock(), []

    def contestant(form, seconds):
        def call():
            order.append(form)
            clock.now += seconds

        return bench.Contestant(form, call)

    class Args:
        warm_up, rounds, seconds = 2, None, 30.0

    found = bench.in_turns([contestant("a", 1.0), contestant("b", 2.0)], Args, clock)
    assert found == {"a": [1.0] * 10, "b": [2.0] * 10}, "ten rounds of three seconds"
    assert order == ["a", "b"] * 2 + ["a", "b", "b", "a"] * 5


def test_percentiles_are_nearest_ranks():
    seconds = np.random.RandomState(0).permutation(np.arange(1, 201)) / 1000.0
    row = bench.summary("x", "train", (4, 3, 8, 8), list(seconds))
    found = [row[f"{name}_ms"] for name in ("min", "p50", "p90", "p99", "max")]
    assert found == pytest.approx([1.0, 100.0, 180.0, 198.0, 200.0]) and row["rounds"] == 200
    assert bench.summary("x", "train", (1, 3, 8, 8), [0.5])["p90_ms"] == 500

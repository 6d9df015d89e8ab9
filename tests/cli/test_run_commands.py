"""``predict``, ``features`` and ``evaluate`` into an output folder, on many cores.

The kind: options of ``repvgg_zoo.run`` in the shell; what a run says is on stdout, and an unreadable image has exit
code 1.
"""

from __future__ import annotations

import pytest

from tests.data import runs


@pytest.fixture
def digits(folder):
    return runs.write_digits(folder / "digits")


def test_predictions_are_written_and_a_broken_image_has_exit_code_1(run, digits, folder):
    (digits / "0" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    argv = ["predict", "digits", "--model", "n0", "--output", "out", "--workers", "1", "--topk", "2"]
    result = run(*argv)
    assert result.code == 1
    assert "predict: 41 images in 1 shard, 1 could not be read" in result.out and "0/broken.png" in result.out
    again = run(*argv, "--json")
    assert again.code == 1 and again.json["resumed"] == 1 and again.json["errors"] == 1
    assert again.json["first_errors"][0]["key"] == "0/broken.png"
    assert len(runs.rows(folder / "out")[0]) == 2 + 2 * 3


def test_an_evaluation_reports_the_accuracy_of_all_shards(run, digits):
    result = run("evaluate", "n0", "digits", "--output", "rows", "--workers", "1", "--shard-size", "20", "--json")
    assert result.code == 0 and result.json["evaluation"]["images"] == runs.IMAGES
    text = run("evaluate", "n0", "digits", "--output", "rows", "--workers", "1", "--shard-size", "20").out
    assert "2 of them finished before" in text and "top-1" in text


WRONG = {
    "a part without a folder": ["predict", "digits", "--model", "n0", "--part", "1/2"],
    "a part that is not one": ["predict", "digits", "--model", "n0", "--output", "out", "--part", "3/2"],
    "an unknown engine": ["predict", "digits", "--model", "n0", "--output", "out", "--engine", "spark"],
    "an address without a cluster": ["features", "n0", "digits", "--output", "out", "--address", "auto"],
    "no workers": ["features", "n0", "digits", "--output", "out", "--workers", "0"],
    "a figure of a run": ["predict", "digits", "--model", "n0", "--output", "out", "--output-image", "a.png"],
    "an evaluation on workers without a folder": ["evaluate", "n0", "digits", "--workers", "2"],
    "threads of workers": ["evaluate", "n0", "digits", "--output", "out", "--workers", "2", "--threads", "2"],
}


@pytest.mark.parametrize("argv", WRONG.values(), ids=WRONG)
def test_an_option_that_cannot_be_is_exit_code_2_and_writes_nothing(run, digits, folder, argv):
    result = run(*argv)
    assert result.code == 2 and result.err.startswith("error: ") and "hint:" in result.err
    assert [path.name for path in folder.iterdir()] == ["digits"]

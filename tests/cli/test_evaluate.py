"""evaluate from the command line: it does what the function does, and says what it leaves out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import repvgg_zoo
from tests.data.conftest import write_folder


@pytest.fixture
def digits(folder: Path) -> Path:
    return write_folder(folder / "digits", 40)


def test_the_report_is_that_of_the_function(run, digits):
    result = run("evaluate", "n0", "digits", "--output", "rows.csv", "--confusion", "x.png", "--json")
    assert result.code == 0
    values, expected = result.json, json.loads(json.dumps(repvgg_zoo.evaluate("n0", "digits").to_dict()))
    for name in expected:
        if name not in ("seconds", "images_per_second"):
            assert values[name] == expected[name], name
    assert (values["output"], values["figure"]) == ("rows.csv", "x.png")
    assert Path("x.png").stat().st_size > 1000 and len(Path("rows.csv").read_text().splitlines()) == 41


def test_a_file_labels_and_skipped_images_from_several_folders(run, digits):
    repvgg_zoo.save_checkpoint("own.pkl", repvgg_zoo.load_checkpoint(repvgg_zoo.fetch("n0")))
    (digits / "1" / "bad.png").write_bytes(b"text")
    write_folder(Path("more"), 10)
    result = run("evaluate", "own.pkl", "digits", "more", "--on-error", "skip")
    assert result.code == 0
    assert "data: digits, more, 50 images, 1 skipped" in result.out
    assert "skipped: digits/1/bad.png: cannot identify" in result.out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["n0", "nowhere"], 5, "nowhere does not exist"),
        (["n0", "digits", "--labels", "missing.csv"], 5, "missing.csv does not exist"),
        (["n0", "digits", "--output", "digits"], 2, "digits exists already"),
        (["n0", "digits", "--confusion", "x.doc"], 2, "suffix of a figure"),
        (["n0", "digits", "--class-names", "names.txt"], 2, "2 class names for the 10 classes"),
        (["n0", "digits", "--on-error", "ignore"], 2, "'ignore' is not a valid --on-error"),
        (["n0", "bad"], 2, "cannot identify"),
    ],
)
def test_an_error_says_what_is_wrong(run, digits, arguments, code, message):
    Path("names.txt").write_text("a\nb\n")
    Path("bad/1").mkdir(parents=True)
    Path("bad/1/x.png").write_bytes(b"text")
    result = run("evaluate", *arguments)
    assert (result.code, result.out) == (code, "")
    assert message in result.err

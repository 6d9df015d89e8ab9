"""predict from the command line: tables, JSON, a drawing, and images that cannot be read."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import repvgg_zoo
from repvgg_zoo._resources import hub_folder
from repvgg_zoo.cli import draw
from repvgg_zoo.image.predict import Prediction


@pytest.fixture(autouse=True)
def digits(folder):
    """Write three digits of the test split as 7.png, 3.png and 0.png."""
    with np.load(hub_folder() / "digits-test.npz", allow_pickle=False) as arrays:
        for digit in (7, 3, 0):
            index = int(np.flatnonzero(arrays["labels"] == digit)[0])
            Image.fromarray(arrays["images"][index]).save(folder / f"{digit}.png")


def test_json_has_the_predictions_of_the_library(run):
    result = run("predict", "7.png", "3.png", "0.png", "--model", "n0", "--topk", "3", "--json")
    assert result.code == 0 and result.json["model"] == "RepVGG_N0.digits"
    expected = repvgg_zoo.predict("RepVGG_N0", ["7.png", "3.png", "0.png"], topk=3)
    for item, name, predictions in zip(result.json["images"], ("7", "3", "0"), expected):
        assert (item["image"], item["error"]) == (f"{name}.png", None)
        assert item["predictions"] == [vars(prediction) for prediction in predictions]
        assert item["predictions"][0]["label"] == name


def test_the_table_is_in_descending_order_without_an_empty_column(run):
    lines = run("predict", "7.png", "--model", "RepVGG_N0.digits").out.splitlines()
    assert lines[2] == "7.png" and lines[3].split() == ["probability", "class", "index"]
    assert lines[4].split()[2] == "7" and len(lines) == 9


def test_an_image_that_cannot_be_read_does_not_stop_the_others(run, folder):
    (folder / "text.jpg").write_text("not an image")
    result = run("predict", "text.jpg", "missing.png", "7.png", "--model", "n0", "--json")
    assert result.code == 1
    errors = [item["error"] for item in result.json["images"]]
    assert "cannot identify" in errors[0] and "does not exist" in errors[1] and errors[2] is None
    assert "cannot identify" in run("predict", "text.jpg", "--model", "n0", "--output-image", "out.png").out
    assert not (folder / "out.png").exists()


def test_the_drawing_shows_the_image_and_bars(run, folder):
    assert run("predict", "7.png", "--model", "n0", "--output-image", "out.png").code == 0
    with Image.open(folder / "out.png") as drawing:
        pixels = np.asarray(drawing.convert("RGB"))
    with Image.open(folder / "7.png") as digit:
        thumbnail = np.asarray(digit.resize((360, 360), Image.Resampling.NEAREST))
    assert np.array_equal(pixels[20:380, 20:380, 0], thumbnail)
    probability = repvgg_zoo.predict("n0", "7.png")[0].probability
    bar = (pixels[42 + 5] == draw.FIRST_BAR).all(1).sum()
    assert bar == pytest.approx(draw.COLUMN * probability, abs=2)


def test_nothing_is_overwritten_without_force(run, folder):
    before = (folder / "3.png").read_bytes()
    refused = run("predict", "7.png", "--model", "n0", "--output-image", "3.png")
    assert refused.code == 2 and "--force" in refused.err and (folder / "3.png").read_bytes() == before
    assert run("predict", "7.png", "--model", "n0", "--output-image", "3.png", "--force").code == 0
    assert (folder / "3.png").read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["7.png", "--topk", "0"], 2, "--topk is 0"),
        (["7.png", "3.png", "--output-image", "out.png"], 2, "draws one IMAGE"),
        (["7.png", "--output-image", "out.txt"], 2, "does not have the suffix"),
        (["7.png", "--output-image", "out"], 2, "does not have the suffix"),
        (["7.png", "--model", "resnet50"], 3, "unknown model"),
        (["7.png", "--model", "RepVGG_B2g2"], 3, "no pretrained weights"),
        (["7.png", "--model", "RepVGG_A0", "--offline"], 4, "RepVGG-A0-train.pth"),
        ([], 2, "IMAGE"),
    ],
)
def test_invalid_arguments_are_reported_before_any_download(run, arguments, code, says):
    result = run("predict", *arguments)
    assert (result.code, result.out) == (code, "") and says in result.err


@pytest.mark.parametrize("size", [(1, 1), (3000, 2), (2, 3000), (900, 700)])
def test_images_and_labels_of_any_shape_are_drawn(folder, size):
    Image.new("RGB", size, (200, 30, 90)).save(folder / "odd.png")
    labels = ["", "cat", "a name so long that it cannot stand on one line beside its share", "猫", "naïve"]
    predictions = [Prediction(index, label, 0.2) for index, label in enumerate(labels)]
    drawing = draw.draw_predictions(folder / "odd.png", predictions, "acme/RepVGG_X.mine")
    assert drawing.mode == "RGB" and max(drawing.size) < 900
    colors = drawing.getcolors(1 << 20)
    assert {(200, 30, 90), draw.FIRST_BAR, draw.BAR} <= {color for _, color in colors}

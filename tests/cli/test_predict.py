"""predict from the command line: tables, JSON, a drawn picture, and pictures that cannot be read."""

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
    """Three digits of the test split, as 7.png, 3.png and 0.png."""
    with np.load(hub_folder() / "digits-test.npz", allow_pickle=False) as arrays:
        for digit in (7, 3, 0):
            place = int(np.flatnonzero(arrays["labels"] == digit)[0])
            Image.fromarray(arrays["images"][place]).save(folder / f"{digit}.png")


def test_json_holds_what_predict_gives(run):
    said = run("predict", "7.png", "3.png", "0.png", "--model", "n0", "--topk", "3", "--json")
    assert said.code == 0 and said.json["model"] == "RepVGG_N0.digits"
    expected = repvgg_zoo.predict("RepVGG_N0", ["7.png", "3.png", "0.png"], topk=3)
    for one, name, predictions in zip(said.json["images"], ("7", "3", "0"), expected):
        assert (one["image"], one["error"]) == (f"{name}.png", None)
        assert one["predictions"] == [vars(prediction) for prediction in predictions]
        assert one["predictions"][0]["label"] == name


def test_the_table_shows_likeliest_first_and_no_empty_column(run):
    lines = run("predict", "7.png", "--model", "RepVGG_N0.digits").out.splitlines()
    assert lines[2] == "7.png" and lines[3].split() == ["probability", "class", "index"]
    assert lines[4].split()[2] == "7" and len(lines) == 9


def test_a_picture_that_cannot_be_read_does_not_keep_the_others_from_it(run, folder):
    (folder / "text.jpg").write_text("no picture")
    said = run("predict", "text.jpg", "missing.png", "7.png", "--model", "n0", "--json")
    assert said.code == 1
    errors = [one["error"] for one in said.json["images"]]
    assert "cannot identify" in errors[0] and "no file" in errors[1] and errors[2] is None
    assert "cannot identify" in run("predict", "text.jpg", "--model", "n0", "--picture", "out.png").out
    assert not (folder / "out.png").exists()


def test_the_drawn_picture_shows_image_and_bars(run, folder):
    assert run("predict", "7.png", "--model", "n0", "--picture", "out.png").code == 0
    with Image.open(folder / "out.png") as drawn:
        pixels = np.asarray(drawn.convert("RGB"))
    with Image.open(folder / "7.png") as digit:
        shown = np.asarray(digit.resize((360, 360), Image.Resampling.NEAREST))
    assert np.array_equal(pixels[20:380, 20:380, 0], shown)
    likeliest = repvgg_zoo.predict("n0", "7.png")[0].probability
    bar = (pixels[42 + 5] == draw.BEST).all(1).sum()
    assert bar == pytest.approx(draw.COLUMN * likeliest, abs=2)


def test_nothing_is_overwritten_without_force(run, folder):
    before = (folder / "3.png").read_bytes()
    refused = run("predict", "7.png", "--model", "n0", "--picture", "3.png")
    assert refused.code == 2 and "--force" in refused.err and (folder / "3.png").read_bytes() == before
    assert run("predict", "7.png", "--model", "n0", "--picture", "3.png", "--force").code == 0
    assert (folder / "3.png").read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["7.png", "--topk", "0"], 2, "--topk is 0"),
        (["7.png", "3.png", "--picture", "out.png"], 2, "draws one IMAGE"),
        (["7.png", "--picture", "out.txt"], 2, "no suffix of a picture"),
        (["7.png", "--picture", "out"], 2, "no suffix of a picture"),
        (["7.png", "--model", "resnet50"], 3, "no model is called"),
        (["7.png", "--model", "RepVGG_B2g2"], 3, "no pretrained weights"),
        (["7.png", "--model", "RepVGG_A0", "--offline"], 4, "RepVGG-A0-train.pth"),
        ([], 2, "IMAGE"),
    ],
)
def test_what_cannot_work_says_so_before_any_download(run, arguments, code, says):
    shown = run("predict", *arguments)
    assert (shown.code, shown.out) == (code, "") and says in shown.err


@pytest.mark.parametrize("size", [(1, 1), (3000, 2), (2, 3000), (900, 700)])
def test_pictures_and_labels_of_any_shape_are_drawn(folder, size):
    Image.new("RGB", size, (200, 30, 90)).save(folder / "odd.png")
    labels = ["", "cat", "a name so long that it cannot stand on one line beside its share", "猫", "naïve"]
    predictions = [Prediction(index, label, 0.2) for index, label in enumerate(labels)]
    drawn = draw.draw(folder / "odd.png", predictions, "acme/RepVGG_X.mine")
    assert drawn.mode == "RGB" and max(drawn.size) < 900
    colours = drawn.getcolors(1 << 20)
    assert {(200, 30, 90), draw.BEST, draw.BAR} <= {colour for _, colour in colours}

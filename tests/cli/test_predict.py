"""predict from the command line: models, images and labels as people have them, tables, JSON and a drawing.

The kind of fault: a folder, a file of weights or of labels that the command does not take, or that stops it half way,
after a large download for images that are not there.
"""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import repvgg_zoo
from repvgg_zoo._resources import hub_folder
from repvgg_zoo.cli import draw
from repvgg_zoo.errors import ArgumentError
from repvgg_zoo.image.label_file import read_label_file
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
    assert result.code == 5 and result.json["unreadable"] == 2
    errors = [item["error"] for item in result.json["images"]]
    assert "cannot identify" in errors[0] and "does not exist" in errors[1] and errors[2] is None
    assert "cannot identify" in run("predict", "text.jpg", "--model", "n0", "--output-image", "out.png").out
    assert not (folder / "out.png").exists()


def test_only_a_missing_image_has_the_exit_code_of_missing_files(run, folder):
    (folder / "text.jpg").write_text("not an image")
    assert run("predict", "text.jpg", "7.png", "--model", "n0").code == 1
    assert run("predict", "missing.png", "--model", "n0").code == 5
    assert "1 of 2 images could not be read" in run("predict", "text.jpg", "7.png", "--model", "n0").out


def test_a_folder_stands_for_its_images_sorted_and_those_of_its_subfolders(run, folder):
    for name in ("set/b/1.PNG", "set/a/2.png", "set/3.jpeg", "set/.cache/x.png", "set/._3.jpeg", "set/notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((folder / "7.png").read_bytes())
    (folder / "set" / "broken.gif").write_bytes(b"GIF89a")
    result = run("predict", "3.png", "set", "--model", "n0", "--topk", "1", "--json")
    assert [item["image"] for item in result.json["images"]] == [
        "3.png", "set/3.jpeg", "set/a/2.png", "set/b/1.PNG", "set/broken.gif",
    ]  # fmt: skip
    assert [item["error"] is None for item in result.json["images"]] == [True] * 4 + [False]
    assert result.code == 1 and result.json["unreadable"] == 1


@pytest.fixture
def own_file(run, folder):
    """A file of the network's weights, and one of a head with two classes and names of their own."""
    run("convert", "n0", "own.pkl", "--layout", "timm")
    network = repvgg_zoo.create("RepVGG_N0", pretrained=True, num_classes=2)
    repvgg_zoo.save_checkpoint(folder / "two.safetensors", network, class_names=["low", "high"])
    return "own.pkl"


def test_a_checkpoint_file_is_a_model(run, own_file):
    by_name = run("predict", "7.png", "3.png", "--model", "n0", "--json").json
    by_file = run("predict", "7.png", "3.png", "--model", own_file, "--json").json
    assert by_file["model"] == own_file
    for one, other in zip(by_name["images"], by_file["images"]):
        for first, second in zip(one["predictions"], other["predictions"]):
            assert first["index"] == second["index"]
            assert first["probability"] == pytest.approx(second["probability"], rel=1e-4)
    assert {
        item["label"]
        for item in run("predict", "7.png", "--model", "two.safetensors", "--json").json["images"][0]["predictions"]
    } == {"low", "high"}


def test_where_a_files_preprocessing_is_from_is_printed(run, own_file):
    arrays = dict(repvgg_zoo.load_checkpoint(own_file).state_dict)
    repvgg_zoo.save_checkpoint("theirs.pkl", arrays, layout="timm")  # says nothing
    default = "RepVGG_N0.digits, the default checkpoint of RepVGG_N0"
    for model, source in (("two.safetensors", "the file"), ("theirs.pkl", default)):
        assert run("predict", "7.png", "--model", model, "--json").json["preprocessing_source"] == source
        assert run("predict", "7.png", "--model", model).out.splitlines()[1] == f"preprocessing: {source}"


LABELS = {
    "lines": "zero\none\ntwo\nthree\nfour\nfive\nsix\nseven\neight\nnine\n\n",
    "CRLF and a BOM": "\ufeffzero\r\none\r\ntwo\r\nthree\r\nfour\r\nfive\r\nsix\r\nseven\r\neight\r\nnine",
    "JSON list": '["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]',
    "JSON object": '{"1": "one", "0": "zero", "2": "two", "3": "three", "4": "four", "5": "five", "6": "six",'
    ' "7": "seven", "8": "eight", "9": "nine"}',
    "pairs with a synset": '{"0": ["n0", "zero"], "1": ["n1", "one"], "2": ["n2", "two"], "3": ["n3", "three"],'
    ' "4": ["n4", "four"], "5": ["n5", "five"], "6": ["n6", "six"], "7": ["n7", "seven"], "8": ["n8", "eight"],'
    ' "9": ["n9", "nine"]}',
}


@pytest.mark.parametrize("text", LABELS.values(), ids=LABELS)
def test_labels_are_read_from_a_file(folder, text):
    (folder / "labels").write_bytes(text.encode())
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    assert read_label_file(folder / "labels") == words


def test_labels_name_the_classes_of_a_name_and_of_a_file(run, folder, own_file):
    (folder / "labels.txt").write_text(LABELS["lines"])
    for model in ("n0", own_file):
        lines = run("predict", "7.png", "--model", model, "--labels", "labels.txt").out.splitlines()
        assert lines[-5].split()[2] == "seven"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"  \n \n", "is empty"),
        (b"a\n\nb\n", "has no name in line 2"),
        (b"a\nb\xff\n", "is not UTF-8 in line 2"),
        (b"[]", "is empty"),
        (b"[1, 2]", "has no name for class 0"),
        (b'["a", null]', "has no name for class 1"),
        (b'["a", " "]', "has no name for class 1"),
        (b'["a", ', "is not valid JSON"),
        (b'{"a": 0}', "has the key 'a', which is not an index"),
        (b'{"0": "a", "2": "b"}', "has no name for class 1"),
        (b'{"0": "a", "00": "b"}', "has the key '00'"),
        (b'{"0": "a", "0": "b"}', "is not valid JSON: a key occurs twice"),
        (b'{"0": {"name": "a"}}', "has no name for class 0"),
        (b"x" * ((16 << 20) + 1), "is too large"),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else None,
)
def test_labels_that_are_not_valid_are_refused_with_their_place(folder, data, says):
    (folder / "labels").write_bytes(data)
    with pytest.raises(ArgumentError) as caught:
        read_label_file(folder / "labels")
    assert says in caught.value.message and caught.value.path == str(folder / "labels") and caught.value.hint


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
        (["7.png", "--model", "missing.pth"], 5, "missing.pth does not exist"),
        (["7.png", "--model", "RepVGG_A0", "--offline"], 4, "RepVGG-A0-train.pth"),
        (["7.png", "--model", "RepVGG_A0", "--labels", "missing.txt"], 5, "missing.txt does not exist"),
        (["7.png", "--model", "RepVGG_A0", "--labels", "two.txt"], 2, "has 2 names, and RepVGG_A0 has 1000 classes"),
        (["7.png", "--model", "n0.pkl", "--labels", "two.txt"], 2, "has 2 names, and n0.pkl has 10 classes"),
        (["empty", "--model", "RepVGG_A0"], 2, "empty holds no images"),
        (["empty", "--model", "n0", "--output-image", "out.png"], 2, "draws one IMAGE"),
        ([], 2, "IMAGE"),
    ],
)
def test_invalid_arguments_are_reported_before_any_download(run, folder, arguments, code, says):
    (folder / "two.txt").write_text("a\nb\n")
    (folder / "empty").mkdir()
    if "n0.pkl" in arguments:
        run("convert", "n0", "n0.pkl")
    result = run("predict", *arguments)
    assert (result.code, result.out) == (code, "") and says in result.err


def test_nothing_is_fetched_for_images_that_cannot_be_read(run, folder):
    (folder / "text.jpg").write_text("not an image")
    result = run("predict", "text.jpg", "missing.png", "--model", "RepVGG_A0", "--offline", "--json")
    assert result.code == 5 and result.json["unreadable"] == 2, "not the error of a file that is not in the cache"


@pytest.mark.parametrize("size", [(1, 1), (3000, 2), (2, 3000), (900, 700)])
def test_images_and_labels_of_any_shape_are_drawn(folder, size):
    Image.new("RGB", size, (200, 30, 90)).save(folder / "odd.png")
    labels = ["", "cat", "a name so long that it cannot stand on one line beside its share", "猫", "naïve"]
    predictions = [Prediction(index, label, 0.2) for index, label in enumerate(labels)]
    drawing = draw.draw_predictions(folder / "odd.png", predictions, "acme/RepVGG_X.mine")
    assert drawing.mode == "RGB" and max(drawing.size) < 900
    colors = drawing.getcolors(1 << 20)
    assert {(200, 30, 90), draw.FIRST_BAR, draw.BAR} <= {color for _, color in colors}

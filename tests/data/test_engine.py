"""compute: the outputs of many images in their order, whatever is wrong with some of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageFile

import repvgg_zoo
from repvgg_zoo.data.engine import BATCHES_AHEAD, compute, weight_bytes
from repvgg_zoo.data.sources import Sample, open_images
from repvgg_zoo.errors import ArgumentError
from repvgg_zoo.image.io import load_image

from .conftest import digits, png


@pytest.fixture(scope="module")
def network():
    with repvgg_zoo.compile("RepVGG_N0", threads=1) as network:
        yield network


def logits(network, images):
    to_input = repvgg_zoo.preprocess("RepVGG_N0")
    return network(np.stack([to_input(image) for image in images]))


def test_outputs_are_those_of_the_network_in_the_order_of_the_samples(digit_folder, network):
    samples = list(open_images(digit_folder))[:50]
    outputs = list(compute("RepVGG_N0", samples, batch_size=8, threads=2))
    assert [(item.key, item.label) for item in outputs] == [(sample.key, sample.label) for sample in samples]
    expected = logits(network, [sample.image for sample in samples])
    assert np.allclose([item.values for item in outputs], expected, atol=1e-5)


MODELS = {
    "a name": lambda path: "n0",
    "a file": lambda path: path,
    "a Checkpoint": repvgg_zoo.load_checkpoint,
    "a network in the train form": lambda path: repvgg_zoo.create("RepVGG_N0", pretrained=True),
    "a compiled network": lambda path: repvgg_zoo.compile("RepVGG_N0", threads=1),
    "a quantized network": lambda path: repvgg_zoo.quantize(
        "RepVGG_N0", list(digits()[0][:40]), min_snr=0, min_block_snr=0
    ),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_model_may_be(model):
    images, labels = digits()
    path = repvgg_zoo.fetch("RepVGG_N0")
    outputs = compute(model(path), open_images(list(zip(images[:40], labels[:40]))), threads=1)
    assert sum(str(item.values.argmax()) == item.label for item in outputs) >= 38


@pytest.mark.parametrize("model", [model for name, model in MODELS.items() if "compiled" not in name])
def test_features_are_what_the_head_gets(model):
    images, labels = digits()
    model, pairs = model(repvgg_zoo.fetch("RepVGG_N0")), list(zip(images[:20], labels[:20]))
    features = np.stack([item.values for item in compute(model, open_images(pairs), threads=1, output="features")])
    expected = np.stack([item.values for item in compute(model, open_images(pairs), threads=1)])
    state = repvgg_zoo.load_checkpoint(repvgg_zoo.fetch("RepVGG_N0")).state_dict
    assert features.shape == (20, state["linear.weight"].shape[1])
    assert np.allclose(features @ state["linear.weight"].T + state["linear.bias"], expected, atol=1e-4)


def test_the_features_of_a_compiled_network_are_an_error(network):
    with pytest.raises(ArgumentError, match="head"):
        list(compute(network, [], output="features"))


def test_any_number_of_threads_and_any_batch_size_give_the_same_outputs(few):
    source = open_images(few)
    expected = [item.values for item in compute("RepVGG_N0", source, threads=1, batch_size=1)]
    for threads, batch_size in ((2, 7), (1, 100)):
        outputs = [item.values for item in compute("RepVGG_N0", source, threads=threads, batch_size=batch_size)]
        assert np.allclose(outputs, expected, atol=1e-5)


def broken(folder: Path) -> Path:
    (folder / "0" / "bad.png").write_bytes(b"text")
    (folder / "5" / "short.png").write_bytes(png(digits()[0][0])[:-30])
    return folder


def test_an_image_that_cannot_be_read_is_skipped_and_says_why(few):
    outputs = {item.key: item for item in compute("RepVGG_N0", open_images(broken(few)), on_error="skip")}
    failed = {key: item.error for key, item in outputs.items() if item.values is None}
    assert list(failed) == ["0/bad.png", "5/short.png"]
    assert "cannot identify" in failed["0/bad.png"] and "short.png" in failed["5/short.png"]
    assert len(outputs) == 50 and all(item.error is None for key, item in outputs.items() if key not in failed)


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_an_image_that_cannot_be_read_is_an_error_after_those_before_it(few, batch_size):
    (few / "5" / "short.png").write_bytes(png(digits()[0][0])[:-30])
    keys = [sample.key for sample in open_images(few)]
    done, outputs = [], compute("RepVGG_N0", open_images(few), batch_size=batch_size)
    with pytest.raises(ArgumentError, match=r"short\.png"):
        done.extend(item.key for item in outputs)
    assert done == keys[: keys.index("5/short.png")]


def test_the_error_of_an_image_in_memory_names_its_key():
    with pytest.raises(ArgumentError, match="00000001: cannot identify"):
        list(compute("RepVGG_N0", open_images([(digits()[0][0], 1), (b"text", 1)])))


def test_images_are_read_only_a_little_ahead():
    started = []

    def samples():
        for number in range(1000):
            started.append(number)
            yield Sample(str(number), digits_image, None)

    digits_image = digits()[0][0]
    outputs = compute("RepVGG_N0", samples(), threads=2, batch_size=2)
    next(outputs)
    assert len(started) <= 2 * (2 * BATCHES_AHEAD + 1)
    outputs.close()


def test_no_samples_are_no_outputs():
    assert list(compute("RepVGG_N0", [])) == []


def test_weights_that_take_too_much_memory_are_shared_by_all_threads(few, monkeypatch):
    monkeypatch.setattr("repvgg_zoo.data.engine.memory_bytes", lambda: 0.0)
    outputs = list(compute("RepVGG_N0", open_images(few), threads=2))
    assert sum(str(item.values.argmax()) == item.label for item in outputs) >= 46


def test_the_memory_of_weights_is_about_that_of_their_parameters():
    assert weight_bytes(repvgg_zoo.model_info("RepVGG_N0").checkpoint("digits")) == 4 * 220794
    assert weight_bytes(repvgg_zoo.load_checkpoint(repvgg_zoo.fetch("RepVGG_N0"))) > 4 * 220794
    assert weight_bytes(repvgg_zoo.create("RepVGG_N0")) >= 4 * 247018


PHOTO = np.random.RandomState(0).randint(0, 256, (40, 52, 3), dtype=np.uint8)
FORMATS = {
    "JPEG": {"quality": 90},
    "progressive JPEG": {"quality": 90, "progressive": True},
    "PNG": {},
    "lossless WebP": {"lossless": True},
    "WebP": {"quality": 80},
    "GIF": {},
    "BMP": {},
    "TIFF": {},
    "compressed TIFF": {"compression": "tiff_lzw"},
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_truncated_image_is_an_error_unless_no_pixel_is_missing(name):
    data = png(PHOTO, name.split()[-1], **FORMATS[name])
    whole = load_image(io.BytesIO(data), "RGB")
    ends = [*range(0, len(data), max(1, len(data) // 20)), *range(len(data) - 20, len(data))]
    errors = 0
    for end in ends:
        try:
            pixels = load_image(io.BytesIO(data[:end]), "RGB")
        except ArgumentError:
            errors += 1
        else:
            assert np.array_equal(pixels, whole), f"{end} of {len(data)} bytes"
    assert errors > len(ends) / 3


def test_truncated_images_are_not_read_where_pillow_was_told_to(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ArgumentError, match="truncated images"):
        compute("RepVGG_N0", [])


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"threads": 0}, "threads"),
        ({"batch_size": 0}, "batch_size"),
        ({"output": "x"}, "output"),
        ({"on_error": "x"}, "on_error"),
    ],
)
def test_arguments_are_checked_at_once(options, name):
    with pytest.raises(ArgumentError, match=name):
        compute("RepVGG_N0", [], **options)

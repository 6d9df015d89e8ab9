"""quantize from the command line: it does what the function does, and writes nothing unless all of it works."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import repvgg_zoo


@pytest.fixture
def photos(folder: Path) -> Path:
    (folder / "photos").mkdir()
    random = np.random.RandomState(0)
    for index in range(12):
        pixels = random.randint(0, 256, (8, 8)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{index:02}.png")
    return folder / "photos"


def test_the_file_and_the_report_are_those_of_the_function(run, photos):
    result = run("quantize", "n0", "int8.safetensors", "--images", "photos", "--threads", "1", "--json")
    assert result.code == 0
    expected = repvgg_zoo.quantize("RepVGG_N0", photos, threads=1)
    loaded = repvgg_zoo.QuantizedNetwork.load("int8.safetensors")
    assert loaded.report == expected.report and result.json["model"] == "RepVGG_N0.digits"
    assert result.json["report"]["snr"] == expected.report.snr
    assert result.json["size"] == Path("int8.safetensors").stat().st_size

    result = run("quantize", str(repvgg_zoo.fetch("n0")), "again.safetensors", "--images", *map(str, photos.iterdir()))
    assert "8 of 9 blocks in int8: " in result.out and "wrote again.safetensors, 2" in result.out


def test_predict_and_info_take_the_file(run, photos):
    assert run("quantize", "n0", "int8.safetensors", "--images", "photos").code == 0
    network = repvgg_zoo.QuantizedNetwork.load("int8.safetensors")
    result = run("predict", "photos/00.png", "--model", "int8.safetensors", "--json")
    expected = repvgg_zoo.predict(network, "photos/00.png")
    assert result.json["images"][0]["predictions"] == [vars(prediction) for prediction in expected]
    assert repvgg_zoo.predict("int8.safetensors", ["photos/00.png"]) == [expected]
    assert expected[0].label in "0123456789"

    result = run("info", "int8.safetensors")
    assert result.out.startswith("int8.safetensors: RepVGG_N0, quantized") and str(network.report) in result.out
    assert "RepVGG_N0.digits" in result.out
    assert run("info", "int8.safetensors", "--json").json["report"]["snr"] == network.report.snr
    assert "a quantized network" in run("verify", "int8.safetensors").out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["n0", "out.pkl", "--images", "photos"], 2, "does not end in .safetensors"),
        (["n0", "missing/out.safetensors", "--images", "photos"], 2, "missing is not a folder"),
        (["n0", "there.safetensors", "--images", "photos"], 2, "there.safetensors exists already"),
        (["n0", "out.safetensors", "--images", "photos/00.png"], 2, "too few images to quantize a network: 1"),
        (["n0", "out.safetensors", "--images", "missing"], 5, "missing"),
        (["n0", "out.safetensors", "--images", "photos", "--weight-bits", "3"], 2, "weight_bits is 3"),
        (["n0", "out.safetensors", "--images", "photos", "--min-snr", "99"], 6, "no block can be quantized"),
        (["no", "out.safetensors", "--images", "photos"], 3, "'no'"),
        (["n0", "out.safetensors"], 2, "required: --images"),
    ],
)
def test_what_cannot_be_done_is_reported_and_nothing_is_written(run, folder, photos, arguments, code, message):
    (folder / "there.safetensors").write_bytes(b"mine")
    result = run("quantize", *arguments)
    assert (result.code, result.out) == (code, "") and message in result.err
    assert sorted(path.name for path in folder.iterdir()) == ["photos", "there.safetensors"]
    assert (folder / "there.safetensors").read_bytes() == b"mine"

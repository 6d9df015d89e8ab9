"""export from the command line: it does what the function does, and leaves what is there unless it is told not to."""

from __future__ import annotations

from pathlib import Path

import pytest

import repvgg_zoo
from repvgg_zoo.exporters.onnx_file import read_onnx

# Options, and the arguments of the function.
OPTIONS = {
    "": {},
    "--batch 3 --image-size 40x24": {"batch": 3, "image_size": (40, 24)},
    "--image-size dynamic --features-only": {"image_size": "dynamic", "features_only": True},
    "--image-size 64 --train-form": {"image_size": 64, "deploy": False},
    "--input uint8 --softmax": {"input": "uint8", "softmax": True},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_the_file_is_that_of_the_function(run, options):
    result = run("export", "n0", "a.onnx", *options.split(), "--json")
    report = repvgg_zoo.export("RepVGG_N0", "b.onnx", **OPTIONS[options])
    assert result.code == 0 and Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()
    assert (result.json["path"], result.json["size"]) == ("a.onnx", report.size)
    assert [tuple(check.values())[1:] for check in result.json["checks"]] == [check[1:] for check in report.checks]


def test_info_reads_back_what_the_file_says(run):
    assert run("export", "n0", "a.onnx").code == 0
    metadata = run("info", "a.onnx", "--json").json["metadata"]
    assert metadata.items() <= read_onnx("a.onnx").metadata.items() and metadata["checkpoint"] == "RepVGG_N0.digits"
    text = run("info", "a.onnx").out
    for word in ("RepVGG_N0.digits", "MIT", "float32", "logits", "accuracy_source"):
        assert word in text


def test_a_file_that_exists_is_replaced_only_if_asked_for(run, folder):
    (folder / "a.onnx").write_bytes(b"mine")
    result = run("export", "n0", "a.onnx")
    assert result.code == 2 and "--force overwrites it" in result.err
    assert (folder / "a.onnx").read_bytes() == b"mine"
    assert run("export", "n0", "a.onnx", "--force").code == 0
    assert read_onnx(folder / "a.onnx").metadata["variant"] == "RepVGG_N0"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["n0", "out.pkl"], 2, "end the name in .onnx or .mge"),
        (["n0", "missing/out.onnx"], 2, "missing is not a folder"),
        (["n0", "out.onnx", "--batch", "0"], 2, "batch is 0"),
        (["n0", "out.onnx", "--image-size", "large"], 2, "--image-size"),
        (["n0", "out.onnx", "--image-size", "32x"], 2, "--image-size"),
        (["n0", "out.onnx", "--image-size", "0x32"], 2, "image_size"),
        (["n0", "out.onnx", "--float16"], 2, "float16 cannot be used for a .onnx file"),
        (["n0", "out.mge", "--target", "tensorrt"], 2, "target cannot be used for a .mge file"),
        (["no", "out.onnx"], 3, "'no'"),
        (["missing.pth", "out.onnx"], 5, "missing.pth"),
    ],
)
def test_what_cannot_be_done_is_reported_and_nothing_is_written(run, folder, arguments, code, message):
    result = run("export", *arguments)
    assert (result.code, result.out) == (code, "") and message in result.err
    assert list(folder.iterdir()) == []

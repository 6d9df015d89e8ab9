"""Quantized exports and such of pixels compute in other runtimes what they do here (`./dev test-peers`)."""

from __future__ import annotations

import json

import numpy as np
import pytest
from processes import ask, peer

import repvgg_zoo

PIXELS = np.random.RandomState(0).randint(0, 256, (32, 32, 32, 1)).astype(np.uint8)  # of the network's own size


@pytest.fixture(scope="module")
def runner():
    with peer("run_exports.py") as process:
        yield process


def errors_of(runner, folder, image, expected):
    np.savez(folder / "data.npz", image=image, deploy=expected)
    request = {"model": str(folder / "x.onnx"), "data": str(folder / "data.npz"), "form": "deploy"}
    return json.loads(ask(runner, json.dumps(request)))


def test_pixels_are_preprocessed_in_the_model(runner, tmp_path):
    repvgg_zoo.export("RepVGG_N0.digits", tmp_path / "x.onnx", input="uint8")
    preprocess = repvgg_zoo.preprocess("RepVGG_N0.digits")
    with repvgg_zoo.compile("RepVGG_N0.digits") as compiled:
        expected = compiled(np.stack([preprocess(image[..., 0]) for image in PIXELS[:2]]))
    errors = errors_of(runner, tmp_path, PIXELS[:2], expected)
    assert len(errors) == 6 and max(errors.values()) <= 1e-5, errors


def test_a_quantized_network_gives_the_same_logits(runner, tmp_path, capsys):
    quantized = repvgg_zoo.quantize("RepVGG_N0.digits", list(PIXELS[..., 0]), min_snr=0, min_block_snr=0)
    repvgg_zoo.export(quantized, tmp_path / "x.onnx")
    images = np.random.RandomState(1).standard_normal((2, 1, 32, 32)).astype(np.float32)
    with repvgg_zoo.compile(quantized) as compiled:
        errors = errors_of(runner, tmp_path, images, compiled(images))
    with capsys.disabled():
        print(f"\n  RepVGG_N0 in int8: relative error {max(errors.values()):.1e}", end="")
    assert len(errors) == 6 and max(errors.values()) <= 1e-2, errors

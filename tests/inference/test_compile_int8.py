"""compile on integer kernels: from a quantized network, from its file, or from a float network and images.

The kind of fault: logits other than those of the network that was measured. So they are compared with those of exact
integer arithmetic, and every way to the same network must give the same bits.
"""

from __future__ import annotations

import numpy as np
import pytest

import repvgg_zoo
from repvgg_zoo.checkpoints import CheckpointMetadata
from repvgg_zoo.errors import ArgumentError
from repvgg_zoo.inference.quantize import quantize_weights
from repvgg_zoo.inference.quantized import QuantizedConvLayer
from repvgg_zoo.inference.quantized_network import QuantizedNetwork
from tests.inference.reference import Layer, compute, images, random_weights


@pytest.fixture(scope="module")
def samples():
    """The network's input, (24, 1, 32, 32)."""
    pixels = np.random.RandomState(0).randint(0, 256, (24, 8, 8)).astype(np.uint8)
    preprocess = repvgg_zoo.preprocess("RepVGG_N0")
    return np.stack([preprocess(image) for image in pixels])


@pytest.fixture(scope="module")
def quantized(samples):
    return repvgg_zoo.quantize("RepVGG_N0", samples, threads=1)


@pytest.fixture(scope="module")
def logits(quantized, samples):
    with repvgg_zoo.compile(quantized, batch_size=4) as compiled:
        assert compiled.backend == "kernels-int8"
        assert compiled.shape == (4, 1, 32, 32)
        assert 0 < compiled.error < 1e-5
        assert compiled.spec.name == "RepVGG_N0"
        assert compiled.metadata == quantized.metadata
        return compiled(samples)


def test_the_logits_are_those_of_exact_integer_arithmetic(quantized, samples, logits):
    expected = compute(quantized.weights, samples)[""]
    # Where a value of a block's float epilogue is nearly halfway between two steps, one is as right as the other.
    assert np.abs(logits - expected).max() < 2e-3 * np.abs(expected).max()


def test_a_file_gives_the_same_bits(quantized, samples, logits, tmp_path):
    quantized.save(tmp_path / "n0.safetensors")
    with repvgg_zoo.compile(tmp_path / "n0.safetensors", precision="int8", threads=1) as compiled:
        assert np.array_equal(compiled(samples), logits)


def test_a_name_and_images_give_the_same_bits_in_one_call(samples, logits):
    with repvgg_zoo.compile("RepVGG_N0", precision="int8", calibration=samples, threads=1) as compiled:
        assert compiled.backend == "kernels-int8"
        assert np.array_equal(compiled(samples), logits)


def test_less_memory_and_another_image_size_work(quantized, samples, logits):
    with repvgg_zoo.compile(quantized, low_memory=True) as compiled:
        assert np.array_equal(compiled(samples), logits)
    with repvgg_zoo.compile(quantized, image_size=(40, 24)) as compiled:
        assert compiled(images(1, 1, 40, 24)).shape == (1, 10)


def test_features_are_float32():
    layers = [Layer(16, 2, feature=True), Layer(16), Layer(24, 2, feature=True), Layer(24), Layer(24, feature=True)]
    weights = random_weights(3, layers)
    x = images(12, 3, 16, 16)
    layers, report = quantize_weights(weights, x[4:], x[:4], bits=8, goals=(10, 10), threads=1)
    assert any(isinstance(layer, QuantizedConvLayer) for layer in layers.layers)
    network = QuantizedNetwork(
        layers, report, image_size=(16, 16), spec=None, checkpoint=None, metadata=CheckpointMetadata()
    )
    with repvgg_zoo.compile(network, batch_size=2) as compiled:
        outputs = compiled(x)
    expected = compute(layers, x)
    assert outputs.keys() == expected.keys()
    for name, output in outputs.items():
        assert output.dtype == np.float32
        error = output - expected[name]
        assert (error**2).sum() < 1e-4 * (expected[name] ** 2).sum()


def test_the_explanation_names_the_integer_algorithms(quantized):
    with repvgg_zoo.compile(quantized, threads=1) as compiled:
        explanation = compiled.explain(measure=True)
    blocks = [layer for layer in explanation.layers if layer.name.startswith("stage")]
    assert len(blocks) == len(quantized.weights.layers)
    for block, layer in zip(blocks, quantized.weights.layers):
        assert block.algorithm.startswith("int8") == isinstance(layer, QuantizedConvLayer)
        assert block.measured_ms > 0


REFUSED = {
    "no images": ({"precision": "int8"}, "images"),
    "images without int8": ({"calibration": np.zeros((8, 1, 32, 32), np.float32)}, "int8"),
    "another precision": ({"precision": "int4"}, "int4"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_say_how_to_quantize_is_refused(kind):
    arguments, word = REFUSED[kind]
    with pytest.raises(ArgumentError, match=word) as caught:
        repvgg_zoo.compile("RepVGG_N0", **arguments)
    assert caught.value.hint


@pytest.mark.parametrize("arguments", [{"precision": "float32"}, {"calibration": np.zeros((8, 1, 32, 32), np.float32)}])
def test_a_quantized_network_stays_what_it_is(quantized, arguments):
    with pytest.raises(ArgumentError, match="cannot be changed"):
        repvgg_zoo.compile(quantized, **arguments)


def test_a_checkpoint_that_only_mentions_quantization_is_a_checkpoint(tmp_path):
    path = tmp_path / "float.safetensors"
    repvgg_zoo.save_checkpoint(
        path, repvgg_zoo.load_checkpoint(repvgg_zoo.fetch("RepVGG_N0")).arrays, class_names=["quantization"] * 10
    )
    with repvgg_zoo.compile(path) as compiled:
        assert compiled.backend == "kernels"

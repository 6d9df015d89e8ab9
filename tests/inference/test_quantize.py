"""Quantized networks: how close they stay to the float ones, what is done where they do not, and what is refused.

The kind of fault: a loss of accuracy that nobody is told about. So the report is compared with exact integer
arithmetic, and every limit of the user's is kept or is an error.
"""

from __future__ import annotations

import sys

import megengine.module as M
import numpy as np
import pytest

import repvgg_zoo
from repvgg_zoo._resources import hub_folder
from repvgg_zoo.checkpoints import load_checkpoint
from repvgg_zoo.errors import ArgumentError, DependencyError, QuantizationError
from repvgg_zoo.inference import quantize as quantize_module
from repvgg_zoo.inference.quantized import QuantizedConvLayer, check_quantized_layers
from repvgg_zoo.models import RepVGG
from tests.inference.reference import Layer, compute, images, random_weights
from tests.networks import randomised


@pytest.fixture(scope="module")
def pixels():
    """The images of the digits' test split, uint8 (360, 8, 8), and their labels."""
    with np.load(hub_folder() / "digits-test.npz", allow_pickle=False) as arrays:
        return arrays["images"], arrays["labels"]


@pytest.fixture(scope="module")
def digits(pixels):
    """The images as the network's input."""
    preprocess = repvgg_zoo.preprocess("RepVGG_N0")
    return np.stack([preprocess(image) for image in pixels[0]])


@pytest.fixture(scope="module")
def in_8_bits(digits):
    return repvgg_zoo.quantize("RepVGG_N0", digits, threads=1)


def quantized_layers(network):
    return [layer for layer in network.weights.layers if isinstance(layer, QuantizedConvLayer)]


def snr(expected, actual):
    return 10 * np.log10((expected**2).sum() / ((actual - expected) ** 2).sum())


# Accuracy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "least_snr"), [(8, 42), (4, 20)])
def test_digits_are_recognized_in_exact_integer_arithmetic(digits, pixels, in_8_bits, bits, least_snr):
    network = in_8_bits if bits == 8 else repvgg_zoo.quantize("RepVGG_N0", digits, weight_bits=bits, threads=1)
    assert len(quantized_layers(network)) == 8 and max(abs(x.kernel).max() for x in quantized_layers(network)) < 2**bits
    logits = compute(network.weights, digits)[""]
    assert (logits.argmax(1) == pixels[1]).sum() >= 357
    with repvgg_zoo.compile("RepVGG_N0", threads=1, batch_size=8) as compiled:
        expected = compiled(digits)
    centered = [values - values.mean(axis=1, keepdims=True) for values in (expected, logits)]
    assert snr(*centered) > least_snr
    assert snr(*(values[3:256:4] for values in centered)) == pytest.approx(network.report.snr, abs=3)
    assert network.report.agreement >= 0.99 and network.report.weight_bits == bits


@pytest.mark.parametrize(("bits", "least_snr"), [(8, 35), (4, 18)])  # with one scale a channel: 31 and 8 dB
def test_noise_does_not_add_up_over_22_blocks(bits, least_snr):
    model = randomised(RepVGG((2, 4, 14, 1), (0.125, 0.125, 0.125, 0.125), num_classes=10))
    network = repvgg_zoo.quantize(model, images(12, 3, 32, 32), weight_bits=bits, min_block_snr=0, threads=1)
    assert len(quantized_layers(network)) == 21 and network.report.snr > least_snr
    assert network.report.agreement == 1


NETWORKS = {
    "plain": [Layer(16, 2), Layer(16), Layer(24, 2), Layer(24)],
    "grouped": [Layer(16, 2), Layer(16, groups=4), Layer(32, 2, groups=2), Layer(32, groups=8)],
    "SE": [Layer(16, 2), Layer(16, se="before"), Layer(16, 2, se="after"), Layer(16, se="before")],
    "features": [Layer(16, 2, feature=True), Layer(16), Layer(24, 2, feature=True), Layer(24, feature=True)],
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_report_is_that_of_exact_integer_arithmetic(kind):
    weights = random_weights(3, NETWORKS[kind], None if kind == "features" else 10)
    x = images(32, 3, 16, 16)
    quantized, report = quantize_module.quantize_weights(weights, x[8:], x[:8], bits=8, goals=(20, 20), threads=1)
    check_quantized_layers(quantized, 3)
    assert sum(isinstance(layer, QuantizedConvLayer) for layer in quantized.layers) == 3
    expected, actual = compute(weights, x[:8]), compute(quantized, x[:8])
    if kind != "features":
        expected, actual = ({"": o[""] - o[""].mean(axis=1, keepdims=True)} for o in (expected, actual))
    worst = min(snr(expected[name], actual[name]) for name in expected if (expected[name] != actual[name]).any())
    assert worst == pytest.approx(report.snr, abs=1)
    assert (report.agreement is None) == (kind == "features")


# Limits ------------------------------------------------------------------------------------------------------


def test_blocks_stay_float_until_the_network_reaches_its_goal(digits):
    network = repvgg_zoo.quantize("RepVGG_N0", digits, weight_bits=4, min_snr=28, threads=1)
    assert network.report.snr >= 28 and 2 <= len(quantized_layers(network)) < 8
    stay_float = [block for block in network.report.blocks if "min_snr, 28 dB" in (block.kept_float or "")]
    assert len(stay_float) == 8 - len(quantized_layers(network))
    assert max(block.own_snr for block in stay_float) <= network.report.worst(1)[0].own_snr
    assert f"below min_snr, 28 dB: {', '.join(block.name for block in stay_float)}" in str(network.report)


def test_blocks_below_their_own_limit_stay_float(digits):
    network = repvgg_zoo.quantize("RepVGG_N0", digits, weight_bits=4, min_block_snr=25, threads=1)
    stay_float = [block for block in network.report.blocks if "min_block_snr" in (block.kept_float or "")]
    assert 0 < len(stay_float) < 8 and all(block.own_snr < 25 for block in stay_float)
    assert all(block.own_snr >= 25 for block in network.report.worst())


@pytest.mark.parametrize("limit", ["min_snr", "min_block_snr"])
def test_a_goal_that_cannot_be_reached_is_an_error_with_the_worst_blocks(digits, limit):
    with pytest.raises(QuantizationError, match=r"90 dB.*worst ones: stage") as caught:
        repvgg_zoo.quantize("RepVGG_N0", digits[:16], threads=1, **{limit: 90})
    assert set(caught.value.blocks) == {"stage1.0", "stage2.0", "stage2.1", "stage4.0"} | {
        f"stage3.{i}" for i in range(4)
    }
    assert caught.value.expected in (90, 20) and caught.value.actual < 60 and limit in caught.value.hint


# Networks ----------------------------------------------------------------------------------------------------


def test_files_checkpoints_arrays_and_modules_are_quantized_like_the_name(digits):
    file = repvgg_zoo.fetch("RepVGG_N0")
    checkpoint = load_checkpoint(file)
    module = repvgg_zoo.create("RepVGG_N0", pretrained=True)
    named = repvgg_zoo.quantize("RepVGG_N0", digits[:16], threads=1)
    assert named.checkpoint.name == "RepVGG_N0.digits"
    for model in (file, checkpoint, dict(checkpoint.state_dict), module):
        network = repvgg_zoo.quantize(model, digits[:16], threads=1)
        assert network.report.snr == pytest.approx(named.report.snr, abs=0.2)
        assert network.spec.name == "RepVGG_N0" and network.image_size == (32, 32) and network.in_chans == 1
    before = network.weights.layers[0].kernel.copy()
    for parameter in module.parameters():
        parameter *= 0
    np.testing.assert_array_equal(network.weights.layers[0].kernel, before)


def test_backbones_are_measured_by_their_feature_maps():
    model = randomised(RepVGG((1, 2, 1, 1), (0.25, 0.25, 0.25, 0.25), features_only=True, out_indices=(1, 3)))
    network = repvgg_zoo.quantize(model, images(16, 3, 32, 32), threads=1)
    features = {layer.feature: block for layer, block in zip(network.weights.layers, network.report.blocks)}
    assert sorted(filter(None, features)) == ["stage1", "stage3"]
    assert network.report.agreement is None
    assert network.report.snr == pytest.approx(min(features["stage1"].snr, features["stage3"].snr))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("index", [0, 2])
@pytest.mark.parametrize("part", ["kernel", "bias"])
def test_weights_that_are_not_finite_are_refused_with_the_block(value, index, part):
    weights, x = random_weights(3, NETWORKS["plain"], 10), images(8, 3, 16, 16)
    getattr(weights.layers[index], part)[-1:] = value
    with pytest.raises(ArgumentError, match=f"layer {index} .* not finite"):
        quantize_module.quantize_weights(weights, x[2:], x[:2], bits=8, goals=(20, 20), threads=1)


def test_without_llvmlite_the_error_says_what_to_install(digits, monkeypatch):
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    with pytest.raises(DependencyError, match="llvmlite") as caught:
        repvgg_zoo.quantize("RepVGG_N0", digits)
    assert caught.value.hint == "pip install llvmlite"


def test_networks_that_are_not_repvggs_are_refused():
    with pytest.raises(ArgumentError, match=r"only RepVGG and RepVGGplus .* can be quantized"):
        repvgg_zoo.quantize(M.Conv2d(3, 4, 3), images(16, 3, 32, 32))

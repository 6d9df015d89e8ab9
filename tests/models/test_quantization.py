"""MegEngine's quantization takes the networks as they are, and what quantized networks cannot do is an error.

The kind of fault: MegEngine's tools look for exact classes and for stubs between int8 and float, so a network converts
without an error and then cannot run.
"""

from __future__ import annotations

import megengine.module as M
import numpy as np
import pytest
from megengine import Tensor
from megengine.autodiff import GradManager
from megengine.quantization import (
    calibration_qconfig,
    disable_observer,
    ema_fakequant_qconfig,
    enable_fake_quant,
    enable_observer,
    quantize,
    quantize_qat,
)

import repvgg_zoo
from repvgg_zoo.errors import EquivalenceError
from repvgg_zoo.models import RepVGG, RepVGGBlock, RepVGGplus, SEBlock
from repvgg_zoo.registry.specs import SESpec

from ..networks import randomised

TINY = {"num_blocks": (1, 2, 2, 1), "width_multiplier": (0.25, 0.25, 0.25, 0.25), "num_classes": 10}
IMAGES = Tensor(np.random.RandomState(0).randn(4, 3, 32, 32).astype(np.float32))
NETWORKS = {
    "plain": lambda: RepVGG(**TINY),
    "grouped": lambda: RepVGG(**TINY, groups=2),
    "SE before ReLU": lambda: RepVGG(**TINY, se=SESpec("before_relu", 4)),
    "RepVGGplus": lambda: RepVGGplus(**TINY, se=SESpec("after_relu", 4)),
    "no head": lambda: RepVGG(**{**TINY, "num_classes": 0}),
    "feature maps": lambda: RepVGG(**TINY, features_only=True),
}
QUANTIZED = (M.quantized.Conv2d, M.quantized.ConvBn2d, M.quantized.Linear)
# Seldom does a value round to another of 255 steps; eight layers pass that on. float is 1.
CORRELATION = 0.95

every_form = pytest.mark.parametrize("deploy", [False, True])


def built(kind, deploy):
    network = randomised(NETWORKS[kind]())
    network.eval()
    return repvgg_zoo.to_deploy(network) if deploy else network


def calibrated(network, qconfig=ema_fakequant_qconfig):
    network = quantize_qat(network, inplace=False, qconfig=qconfig)
    network.eval()
    enable_observer(network)
    network(IMAGES)
    disable_observer(network)
    return network


def in_int8(network, qconfig=ema_fakequant_qconfig):
    network = quantize(calibrated(network, qconfig), inplace=False)
    network.eval()
    return network


def output(network):
    result = network(IMAGES)
    return (result["stage4"] if isinstance(result, dict) else result).numpy()


@every_form
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_network_is_calibrated_quantized_and_runs(kind, deploy):
    network = built(kind, deploy)
    expected = output(network)
    fake = calibrated(network)
    quantized = quantize(fake, inplace=False)
    quantized.eval()
    for actual in (output(fake), output(quantized)):
        assert actual.shape == expected.shape and actual.dtype == np.float32
        assert np.corrcoef(actual.ravel(), expected.ravel())[0, 1] > CORRELATION
    blocks = [part for part in quantized.modules() if isinstance(part, RepVGGBlock)]
    for block in blocks:
        branches = [block.rbr_reparam] if deploy else [block.rbr_dense, block.rbr_1x1]
        assert all(isinstance(branch, QUANTIZED) for branch in branches)
    assert all(type(se.down) is M.Conv2d for se in quantized.modules() if isinstance(se, SEBlock))


def test_histograms_of_the_activations_calibrate_a_network():
    network = built("plain", True)
    quantized = in_int8(network, calibration_qconfig)
    assert np.corrcoef(output(quantized).ravel(), output(network).ravel())[0, 1] > 0.99


@every_form
@pytest.mark.parametrize("kind", ["plain", "RepVGGplus"])
def test_a_network_is_trained_with_fake_quantization(kind, deploy):
    network = quantize_qat(built(kind, deploy))
    network.train()
    enable_fake_quant(network)
    parameters = list(network.parameters())
    with GradManager().attach(parameters) as gradients:
        outputs = network(IMAGES)
        outputs = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
        gradients.backward(sum((output**2).mean() for output in outputs))
    assert all(parameter.grad is not None for parameter in parameters)
    quantize(network)
    network.eval()
    assert np.isfinite(output(network)).all()


@every_form
def test_float_networks_have_no_tensors_or_roundings_of_quantization(deploy):
    network = built("SE before ReLU", deploy)
    stubs = (M.QuantStub, M.DequantStub, M.Elemwise)
    assert not any(list(part.tensors()) for part in network.modules() if isinstance(part, stubs))


@pytest.mark.parametrize("convert", [repvgg_zoo.to_deploy, repvgg_zoo.compare_forms])
def test_branches_that_are_quantized_cannot_be_fused(convert):
    network = quantize_qat(built("plain", False))
    arguments = [IMAGES] if convert is repvgg_zoo.compare_forms else []
    with pytest.raises(EquivalenceError, match=r"stage0\.rbr_dense is a megengine\.module\.qat") as caught:
        convert(network, *arguments)
    assert "quantize after to_deploy" in caught.value.hint


def test_a_quantized_network_is_compiled_to_run_in_eager_mode():
    quantized = in_int8(built("plain", True))
    with pytest.warns(RuntimeWarning, match="eager"), repvgg_zoo.compile(quantized, image_size=32) as compiled:
        assert np.array_equal(compiled(IMAGES.numpy()[:1]), quantized(IMAGES[:1]).numpy())

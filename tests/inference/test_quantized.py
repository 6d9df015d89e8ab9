"""Quantized layers that would be read or computed wrongly are refused: each array's shape, dtype and range."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from repvgg_zoo.errors import StateError
from repvgg_zoo.inference.ir import ConvLayer, LinearWeights
from repvgg_zoo.inference.quantized import QuantizedConvLayer, QuantizedWeights, check_quantized_layers

CHANNELS = 8


def quantized_weights(**changes) -> QuantizedWeights:
    """A float stem, two quantized blocks, and a head; ``changes`` are of the last block."""
    random = np.random.RandomState(0)
    stem = ConvLayer(np.ones((1, CHANNELS, 3, 3, 3), np.float32), np.zeros(CHANNELS, np.float32), 2)
    kernel = random.randint(-127, 128, (2, CHANNELS // 2, CHANNELS // 2, 3, 3)).astype(np.int8)
    kernel[:, range(4), range(4), 1, 1] = 0
    ones = np.ones(CHANNELS, np.float32)
    block = QuantizedConvLayer(kernel, ones, np.full(CHANNELS, 2, np.uint8), ones, ones, 0.5, 1)
    head = LinearWeights(np.ones((10, CHANNELS), np.float32), np.ones(10, np.float32))
    return QuantizedWeights((stem, block, replace(block, **changes)), head)


def array(shape, dtype, value=1):
    return np.full(shape, value, dtype)


ONES, KERNEL = array((CHANNELS,), np.float32), (2, 4, 4, 3, 3)
FAULTS = {
    "float kernel": ({"kernel": array(KERNEL, np.float32)}, "int8"),
    "kernel of other channels": ({"kernel": array((2, 4, 5, 3, 3), np.int8, 0)}, "channels"),
    "kernel of 5x5": ({"kernel": array((2, 4, 4, 5, 5), np.int8, 0)}, "should be"),
    "kernel value of -128": ({"kernel": array(KERNEL, np.int8, -128), "identity": None}, "-127"),
    "diagonal given twice": ({"kernel": array(KERNEL, np.int8)}, "diagonal"),
    "scale of another length": ({"kernel_scale": ONES[1:]}, "kernel_scale"),
    "scale of float64": ({"kernel_scale": ONES.astype(np.float64)}, "float32"),
    "negative scale": ({"kernel_scale": -ONES}, "below 0"),
    "infinite scale": ({"kernel_scale": ONES * np.inf}, "finite"),
    "shift of another dtype": ({"center_shift": array((CHANNELS,), np.int8)}, "uint8"),
    "shift of 8": ({"center_shift": array((CHANNELS,), np.uint8, 8)}, "above 7"),
    "identity of another length": ({"identity": ONES[1:]}, "identity"),
    "identity of a strided block": ({"stride": 2}, "identity"),
    "NaN in the identity": ({"identity": ONES * np.nan}, "finite"),
    "NaN in the bias": ({"bias": ONES * np.nan}, "finite"),
    "input scale of zero": ({"input_scale": 0.0}, "input_scale"),
    "input scale of NaN": ({"input_scale": float("nan")}, "input_scale"),
}


def test_a_valid_network_passes() -> None:
    check_quantized_layers(quantized_weights(), 3)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_refused_and_named(fault: str) -> None:
    changes, message = FAULTS[fault]
    with pytest.raises(StateError, match=message) as caught:
        check_quantized_layers(quantized_weights(**changes), 3)
    assert "layer 2" in str(caught.value)


def test_a_quantized_first_layer_is_refused() -> None:
    weights = quantized_weights()
    with pytest.raises(StateError, match="layer 0, whose input is an image"):
        check_quantized_layers(replace(weights, layers=weights.layers[1:]))


def test_sums_that_leave_32_bits_are_refused() -> None:
    kernel = np.full((1, CHANNELS, 2048, 3, 3), 127, np.int8)
    shift = np.zeros(CHANNELS, np.uint8)
    stem = ConvLayer(np.ones((1, 2048, 3, 3, 3), np.float32), np.zeros(2048, np.float32), 2)
    block = QuantizedConvLayer(kernel, ONES, shift, None, ONES, 1.0, 2)
    check_quantized_layers(QuantizedWeights((stem, block), None))
    with pytest.raises(StateError, match="32 bits"):
        check_quantized_layers(QuantizedWeights((stem, replace(block, center_shift=shift + 7)), None))

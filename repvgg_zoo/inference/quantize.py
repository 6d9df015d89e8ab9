"""quantize: a network with int8 weights and activations, calibrated and measured on images."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
from numpy.typing import NDArray

from .._arguments import check_float, check_image_size, check_int
from .._cpu import lower_sync_thread_priority
from ..checkpoints import Checkpoint
from ..errors import ArgumentError, DependencyError, PathLike, QuantizationError
from .calibration import ActivationStatistics
from .calibration_images import MIN_IMAGES, collect_images
from .equalization import equalize
from .ir import LinearWeights, NetworkWeights
from .quantization_report import BlockReport, QuantizationReport
from .quantized import QuantizedConvLayer, QuantizedWeights
from .quantized_network import QuantizedNetwork
from .target import (
    SUPPORTED,
    Target,
    derived_cache,
    find_target,
    kernels_unavailable_reason,
    limit_threads,
    why_not_supported,
)
from .weight_rounding import round_weights

if TYPE_CHECKING:
    from megengine.module import Module

    from .simulation import Batches, LayerwiseNetwork, Noise

BATCH_SIZE = 8
MIN_BITS, MAX_BITS = 4, 8
TEST_SHARE = 4  # every fourth image is not used for calibration but for the report
TRIAL_IMAGES, TRIAL_TESTS = 64, 16  # that tell whether equalization helps
DEFAULT_SNR = 20.0  # dB: errors of a tenth of the logits' spread

DEFAULT_MAX_IMAGES = 256

# Why a block is not quantized; the first one that applies.
FIRST_LAYER = "its input is the image, which has negative values"
NO_INPUT = "its input was zero in all images"


def quantize(
    model: Union[PathLike, Checkpoint, Mapping[str, NDArray[Any]], Module],
    images: Any,
    *,
    image_size: Optional[Union[int, Tuple[int, int]]] = None,
    weight_bits: int = 8,
    min_snr: float = DEFAULT_SNR,
    min_block_snr: float = DEFAULT_SNR,
    max_images: int = DEFAULT_MAX_IMAGES,
    threads: Optional[int] = None,
) -> QuantizedNetwork:
    """Quantize a network to int8, with its activations' ranges and its accuracy measured on images.

    ``model`` is anything that ``compile`` takes: a name, a file, a Checkpoint, arrays or a RepVGG network. ``images``
    are some 100 images or more such as the network will see: a folder, paths, an array (N, C, H, W) of preprocessed
    images, or an iterable of arrays or images. Files, Pillow images and uint8 pixels are preprocessed as ``preprocess``
    does it, to ``image_size`` if it is passed. At most ``max_images`` are used, and every fourth of them only for the
    report.

    Weights have a scale for each output channel, activations are unsigned with one scale for each block's input. The
    first block and the head stay float, and so do blocks whose own signal-to-noise ratio is below ``min_block_snr`` dB,
    and then the worst ones until that of the logits is at least ``min_snr`` dB; ``report`` says which. ``weight_bits``
    of 4 to 7 is an experiment: it shows how robust a network is, but files and speed are those of 8.

    Raises ArgumentError, also for networks that are not RepVGGs, QuantizationError if no block can be quantized within
    these limits, DependencyError without llvmlite, and what ``fetch`` and ``load_checkpoint`` raise.
    """
    # Arguments are checked before anything is downloaded.
    size = None if image_size is None else check_image_size("image_size", image_size)
    weight_bits = _check_bits(weight_bits)
    goal, block_goal = check_float("min_snr", min_snr), check_float("min_block_snr", min_block_snr)
    max_images, threads = check_int("max_images", max_images, minimum=MIN_IMAGES), limit_threads(threads)
    target = find_target(model)
    weights = _load_weights(target)
    data = collect_images(images, model, target.metadata, channels=target.in_chans, size=size, limit=max_images)
    lower_sync_thread_priority()
    is_test = np.arange(len(data)) % TEST_SHARE == TEST_SHARE - 1
    calibration, test = data[~is_test], data[is_test]
    del data  # the two are copies
    from .jit.engine import host_microkernel_config, jit_compile

    jit_compile(host_microkernel_config(), derived_cache())  # from the cache, if compile was ever called
    quantized, report = quantize_weights(
        weights, calibration, test, bits=weight_bits, goals=(goal, block_goal), threads=threads
    )
    height, width = test.shape[2:]
    return QuantizedNetwork(
        quantized,
        report,
        image_size=(height, width),
        spec=target.spec,
        checkpoint=target.checkpoint,
        metadata=target.metadata,
    )


def quantize_weights(
    weights: NetworkWeights,
    calibration: NDArray[Any],
    test: NDArray[Any],
    *,
    bits: int,
    goals: Tuple[float, float],
    threads: int,
) -> Tuple[QuantizedWeights, QuantizationReport]:
    """Return the network and its report; ``goals`` are the lowest SNR of the logits and of a block."""
    # Here, because it loads LLVM.
    from .simulation import LayerwiseNetwork, batches, decibels, measure_noise, simulated

    goal, block_goal = goals
    names = [layer.name or f"layer {index}" for index, layer in enumerate(weights.layers)]
    _check_finite(names, weights)
    channels, height, width = test.shape[1:]
    shape = (min(BATCH_SIZE, len(test)), channels, height, width)
    open_network = functools.partial(LayerwiseNetwork, shape=shape, threads=threads)
    weights = _equalize_if_better(weights, names, calibration, bits, open_network)
    with open_network(weights) as reference:
        statistics = _calibrate(reference, names, batches(calibration, shape[0]))
        quantized, float_reasons = _round_blocks(weights, statistics, bits)

        def measure(*, alone: bool) -> Tuple[QuantizedWeights, Noise]:
            candidate = _combine(weights, quantized, float_reasons)
            with open_network(simulated(candidate)) as network:
                return candidate, measure_noise(reference, network, candidate, batches(test, shape[0]), alone=alone)

        _, noise = measure(alone=True)
        own = [decibels(*sums) for sums in noise.layers]
        for index, snr in enumerate(own):
            if not snr >= block_goal:
                float_reasons[index] = f"its own SNR is below min_block_snr, {block_goal:g} dB"
        while len(float_reasons) < len(names):
            result, noise = measure(alone=False)
            snr = decibels(*noise.output)
            if snr >= goal:
                blocks = tuple(
                    BlockReport(name, own[index], decibels(*noise.layers[index]), float_reasons.get(index))
                    for index, name in enumerate(names)
                )
                report = QuantizationReport(snr, noise.agreement, bits, len(calibration), len(test), blocks)
                return _own_copy(result), report
            for index in _worst_blocks(own, float_reasons, goal - snr):
                float_reasons[index] = f"the network's SNR would be below min_snr, {goal:g} dB"
    raise _too_inaccurate(names, own, goals, bits)


def _equalize_if_better(
    weights: NetworkWeights,
    names: Sequence[str],
    images: NDArray[Any],
    bits: int,
    open_network: Callable[[NetworkWeights], LayerwiseNetwork],
) -> NetworkWeights:
    """Return the network with equalized channels if that makes it more accurate on some images, or as it is."""
    from .simulation import batches, decibels, measure_noise, simulated

    images = images[:: -(-len(images) // TRIAL_IMAGES)]

    def trial(candidate: NetworkWeights) -> Tuple[float, List[ActivationStatistics]]:
        with open_network(candidate) as reference:
            statistics = _calibrate(reference, names, batches(images, reference.batch_size))
            rounded = _combine(candidate, *_round_blocks(candidate, statistics, bits))
            with open_network(simulated(rounded)) as network:
                data = batches(images[:: -(-len(images) // TRIAL_TESTS)], reference.batch_size)
                noise = measure_noise(reference, network, rounded, data, alone=False)
        return decibels(*noise.output), statistics

    snr, statistics = trial(weights)
    equalized = equalize(weights, [x.channel_peaks for x in statistics])
    return equalized if trial(equalized)[0] > snr else weights


def _combine(
    weights: NetworkWeights, quantized: Mapping[int, QuantizedConvLayer], float_reasons: Mapping[int, str]
) -> QuantizedWeights:
    """Return the network of quantized layers and of those that stay float."""
    layers = (layer if i in float_reasons else quantized[i] for i, layer in enumerate(weights.layers))
    return QuantizedWeights(tuple(layers), weights.head)


def _check_finite(names: Sequence[str], weights: NetworkWeights) -> None:
    for name, layer in zip(names, weights.layers):
        if not (np.isfinite(layer.kernel).all() and np.isfinite(layer.bias).all()):
            raise ArgumentError(
                f"{name} has weights that are not finite", hint="are they damaged, or did the training diverge?"
            )


def _calibrate(network: LayerwiseNetwork, names: Sequence[str], data: Batches) -> List[ActivationStatistics]:
    """Return the statistics of each layer's output on the calibration images."""
    statistics: List[ActivationStatistics] = []
    for images, count in data:
        network.start(images)
        for index, name in enumerate(names):
            network.run_layer(index)
            output = network.output(index)[:count]
            if index == len(statistics):
                statistics.append(ActivationStatistics(name, output.shape))
            statistics[index].add(output)
    return statistics


def _round_blocks(
    weights: NetworkWeights, statistics: Sequence[ActivationStatistics], bits: int
) -> Tuple[Dict[int, QuantizedConvLayer], Dict[int, str]]:
    """Return the quantized layers by index, and why others stay float."""
    quantized, float_reasons = {}, {0: FIRST_LAYER}
    for index, (x, layer) in enumerate(zip(statistics, weights.layers[1:]), 1):
        if x.peak == 0:
            float_reasons[index] = NO_INPUT
        else:
            means = x.tap_means(layer.stride, layer.dilation)
            quantized[index] = round_weights(layer, input_scale=x.scale(), tap_means=means, bits=bits)
    return quantized, float_reasons


def _worst_blocks(own: Sequence[float], float_reasons: Mapping[int, str], missing: float) -> List[int]:
    """Return the blocks to keep float next: the fewest that would gain half of the ``missing`` dB if noise added up.

    It does not quite, so the network is measured again, with at least one block less each time.
    """
    noises = {index: 10 ** (-snr / 10) for index, snr in enumerate(own) if index not in float_reasons}
    limit = sum(noises.values()) * 10 ** (-missing / 2 / 10)
    worst: List[int] = []
    for index in sorted(noises, key=lambda index: -noises[index]):
        if worst and sum(noises.values()) <= limit:
            break
        worst.append(index)
        del noises[index]
    return worst


def _too_inaccurate(
    names: Sequence[str], own: Sequence[float], goals: Tuple[float, float], bits: int
) -> QuantizationError:
    order = sorted(range(1, len(names)), key=lambda index: own[index])
    listed = ", ".join(f"{names[index]} ({own[index]:.1f} dB)" for index in order[:5])
    return QuantizationError(
        f"no block can be quantized to {bits} bits with an SNR of {goals[1]:g} dB, and {goals[0]:g} dB for the network;"
        f" the worst ones: {listed or 'none'}",
        blocks=[names[index] for index in order],
        expected=goals[0],
        actual=own[order[0]] if order else None,
        hint="lower min_snr or min_block_snr, or check that the images are such as the network was trained on",
    )


def _own_copy(weights: QuantizedWeights) -> QuantizedWeights:
    """Return the network with copies of its float arrays, which may be views of a MegEngine network's memory."""
    layers = []
    for layer in weights.layers:
        se = layer.se
        if se is not None:
            layer = replace(layer, se=replace(se, down=_copy_linear(se.down), up=_copy_linear(se.up)))
        layers.append(replace(layer, kernel=layer.kernel.copy(), bias=layer.bias.copy()))
    return QuantizedWeights(tuple(layers), None if weights.head is None else _copy_linear(weights.head))


def _copy_linear(linear: LinearWeights) -> LinearWeights:
    return LinearWeights(linear.weight.copy(), linear.bias.copy())


def _check_bits(value: Any) -> int:
    bits = check_int("weight_bits", value, minimum=MIN_BITS)
    if bits > MAX_BITS:
        raise ArgumentError(
            f"weight_bits is {bits}",
            expected=f"{MIN_BITS} to {MAX_BITS}",
            actual=bits,
            hint=f"pass {MAX_BITS}, or fewer as an experiment",
        )
    return bits


def _load_weights(target: Target) -> NetworkWeights:
    """Return the weights of a network that can be quantized; raise ArgumentError or DependencyError for any other."""
    reason = kernels_unavailable_reason()
    if reason is not None:
        raise DependencyError(f"quantize runs the network, and {reason}", hint="pip install llvmlite")
    weights = target.load_weights()
    if weights is None:
        raise ArgumentError(
            f"only {SUPPORTED} can be quantized{why_not_supported(target.network())}",
            expected="a RepVGG or RepVGGplus",
            hint="MegEngine's own quantize_qat and quantize take other networks",
        )
    return weights

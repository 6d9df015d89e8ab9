"""explain_plan: what the cost model expects of each part of a plan; time_parts: how long each takes."""

from __future__ import annotations

import math
import time
from typing import Any, List, Tuple, Union

from numpy.typing import NDArray

from .cost_model import CpuSpeed, conv_fmas, conv_seconds, integer_conv_seconds
from .explanation import ExplainedLayer, Explanation, with_time
from .ir import ConvLayer, NetworkWeights
from .jit.integer_dot import DOT_PRODUCTS
from .jit.integer_winograd import INTEGER_TRANSFORMS
from .jit.winograd import WINOGRAD_TRANSFORMS
from .plan import ExecutionPlan, LayerCalls
from .quantized import QuantizedConvLayer, QuantizedWeights
from .reference import RunCalls, probe_images

ROUNDS = 10  # of which the best time counts


def explain_plan(
    plan: ExecutionPlan, weights: Union[NetworkWeights, QuantizedWeights], *, threads: int, speed: CpuSpeed
) -> Explanation:
    """Return the parts of a plan that was made of ``weights``; nothing is run."""
    images = plan.input_shape[0]
    first = plan.layers[0]
    parts = [ExplainedLayer("input", _output_shape(first.x), plan.calls[0].kernel, 0, 0)]
    for index, (layer, calls) in enumerate(zip(weights.layers, plan.layers)):
        name = layer.name or f"layer{index}"
        if isinstance(layer, QuantizedConvLayer):
            parts.append(_explain_integer_conv(name, layer, plan, calls, threads, speed))
        else:
            parts.append(_explain_conv(name, layer, plan, calls, threads, speed))
        if layer.se is not None:
            macs = images * (layer.se.down.weight.size + layer.se.up.weight.size)
            parts.append(ExplainedLayer(f"{name}.se", parts[-1].output, "igemm", macs, macs))
    if "" in plan.outputs:
        macs = 0 if weights.head is None else images * weights.head.weight.size
        algorithm = "global_avg_pool" if weights.head is None else "global_avg_pool, igemm"
        parts.append(ExplainedLayer("head", plan.outputs[""].shape, algorithm, macs, macs))
    return Explanation(tuple(parts), threads, 2e-9 * threads * speed.fma_per_second)


def time_parts(explanation: Explanation, plan: ExecutionPlan, run_calls: RunCalls) -> Explanation:
    """Return the explanation with the best time of each part.

    The parts run in turn, as in the network, so that each finds the cache as the part before it has left it. The time
    that it takes to start the threads is subtracted.
    """
    images = probe_images(plan.input_shape)
    ranges = part_ranges(plan)
    assert len(ranges) == len(explanation.layers)
    best, start_threads = [math.inf] * len(ranges), math.inf
    for _ in range(ROUNDS):
        for index, (start, stop) in enumerate(ranges):
            best[index] = min(best[index], _seconds(run_calls, images, start, stop))
            start_threads = min(start_threads, _seconds(run_calls, images, start, start))
    times = [1e3 * max(seconds - start_threads, 0.0) for seconds in best]
    layers = (with_time(layer, ms, explanation.peak_gflops) for layer, ms in zip(explanation.layers, times))
    return Explanation(tuple(layers), explanation.threads, explanation.peak_gflops)


def part_ranges(plan: ExecutionPlan) -> List[Tuple[int, int]]:
    """Return the first call of each part, and the one after its last."""
    ranges = [(0, plan.layers[0].start)]
    for layer in plan.layers:
        ranges.append((ranges[-1][1], layer.conv_stop))  # the rounding of a quantized layer's input comes before it
        if layer.stop > layer.conv_stop:
            ranges.append((layer.conv_stop, layer.stop))
    if len(plan.calls) > plan.layers[-1].stop:
        ranges.append((plan.layers[-1].stop, len(plan.calls)))
    return ranges


def _explain_conv(
    name: str, layer: ConvLayer, plan: ExecutionPlan, calls: LayerCalls, threads: int, speed: CpuSpeed
) -> ExplainedLayer:
    kernels = [call.kernel for call in plan.calls[calls.start : calls.conv_stop]]
    transform = next((each for each in WINOGRAD_TRANSFORMS if f"input_transform_{each.name}" in kernels), None)
    algorithm = kernels[0] if transform is None else f"Winograd F({transform.m}x{transform.m}, 3x3)"
    seconds = conv_seconds(layer, calls.out, transform, threads=threads, speed=speed)
    return ExplainedLayer(
        name,
        _output_shape(calls.out),
        algorithm,
        conv_fmas(layer, calls.out, None),
        conv_fmas(layer, calls.out, transform),
        1e3 * seconds,
    )


def _explain_integer_conv(
    name: str, layer: QuantizedConvLayer, plan: ExecutionPlan, calls: LayerCalls, threads: int, speed: CpuSpeed
) -> ExplainedLayer:
    kernels = [call.kernel for call in plan.calls[calls.start : calls.conv_stop]]
    transform = next((each for each in INTEGER_TRANSFORMS if f"input_transform_s16_{each.name}" in kernels), None)
    algorithm = "int8 igemm" if transform is None else f"int8 Winograd F({transform.m}x{transform.m}, 3x3)"
    dot = DOT_PRODUCTS[plan.config.integer_dot]
    seconds = integer_conv_seconds(layer, calls.out, transform, threads, dot, speed)
    macs, products = (conv_fmas(layer, calls.out, each) for each in (None, transform))
    return ExplainedLayer(name, _output_shape(calls.out), algorithm, macs, products, 1e3 * seconds)


def _output_shape(out: Any) -> Tuple[int, ...]:
    return out.images, out.height, out.width, out.channels


def _seconds(run_calls: RunCalls, images: NDArray[Any], start: int, stop: int) -> float:
    begin = time.perf_counter()
    run_calls(images, start, stop)
    return time.perf_counter() - begin

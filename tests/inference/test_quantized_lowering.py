"""Plans of quantized networks compute what the layers' definition says in 64-bit integers, layer by layer.

The kinds of faults that this finds: sums that are not exact (overflow, saturation, Winograd in integers), a center tap,
an identity or a border in the wrong place, a rounding other than to the nearest, and memory that layers share.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from llvmlite import binding as llvm
from llvmlite import ir

import repvgg_zoo
from repvgg_zoo.errors import StateError
from repvgg_zoo.inference.call_args import tile_columns
from repvgg_zoo.inference.jit.engine import select_integer_dot
from repvgg_zoo.inference.jit.integer_dot import DOT_PRODUCTS
from repvgg_zoo.inference.jit.integer_kernels import add_integer_kernels
from repvgg_zoo.inference.jit.integer_winograd import INTEGER_F2, INTEGER_F4
from repvgg_zoo.inference.jit.kernels import AVX2, AVX512
from repvgg_zoo.inference.kernel_runner import KernelRunner
from repvgg_zoo.inference.quantized import QuantizedConvLayer, QuantizedWeights, integer_layer
from repvgg_zoo.inference.quantized_lowering import exact_transforms, lower_quantized
from repvgg_zoo.registry.architecture import block_specs
from tests.inference.quantized_reference import STEP, exact_output, quantized_weights
from tests.inference.reference import Layer, images

from .plans import ALGORITHMS, AMX, CONFIG, S16, U8, check, lowered

# Every kind of layer, and every change between float and quantized ones.
LAYERS = [
    Layer(24, stride=2),
    Layer(24),
    Layer(32),
    Layer(32, groups=2),
    Layer(32, groups=2, se="before"),
    Layer(48, feature=True),
    Layer(48, se="after"),
    Layer(48),
    Layer(48),
    Layer(16, stride=2),
    Layer(20, groups=4),
]
NETWORKS = {
    "every kind of layer": (3, LAYERS, {"classes": 10, "stay_float": (0, 7)}),
    "images of one channel": (1, [Layer(16), Layer(16), Layer(40)], {}),
    "dilated": (3, [Layer(16, stride=2), Layer(16), Layer(32, groups=2), Layer(32)], {"dilation": 3}),
    "narrow groups": (3, [Layer(16, stride=2), Layer(16, groups=4), Layer(24, groups=2), Layer(8)], {"classes": 3}),
}
SHAPES = [(3, 22, 26), (1, 1, 1), (2, 9, 33)]


def check_layers_exactly(plan, weights, threads):
    """Run a plan layer by layer, and compare each quantized one with its definition."""
    runner = KernelRunner(plan, threads)
    done = 0
    for index, (calls, layer) in enumerate(zip(plan.layers, weights.layers)):
        x = images(*plan.input_shape)
        runner.run_calls(x, done, calls.conv_stop)
        done = calls.conv_stop
        if isinstance(layer, QuantizedConvLayer):
            y = exact_output(layer, calls.x.interior)
            y = np.maximum(y, 0) if layer.se is None or layer.se.after_relu else y
            result = calls.out.interior
            if result.dtype != np.float32:
                y /= weights.layers[index + 1].input_scale
                # The epilogue is computed in float32, so a half may be rounded either way.
                assert (np.abs(result - np.minimum(y, 255)) < 0.5 + 1e-3).all(), f"layer {index}"
                assert 0 < result.max() <= 255
            else:
                assert np.abs(result - y).max() <= 1e-6 * np.abs(y).max(), f"layer {index}"
    runner.run_calls(x, done, len(plan.calls))
    runner.close()
    return {name: output.copy() for name, output in plan.outputs.items()}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_layer_is_its_definition_with_one_thread_and_with_two(algorithm, kind, shape):
    channels, layers, options = NETWORKS[kind]
    weights = quantized_weights(channels, layers, **options)
    shape = (shape[0], channels, *shape[1:])
    one, two = (check_layers_exactly(lowered(algorithm, weights, shape), weights, threads) for threads in (1, 2))
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_each_algorithm_is_used_where_it_is_asked_for():
    channels, layers, options = NETWORKS["every kind of layer"]
    weights = quantized_weights(channels, layers, **options)
    direct = {"amx": "conv_u8_amx", "u8": "conv_u8"}
    for algorithm, kernel in {
        **direct,
        "igemm": "conv_s16",
        "F2": "output_transform_s16_2",
        "F4": "output_transform_s16_4",
    }.items():
        plan = lowered(algorithm, weights, (1, 3, 16, 16))
        used = [{call.kernel for call in plan.calls[layer.start : layer.conv_stop]} for layer in plan.layers]
        for layer, kernels in zip(weights.layers, used):
            if isinstance(layer, QuantizedConvLayer):
                at_stride_2 = {**direct, "F2": "output_transform_s16_2s2"}.get(algorithm, "conv_s16")
                assert (kernel if layer.stride == 1 else at_stride_2) in kernels


@pytest.mark.parametrize("name", repvgg_zoo.list_models())
def test_every_variants_blocks_are_lowered_and_checked(name):
    """With few channels: depths, strides and groups are the variant's."""
    architecture = repvgg_zoo.model_info(name).architecture
    blocks = block_specs(architecture._replace(width_multiplier=(0.25, 0.25, 0.125, 0.125)))
    layers = [Layer(block.out_channels, block.stride, block.groups) for block in blocks]
    weights = quantized_weights(architecture.in_chans, layers, 5)
    shape = (1, architecture.in_chans, 40, 33)
    plan = lower_quantized(weights, shape, threads=2, config=CONFIG)
    assert check(plan, weights) < 1e-5


# Values at the limits ---------------------------------------------------------------------------------------------


def extreme(channels, weight, shift):
    """A network whose stem returns 255 steps everywhere, and a block whose weights are all the same."""
    weights = quantized_weights(3, [Layer(channels), Layer(32)])
    stem = replace(weights.layers[0], bias=np.full(channels, 1000, np.float32))
    block = replace(
        weights.layers[1],
        kernel=np.full((1, 32, channels, 3, 3), weight, np.int8),
        center_shift=np.full(32, shift, np.uint8),
        kernel_scale=np.full(32, 1e-6, np.float32),
        bias=np.full(32, 100, np.float32),  # so that negative sums are seen behind ReLU
        identity=None,
    )
    return QuantizedWeights((stem, block), None)


@pytest.mark.parametrize("weight", [127, -127])
@pytest.mark.parametrize(
    ("channels", "shift", "offered"),
    [
        (64, 0, (INTEGER_F2, INTEGER_F4)),
        (128, 0, (INTEGER_F2,)),  # sums of 26 bits, of which F4 needs the 6 above
        (16, 5, (INTEGER_F2, INTEGER_F4)),
        (16, 6, (INTEGER_F2,)),  # transformed weights of 17 bits
        (16, 7, (INTEGER_F2,)),
        (480, 7, ()),
    ],
)
def test_the_largest_sums_are_exact_with_every_transform_that_is_offered(channels, shift, offered, weight):
    weights = extreme(channels, weight, shift)
    assert exact_transforms(weights.layers[1]) == offered
    for algorithm, transforms in ALGORITHMS.items():
        if transforms and transforms[1] not in offered:
            continue
        plan = lowered(algorithm, weights, (1, 3, 9, 9))
        runner = KernelRunner(plan, 2)
        runner.run_calls(images(1, 3, 9, 9), 0, len(plan.calls))
        runner.close()
        assert (plan.layers[1].x.interior == 255).all()
        expected = np.maximum(exact_output(weights.layers[1], plan.layers[1].x.interior), 0)
        result = plan.layers[1].out.interior
        assert np.abs(result - expected).max() <= 1e-6 * np.abs(expected).max(), algorithm


def test_values_between_two_steps_go_to_the_even_one_and_negative_ones_to_zero():
    weights = quantized_weights(3, [Layer(16), Layer(16)])
    halves = np.arange(-4, 12, dtype=np.float32) / 2
    stem = replace(weights.layers[0], kernel=np.zeros((1, 16, 3, 3, 3), np.float32), bias=halves)
    block = replace(weights.layers[1], input_scale=1.0)
    plan = lowered("igemm", QuantizedWeights((stem, block), None), (1, 3, 2, 2))
    runner = KernelRunner(plan, 1)
    runner.run_calls(images(1, 3, 2, 2), 0, len(plan.calls))
    runner.close()
    assert plan.layers[1].x.interior[0, 0, 0].tolist() == np.maximum(np.rint(halves), 0).tolist()


def test_a_layers_float_convolution_is_its_definition():
    weights = quantized_weights(3, [Layer(16), Layer(16), Layer(32, groups=2)])
    for layer, following in zip(weights.layers[1:], [*weights.layers[2:], None]):
        x = np.random.RandomState(0).randint(0, 256, (1, 5, 6, 16))
        scale = 1.0 if following is None else STEP
        as_float = integer_layer(layer, scale)
        flat = replace(
            layer,
            kernel=np.zeros_like(layer.kernel),
            bias=np.zeros_like(layer.bias),
            identity=None,
        )
        assert np.abs(exact_output(flat, x)).max() == 0
        y = exact_output(layer, x) / scale
        padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
        wide, deep = as_float.kernel.shape[1:3]
        for group, kernel in enumerate(as_float.kernel):
            pixels = padded[0, 1:4, 2:5, group * deep : (group + 1) * deep]
            sums = np.einsum("oikl,kli->o", kernel, pixels) + as_float.bias[group * wide : (group + 1) * wide]
            assert np.allclose(sums, y[0, 1, 2, group * wide : (group + 1) * wide])


def test_weights_that_do_not_fit_are_refused():
    weights = quantized_weights(3, [Layer(16), Layer(16)])
    with pytest.raises(StateError):
        lowered("igemm", weights, (1, 4, 8, 8))
    with pytest.raises(StateError):
        lowered("igemm", replace(weights, layers=weights.layers[1:]), (1, 16, 8, 8))


# Instructions -----------------------------------------------------------------------------------------------------


def test_every_processor_gets_the_same_numbers():
    """The instruction that this one has, and what all others get."""
    weights = quantized_weights(3, [Layer(16, stride=2), Layer(32), Layer(32)], classes=4)
    results = []
    for config in (S16, U8, AMX, *(replace(CONFIG, integer_dot=f"plain_{kind}") for kind in ("s16", "u8", "tiles"))):
        plan = lower_quantized(weights, (1, 3, 16, 16), threads=1, config=config)
        runner = KernelRunner(plan, 1)
        results.append(runner(images(1, 3, 16, 16))[0])
        runner.close()
    assert all(np.array_equal(results[0], result) for result in results[1:])


@pytest.mark.parametrize("width", [1, 7, 14, 16, 17, 33, 48, 57])
def test_amx_tiles_cover_a_row_of_any_width(width):
    columns = tile_columns(width)
    assert set(columns.ravel()) == set(range(width))
    assert columns.shape[1] <= 16
    assert len(columns) == -(-width // 16)


@pytest.mark.skipif("x86_64" not in llvm.get_default_triple(), reason="LLVM of another processor")
def test_the_amx_microkernel_keeps_its_sums_in_tiles():
    source = ir.Module()
    add_integer_kernels(source, replace(AVX512, integer_dot="tdpbusd"))
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(str(source))
    target = llvm.Target.from_default_triple().create_target_machine(cpu="sapphirerapids", opt=3)
    microkernel = target.emit_assembly(module).split("igemm_amx_2x2:")[1].split("retq")[0]
    loops = [block for block in re.split(r"\n\.LBB[^\n]*", microkernel) if "tdpbusd" in block]
    assert loops
    for loop in loops:
        assert len(re.findall("tdpbusd", loop)) == len(re.findall("tileloadd", loop)) == 4
        assert "tilestored" not in loop


@pytest.mark.parametrize(
    ("features", "vector_width", "allowed", "expected"),
    [
        ({"avx512bw", "avx512vnni", "amx-int8"}, 16, True, "tdpbusd"),
        ({"avx512bw", "avx512vnni", "amx-int8"}, 16, False, "vpdpbusd"),  # an old kernel, or one that refuses
        ({"avx512bw", "avx512vnni"}, 16, True, "vpdpbusd"),
        ({"avx512bw"}, 16, True, "pmaddwd"),
        ({"avx2", "avxvnni"}, 8, True, "vpdpbusd"),
        ({"avx2"}, 8, True, "pmaddwd"),
        ({"neon"}, 8, True, "plain_s16"),
    ],
)
def test_the_best_instruction_that_a_processor_has_is_used(features, vector_width, allowed, expected):
    assert select_integer_dot(features, vector_width, lambda: allowed) == expected


PROCESSORS = {
    "skylake-avx512": (replace(AVX512, integer_dot="pmaddwd"), r"vpmaddwd\t.*%zmm"),
    "cascadelake": (replace(AVX512, integer_dot="vpdpbusd"), r"vpdpbusd\t.*%zmm"),
    "alderlake": (replace(AVX2, integer_dot="vpdpbusd"), r"vpdpbusd\t.*%ymm"),
    "haswell": (replace(AVX2, integer_dot="pmaddwd"), r"vpmaddwd\t.*%ymm"),
}


@pytest.mark.skipif("x86_64" not in llvm.get_default_triple(), reason="LLVM of another processor")
@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_innermost_loop_uses_the_processors_instruction_and_keeps_its_sums_in_registers(processor):
    config, instruction = PROCESSORS[processor]
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    source = ir.Module()
    add_integer_kernels(source, config)
    module = llvm.parse_assembly(str(source))
    target = llvm.Target.from_default_triple().create_target_machine(cpu=processor, opt=3)
    text = target.emit_assembly(module)
    activation = DOT_PRODUCTS[config.integer_dot].activation
    microkernel = text.split(f"igemm_{activation}_{config.mr}x{config.nr_panels}:")[1].split("retq")[0]
    assert re.search(instruction, microkernel)
    blocks = re.split(r"\n\.LBB[^\n]*", microkernel)
    innermost = max(blocks, key=lambda block: len(re.findall(r"vpmaddwd|vpdpbusd", block)))
    stores = re.findall(r"%[yz]mm\d+, -?\d*\(%r[sb]p\)", innermost)
    assert len(stores) <= 4  # of about 200 instructions; LLVM adds products up first if it may, and stores 20

"""ONNX graphs compute what the network does, whatever the network, its form, its input and its outputs.

The kind of fault: a structure or an option of our networks that the graph writes otherwise than it is. The operators
are evaluated in NumPy here; `./dev test-peers` runs the files in ONNX Runtime and OpenVINO.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from megengine import Tensor

import repvgg_zoo
from repvgg_zoo.errors import ArgumentError, CheckpointFormatError, EquivalenceError, FormError, StateError
from repvgg_zoo.exporters.checks import compare_outputs
from repvgg_zoo.exporters.graph import build_graph
from repvgg_zoo.exporters.onnx_file import IR_VERSION, MAX_FIELDS, OPSET, read_onnx, write_onnx
from repvgg_zoo.exporters.source import export_source
from repvgg_zoo.inference.simulation import simulate
from repvgg_zoo.models import RepVGG, RepVGGplus
from repvgg_zoo.registry.specs import SESpec

from ..networks import randomised
from . import onnx_reference

TINY = {"num_blocks": (1, 2, 3, 1), "width_multiplier": (0.25, 0.25, 0.25, 0.25), "num_classes": 5}
NETWORKS = {
    "plain": lambda: RepVGG(**TINY),
    "groups": lambda: RepVGG(**TINY, groups=4),
    "SE before ReLU": lambda: RepVGG(**TINY, se=SESpec("before_relu", 4)),
    "SE after ReLU": lambda: RepVGGplus(**TINY, se=SESpec("after_relu", 4)),
    "plus": lambda: RepVGGplus(**TINY),
    "without a head": lambda: RepVGG(**{**TINY, "num_classes": 0}),
    "feature maps": lambda: RepVGG(**TINY, features_only=True, out_indices=(1, 3)),
    "feature maps behind SE": lambda: RepVGGplus(**TINY, se=SESpec("after_relu", 4), features_only=True),
    "dilated": lambda: RepVGG(**TINY, features_only=True, output_stride=8),
    "two channels": lambda: RepVGG(**TINY, in_chans=2),
}
BOUND = 1e-5


def images(network, size=(32, 32), count=2):
    return np.random.RandomState(1).standard_normal((count, network.in_chans, *size)).astype(np.float32)


def graph_of(model, deploy=True, features_only=False, **options):
    source = export_source(model, deploy=deploy, features_only=features_only)
    return build_graph(source, **{"batch": None, "image_size": None, "uint8_input": None, "softmax": False, **options})


def close(actual, expected):
    return np.abs(actual - expected).max() <= BOUND * np.abs(expected).max()


@pytest.mark.parametrize("deploy", [True, False], ids=["deploy form", "train form"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_graph_computes_what_the_network_does(name, deploy):
    network = randomised(NETWORKS[name]())
    network.eval()
    graph = graph_of(network, deploy)
    for size in ((32, 32), (33, 47)):
        x = images(network, size)
        expected = network(Tensor(x))
        expected = expected if isinstance(expected, dict) else {graph.outputs[0].name: expected}
        actual = onnx_reference.run(graph, x)
        assert list(actual) == list(expected)
        assert all(close(actual[key], value.numpy()) for key, value in expected.items())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_shapes_of_fixed_sizes_are_those_of_the_outputs(name):
    network = NETWORKS[name]()
    graph = graph_of(network, batch=2, image_size=(33, 47))
    outputs = onnx_reference.run(graph, images(network, (33, 47)))
    assert [output.shape for output in graph.outputs] == [value.shape for value in outputs.values()]
    assert graph.inputs[0].shape == (2, network.in_chans, 33, 47)


def test_the_eps_of_a_train_form_are_those_of_its_layers():
    network = randomised(RepVGG(**TINY))
    network.eval()
    for index, part in enumerate(part for part in network.modules() if hasattr(part, "running_var")):
        part.eps = 1e-3 * (index + 1)
    x = images(network)
    assert close(onnx_reference.run(graph_of(network, deploy=False), x)["logits"], network(Tensor(x)).numpy())


def test_weights_have_the_keys_of_the_state_dict():
    network = RepVGG(**TINY, groups=2, se=SESpec("before_relu", 4))
    for deploy in (True, False):
        state_dict = (repvgg_zoo.to_deploy(network) if deploy else network).state_dict()
        initializers = graph_of(network, deploy).initializers
        assert set(initializers) == set(state_dict)
        assert all(np.array_equal(initializers[key].reshape(-1), state_dict[key].reshape(-1)) for key in state_dict)


@pytest.fixture(scope="module", params=["plain", "groups", "SE before ReLU", "SE after ReLU", "feature maps"])
def quantized(request):
    network = randomised(NETWORKS[request.param]())
    return repvgg_zoo.quantize(network, images(network, count=32), min_block_snr=0, min_snr=0)


def test_a_quantized_graph_computes_what_the_kernels_do(quantized):
    graph = graph_of(quantized)
    kinds = [node.op_type for node in graph.nodes]
    quantized_blocks = sum(hasattr(layer, "kernel_scale") for layer in quantized.weights.layers)
    assert kinds.count("QuantizeLinear") == quantized_blocks > 3
    x = images(quantized, count=2)
    with repvgg_zoo.compile(quantized, batch_size=2, image_size=32) as compiled:
        expected = compiled(x)
    expected = expected if isinstance(expected, dict) else {"logits": expected}
    actual = onnx_reference.run(graph, x)
    # Rounding in float32 moves few activations by one of their 255 steps.
    assert all(np.abs(actual[key] - value).max() <= np.abs(value).max() / 255 for key, value in expected.items())


def test_signed_activations_have_half_of_the_steps(quantized):
    graph = graph_of(quantized, signed=True)
    zeros = [array for key, array in graph.initializers.items() if key.endswith("input_zero_point")]
    assert zeros and all(zero.dtype == np.int8 and zero == 0 for zero in zeros)
    x = images(quantized, count=2)
    unsigned, signed = (onnx_reference.run(graph_of(quantized, signed=value), x) for value in (False, True))
    for key, value in unsigned.items():
        assert 0 < np.abs(signed[key] - value).max() <= 1e-1 * np.abs(value).max()


def test_the_file_of_a_quantized_network_is_exported_as_the_network(quantized, tmp_path):
    quantized.save(tmp_path / "int8.safetensors")
    for model, name in ((quantized, "one.onnx"), (tmp_path / "int8.safetensors", "two.onnx")):
        repvgg_zoo.export(model, tmp_path / name)
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    assert read_onnx(tmp_path / "one.onnx").metadata["precision"] == "int8"


# Names and files -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The bundled checkpoint, exported, and what it was exported to."""
    path = tmp_path_factory.mktemp("digits") / "n0.onnx"
    return path, repvgg_zoo.export("RepVGG_N0.digits", path)


def test_a_file_says_what_is_known_of_its_network(digits):
    path, report = digits
    summary = read_onnx(path)
    spec = repvgg_zoo.model_info("RepVGG_N0").checkpoint("digits")
    assert (summary.ir_version, summary.opset) == (IR_VERSION, OPSET) == (8, 17)
    assert summary.inputs == report.inputs == (("input", "float32", ("batch", 1, 32, 32)),)
    assert summary.outputs == report.outputs == (("logits", "float32", ("batch", 10)),)
    entries = summary.metadata
    assert (entries["variant"], entries["checkpoint"]) == ("RepVGG_N0", spec.name)
    assert (entries["license"], entries["top1"]) == (spec.license, str(spec.top1))
    assert entries["class_names"] == '["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]'
    assert entries["Image.BitmapPixelFormat"] == "Gray8"
    assert report.size == path.stat().st_size < 900_000
    assert report.checks[0] == ("read again", None, "structure and weights are equal")


def test_the_same_network_gives_the_same_bytes(digits, tmp_path):
    repvgg_zoo.export("RepVGG_N0.digits", tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == digits[0].read_bytes()


def test_a_name_its_file_its_arrays_and_its_network_are_the_same_graph():
    file = repvgg_zoo.fetch("RepVGG_N0.digits")
    checkpoint = repvgg_zoo.load_checkpoint(file)
    network = repvgg_zoo.create("RepVGG_N0", pretrained="digits")
    expected = graph_of("RepVGG_N0.digits")
    for model in (file, checkpoint, checkpoint.arrays, network):
        graph = graph_of(model)
        assert (graph.nodes, graph.inputs, graph.outputs) == (expected.nodes, expected.inputs, expected.outputs)
        assert all(np.array_equal(graph.initializers[key], array) for key, array in expected.initializers.items())


def test_feature_maps_of_a_name_are_those_of_the_network():
    network = repvgg_zoo.create("RepVGG_N0", pretrained="digits", features_only=True)
    x = images(network)
    actual = onnx_reference.run(graph_of("RepVGG_N0.digits", features_only=True), x)
    expected = network(Tensor(x))
    assert list(actual) == list(expected)
    assert all(close(actual[key], value.numpy()) for key, value in expected.items())


@pytest.mark.parametrize("name", ["RepVGG_N0.digits", "RepVGG_A0.official", "RepVGG_A0.basecls"])
def test_pixels_are_normalized_bit_for_bit_as_preprocess_does_it(name):
    preprocessing = repvgg_zoo.model_info(name.partition(".")[0]).checkpoint(name.partition(".")[2]).preprocessing
    channels = len(preprocessing.mean)
    network = RepVGG(**TINY, in_chans=channels)
    size = preprocessing.image_size
    pixels = np.random.RandomState(0).randint(0, 256, (size, size, channels)).astype(np.uint8)
    graph = graph_of(network, image_size=(size, size), uint8_input=preprocessing)
    assert graph.inputs[0] == ("input", "uint8", ("batch", size, size, channels))
    graph.outputs = [graph.outputs[0]._replace(name="preprocessing.transposed")]
    actual = onnx_reference.run(graph, pixels[None])["preprocessing.transposed"]
    from repvgg_zoo.image.preprocess import preprocess_image

    # An image of the network's own size is neither resized nor cropped.
    exact = preprocessing._replace(resize=size)
    assert np.array_equal(actual[0], preprocess_image(pixels if channels > 1 else pixels[:, :, 0], exact))


def test_probabilities_sum_to_one():
    network = RepVGG(**TINY)
    outputs = onnx_reference.run(graph_of(network, softmax=True), images(network))
    assert np.allclose(outputs["probabilities"].sum(axis=1), 1)


def test_a_file_of_more_than_2_gib_is_refused_before_anything_is_written():
    graph = graph_of(RepVGG(**TINY))
    graph.initializers["linear.weight"] = np.broadcast_to(np.float32(0), (1 << 15, 1 << 14))  # takes no memory
    with pytest.raises(ArgumentError, match="at most 2147483647") as caught:
        write_onnx(None, graph, producer_version="0", metadata={}, doc="")
    assert caught.value.actual > 1 << 31


# What cannot be exported ---------------------------------------------------------------------------------------


def replaced_head():
    network = RepVGG(**TINY)
    network.stage4[0] = repvgg_zoo.models.SEBlock(64, 16)
    return network


def hooked():
    network = RepVGG(**TINY)
    network.stage1.register_forward_hook(lambda module, inputs, outputs: outputs)
    return network


def quantized_digits():
    images = [np.random.RandomState(seed).randint(0, 256, (8, 8)).astype(np.uint8) for seed in range(32)]
    return repvgg_zoo.quantize("RepVGG_N0.digits", images, min_block_snr=0, min_snr=0)


REFUSED = {
    "another module in a stage": (replaced_head, {}, ArgumentError, "stage4.0.down is another Conv2d"),
    "a hook": (hooked, {}, ArgumentError, "as repvgg_zoo builds them"),
    "the train form of a deploy form": (lambda: RepVGG(**TINY, deploy=True), {"deploy": False}, FormError, "deploy"),
    "softmax without a head": (lambda: RepVGG(**{**TINY, "num_classes": 0}), {"softmax": True}, ArgumentError, "head"),
    "pixels of an unknown preprocessing": (lambda: RepVGG(**TINY), {"input": "uint8"}, ArgumentError, "preprocessing"),
    "an unknown image size": (lambda: RepVGG(**TINY), {"image_size": None}, ArgumentError, "image_size is needed"),
    "the train form of a quantized network": (quantized_digits, {"deploy": False}, ArgumentError, "deploy=False"),
    "a quantized network for MegEngine": (quantized_digits, {"path": "x.mge"}, ArgumentError, "QuantizedNetwork"),
    "a file of another variant": (
        lambda: {**repvgg_zoo.load_checkpoint(repvgg_zoo.fetch("RepVGG_N0")).arrays, "linear.bias": np.zeros(3)},
        {},
        StateError,
        "linear.bias",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(case, tmp_path):
    make, options, error, text = REFUSED[case]
    with pytest.raises(error, match=text) as caught:
        repvgg_zoo.export(make(), **{"path": tmp_path / "x.onnx", "image_size": 32, **options})
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


# Reading files of anybody --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_file_is_refused_or_read_within_bounds(digits, tmp_path, seed):
    random = np.random.RandomState(seed)
    data = bytearray(digits[0].read_bytes())
    head = 30_000  # where the structure is
    for _ in range(random.randint(1, 4)):
        data[random.randint(head) if random.rand() < 0.7 else -random.randint(1, 4000)] = random.randint(256)
    if random.rand() < 0.2:
        del data[random.randint(len(data)) :]
    (tmp_path / "bent.onnx").write_bytes(data)
    with suppress(CheckpointFormatError):
        assert len(read_onnx(tmp_path / "bent.onnx").nodes) <= MAX_FIELDS


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"\xff" * 100, b"\x08\x08", b"\x3a\x80\x80\x80\x80\x08", b"\x08\x08\x3a\x02\x0a\x7f", b"\x0b"]
)
def test_what_is_not_onnx_is_refused(tmp_path, data):
    (tmp_path / "x.onnx").write_bytes(data)
    with pytest.raises(CheckpointFormatError, match="not a valid ONNX file"):
        read_onnx(tmp_path / "x.onnx")


def test_a_file_of_more_fields_than_any_real_one_has_is_refused(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"\x08\x08" * (MAX_FIELDS + 1))
    with pytest.raises(CheckpointFormatError, match="fields"):
        read_onnx(tmp_path / "x.onnx")


# What runtimes compute -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "is_refused"), [(9e-6, False), (1.1e-5, True), (float("nan"), True)])
def test_outputs_that_differ_by_more_than_the_bound_are_refused(error, is_refused):
    expected = {"stage1": np.array([1.0, -2.0]), "stage2": np.array([4.0])}
    outputs = {"stage1": np.array([1.0, -2.0 * (1 + error)]), "stage2": np.array([4.0])}
    if not is_refused:
        check = compare_outputs("ONNX Runtime", outputs, expected, 1e-5, "a hint")
        assert check.error == pytest.approx(error)
        return
    with pytest.raises(EquivalenceError, match="ONNX Runtime's outputs differ") as caught:
        compare_outputs("ONNX Runtime", outputs, expected, 1e-5, "a hint")
    assert caught.value.hint == "a hint"


def test_simulated_steps_are_those_of_the_signed_file(quantized):
    x = images(quantized, count=2)
    expected = onnx_reference.run(graph_of(quantized, signed=True), x)
    actual = simulate(quantized.weights, x, threads=1, steps=127)
    for name, value in expected.items():
        key = name if quantized.weights.returns_features else ""
        assert np.abs(actual[key] - value).max() <= np.abs(value).max() / 127

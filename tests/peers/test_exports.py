"""Exported networks of every kind compute in other runtimes what they do here (`./dev test-peers`).

The newest ONNX Runtime and OpenVINO, and the ONNX Runtimes of older Pythons that REPVGG_ZOO_ONNXRUNTIMES names, with
two sizes of images in batches of one, two and three. test_networks.py has the published variants.
"""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Callable, Dict, NamedTuple

import numpy as np
import pytest
from megengine import Tensor
from processes import ROOT, answer, peer

import repvgg_zoo
from repvgg_zoo.models import RepVGG, RepVGGplus
from repvgg_zoo.registry.specs import SESpec
from tests.networks import randomised

TINY = {"num_blocks": (1, 2, 3, 1), "width_multiplier": (0.25, 0.25, 0.25, 0.25), "num_classes": 5}
SIZES = ((32, 32), (45, 70))
BOUND = 1e-5
STEP = 1 / 255  # of an activation in int8
PIXELS = np.random.RandomState(0).randint(0, 256, (32, 32, 32, 1)).astype(np.uint8)  # of the network's own size


class Case(NamedTuple):
    """A network, and the arguments that it is exported with."""

    network: Callable[[], Any]
    options: Dict[str, Any] = {}


CASES = {
    "plain": Case(lambda: RepVGG(**TINY)),
    "groups": Case(lambda: RepVGG(**TINY, groups=4)),
    "the train form": Case(lambda: RepVGG(**TINY, groups=2), {"deploy": False}),
    "SE before ReLU": Case(lambda: RepVGG(**TINY, se=SESpec("before_relu", 4))),
    "SE after ReLU, the train form": Case(lambda: RepVGGplus(**TINY, se=SESpec("after_relu", 4)), {"deploy": False}),
    "feature maps": Case(lambda: RepVGG(**TINY, features_only=True, out_indices=(1, 3))),
    "feature maps of a network with a head": Case(lambda: RepVGG(**TINY), {"features_only": True}),
    "feature maps, dilated": Case(lambda: RepVGG(**TINY, features_only=True, output_stride=8)),
    "pooled features": Case(lambda: RepVGG(**{**TINY, "num_classes": 0})),
    "two channels": Case(lambda: RepVGG(**TINY, in_chans=2)),
}


@pytest.fixture(scope="module")
def newest():
    with peer("run_exports.py") as process:
        yield process


@pytest.fixture(scope="module")
def older():
    """A process for each of the interpreters that have an older ONNX Runtime."""
    with ExitStack() as stack:
        pythons = os.environ.get("REPVGG_ZOO_ONNXRUNTIMES", "").split()
        yield [stack.enter_context(peer("run_onnxruntime.py", python=python)) for python in pythons]


@pytest.fixture
def errors_of(newest, older, tmp_path):
    """A function that runs x.onnx in all runtimes; for each size of images it takes them and the outputs by name."""

    def errors(*data: Any) -> Dict[str, float]:
        for index, (images, outputs) in enumerate(data):
            np.savez(tmp_path / f"{index}.npz", image=images, **outputs)
        request = {
            "model": tmp_path / "x.onnx",
            "data": [tmp_path / f"{index}.npz" for index in range(len(data))],
            "outputs": {name: name for name in data[0][1]},
        }
        errors = {check: error for process in (newest, *older) for check, error in answer(process, request).items()}
        assert len(errors) == 3 * (2 + len(older)) * len(data)
        return errors

    return errors


def random_images(channels, size):
    return np.random.RandomState(1).standard_normal((2, channels, *size)).astype(np.float32)


def by_name(outputs, name):
    return outputs if isinstance(outputs, dict) else {name: outputs}


@pytest.mark.parametrize("name", CASES)
def test_a_network_of_this_kind_gives_the_same_outputs(name, errors_of, tmp_path):
    network = randomised(CASES[name].network())
    network.eval()
    report = repvgg_zoo.export(network, tmp_path / "x.onnx", image_size="dynamic", **CASES[name].options)
    run = network.extract_features if "features_only" in CASES[name].options else network
    data = []
    for size in SIZES:
        images = random_images(network.in_chans, size)
        outputs = by_name(run(Tensor(images)), report.outputs[0].name)
        data.append((images, {key: value.numpy() for key, value in outputs.items()}))
    errors = errors_of(*data)
    assert max(errors.values()) <= BOUND, errors


@pytest.mark.parametrize("softmax", [False, True])
def test_pixels_are_preprocessed_in_the_model(softmax, errors_of, tmp_path):
    repvgg_zoo.export("RepVGG_N0.digits", tmp_path / "x.onnx", input="uint8", softmax=softmax)
    preprocess = repvgg_zoo.preprocess("RepVGG_N0.digits")
    with repvgg_zoo.compile("RepVGG_N0.digits") as compiled:
        logits = compiled(np.stack([preprocess(image[..., 0]) for image in PIXELS[:2]]))
    powers = np.exp(logits)
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    errors = errors_of((PIXELS[:2], {"probabilities": probabilities} if softmax else {"logits": logits}))
    assert max(errors.values()) <= BOUND, errors


QUANTIZED = {
    "the digits": lambda: "RepVGG_N0.digits",
    "groups": lambda: randomised(RepVGG(**{**TINY, "in_chans": 1}, groups=4)),
    "SE": lambda: randomised(RepVGG(**{**TINY, "in_chans": 1}, se=SESpec("before_relu", 4))),
    "feature maps": lambda: randomised(RepVGG(**{**TINY, "in_chans": 1}, features_only=True)),
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_quantized_network_gives_the_same_outputs_within_one_step(name, errors_of, tmp_path, capsys):
    images = random_images(1, (32, 32))
    quantized = repvgg_zoo.quantize(QUANTIZED[name](), np.repeat(images, 8, axis=0), min_snr=0, min_block_snr=0)
    repvgg_zoo.export(quantized, tmp_path / "x.onnx")
    with repvgg_zoo.compile(quantized) as compiled:
        errors = errors_of((images, by_name(compiled(images), "logits")))
    with capsys.disabled():
        print(f"\n  int8, {name}: relative error {max(errors.values()):.1e}", end="")
    assert max(errors.values()) <= STEP, errors


@pytest.mark.parametrize("options", [{}, {"deploy": False}, {"features_only": True}], ids=str)
def test_ncnn_computes_the_same_from_its_converters_file(options, newest, tmp_path):
    repvgg_zoo.export("RepVGG_N0.digits", tmp_path / "x.onnx", **options)
    network = repvgg_zoo.create("RepVGG_N0", pretrained=True, features_only="features_only" in options)
    images = random_images(1, (32, 32))[:1]
    outputs = by_name(network(Tensor(images)), "logits")
    np.savez(tmp_path / "data.npz", image=images, **{name: value.numpy() for name, value in outputs.items()})
    errors = answer(newest, {"ncnn": tmp_path / "x.onnx", "data": tmp_path / "data.npz", "outputs": list(outputs)})
    assert max(errors) <= BOUND, errors


# What the export itself checks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"input": "uint8"}, {"deploy": False}, {"features_only": True}, {"batch": 3, "image_size": (40, 64)}],
    ids=str,
)
def test_an_export_is_compared_in_the_runtimes_that_are_installed(options, newest, tmp_path):
    checks = answer(newest, {"export": {"model": "RepVGG_N0.digits", "path": tmp_path / "x.onnx", **options}})
    assert [name for name, _, _ in checks] == ["read again", "ONNX Runtime", "OpenVINO"]
    assert all(error <= BOUND for _, error, _ in checks[1:])


@pytest.fixture(scope="module")
def quantized_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("int8") / "int8.safetensors"
    repvgg_zoo.quantize("RepVGG_N0.digits", list(PIXELS[..., 0]), min_snr=0, min_block_snr=0).save(path)
    return path


@pytest.mark.parametrize("target", [None, "tensorrt"])
def test_a_quantized_export_is_compared_with_the_steps_that_the_file_has(target, quantized_file, newest, tmp_path):
    checks = answer(newest, {"export": {"model": quantized_file, "path": tmp_path / "x.onnx", "target": target}})
    assert [name for name, _, _ in checks] == ["read again", "ONNX Runtime", "OpenVINO"]
    assert all(error <= STEP for _, error, _ in checks[1:])


def test_an_export_that_a_runtime_computes_otherwise_is_refused_and_not_written(newest, tmp_path):
    """Sums that cancel out: their order, which is the runtime's, decides what is left."""
    arrays = dict(repvgg_zoo.create("RepVGG_N0.digits", pretrained=True, deploy=True).state_dict())
    order = np.random.RandomState(0).permutation(64)
    last = "stage4.0.rbr_reparam"
    for key in (f"{last}.weight", f"{last}.bias"):
        channels = 1 if key.endswith("bias") else 0
        halves = np.split(arrays[key], 2, axis=channels)
        arrays[key] = np.concatenate([halves[0], np.take(halves[0], order, axis=channels)], axis=channels)
    arrays["linear.weight"] = np.repeat(np.repeat([[1e4, -1e4]], 64, axis=1), 10, axis=0).astype(np.float32)
    repvgg_zoo.save_checkpoint(tmp_path / "cancels.safetensors", arrays)
    answers = answer(
        newest, {"export": {"model": tmp_path / "cancels.safetensors", "path": tmp_path / "x.onnx", "image_size": 32}}
    )
    assert answers[0] == "EquivalenceError" and "nothing was written" in answers[1] and answers[2], answers
    assert [path.name for path in tmp_path.iterdir()] == ["cancels.safetensors"]


# ncnn's logits have no batch axis.
@pytest.mark.parametrize(("package", "shape"), [("onnxruntime", (4, 10)), ("openvino", (4, 10)), ("ncnn", (10,))])
def test_the_guides_example_runs(package, shape, tmp_path):
    repvgg_zoo.export("RepVGG_N0.digits", tmp_path / "n0.onnx")
    text = (ROOT / "docs" / "guides" / "deploying.md").read_text(encoding="utf-8")
    (example,) = re.findall(rf'<!-- skip: next "needs {package}[^"]*" -->\n\n```python\n(.*?)```', text, re.DOTALL)
    code = f"import numpy as np\n{example}assert np.shape(logits) == {shape}"
    python = Path(os.environ["REPVGG_ZOO_BENCH_PYTHON"])
    environ = {**os.environ, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}  # with pnnx
    subprocess.run([python, "-c", code], cwd=tmp_path, env=environ, check=True)

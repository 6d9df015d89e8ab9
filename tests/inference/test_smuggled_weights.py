"""compile by name: a file with a right digest whose arrays are not those of its variant ends in an error."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from megengine import Tensor
from safetensors.numpy import save_file

import repvgg_zoo
from repvgg_zoo.errors import LayoutError, StateError
from repvgg_zoo.registry.architecture import deploy_shapes
from tests.inference.test_ir import ARCHITECTURES, CHANGES

REGISTRY = """\
schema: 1
variants:
  test/RepVGG_T:
    family: test
    architecture: {architecture}
    params: {{train: 1, deploy: 1}}
    macs: {{train: 1, deploy: 1}}
    checkpoints:
      mine:
        file: {{name: t.safetensors, sources: [t.safetensors], sha256: "{sha256}"}}
        publisher: a test
        format: safetensors
        layout: canonical
        form: deploy
        num_classes: {num_classes}
        license: MIT
        preprocessing: {{image_size: 32, resize: 32, interpolation: bilinear, backend: pillow, color_order: RGB,
                        mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}}
        provenance: [a test]
"""
NAME = "test/RepVGG_T"
IMAGES = np.random.RandomState(0).standard_normal((1, 3, 32, 32)).astype(np.float32)


def yaml_of(architecture):
    fields = [
        f"num_blocks: {list(architecture.num_blocks)}",
        f"width_multiplier: {list(architecture.width_multiplier)}",
        f"groups: {architecture.groups}",
        f"builder: {architecture.builder}",
        f"num_classes: {architecture.num_classes}",
        "image_size: 32",
    ]
    if architecture.se is not None:
        fields.append(f"se: {{position: {architecture.se.position}, reduction: {architecture.se.reduction}}}")
    return f"{{{', '.join(fields)}}}"


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """A function that makes a state dict the checkpoint of a variant, in a registry and a cache of its own."""
    monkeypatch.setenv("REPVGG_ZOO_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("REPVGG_ZOO_REGISTRY", str(tmp_path / "zoo.yaml"))

    def write(architecture, state_dict):
        file = tmp_path / "t.safetensors"
        save_file({key: np.ascontiguousarray(array) for key, array in state_dict.items()}, file)
        fields = {
            "architecture": yaml_of(architecture),
            "num_classes": architecture.num_classes,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        (tmp_path / "zoo.yaml").write_text(REGISTRY.format(**fields))

    return write


def state_dict_of(architecture):
    random = np.random.RandomState(0)
    return {
        key: (random.standard_normal(shape) / np.prod(shape[1:]) ** 0.5).astype(np.float32)
        for key, shape in deploy_shapes(architecture).items()
    }


# What reading the file puts right: kernels of torch's shape, and branches beside the kernel that was made of them.
MENDED = ("4-D where 5-D is expected", "branches that were not fused")
# What create accepts: it leaves out parts that its network does not have, and takes the input channels of the file.
ACCEPTED_BY_CREATE = ("a block too many", "other input channels")


def publish_changed(publish, kind):
    name, change, _ = CHANGES[kind]
    state_dict = state_dict_of(ARCHITECTURES[name])
    change(state_dict)
    publish(ARCHITECTURES[name], state_dict)


@pytest.mark.parametrize("kind", [kind for kind in CHANGES if kind not in MENDED])
def test_a_file_that_does_not_hold_its_variant_is_refused(publish, kind):
    publish_changed(publish, kind)
    with pytest.raises((StateError, LayoutError)):
        repvgg_zoo.compile(NAME, threads=1)
    if kind not in ACCEPTED_BY_CREATE:
        with pytest.raises((StateError, LayoutError)):
            repvgg_zoo.create(NAME, pretrained=True, deploy=True)


@pytest.mark.parametrize("kind", MENDED)
def test_what_reading_a_file_puts_right_is_compiled(publish, kind):
    publish_changed(publish, kind)
    assert repvgg_zoo.compile(NAME, threads=1).backend == "kernels"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64], ids=lambda dtype: dtype.__name__)
def test_a_file_of_any_precision_is_cast_as_the_network_casts_it(publish, dtype):
    architecture = ARCHITECTURES["grouped"]
    publish(architecture, {key: array.astype(dtype) for key, array in state_dict_of(architecture).items()})
    expected = repvgg_zoo.create(NAME, pretrained=True, deploy=True)(Tensor(IMAGES)).numpy()
    compiled = repvgg_zoo.compile(NAME, threads=1)
    assert compiled.backend == "kernels"
    assert np.abs(compiled(IMAGES) - expected).max() < 1e-5 * np.abs(expected).max()

"""The file of a quantized network: it comes back bit by bit, and a file that is not whole is refused before it is used.

The kind of fault: a changed shape, dtype, key or number is read as another network, whose results are wrong without an
error, or fails in the middle with an error of Python's own.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Callable, Dict

import numpy as np
import pytest

import repvgg_zoo
from repvgg_zoo import QuantizedNetwork
from repvgg_zoo.checkpoints import CheckpointMetadata, load_checkpoint
from repvgg_zoo.checkpoints.formats import read_file
from repvgg_zoo.checkpoints.metadata import METADATA_KEY
from repvgg_zoo.checkpoints.save import write_safetensors
from repvgg_zoo.errors import ArgumentError, CheckpointFormatError, LayoutError, MissingFileError, StateError, ZooError
from repvgg_zoo.inference.quantize import quantize_weights
from repvgg_zoo.inference.quantized import QuantizedConvLayer
from tests.inference.reference import Layer, images, random_weights

NETWORKS = {
    "grouped": ([Layer(16, 2), Layer(16, groups=4), Layer(32, 2)], 10),
    "SE": ([Layer(16, 2, se="after"), Layer(16, se="before"), Layer(16, 2, se="after")], 10),
    "features": ([Layer(16, 2, feature=True), Layer(16, feature=True)], None),
}


def quantized(kind: str) -> QuantizedNetwork:
    layers, classes = NETWORKS[kind]
    x = images(8, 3, 16, 16)
    weights = random_weights(3, layers, classes)
    named = tuple(replace(layer, name=f"stage1.{index}") for index, layer in enumerate(weights.layers))
    weights, report = quantize_weights(replace(weights, layers=named), x[4:], x[:4], bits=8, goals=(20, 20), threads=1)
    return QuantizedNetwork(
        weights, report, image_size=(16, 16), spec=None, checkpoint=None, metadata=CheckpointMetadata()
    )


@pytest.fixture(scope="module")
def network() -> QuantizedNetwork:
    random = np.random.RandomState(0)
    return repvgg_zoo.quantize("RepVGG_N0", list(random.randint(0, 256, (16, 8, 8)).astype(np.uint8)), threads=1)


@pytest.fixture(scope="module")
def file(network: QuantizedNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantized") / "n0.safetensors"
    network.save(path)
    return path


def flatten(value: Any) -> list:
    """Every array and plain value of the weights, with dtypes and shapes."""
    if isinstance(value, np.ndarray):
        return [value.dtype, value.shape, value.tobytes()]
    if isinstance(value, tuple):
        return [part for item in value for part in flatten(item)]
    if hasattr(value, "__dataclass_fields__"):
        return [type(value), *(part for field in fields(value) for part in flatten(getattr(value, field.name)))]
    return [value]


# What comes back ---------------------------------------------------------------------------------------------


def test_a_published_checkpoint_comes_back_bit_by_bit_with_all_that_is_known(network, file):
    loaded = QuantizedNetwork.load(file)
    assert flatten(loaded.weights) == flatten(network.weights)
    assert loaded.report == network.report and loaded.image_size == (32, 32) and loaded.in_chans == 1
    assert loaded.metadata == network.metadata and loaded.spec.name == "RepVGG_N0" and repr(loaded) == repr(network)
    assert repvgg_zoo.preprocess(loaded).preprocessing == repvgg_zoo.preprocess("RepVGG_N0").preprocessing


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_kind_of_block_comes_back_bit_by_bit(kind, tmp_path):
    network = quantized(kind)
    network.save(tmp_path / "x.safetensors")
    loaded = QuantizedNetwork.load(tmp_path / "x.safetensors")
    assert flatten(loaded.weights) == flatten(network.weights)
    assert sum(isinstance(layer, QuantizedConvLayer) for layer in loaded.weights.layers) == len(NETWORKS[kind][0]) - 1


def test_the_file_is_a_quarter_of_the_float_one(file):
    floats = sum(array.size for array in load_checkpoint(repvgg_zoo.fetch("RepVGG_N0")).state_dict.values()) * 4
    assert file.stat().st_size < 0.28 * floats


# What is refused ---------------------------------------------------------------------------------------------

BLOCK = "stage2.1.rbr_reparam"


def rewrite(source: Path, target: Path, change: Callable[[Dict[str, Any], Dict[str, Any]], Any]) -> None:
    """Write the file again after ``change`` was called with its arrays and its text's values."""
    _, payload = read_file(source)
    text = json.loads(payload.pop(METADATA_KEY))
    arrays = {key: array.copy() for key, array in payload.items()}
    change(arrays, text)
    with target.open("wb") as stream:
        write_safetensors(stream, arrays, json.dumps(text))


def array(key: str, function: Callable[[np.ndarray], np.ndarray]) -> Callable[[Dict[str, Any], Dict[str, Any]], Any]:
    return lambda arrays, text: arrays.update({f"{BLOCK}.{key}": function(arrays[f"{BLOCK}.{key}"])})


def text(*path: Any, value: Any) -> Callable[[Dict[str, Any], Dict[str, Any]], Any]:
    def change(arrays: Dict[str, Any], values: Dict[str, Any]) -> None:
        target: Any = values["quantization"]
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value

    return change


FAULTS = {
    "a kernel of float32": (StateError, array("weight", lambda a: a.astype(np.float32))),
    "a kernel with a channel less": (StateError, array("weight", lambda a: a[:, 1:])),
    "a kernel of another rank": (StateError, array("weight", lambda a: a.reshape(-1))),
    "a kernel without axes": (StateError, array("weight", lambda a: a.reshape(-1)[0:1].reshape(()))),
    "a kernel value of -128": (StateError, array("weight", lambda a: np.full_like(a, -128))),
    "a scale that is infinite": (StateError, array("scale", lambda a: a * np.float32(np.inf))),
    "a scale of float16": (StateError, array("scale", lambda a: a.astype(np.float16))),
    "a bias of another length": (StateError, array("bias", lambda a: a[1:])),
    "a bias without axes": (StateError, array("bias", lambda a: a[0:1].reshape(()))),
    "a shift of 200": (StateError, array("center_shift", lambda a: a + np.uint8(200))),
    "an input scale of zero": (StateError, array("input_scale", lambda a: a * np.float32(0))),
    "several input scales": (StateError, array("input_scale", lambda a: np.array([a, a]))),
    "a missing kernel": (StateError, lambda arrays, text: arrays.pop(f"{BLOCK}.weight")),
    "a missing scale": (StateError, lambda arrays, text: arrays.pop(f"{BLOCK}.scale")),
    "a missing shift": (StateError, lambda arrays, text: arrays.pop(f"{BLOCK}.center_shift")),
    "a missing bias of the head": (StateError, lambda arrays, text: arrays.pop("linear.bias")),
    "a foreign array": (StateError, lambda arrays, text: arrays.update(other=np.zeros(3, np.float32))),
    "a block less": (
        (StateError, CheckpointFormatError),
        lambda arrays, text: (text["quantization"]["blocks"].pop(), text["quantization"]["report"]["blocks"].pop()),
    ),
    "no blocks": (CheckpointFormatError, text("blocks", value=[])),
    "blocks that are not a list": (CheckpointFormatError, text("blocks", value=5)),
    "a block that is not an object": (CheckpointFormatError, text("blocks", 0, value="stage0")),
    "a stride of zero": (CheckpointFormatError, text("blocks", 3, "stride", value=0)),
    "a stride of another type": (CheckpointFormatError, text("blocks", 3, "stride", value="2")),
    "a dilation of a million": (CheckpointFormatError, text("blocks", 3, "dilation", value=10**6)),
    "a name with an escape sequence": (CheckpointFormatError, text("blocks", 3, "name", value="\x1b[2J")),
    "a feature that is not text": (CheckpointFormatError, text("blocks", 3, "feature", value=[1])),
    "an image size of zero": (CheckpointFormatError, text("image_size", value=[0, 32])),
    "an image size of one number": (CheckpointFormatError, text("image_size", value=32)),
    "another version": (CheckpointFormatError, text("version", value=2)),
    "a report without blocks": (CheckpointFormatError, text("report", value={})),
    "a report with text as a number": (CheckpointFormatError, text("report", "snr", value="high")),
    "a report with a huge number": (CheckpointFormatError, text("report", "test_images", value=1e308)),
    "a report with a boolean": (CheckpointFormatError, text("report", "agreement", value=True)),
    "a report about other blocks": (CheckpointFormatError, text("report", "blocks", 0, 0, value="stage9")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_changed_file_is_refused(fault, file, tmp_path):
    error, change = FAULTS[fault]
    path = tmp_path / "changed.safetensors"
    rewrite(file, path, change)
    with pytest.raises(error) as caught:
        QuantizedNetwork.load(path)
    assert str(path) in str(caught.value) and "\x1b" not in str(caught.value)


def test_a_truncated_file_is_refused_wherever_it_ends(file, tmp_path):
    data, path = file.read_bytes(), tmp_path / "truncated.safetensors"
    for end in np.linspace(0, len(data) - 1, 40).astype(int):
        path.write_bytes(data[:end])
        with pytest.raises(CheckpointFormatError):
            QuantizedNetwork.load(path)


def test_random_damage_is_an_error_of_ours_or_another_valid_network(file, tmp_path):
    data, path, random = file.read_bytes(), tmp_path / "damaged.safetensors", np.random.RandomState(0)
    header = int.from_bytes(data[:8], "little") + 8
    for _ in range(60):
        damaged = bytearray(data)
        damaged[random.randint(header)] = random.randint(256)
        path.write_bytes(damaged)
        with suppress(ZooError):
            QuantizedNetwork.load(path)


def test_other_files_are_named_for_what_they_are(file, tmp_path):
    with pytest.raises(CheckpointFormatError, match="not a quantized network") as caught:
        QuantizedNetwork.load(repvgg_zoo.fetch("RepVGG_N0"))
    assert "quantize(name, images).save(path)" in caught.value.hint and not caught.value.damaged
    with pytest.raises(LayoutError, match="a quantized network, not a checkpoint") as refused:
        load_checkpoint(file)
    assert "QuantizedNetwork.load" in refused.value.hint
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointFormatError):
        QuantizedNetwork.load(tmp_path / "x.safetensors")
    with pytest.raises(MissingFileError):
        QuantizedNetwork.load(tmp_path / "missing.safetensors")


@pytest.mark.parametrize("name", ["n0.pkl", "n0", "missing/n0.safetensors", None, 5])
def test_a_file_is_written_whole_under_a_name_that_says_what_it_is_or_not_at_all(name, network, tmp_path):
    with pytest.raises(ArgumentError):
        network.save(tmp_path / name if isinstance(name, str) else name)
    assert list(tmp_path.iterdir()) == []

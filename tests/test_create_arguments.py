"""Each argument of create is right, or the error names it.

The kind of fault: a value of another type or range than the documented one is taken for something else, fails in the
middle of the work with an error of Python's own, or does something silently that nobody asked for.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from megengine import Tensor

import repvgg_zoo
from repvgg_zoo.checkpoints import load_checkpoint
from repvgg_zoo.errors import ArgumentError
from repvgg_zoo.registry.specs import SESpec

FILE = Path("mine.safetensors")
NOT_INTEGERS = [True, 2.0, 2.5, "5", [5], float("nan"), np.float32(3), object()]
INVALID = {
    "name": [None, 5, Path("RepVGG_N0"), b"RepVGG_N0", ["RepVGG_N0"]],
    "pretrained": [None, 2, 1.0, FILE, ["digits"], {"url": "https://x"}, b"digits"],
    "checkpoint": [5, ["x"], True, 2.5],
    "deploy": [None, 1, "yes", "False", []],
    "features_only": [None, 1, "yes"],
    "num_classes": [-1, *NOT_INTEGERS],
    "in_chans": [0, -3, *NOT_INTEGERS],
    "out_indices": [3, "12", {"a": 1}, (1.5,), ("1",), (-1,), (True,)],
    "progress": ["no", 2, 1],
    "num_blocks": [3, (1, 2, 4), (1, 2, 4, 1, 1), (1, 2, 4, 0), (1, 2, 4, 1.5), "1241", None, (1, 2, 4, True)],
    "width_multiplier": [
        1.0,
        (1, 1, 1),
        (1, 1, 1, 0),
        (1, 1, 1, -2),
        (1, 1, 1, float("nan")),
        (1, 1, 1, float("inf")),
        (1, 1, 1, 10**400),
        (1, 1, 1, "2"),
        None,
    ],
    "groups": [0, -2, *NOT_INTEGERS],
    "se": [True, "before_relu", ("before_relu", 16), SESpec("sideways", 16), SESpec("before_relu", 0)],
}


@pytest.mark.parametrize(("argument", "value"), [(name, value) for name, values in INVALID.items() for value in values])
def test_a_value_that_is_not_valid_is_named(argument, value):
    arguments = {"name": "RepVGG_N0", argument: value}
    if argument == "out_indices":
        arguments["features_only"] = True
    with pytest.raises(ArgumentError) as caught:
        repvgg_zoo.create(**arguments)
    assert argument in str(caught.value) or argument == "name"
    assert caught.value.hint


def test_a_file_passed_as_pretrained_points_to_checkpoint():
    with pytest.raises(ArgumentError, match="checkpoint="):
        repvgg_zoo.create("RepVGG_N0", pretrained=FILE)


@pytest.mark.parametrize(
    ("argument", "suggestion"),
    [("num_class", "num_classes"), ("pretrain", "pretrained"), ("group", "groups"), ("in_channels", "in_chans")],
)
def test_a_misspelled_argument_gets_the_closest_one(argument, suggestion):
    with pytest.raises(ArgumentError, match=f"no argument {argument}") as caught:
        repvgg_zoo.create("RepVGG_N0", **{argument: 1})
    assert str(caught.value.hint) == f"did you mean {suggestion}?"


def test_numpy_numbers_and_arrays_are_numbers_and_lists():
    network = repvgg_zoo.create(
        "RepVGG_N0",
        num_classes=np.int64(7),
        in_chans=np.uint8(2),
        deploy=np.bool_(True),
        num_blocks=np.array([1, 1, 2, 1]),
        width_multiplier=np.float32([0.25, 0.25, 0.25, 0.5]),
        groups=np.int32(2),
    )
    network.eval()
    assert tuple(network(Tensor(np.zeros((1, 2, 32, 32), np.float32))).shape) == (1, 7)
    assert type(network.num_classes) is int


@pytest.mark.parametrize("name", ["RepVGG_N0", "RepVGGplus_L2pse"])
@pytest.mark.parametrize("deploy", [False, True])
def test_no_classes_give_the_pooled_features(name, deploy):
    options = {"num_blocks": (1, 1, 2, 1), "width_multiplier": (0.25, 0.25, 0.25, 0.5), "in_chans": 1}
    network = repvgg_zoo.create(name, num_classes=0, deploy=deploy, **options)
    network.eval()
    assert network.num_classes == 0
    assert not [key for key in network.state_dict() if "linear" in key or "aux" in key]
    x = Tensor(np.random.RandomState(0).rand(2, 1, 32, 32).astype(np.float32))
    pooled = network(x).numpy()
    last = network.extract_features(x)["stage4"].numpy()
    assert pooled.shape == (2, 256)
    np.testing.assert_allclose(pooled, last.mean(axis=(2, 3)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("deploy", [False, True])
def test_pretrained_weights_load_without_a_head(deploy, caplog):
    network = repvgg_zoo.create("RepVGG_N0", pretrained=True, num_classes=0, deploy=deploy)
    whole = repvgg_zoo.create("RepVGG_N0", pretrained=True, deploy=deploy)
    x = Tensor(np.random.RandomState(0).rand(2, 1, 32, 32).astype(np.float32))
    pooled = network(x)
    np.testing.assert_allclose(whole.linear(pooled).numpy(), whole(x).numpy(), rtol=1e-4, atol=1e-5)
    assert not caplog.records


def test_a_network_without_a_head_is_compiled_to_the_same_features():
    network = repvgg_zoo.create("RepVGG_N0", pretrained=True, num_classes=0, deploy=True)
    x = np.random.RandomState(0).rand(1, 1, 32, 32).astype(np.float32)
    with repvgg_zoo.compile(network, image_size=32) as compiled:
        assert compiled.backend == "kernels"
        np.testing.assert_allclose(compiled(x), network(Tensor(x)).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["checkpoint", "arrays", "arrays of a network", "wrapped"])
def test_weights_in_memory_are_a_checkpoint(kind):
    path = repvgg_zoo.fetch("RepVGG_N0.digits")
    expected = repvgg_zoo.create("RepVGG_N0", checkpoint=path)
    checkpoint = {
        "checkpoint": lambda: load_checkpoint(path),
        "arrays": lambda: dict(load_checkpoint(path).state_dict),
        "arrays of a network": lambda: dict(expected.state_dict()),
        "wrapped": lambda: {"state_dict": dict(load_checkpoint(path).state_dict)},
    }[kind]()
    network = repvgg_zoo.create("RepVGG_N0", checkpoint=checkpoint)
    assert {key: array.tobytes() for key, array in network.state_dict().items()} == {
        key: array.tobytes() for key, array in expected.state_dict().items()
    }
    deployed = repvgg_zoo.create("RepVGG_N0", checkpoint=checkpoint, deploy=True)
    assert deployed.stage0.deploy

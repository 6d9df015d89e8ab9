"""Each argument of each public function is right, or the error names it: ``create`` has a module of its own.

The kind of fault: a value of another type than the documented one is taken for something else, or fails in the middle
of the work with an error of Python's own. The table has every argument; a new one without a row fails.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import megengine.module as M
import numpy as np
import pytest

import repvgg_zoo
from repvgg_zoo.checkpoints import load_checkpoint
from repvgg_zoo.errors import ArgumentError, FormError, LayoutError, RegistryError, UnknownModelError, ZooError

NOT_TEXT = [None, 5, b"RepVGG_N0", ["RepVGG_N0"], True]
NOT_PATHS = [None, 5, b"x.pkl", ["x.pkl"], True, 2.5]
NOT_MODULES = [None, 5, "RepVGG_N0", b"x", [], {}, object(), M.Linear(2, 2)]
NOT_FLAGS = [1, 0, "yes", [], 2.5]
NOT_NUMBERS = ["5", [5], float("nan"), True, object()]
NOT_POSITIVE = [0, -1, 2.5, "5", [5], True, float("nan")]
IMAGE = np.zeros((8, 8), np.uint8)

# Of each function: the arguments of a call that works, and values that are not valid for each argument.
TABLE = {
    "compare_forms": (
        {"model": lambda: repvgg_zoo.create("RepVGG_N0")},
        {
            "model": NOT_MODULES,
            "inputs": [
                *("x", b"x", [], ["x"], {}, object(), 5, True, [[1, 2], [3]]),
                np.zeros((1, 32, 32), np.float32),
                np.zeros((2, 3, 32, 32), np.float32),
                np.zeros((0, 1, 32, 32), np.float32),
                np.array(["x"]),
            ],
        },
    ),
    "compile": (
        {"model": "RepVGG_N0"},
        {
            "model": [None, 5, b"RepVGG_N0", [], {}, object(), "resnet50"],
            "batch_size": NOT_POSITIVE,
            "image_size": [*NOT_POSITIVE, (32,), (32, 32, 32), (32, 0), ("a", "b")],
            "threads": NOT_POSITIVE,
            "low_memory": [None, *NOT_FLAGS],
            "precision": ["bf16", "INT8", "int8", 8, b"int8", ["int8"], np.int8],
            "calibration": [[], "photos", 5, np.zeros((2, 1, 32, 32), np.float32)],
        },
    ),
    "cost": (
        {"model": "RepVGG_N0"},
        {
            "model": [None, 5, b"x", [], {}, "resnet50", object()],
            "image_size": [*NOT_POSITIVE, (32,), (1, 2, 3), (0, 1)],
        },
    ),
    "evaluate": (
        {"model": "RepVGG_N0", "data": [(IMAGE, "0")]},
        {
            "model": [None, 5, b"RepVGG_N0", [], {}, object(), "resnet50"],
            "data": [
                None,
                5,
                b"x",
                [],
                {},
                "missing",
                [5],
                [(IMAGE,)],
                [(IMAGE, "x")],
                [(IMAGE, None)],
                [("a.png", 0)],
            ],
            "labels": [5, b"x", {}, "missing.csv", ["0"]],
            "class_names": [5, "missing.txt", ["a"], [1] * 10, {"a": 1}, b"0123456789"],
            "output": [5, b"x.csv", ["x.csv"], True, "missing/rows.csv", "."],
            "overwrite": [None, *NOT_FLAGS],
            "on_error": [*NOT_TEXT, "ignore"],
            "threads": NOT_POSITIVE,
            "batch_size": NOT_POSITIVE,
            "progress": [1, "yes", []],
        },
    ),
    "export": (
        {"model": "RepVGG_N0", "path": "out.onnx"},
        {
            "model": [None, 5, b"RepVGG_N0", [], {}, object(), "resnet50"],
            "path": [*NOT_PATHS, "no-suffix", "out.pkl", "missing/out.onnx"],
            "batch": NOT_POSITIVE,
            "image_size": [*NOT_POSITIVE, "any", (32,), (32, 32, 32), (32, 0), ("a", "b")],
            "input": [*NOT_TEXT, "float16"],
            "softmax": [None, *NOT_FLAGS],
            "deploy": [None, *NOT_FLAGS],
            "features_only": [None, *NOT_FLAGS],
            "for_x86": [None, *NOT_FLAGS, True],
            "float16": [None, *NOT_FLAGS, True],
            "target": [5, b"tensorrt", ["tensorrt"], True, "onnxruntime"],
        },
    ),
    "finetune": (
        {"model": "RepVGG_N0", "data": [(IMAGE, "a"), (IMAGE, "b")] * 8, "batch_size": 4, "output": "run"},
        {
            "model": [None, 5, b"RepVGG_N0", [], {}, object(), "resnet50", "missing.pkl"],
            "data": [None, 5, b"x", {}, [], "missing", object(), [(IMAGE, "a")] * 8, [(IMAGE, None)] * 8],
            "output": NOT_PATHS,
            "val": [0, 1, -0.5, 2.5, float("nan"), True, {}, [], b"x", "missing", [(IMAGE, "c")]],
            "labels": [5, "labels.csv", {"0": "a"}],
            "mode": [5, b"full", "PROBE", "all", True],
            "bn": [5, b"train", "eval", True],
            "freeze_until": [5, b"stage2", "stage5", "head", True],
            "epochs": NOT_POSITIVE,
            "lr": [*NOT_NUMBERS, 0, -0.1],
            "batch_size": [*NOT_POSITIVE, 100],
            "warmup_epochs": [*NOT_NUMBERS, -1, 10],
            "momentum": [*NOT_NUMBERS, 0, 1, -0.1],
            "weight_decay": [*NOT_NUMBERS, -1e-4],
            "custom_l2": NOT_FLAGS,
            "label_smoothing": [*NOT_NUMBERS, -0.1, 1],
            "min_crop": [*NOT_NUMBERS, 0, 1.5],
            "flip": NOT_FLAGS,
            "ema": [*NOT_NUMBERS, -0.1, 1],
            "seed": [-1, 2.5, "5", [5], True, 1 << 32],
            "image_size": [*NOT_POSITIVE, (32, 32)],
            "on_error": [None, 5, b"skip", "ignore", True],
            "resume": [None, *NOT_FLAGS],
            "curves": NOT_FLAGS,
            "threads": NOT_POSITIVE,
            "devices": [*NOT_POSITIVE, 99],
            "amp": [*NOT_FLAGS, True],
            "on_epoch": [5, "print", []],
        },
    ),
    "fetch": (
        {"name": "RepVGG_N0"},
        {
            "name": [*NOT_TEXT, Path("RepVGG_N0"), "resnet50"],
            "to": NOT_PATHS[1:],
            "force": [None, *NOT_FLAGS],
            "offline": NOT_FLAGS,
            "progress": NOT_FLAGS,
        },
    ),
    "list_models": (
        {},
        {
            "filter": [5, b"B1*", {"a": 1}, [5], [None], True],
            "exclude": [5, b"B1*", {"a": 1}, [5], [b"x"], True],
            "pretrained": [5, 0, b"timm", ["timm"], 2.5],
            "min_top1": NOT_NUMBERS,
            "max_params": NOT_NUMBERS,
            "max_macs": NOT_NUMBERS,
        },
    ),
    "load_checkpoint": (
        {"path": lambda: repvgg_zoo.fetch("RepVGG_N0")},
        {
            "path": [*NOT_PATHS, "missing.pkl", Path("missing.pkl")],
            "layout": [5, b"timm", ["timm"], "keras", "acme/none", True],
            "extra_layouts": ["timm", 5, [5], [None], {"timm": 1}, ["keras"], b"x", None],
            "state": [5, b"ema", ["ema"], True, "nothing"],
            "prefix": [5, b"backbone.", ["backbone."], True],
            "sha256": [5, b"0" * 64, "0" * 63, "X" * 64, ["0" * 64], True],
        },
    ),
    "model_info": ({"name": "RepVGG_N0"}, {"name": [*NOT_TEXT, Path("RepVGG_N0"), "resnet50"]}),
    "open_images": (
        {"data": [(IMAGE, "0")]},
        {
            "data": [None, 5, b"x", [], {}, "missing", [5], [(IMAGE,)], [(IMAGE, 0.5)], object()],
            "labels": [5, b"x", {}, "missing.csv", ["0"]],
        },
    ),
    "predict": (
        {"model_or_name": "RepVGG_N0", "image": IMAGE},
        {
            "model_or_name": [None, 5, b"RepVGG_N0", [], {}, "resnet50", object()],
            "image": [None, 5, b"x", {}, "missing.png", [None], np.zeros((2, 2)), np.zeros((1, 2, 3, 4), np.uint8)],
            "topk": NOT_POSITIVE,
            "labels": ["abcdefghij", 5, ["a"], [1] * 10, {"a": 1}, b"0123456789", [None] * 10],
        },
    ),
    "preprocess": ({"model_or_name": "RepVGG_N0"}, {"model_or_name": [None, 5, b"x", [], {}, "resnet50", object()]}),
    "quantize": (
        {"model": "RepVGG_N0", "images": np.zeros((8, 1, 32, 32), np.float32)},
        {
            "model": [None, 5, b"RepVGG_N0", [], {}, object(), "resnet50"],
            "images": [
                None,
                5,
                b"x",
                {},
                [],
                [5] * 8,
                "missing",
                IMAGE,
                np.zeros((8, 3, 32, 32), np.float32),
                object(),
            ],
            "image_size": [*NOT_POSITIVE, (32,), (32, 32, 32), (32, 0), ("a", "b"), 48],
            "weight_bits": [*NOT_POSITIVE, 3, 9],
            "min_snr": NOT_NUMBERS,
            "min_block_snr": NOT_NUMBERS,
            "max_images": [*NOT_POSITIVE, 7],
            "threads": NOT_POSITIVE,
        },
    ),
    "register": (
        {"path_or_mapping": {"schema": 1, "variants": {}}},
        {"path_or_mapping": [*NOT_PATHS, {}, {"schema": 1}, {1: 2}, "missing.yaml"], "exist_ok": [None, *NOT_FLAGS]},
    ),
    "run": (
        {"job": "predict", "sources": lambda: [(IMAGE, "1")], "output": "out", "model": "RepVGG_N0", "workers": 1},
        {
            "job": [*NOT_TEXT, "train", "Predict"],
            "sources": [None, 5, b"x", {}, [], "missing", object()],
            "output": [*NOT_PATHS, __file__],
            "model": [None, 5, b"RepVGG_N0", [], "resnet50", object()],
            "engine": [*NOT_TEXT, "spark", "threads"],
            "workers": NOT_POSITIVE,
            "address": [5, b"auto", ["auto"], True, "auto"],
            "part": [5, b"1/2", "0/2", "3/2", "1", (1,), (0, 2), True, 2.5],
            "labels": [5, b"x.csv", "missing.csv"],
            "class_names": [5, ["a"], "missing.txt", b"x"],
            "format": [*NOT_TEXT, "json"],
            "shard_size": NOT_POSITIVE,
            "batch_size": NOT_POSITIVE,
            "topk": NOT_POSITIVE,
            "on_error": [*NOT_TEXT, "ignore"],
        },
    ),
    "save_checkpoint": (
        {"path": "out.pkl", "weights": lambda: dict(load_checkpoint(repvgg_zoo.fetch("RepVGG_N0")).state_dict)},
        {
            "path": [*NOT_PATHS, "no-suffix", "missing/out.pkl"],
            "weights": [None, 5, "RepVGG_N0", b"x", [], {}, {"a": 5}, {5: np.zeros(3)}, object()],
            "layout": [5, b"timm", ["timm"], "keras", "acme/none", True],
            "format": [5, b"safetensors", ["safetensors"], "npz", True],
            "class_names": [5, "abc", [5], {"a": 1}, b"x", ["a"]],
            "preprocessing": [5, "imagenet", [5], {"size": 5}, b"x"],
        },
    ),
    "to_deploy": (
        {"module": lambda: repvgg_zoo.create("RepVGG_N0")},
        {"module": NOT_MODULES, "inplace": [None, *NOT_FLAGS], "check": [None, *NOT_FLAGS]},
    ),
    "unregister": (
        {"path_or_mapping_or_name": "x.yaml"},
        {"path_or_mapping_or_name": [*NOT_PATHS, {}, {"schema": 1}, "missing.yaml", "RepVGG_A0"]},
    ),
}
FUNCTIONS = [name for name in repvgg_zoo.__all__ if inspect.isfunction(getattr(repvgg_zoo, name)) and name != "create"]
CASES = [
    pytest.param(name, argument, value, id=f"{name}-{argument}-{index}")
    for name, (_, arguments) in TABLE.items()
    for argument, values in arguments.items()
    for index, value in enumerate(values)
]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_table_has_every_argument_of_every_public_function(name):
    assert set(TABLE[name][1]) == set(inspect.signature(getattr(repvgg_zoo, name)).parameters)


@pytest.fixture(scope="module")
def values():
    """Return the arguments of a call that works; networks are built once."""
    return {
        name: {key: value() if callable(value) else value for key, value in valid.items()}
        for name, (valid, _) in TABLE.items()
    }


@pytest.mark.parametrize(("name", "argument", "value"), CASES)
def test_a_value_that_is_not_valid_ends_in_an_error_of_ours_with_a_hint(
    values, tmp_path, monkeypatch, name, argument, value
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZooError) as caught:
        getattr(repvgg_zoo, name)(**{**values[name], argument: value})
    allowed = (ArgumentError, UnknownModelError, RegistryError, FormError, LayoutError)
    assert isinstance(caught.value, allowed) and (caught.value.hint or caught.value.expected), repr(caught.value)
    assert list(tmp_path.iterdir()) == []

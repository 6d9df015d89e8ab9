"""finetune from the command line: it does what the function does, and says how it goes on stderr."""

from __future__ import annotations

import pytest

import repvgg_zoo

from ..training.mnist import write_folders


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("digits"), train=20, val=10)


def test_a_probe_is_that_of_the_function(run, digits):
    result = run("finetune", "n0", f"{digits}/train", "run", "--val", f"{digits}/val", "--mode", "probe", "--json")
    assert result.code == 0, result.err
    expected = repvgg_zoo.finetune("RepVGG_N0", digits / "train", val=digits / "val", mode="probe", output="expected")
    assert result.json["top1"] == expected.top1._asdict() and result.json["class_names"] == list("0123456789")
    assert repvgg_zoo.load_checkpoint("run/best.safetensors").metadata.class_names == expected.class_names
    result = run("predict", f"{digits}/val/7/000.png", "--model", "run/best.safetensors", "--json")
    assert result.code == 0 and result.json["images"][0]["predictions"][0]["label"] in "0123456789"


def test_epochs_are_reported_and_every_option_arrives(run, digits):
    pytest.importorskip("megengine")
    options = {
        "bn": "train",
        "freeze_until": "stage0",
        "epochs": 1,
        "lr": 0.01,
        "batch_size": 20,
        "warmup_epochs": 0.5,
        "momentum": 0.8,
        "weight_decay": 0.001,
        "label_smoothing": 0.2,
        "min_crop": 0.6,
        "ema": 0.5,
        "seed": 3,
    }
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    result = run("finetune", "n0", f"{digits}/train", "run", "--val-share", "0.2", "--custom-l2", "--flip", *words)
    assert result.code == 0, result.err
    assert "epoch 1: loss " in result.err and "wrote run/best.safetensors" in result.out
    settings = repvgg_zoo.finetune(
        "RepVGG_N0", digits / "train", val=0.2, custom_l2=True, flip=True, output="run", **options
    ).settings
    assert {name: settings[name] for name in options} == options


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["missing.pkl", "data", "run"], 5, "missing.pkl"),
        (["resnet50", "data", "run"], 3, "resnet50"),
        (["n0", "missing", "run"], 5, "missing"),
        (["n0", "data", "run", "--mode", "half"], 2, "'half' is not a valid --mode"),
        (["n0", "data", "run", "--val", "x", "--val-share", "0.1"], 2, "exclude each other"),
        (["n0", "data", "run", "--mode", "probe", "--lr", "0"], 2, "lr is 0"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else None,
)
def test_what_cannot_work_is_an_error_with_its_exit_code(run, arguments, code, message):
    result = run("finetune", *arguments)
    assert (result.code, result.out) == (code, "") and message in result.err

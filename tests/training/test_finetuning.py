"""finetune: what a run leaves behind, how it goes on after any end, and which calls are errors.

The kinds of fault: a run that was killed loses work, or ends with other weights; a file that lacks what the next
command needs; settings that are taken for those of another run.
"""

from __future__ import annotations

import json
import math
import operator
import os
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from megengine import Tensor

import repvgg_zoo
from repvgg_zoo.errors import ArgumentError, FormError, TrainingError
from repvgg_zoo.training.finetuning import finetune

RECIPE = {"mode": "full", "epochs": 2, "lr": 0.02, "bn": "train", "batch_size": 50, "min_crop": 0.8, "seed": 1}
RECIPE["curves"] = False  # drawing them takes as long as an epoch here
WITH_CURVES = {**RECIPE, "curves": True}


def as_json(arguments):
    """Return the arguments of a call for another process, paths as texts."""
    return json.dumps(
        {key: value if isinstance(value, (int, float)) else str(value) for key, value in arguments.items()}
    )


@pytest.fixture(scope="module")
def data(digits):
    """The arguments for 400 images of MNIST for training and 200 for validation."""
    return {"model": "RepVGG_N0", "data": digits / "train", "val": digits / "val"}


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A folder with a finished run, and its report."""
    output = tmp_path_factory.mktemp("run") / "run"
    rows = []
    report = finetune(**data, output=output, on_epoch=rows.append, **WITH_CURVES)
    assert tuple(rows) == report.epochs
    return output, report


def test_the_best_weights_are_at_least_as_good_as_the_head_alone(run):
    _, report = run
    assert report.top1.percent == max([report.probe_top1.percent, *(epoch.val_top1 for epoch in report.epochs)])
    assert report.top1.percent > 75 and len(report.epochs) == 2
    assert report.train_images == 400 and report.top1.n == 200


def test_the_folder_has_the_best_checkpoint_the_report_and_the_curves_only(run):
    output, report = run
    assert sorted(path.name for path in output.iterdir()) == [
        "best.safetensors",
        "curves.png",
        "last.safetensors",
        "report.json",
        "run.json",
    ]
    saved = json.loads((output / "report.json").read_text())
    assert saved["top1"]["correct"] == report.top1.correct and len(saved["epochs"]) == 2
    assert report.curves.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert str(report).startswith(f"top-1: {report.top1.percent:.2f} % (") and str(report.path) in str(report)


def test_the_best_checkpoint_says_all_that_other_functions_need(run, digits):
    _, report = run
    checkpoint = repvgg_zoo.load_checkpoint(report.path)
    assert checkpoint.form == "train"
    assert checkpoint.metadata.class_names == tuple("0123456789")
    assert checkpoint.metadata.source == "RepVGG_N0.digits" and checkpoint.metadata.preprocessing.image_size == 32
    images = sorted((digits / "val").glob("*/*.png"))
    predictions = repvgg_zoo.predict(report.path, images, topk=1)
    correct = sum(one.label == path.parent.name for path, (one,) in zip(images, predictions))
    assert correct == pytest.approx(report.top1.correct, abs=1)  # the kernels may round a tie in another way


def test_the_best_checkpoint_is_re_parameterized_compiled_exported_and_quantized(run, digits, tmp_path):
    _, report = run
    network = repvgg_zoo.create("RepVGG_N0", checkpoint=report.path)
    x = np.random.RandomState(0).randn(2, 1, 32, 32).astype(np.float32)
    logits = network(Tensor(x)).numpy()
    np.testing.assert_allclose(repvgg_zoo.to_deploy(network)(Tensor(x)).numpy(), logits, atol=1e-4)
    with repvgg_zoo.compile(report.path) as compiled:
        np.testing.assert_allclose(compiled(x), logits, atol=1e-4)
    assert repvgg_zoo.export(report.path, tmp_path / "digits.onnx").path.exists()
    images = sorted((digits / "train").glob("*/*.png"))[::10]
    repvgg_zoo.quantize(report.path, images).save(tmp_path / "digits-int8.safetensors")


def test_the_same_call_returns_the_report_of_the_finished_run(run, data):
    output, report = run
    before = (output / "best.safetensors").stat().st_mtime_ns
    again = finetune(**data, output=output, **WITH_CURVES)
    assert again == report and (output / "best.safetensors").stat().st_mtime_ns == before


PROGRAM = """
import json, os, signal, sys, threading
from repvgg_zoo.training.finetuning import finetune

def kill_soon(epoch):
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGKILL)).start()

finetune(**json.loads(sys.argv[1]), on_epoch=kill_soon)
"""
LOSSES = operator.attrgetter("train_loss", "val_loss", "lr")


def test_a_run_that_was_killed_ends_with_the_same_bytes(run, data, tmp_path):
    output, report = run
    killed = tmp_path / "killed"
    command = [sys.executable, "-c", PROGRAM, as_json({**data, **RECIPE, "output": killed})]
    first = subprocess.run(command, capture_output=True, check=False)
    assert first.returncode == -signal.SIGKILL, first.stderr.decode()
    assert (killed / "resume.safetensors").exists()
    resumed = finetune(**data, output=killed, **RECIPE)
    assert [LOSSES(row) for row in resumed.epochs] == [LOSSES(row) for row in report.epochs]
    for name in ("best.safetensors", "last.safetensors"):
        assert (killed / name).read_bytes() == (output / name).read_bytes()


def test_control_c_keeps_the_step_that_it_came_in(run, data, tmp_path):
    output, report = run
    arguments = {**data, **RECIPE, "output": tmp_path / "interrupted"}
    # After the first epoch, while the second one is computed.
    with pytest.raises(KeyboardInterrupt, match="goes on from there"):
        finetune(**arguments, on_epoch=lambda row: threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start())
    resumed = finetune(**arguments)
    assert (tmp_path / "interrupted" / "last.safetensors").read_bytes() == (output / "last.safetensors").read_bytes()
    assert [row.train_loss for row in resumed.epochs] == [row.train_loss for row in report.epochs]


def test_control_c_between_epochs_loses_nothing(data, tmp_path):
    def interrupt(row):
        raise KeyboardInterrupt

    arguments = {**data, **RECIPE, "output": tmp_path / "run", "epochs": 1}
    with pytest.raises(KeyboardInterrupt):
        finetune(**arguments, on_epoch=interrupt)
    rows = []
    assert len(finetune(**arguments, on_epoch=rows.append).epochs) == 1 and not rows


VARIANTS = {
    "averaged weights": {"ema": 0.9},
    "BN statistics of the checkpoint": {"bn": "frozen", "lr": 0.002},
    "frozen stages": {"freeze_until": "stage2"},
    "the custom L2": {"custom_l2": True, "weight_decay": 1e-3},
    "another image size": {"image_size": 48},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_each_option_gives_weights_of_their_own_that_are_as_good_as_reported(run, data, digits, tmp_path, options):
    _, report = run
    other = finetune(**data, output=tmp_path / "run", **{**RECIPE, "epochs": 1, **options})
    last = other.path.with_name("last.safetensors")
    assert last.read_bytes() != report.path.with_name("last.safetensors").read_bytes()
    assert all(math.isfinite(row.train_loss) for row in other.epochs) and other.top1.percent > 70
    checkpoint = repvgg_zoo.load_checkpoint(last)
    assert checkpoint.metadata.preprocessing.image_size == options.get("image_size", 32)
    images = sorted((digits / "val").glob("*/*.png"))
    predictions = repvgg_zoo.predict(last, images, topk=1)
    correct = sum(one.label == path.parent.name for path, (one,) in zip(images, predictions))
    assert correct == pytest.approx(2 * other.epochs[-1].val_top1, abs=1)
    if "freeze_until" in options:
        trained = checkpoint.state_dict
        published = repvgg_zoo.load_checkpoint(repvgg_zoo.fetch("RepVGG_N0")).state_dict
        is_frozen = {key: np.array_equal(trained[key], published[key]) for key in published if "linear" not in key}
        assert all(same for key, same in is_frozen.items() if key.startswith(("stage0", "stage1", "stage2")))
        assert not is_frozen["stage4.0.rbr_dense.conv.weight"]


def test_a_file_that_was_fine_tuned_is_fine_tuned_again(run, data, digits, tmp_path):
    _, report = run
    few = tmp_path / "few"
    for digit in "37":
        shutil.copytree(digits / "train" / digit, few / digit)
    again = finetune(report.path, few, output=tmp_path / "run", mode="probe")
    assert again.class_names == ("3", "7") and again.top1.percent > 70


def test_images_that_cannot_be_read_are_skipped_and_named(data, tmp_path):
    broken = shutil.copytree(data["data"], tmp_path / "data")
    (broken / "3" / "000.png").write_bytes(b"not an image")
    arguments = {**data, "data": broken, "output": tmp_path / "run", "mode": "probe"}
    with pytest.raises(ArgumentError, match=r"3/000\.png"):
        finetune(**arguments)
    arguments["output"] = tmp_path / "skipped"
    report = finetune(**arguments, on_error="skip")
    assert [key for key, _ in report.skipped] == ["3/000.png"] and report.train_images == 399
    assert "skipped: 1, such as 3/000.png" in str(report)


def test_training_that_diverges_stops_and_says_what_to_lower(data, tmp_path):
    with pytest.raises(TrainingError) as caught:
        finetune(**data, output=tmp_path / "run", **{**RECIPE, "lr": 1e12, "warmup_epochs": 0.0})
    assert "diverged" in caught.value.message and "lower lr than 1e+12" in caught.value.hint


def test_another_setting_is_refused_and_named(run, data):
    output, _ = run
    with pytest.raises(
        ArgumentError, match=r"other settings: epochs \(2 before, 3 now\), lr \(0\.02 before, 0\.01 now\)"
    ):
        finetune(**data, output=output, **{**RECIPE, "epochs": 3, "lr": 0.01})


def test_other_images_are_another_setting(run, data):
    output, _ = run
    with pytest.raises(ArgumentError, match="images"):
        finetune(**{**data, "val": 0.2}, output=output, **RECIPE)


def test_a_run_is_not_overwritten(run, data):
    output, _ = run
    with pytest.raises(ArgumentError, match="holds a run already"):
        finetune(**data, output=output, **RECIPE, resume=False)


BAD = {
    "a folder with something else": (
        lambda root: (root / "run").mkdir() or (root / "run" / "x").touch(),
        {},
        "not empty",
    ),
    "a file as the output": (lambda root: (root / "run").touch(), {}, "is a file"),
    "a batch larger than the data": (None, {"batch_size": 401}, "a batch has 401 images, and there are 400"),
    "GPUs that do not exist": (None, {"devices": 99}, "devices is 99"),
    "float16 without a GPU": (None, {"amp": True}, "amp needs a GPU"),
    "a network": (None, {"model": object()}, "cannot be fine-tuned"),
    "a callback that is none": (None, {"on_epoch": 5}, "on_epoch is int"),
}


@pytest.mark.parametrize(("prepare", "options", "message"), BAD.values(), ids=BAD)
def test_what_cannot_work_is_an_error_before_anything_is_computed(data, tmp_path, prepare, options, message):
    if prepare is not None:
        prepare(tmp_path)
    with pytest.raises(ArgumentError, match=message) as caught:
        finetune(**{**data, **RECIPE, "output": tmp_path / "run", **options})
    assert caught.value.hint


def test_deploy_weights_give_a_head_but_no_branches_to_train(data, tmp_path):
    network = repvgg_zoo.create("RepVGG_N0", pretrained=True, deploy=True)
    repvgg_zoo.save_checkpoint(tmp_path / "deploy.safetensors", network)
    arguments = {**data, "model": tmp_path / "deploy.safetensors", "output": tmp_path / "run"}
    with pytest.raises(FormError):
        finetune(**arguments, **RECIPE)
    assert finetune(**arguments, mode="probe").top1.percent > 75

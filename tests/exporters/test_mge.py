"""Files for MegEngine Lite compute what the network does, and say what it is, without a pickle being loaded."""

from __future__ import annotations

import json

import megengine.module as M
import numpy as np
import pytest
from megengine import Tensor

import repvgg_zoo
from repvgg_zoo.errors import ArgumentError
from repvgg_zoo.exporters.mge_file import MARKER, read_mge_metadata, run_mge
from repvgg_zoo.models import RepVGG

TINY = {"num_blocks": (1, 1, 1, 1), "width_multiplier": (0.25, 0.25, 0.25, 0.25), "num_classes": 5}
RUNTIMES = ["MegEngine", "MegEngine Lite"]


def test_a_named_network_runs_in_both_runtimes_and_says_what_it_is(tmp_path):
    report = repvgg_zoo.export("RepVGG_N0.digits", tmp_path / "n0.mge", softmax=True)
    assert [check.name for check in report.checks] == ["read again", *RUNTIMES]
    assert all(check.error <= 1e-5 for check in report.checks[1:])
    assert report.inputs == (("data", "float32", ("batch", 1, "height", "width")),)
    assert report.outputs == (("probabilities", "float32", ("batch", 10)),)
    entries = read_mge_metadata(tmp_path / "n0.mge")
    assert (entries["variant"], entries["checkpoint"], entries["license"]) == ("RepVGG_N0", "RepVGG_N0.digits", "MIT")
    assert json.loads(entries["class_names"]) == [str(digit) for digit in range(10)]


def test_a_file_runs_on_batches_and_images_of_any_size(tmp_path):
    network = repvgg_zoo.create("RepVGG_N0", pretrained=True, deploy=True)
    repvgg_zoo.export(network, tmp_path / "n0.mge", batch=1)
    images = np.random.RandomState(0).standard_normal((3, 1, 40, 48)).astype(np.float32)
    expected = network(Tensor(images)).numpy()
    outputs = run_mge(tmp_path / "n0.mge", images)
    assert list(outputs) == RUNTIMES
    for runtime in RUNTIMES:
        assert np.abs(outputs[runtime]["logits"] - expected).max() <= 1e-5 * np.abs(expected).max()


def test_weights_are_stored_in_half_of_the_size(tmp_path):
    report = repvgg_zoo.export("RepVGG_N0.digits", tmp_path / "n0.mge", float16=True, batch=1)
    assert report.size < 460_000
    assert all(1e-5 < check.error <= 1e-2 for check in report.checks[1:])


def test_weights_may_be_laid_out_for_x86(tmp_path):
    report = repvgg_zoo.export("RepVGG_N0.digits", tmp_path / "n0.mge", for_x86=True)
    assert all(check.error is None or check.error <= 1e-5 for check in report.checks[1:])
    repvgg_zoo.export("RepVGG_N0.digits", tmp_path / "plain.mge")
    assert (tmp_path / "n0.mge").read_bytes() != (tmp_path / "plain.mge").read_bytes()


def test_feature_maps_and_the_train_form_are_written_in_the_deploy_form(tmp_path):
    network = RepVGG(**TINY, features_only=True, out_indices=(2, 4))
    report = repvgg_zoo.export(network, tmp_path / "x.mge", image_size=(32, 48))
    assert [(output.name, output.shape) for output in report.outputs] == [
        ("stage2", ("batch", 32, 4, 6)),
        ("stage4", ("batch", 128, 1, 2)),
    ]
    assert all(check.error <= 1e-5 for check in report.checks[1:])


def test_any_module_that_megengine_traces_is_written(tmp_path):
    network = M.Sequential(M.Conv2d(3, 4, 3), M.ReLU())
    repvgg_zoo.export(network, tmp_path / "one.mge", image_size=8)
    repvgg_zoo.export(network, tmp_path / "two.mge", image_size=8)
    assert (tmp_path / "one.mge").read_bytes() == (tmp_path / "two.mge").read_bytes()


@pytest.mark.parametrize("options", [{"input": "uint8"}, {"deploy": False}, {"features_only": True}], ids=str)
def test_what_only_onnx_has_is_refused_and_nothing_is_written(options, tmp_path):
    with pytest.raises(ArgumentError, match=next(iter(options))):
        repvgg_zoo.export("RepVGG_N0.digits", tmp_path / "x.mge", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", [b"", MARKER, MARKER + b'"a": 1}}', MARKER + b'"a": "b"}', b'{"repvgg_zoo": []}', MARKER * 1000]
)
def test_a_file_of_another_program_says_nothing(text, tmp_path):
    (tmp_path / "x.mge").write_bytes(b"mgv2" + np.random.RandomState(0).bytes(1000) + text)
    assert read_mge_metadata(tmp_path / "x.mge") == {}

"""compile: networks that the kernels cannot compute run in MegEngine's eager mode, and a warning says why."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import megengine as mge
import megengine.module as M
import numpy as np
import pytest
from megengine import Tensor

import repvgg_zoo
from repvgg_zoo.inference import api
from tests.networks import fill, randomised

from .small_networks import BOUND, Backbone, distance, eager, eagerly, images, small

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REPVGG_ZOO_HOME", str(tmp_path / "cache"))


def with_another_head(network):
    network.linear = M.Sequential(M.Dropout(0.2), M.Linear(128, 10))


def with_a_head_without_bias(network):
    network.linear = M.Linear(128, 10, bias=False)


def with_pooling_in_a_stage(network):
    network.stage1 = M.Sequential(network.stage1[0], M.AvgPool2d(3, 1, 1))


@eagerly
@pytest.mark.parametrize("change", [with_another_head, with_a_head_without_bias, with_pooling_in_a_stage])
def test_a_repvgg_that_was_changed_runs_eagerly(change):
    network = small(deploy=True)
    change(network)
    x = images(1, 3, 32)
    compiled = repvgg_zoo.compile(network, image_size=32)
    assert compiled.backend == "eager"
    assert distance(eager(network, x), compiled(x)) < BOUND


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda network: setattr(network.stage1[0].rbr_reparam, "padding_mode", "reflect"), "padding_mode='reflect'"),
        (lambda network: setattr(network.stage1[0].rbr_reparam, "stride", (1, 2)), "stage1.0.rbr_reparam has .*(1, 2)"),
        (with_pooling_in_a_stage, "stage1.1 is another AvgPool2d"),
        (with_another_head, "linear.0 is another Dropout"),
    ],
)
def test_the_warning_names_what_cannot_be_compiled(change, reason):
    network = small(deploy=True)
    change(network)
    with pytest.warns(RuntimeWarning, match=reason):
        repvgg_zoo.compile(network, image_size=32).close()


@eagerly
def test_a_network_that_runs_eagerly_is_a_copy_in_eval_mode():
    network = small(deploy=True)
    with_another_head(network)
    network.train()
    compiled = repvgg_zoo.compile(network, image_size=32)
    x = images(1, 3, 32)
    before = compiled(x)
    fill(network.stage0.rbr_reparam.bias, 3.0)
    assert np.array_equal(compiled(x), before)
    assert network.training


@eagerly
def test_a_float16_network_takes_and_returns_float32():
    network = small()
    for tensor in network.tensors():
        tensor._reset(type(tensor)(tensor.numpy().astype(np.float16)))
    network.eval()
    x = images(1, 3, 32)
    logits = repvgg_zoo.compile(network, image_size=32)(x)
    assert logits.dtype == np.float32
    assert distance(eager(network, x.astype(np.float16)), logits) < 2e-2


@eagerly
def test_a_hooked_network_runs_eagerly_with_its_hook():
    network = small(deploy=True)
    network.linear.register_forward_hook(lambda module, inputs, output: output * 2)
    x = images(1, 3, 32)
    compiled = repvgg_zoo.compile(network, image_size=32)
    assert compiled.backend == "eager"
    network.eval()
    assert distance(network(Tensor(x)).numpy(), compiled(x)) < BOUND


@eagerly
def test_a_users_own_module_is_compiled_and_its_code_is_not_mistaken():
    x = images(3, 3, 32)
    outputs = []
    for factor in (1.0, 2.0):
        mge.random.seed(0)
        network = randomised(Backbone(factor))
        maps, means = repvgg_zoo.compile(network, batch_size=2, image_size=32)(x)
        network.eval()
        reference = [tensor.numpy() for tensor in network(Tensor(x))]
        assert distance(reference[0], maps) < BOUND
        assert distance(reference[1], means) < BOUND
        outputs.append(means)
    assert distance(2 * outputs[0], outputs[1]) < BOUND


def test_without_llvmlite_a_repvgg_runs_eagerly(monkeypatch):
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    network, x = small(), images(3, 3, 32)
    with pytest.warns(RuntimeWarning, match="need llvmlite"):
        compiled = repvgg_zoo.compile(network, batch_size=2, image_size=32)
    assert compiled.backend == "eager"
    assert distance(eager(network, x), compiled(x)) < BOUND


def test_compile_can_be_imported_where_neither_megengine_nor_llvmlite_can():
    program = """
import sys
sys.modules["megengine"] = sys.modules["llvmlite"] = None
from repvgg_zoo import compile
from repvgg_zoo.errors import ArgumentError
try:
    compile(3)
except ArgumentError as error:
    print(error.message)
"""
    child = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert child.stdout == "int is not a name, a path, a Checkpoint, arrays or a MegEngine module\n", child.stderr


def test_other_networks_run_eagerly_and_one_warning_says_so():
    network = randomised(Backbone())
    network.eval()
    x = images(3, 3, 32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        api.__dict__.pop("__warningregistry__", None)
        models = [repvgg_zoo.compile(network, batch_size=2, image_size=32) for _ in range(2)]
    assert len(caught) == 1
    assert "only RepVGG and RepVGGplus" in str(caught[0].message)
    for compiled in models:
        assert compiled.backend == "eager"
        maps, means = compiled(x)
        reference = [tensor.numpy() for tensor in network(Tensor(x))]
        assert distance(reference[0], maps) < BOUND
        assert distance(reference[1], means) < BOUND

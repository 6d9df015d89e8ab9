"""compile: the eager network's outputs for every kind of network and batch, and errors for what cannot be run."""

from __future__ import annotations

import math
import multiprocessing
import sys
from concurrent.futures import ThreadPoolExecutor

import megengine as mge
import numpy as np
import pytest
from megengine import Tensor

import repvgg_zoo
from repvgg_zoo._cpu import usable_cores
from repvgg_zoo.errors import ArgumentError, ClosedError, EquivalenceError, UnknownModelError
from tests.networks import fill, randomised

from .small_networks import BOUND, Backbone, Nested, distance, eager, eagerly, images, small

# Small networks of every kind: arguments of create, and the size of the images.
NETWORKS = {
    "plain": ("RepVGG_A0", {}, 64),
    "grouped": ("RepVGG_B1g4", {}, 32),
    "SE before ReLU": ("RepVGG_D2se", {}, 32),
    "RepVGGplus with auxiliary heads": ("RepVGGplus_L2pse", {}, 32),
    "another number of classes": ("RepVGG_A0", {"num_classes": 7}, 32),
    "pooled features": ("RepVGG_A0", {"num_classes": 0}, 32),
    "one channel": ("RepVGG_A0", {"in_chans": 1}, 32),
    "deploy form": ("RepVGG_A0", {"deploy": True}, 32),
    "not square": ("RepVGG_A0", {}, (40, 72)),
    "dilated stages": ("RepVGG_A0", {"output_stride": 8}, (64, 40)),
    "dilated and grouped": ("RepVGG_B1g4", {"output_stride": 16}, 33),
    "dilated RepVGGplus": ("RepVGGplus_L2pse", {"output_stride": 8}, 32),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REPVGG_ZOO_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", NETWORKS)
def test_compiled_networks_return_what_eager_ones_do(kind):
    name, options, size = NETWORKS[kind]
    network = small(name, **options)
    x = images(2, network.in_chans, size)
    with repvgg_zoo.compile(network, batch_size=2, image_size=size) as compiled:
        assert compiled.backend == "kernels"
        assert compiled.error < BOUND
        assert distance(eager(network, x), compiled(x)) < BOUND
        assert compiled.spec is network.spec


def test_a_stride_and_a_dilation_of_ones_own_are_compiled():
    network = small()
    for branch in ("rbr_dense", "rbr_1x1"):
        getattr(network.stage1[0], branch).conv.stride = (3, 3)
    network.stage3[1].rbr_dense.conv.dilation = network.stage3[1].rbr_dense.conv.padding = 3
    x = images(1, 3, (64, 50))
    with repvgg_zoo.compile(network, image_size=(64, 50)) as compiled:
        assert compiled.backend == "kernels"
        assert distance(eager(network, x), compiled(x)) < BOUND


def test_feature_maps_come_by_stage():
    network = small(features_only=True, out_indices=[1, 3])
    x = images(3, 3, 64)
    features = repvgg_zoo.compile(network, batch_size=2, image_size=64)(x)
    reference = eager(network, x)
    assert list(features) == list(reference) == ["stage1", "stage3"]
    assert all(distance(reference[key], features[key]) < BOUND for key in reference)


def test_a_feature_map_of_one_pixel_is_the_callers_own():
    network = small(features_only=True)
    compiled = repvgg_zoo.compile(network, image_size=32)
    x = images(2, 3, 32)
    first, second = compiled(x[:1]), compiled(x[1:])
    assert first["stage4"].shape[2:] == (1, 1)
    reference = eager(network, x)
    assert all(distance(reference[key][:1], first[key]) < BOUND for key in reference)
    assert all(distance(reference[key][1:], second[key]) < BOUND for key in reference)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 8])
def test_a_batch_of_any_size_is_accepted(count):
    network = small()
    compiled = repvgg_zoo.compile(network, batch_size=4, image_size=32)
    x = images(8, 3, 32)
    whole = compiled(x)
    logits = compiled(x[:count])
    assert logits.shape == (count, 1000)
    assert count == 0 or distance(whole[:count], logits) < BOUND


def test_the_users_network_stays_as_it_is():
    network = small()
    network.train()
    before = {name: tensor.numpy().copy() for name, tensor in network.named_tensors()}
    devices = {str(tensor.device) for tensor in network.parameters()}
    repvgg_zoo.compile(network, image_size=32)
    assert network.training
    assert devices == {str(tensor.device) for tensor in network.parameters()}
    assert not network.stage0.deploy
    assert all(np.array_equal(tensor.numpy(), before[name]) for name, tensor in network.named_tensors())


def test_a_name_stands_for_its_checkpoint():
    network = repvgg_zoo.create("RepVGG_N0", pretrained=True)
    compiled = repvgg_zoo.compile("RepVGG_N0")
    x = images(1, 1, 32)
    assert compiled.shape == (1, 1, 32, 32)
    assert distance(eager(network, x), compiled(x)) < BOUND
    assert (compiled.spec, compiled.checkpoint) == (network.spec, network.checkpoint)
    with pytest.raises(UnknownModelError):
        repvgg_zoo.compile("RepVGG_N1")


def saved_as(kind, tmp_path):
    """A train-form RepVGG_A0 with seven classes and one channel, and what stands for it."""
    network = randomised(repvgg_zoo.create("RepVGG_A0", num_classes=7, in_chans=1))
    path = tmp_path / "a0.safetensors"
    repvgg_zoo.save_checkpoint(path, network)
    checkpoint = repvgg_zoo.load_checkpoint(path)
    return network, {
        "a path": path,
        "its text": str(path),
        "a Checkpoint": checkpoint,
        "arrays": dict(checkpoint.state_dict),
    }[kind]


@pytest.mark.parametrize("kind", ["a path", "its text", "a Checkpoint", "arrays"])
def test_weights_from_anywhere_are_compiled_as_the_variant_that_they_fit(kind, tmp_path):
    network, source = saved_as(kind, tmp_path)
    x = images(1, 1, 64)
    with repvgg_zoo.compile(source, image_size=64) as compiled:
        assert (compiled.backend, compiled.spec.name) == ("kernels", "RepVGG_A0")
        assert distance(eager(network, x), compiled(x)) < BOUND


def test_changed_weights_are_another_network():
    network = small(deploy=True)
    x = images(1, 3, 32)
    first = repvgg_zoo.compile(network, image_size=32)(x)
    fill(network.linear.bias, 3.0)
    second = repvgg_zoo.compile(network, image_size=32)(x)
    assert np.abs(second - first).min() > 1
    assert distance(eager(network, x), second) < BOUND


@eagerly
def test_a_changed_stride_with_the_same_weights_is_another_network():
    network = small(deploy=True, features_only=True, out_indices=[0])
    x = images(1, 3, 32)
    repvgg_zoo.compile(network, image_size=32)
    network.stage0.rbr_reparam.stride = (1, 1)
    assert repvgg_zoo.compile(network, image_size=32)(x)["stage0"].shape[-1] == 32


def test_several_threads_may_call_one_model():
    compiled = repvgg_zoo.compile(small(), batch_size=2, image_size=32)
    inputs = [images(1 + seed % 3, 3, 32, seed) for seed in range(24)]
    serial = [compiled(x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        parallel = list(pool.map(compiled, inputs * 3))
    assert all(np.array_equal(a, b) for a, b in zip(serial * 3, parallel))


def test_a_name_can_be_compiled_in_any_thread():
    x = images(1, 1, 32)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: repvgg_zoo.compile("RepVGG_N0")(x), range(8)))
    expected = repvgg_zoo.compile("RepVGG_N0")(x)
    assert all(np.array_equal(expected, answer) for answer in answers)


def test_the_error_says_that_a_network_cannot_be_compiled_in_another_thread():
    network = small()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(repvgg_zoo.compile, network, image_size=32)
        with pytest.raises(ArgumentError) as caught:
            future.result()
    assert "thread that imported it" in caught.value.hint


def test_results_belong_to_the_caller():
    compiled = repvgg_zoo.compile(small(), image_size=32)
    first = compiled(images(1, 3, 32, 1))
    before = first.copy()
    compiled(images(1, 3, 32, 2))
    assert np.array_equal(first, before)
    first[...] = 0  # writable


def test_arrays_of_any_strides_are_taken():
    compiled = repvgg_zoo.compile(small(), batch_size=2, image_size=32)
    x = images(2, 3, 32)
    turned = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert not turned.flags.c_contiguous
    assert np.array_equal(compiled(x), compiled(turned))
    assert np.array_equal(compiled(x)[::-1], compiled(x[::-1]))


def test_an_image_that_is_not_finite_affects_no_other():
    compiled = repvgg_zoo.compile(small(), batch_size=2, image_size=32)
    x = images(2, 3, 32)
    clean = compiled(x)
    for value in (math.nan, math.inf):
        spoiled = x.copy()
        spoiled[0] = value
        assert np.array_equal(compiled(spoiled)[1], clean[1])
    assert np.array_equal(compiled(x), clean)


WRONG_INPUTS = {
    "a list": [[1.0]],
    "a tensor": Tensor(np.zeros((1, 3, 32, 32), np.float32)),
    "double precision": np.zeros((1, 3, 32, 32)),
    "bytes": np.zeros((1, 3, 32, 32), np.uint8),
    "the other byte order": np.zeros((1, 3, 32, 32), ">f4"),
    "no batch": np.zeros((3, 32, 32), np.float32),
    "channels last": np.zeros((1, 32, 32, 3), np.float32),
    "another size": np.zeros((1, 3, 64, 64), np.float32),
    "another number of channels": np.zeros((1, 1, 32, 32), np.float32),
}


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPVGG_ZOO_HOME", str(tmp_path_factory.mktemp("cache")))
        return repvgg_zoo.compile(small(), image_size=32)


@pytest.mark.parametrize("kind", WRONG_INPUTS)
def test_wrong_inputs_are_refused(kind, compiled_once):
    with pytest.raises(ArgumentError) as caught:
        compiled_once(WRONG_INPUTS[kind])
    assert caught.value.expected == "float32 (N, 3, 32, 32)"


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"batch_size": 1.5},
        {"batch_size": True},
        {"threads": 0},
        {"threads": "2"},
        {"image_size": 0},
        {"image_size": (32,)},
        {"image_size": (32, -1)},
        {"image_size": "32"},
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(options):
    with pytest.raises(ArgumentError):
        repvgg_zoo.compile("RepVGG_N0", **options)


@eagerly
def test_what_is_not_a_network_is_refused():
    with pytest.raises(ArgumentError, match="a name, a path, a Checkpoint, arrays or a MegEngine module"):
        repvgg_zoo.compile(3)
    with pytest.raises(ArgumentError, match="image_size is needed"):
        repvgg_zoo.compile(Backbone())
    with pytest.raises(ArgumentError, match="cannot compile a network that returns"):
        repvgg_zoo.compile(Nested(), image_size=32)


def test_weights_that_are_not_finite_are_refused():
    network = small(deploy=True)
    fill(network.linear.bias, math.nan)
    with pytest.raises(EquivalenceError) as caught:
        repvgg_zoo.compile(network, image_size=32)
    assert caught.value.hint


def test_a_closed_model_says_so():
    compiled = repvgg_zoo.compile(small(), image_size=32)
    with compiled as entered:
        assert entered is compiled
    compiled.close()
    assert "closed" in repr(compiled)
    with pytest.raises(ClosedError, match="closed"):
        compiled(images(1, 3, 32))


def _call_in_child(compiled, x, answers):
    try:
        compiled(x)
        answers.put("ran")
    except ClosedError:
        answers.put("closed")


@pytest.mark.skipif(sys.platform != "linux", reason="fork")
def test_a_forked_child_gets_an_error_and_does_not_hang():
    compiled = repvgg_zoo.compile(small(), image_size=32)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_call_in_child, args=(compiled, images(1, 3, 32), answers))
    child.start()
    assert answers.get(timeout=60) == "closed"
    child.join(60)


def test_more_threads_than_cores_are_not_taken(caplog):
    compiled = repvgg_zoo.compile(small(), image_size=32, threads=1000)
    assert compiled.threads == usable_cores()
    assert "1000 threads" in caplog.text


def test_low_memory_returns_the_same_outputs():
    network = small()
    x = images(1, 3, 32)
    compiled = repvgg_zoo.compile(network, image_size=32, low_memory=True)
    assert compiled.backend != repvgg_zoo.compile(network, image_size=32).backend
    assert distance(eager(network, x), compiled(x)) < BOUND


@pytest.mark.parametrize("device", ["xpux", "cpux", "cpu0", "multithread2:0"])
def test_every_default_device_works(device):
    before = mge.get_default_device()
    mge.set_default_device(device)
    try:
        network = small()
        compiled = repvgg_zoo.compile(network, image_size=32)
        assert compiled.backend != "eager"
        assert mge.get_default_device() == device
        x = images(1, 3, 32)
        assert distance(eager(network, x), compiled(x)) < BOUND
    finally:
        mge.set_default_device(before)

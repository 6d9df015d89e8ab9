"""compile: the eager network's outputs for every kind of network and batch, and errors for what cannot be run."""

from __future__ import annotations

import copy
import math
import multiprocessing
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import megengine as mge
import megengine.functional as F
import megengine.module as M
import numpy as np
import pytest
from megengine import Tensor

import repvgg_zoo
from repvgg_zoo._cpu import usable_cores
from repvgg_zoo.errors import ArgumentError, ClosedError, EquivalenceError, UnknownModelError
from repvgg_zoo.inference import api
from repvgg_zoo.models import RepVGGBlock
from tests.networks import fill, randomised

ROOT = Path(__file__).parents[2]

# float32 rounding through a network of these depths is about 1e-6 of the output's scale, with winograd up to 6e-6.
BOUND = 1e-5

# For tests of networks that the kernels cannot compute.
eagerly = pytest.mark.filterwarnings("ignore:.*eager mode")

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


def small(name="RepVGG_A0", **options):
    return randomised(
        repvgg_zoo.create(name, num_blocks=[1, 2, 2, 1], width_multiplier=[0.25, 0.25, 0.25, 0.25], **options)
    )


def images(count, channels, size, seed=1):
    height, width = size if isinstance(size, tuple) else (size, size)
    return np.random.RandomState(seed).standard_normal((count, channels, height, width)).astype(np.float32)


def eager(network, x):
    twin = copy.deepcopy(network)
    twin.eval()
    output = twin(Tensor(x))
    return {key: value.numpy() for key, value in output.items()} if isinstance(output, dict) else output.numpy()


def distance(reference, output):
    assert reference.shape == output.shape
    return np.abs(reference - output).max() / np.abs(reference).max()


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


class Backbone(M.Module):
    """A user's own network around blocks of ours."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.first = RepVGGBlock(3, 8, stride=2)
        self.second = RepVGGBlock(8, 8)
        self._scale = lambda x: x * factor  # code that no digest of weights sees

    def forward(self, x):
        x = self.first(x)
        return [x, self._scale(F.mean(self.second(x), axis=[2, 3]))]


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


class Nested(M.Module):
    def __init__(self):
        super().__init__()
        self.block = RepVGGBlock(3, 8)

    def forward(self, x):
        return {"maps": [self.block(x)]}


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

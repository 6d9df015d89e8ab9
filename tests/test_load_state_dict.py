"""Arrays go into a network all or nothing, and the network keeps its dtype and device."""

from __future__ import annotations

import os

import megengine.module as M
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megengine import Parameter, Tensor

from repvgg_zoo._buffers import FileRegion
from repvgg_zoo._file_array import FileArray
from repvgg_zoo._tensors import copy_in_background, load_state_dict
from repvgg_zoo.errors import CacheError, StateError
from repvgg_zoo.models import RepVGG
from repvgg_zoo.registry.specs import SESpec
from tests.arrays import assert_same_array

TINY = ((1, 2, 2, 1), (0.125, 0.125, 0.125, 0.125))


def network(**options) -> RepVGG:
    return RepVGG(*TINY, groups=2, se=SESpec("before_relu", 4), num_classes=5, **options)


def snapshot(module: M.Module) -> dict:
    return {key: (tensor.numpy().tobytes(), tensor.dtype, tensor.shape) for key, tensor in module.named_tensors()}


@pytest.fixture(scope="module")
def arrays() -> dict:
    """Distinct numbers for every tensor of ``network()``, small enough to be exact in float16."""
    state = network().state_dict()
    return {
        k: (np.arange(v.size) % 251 + i).astype(np.float32).reshape(v.shape) for i, (k, v) in enumerate(state.items())
    }


def test_every_tensor_gets_its_array(arrays):
    net = network()
    load_state_dict(net, arrays)
    state = net.state_dict()
    assert list(state) == list(arrays)
    for key, array in arrays.items():
        assert_same_array(state[key], array, key)


def test_vectors_and_their_four_dimensional_form_both_fit(arrays):
    vectors = {k: v.reshape(-1) if v.shape[0] == 1 and v.ndim == 4 else v for k, v in arrays.items()}
    four = {k: v.reshape(1, -1, 1, 1) if v.ndim == 1 and k != "linear.bias" else v for k, v in arrays.items()}
    assert [v.shape for v in vectors.values()] != [v.shape for v in four.values()]
    for given_arrays in (vectors, four):
        net = network()
        load_state_dict(net, given_arrays)
        assert all(np.array_equal(value, arrays[key]) for key, value in net.state_dict().items())


def test_all_problems_are_listed_at_once_and_nothing_is_written(arrays):
    net = network()
    before = snapshot(net)
    bad = dict(arrays)
    del bad["stage0.rbr_dense.bn.running_mean"], bad["linear.bias"]
    bad["neck.weight"] = np.zeros(3, np.float32)
    bad["linear.weight"] = np.zeros((7, 64), np.float32)
    bad["stage4.0.se.up.weight"] = bad["stage4.0.se.up.weight"].reshape(16, 64, 1, 1)
    bad["stage1.0.rbr_1x1.conv.weight"] = bad["stage1.0.rbr_1x1.conv.weight"].astype(np.complex64)
    with pytest.raises(StateError) as caught:
        load_state_dict(net, bad)
    error = caught.value
    assert set(error.missing) == {"stage0.rbr_dense.bn.running_mean", "linear.bias"}
    assert error.unexpected == ("neck.weight",)
    assert set(error.shape_mismatches) == {
        ("linear.weight", (5, 64), (7, 64)),
        ("stage4.0.se.up.weight", (64, 16, 1, 1), (16, 64, 1, 1)),
    }
    for part in ("2 missing, 1 unexpected, 2 of another shape, 1 not real numbers", "neck.weight", "(complex64)"):
        assert part in str(error)
    assert snapshot(net) == before


def test_a_long_list_is_cut_after_ten_lines_and_counted():
    net = network()
    with pytest.raises(StateError) as caught:
        load_state_dict(net, {})
    total = len(net.state_dict())
    assert len(caught.value.missing) == total
    assert f"{total} missing" in caught.value.message
    assert caught.value.message.count("missing: ") == 10
    assert f"and {total - 10} more" in caught.value.message


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_damage_leaves_the_network_bitwise_as_it_was(data, arrays):
    net = network()
    before = snapshot(net)
    key = data.draw(st.sampled_from(sorted(arrays)))
    damaged = dict(arrays)
    damage = data.draw(st.sampled_from(["missing", "renamed", "longer", "deeper", "text"]))
    if damage == "missing":
        del damaged[key]
    elif damage == "renamed":
        damaged[f"{key}x"] = damaged.pop(key)
    elif damage == "longer":
        damaged[key] = np.concatenate([damaged[key], damaged[key]])
    elif damage == "deeper":
        damaged[key] = damaged[key][None]
    else:
        damaged[key] = damaged[key].astype(str)
    with pytest.raises(StateError):
        load_state_dict(net, damaged)
    assert snapshot(net) == before


def test_keys_that_are_allowed_to_be_missing_keep_their_values(arrays):
    net = network()
    head = {key: value.copy() for key, value in net.state_dict().items() if key.startswith("linear.")}
    trunk = {key: value for key, value in arrays.items() if key not in head}
    load_state_dict(net, trunk, allow_missing=list(head))
    state = net.state_dict()
    assert all(np.array_equal(state[key], value) for key, value in {**trunk, **head}.items())
    with pytest.raises(StateError) as caught:
        load_state_dict(net, trunk, allow_missing=["linear.weight"])
    assert caught.value.missing == ("linear.bias",)


def test_a_key_that_is_allowed_to_be_missing_is_loaded_if_present(arrays):
    net = network()
    load_state_dict(net, arrays, allow_missing=list(arrays))
    assert np.array_equal(net.linear.weight.numpy(), arrays["linear.weight"])


@pytest.mark.parametrize("file_dtype", ["float16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("net_dtype", ["float16", "float32"])
def test_the_network_keeps_its_dtype(arrays, file_dtype, net_dtype):
    net = network()
    for tensor in list(net.tensors()):
        tensor._reset(tensor.astype(net_dtype))
    load_state_dict(net, {key: value.astype(file_dtype) for key, value in arrays.items()})
    assert {tensor.dtype for tensor in net.tensors()} == {np.dtype(net_dtype)}
    assert all(np.array_equal(value, arrays[key]) for key, value in net.state_dict().items())


def test_the_network_keeps_its_device_and_its_parameters_their_identity(arrays):
    net = network()
    for tensor in list(net.tensors()):
        tensor._reset(tensor.to("cpu1"))
    before = {key: id(tensor) for key, tensor in net.named_tensors()}
    trainable = {key for key, _ in net.named_parameters()}
    load_state_dict(net, arrays)
    assert {str(tensor.device) for tensor in net.tensors()} == {"cpu1:0"}
    assert {key: id(tensor) for key, tensor in net.named_tensors()} == before
    assert {key for key, _ in net.named_parameters()} == trainable


def test_network_and_arrays_share_no_memory(arrays):
    net = network()
    mine = {key: value.copy() for key, value in arrays.items()}
    load_state_dict(net, mine)
    for value in mine.values():
        value[...] = -1
    assert all(np.array_equal(value, arrays[key]) for key, value in net.state_dict().items())
    for tensor in net.tensors():
        tensor[...] = np.full(tensor.shape, -2, np.float32)
    assert all((value == -1).all() for value in mine.values())


def test_read_only_and_strided_arrays_load(arrays):
    strided = {key: np.asfortranarray(value) for key, value in arrays.items()}
    for value in strided.values():
        value.flags.writeable = False
    net = network()
    load_state_dict(net, strided)
    assert all(np.array_equal(value, arrays[key]) for key, value in net.state_dict().items())


def test_nan_and_infinity_are_loaded_as_they_are(arrays):
    odd = {**arrays, "linear.bias": np.array([np.nan, np.inf, -np.inf, 0, 1], np.float64)}
    net = network()
    load_state_dict(net, odd)
    np.testing.assert_array_equal(net.linear.bias.numpy(), odd["linear.bias"].astype(np.float32))


# Copies that began before the network was there ---------------------------------------------------------------

SIDE = 256  # of a layer whose weight is large enough to be copied in the background


@pytest.fixture
def in_file(tmp_path):
    """A weight that is still in a file, its path, and its values."""
    values = np.arange(SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE) % 2000
    path = tmp_path / "weight"
    path.write_bytes(values.tobytes())
    return FileArray(FileRegion(os.open(path, os.O_RDONLY), path, 0), 0, values.shape, values.dtype), path, values


def linear(value=0.0):
    layer = M.Linear(SIDE, SIDE, bias=False)
    layer.weight = Parameter(np.full((SIDE, SIDE), value, np.float32))
    return layer


def test_a_network_gets_the_values_that_were_read_before_it_was_built(in_file):
    weight, path, values = in_file
    with copy_in_background([weight]) as copies:
        copies.wait()
        os.truncate(path, 0)
        layer = linear()
        load_state_dict(layer, {"weight": weight}, copies=copies)
    assert_same_array(layer.weight.numpy(), values)


def test_a_file_that_changes_meanwhile_is_an_error_and_the_network_is_left_as_it_was(in_file):
    weight, path, _ = in_file
    os.truncate(path, 10)
    with copy_in_background([weight]) as copies:
        layer = linear(7.0)
        with pytest.raises(CacheError, match="changed while it was read"):
            load_state_dict(layer, {"weight": weight}, copies=copies)
    assert (layer.weight.numpy() == 7).all()


@pytest.mark.parametrize(("dtype", "device"), [(np.float16, "cpux"), (np.float32, "cpu1")])
def test_a_network_of_another_dtype_or_device_keeps_it(in_file, dtype, device):
    weight, _, values = in_file
    layer = linear()
    layer.weight = Parameter(np.zeros((SIDE, SIDE), dtype), device=device)
    with copy_in_background([weight]) as copies:
        load_state_dict(layer, {"weight": weight}, copies=copies)
    assert (layer.weight.dtype, layer.weight.device) == (dtype, Tensor(0.0, device=device).device)
    assert_same_array(layer.weight.numpy(), values.astype(dtype))


def test_two_layers_with_the_same_array_have_memory_of_their_own(in_file):
    weight, _, values = in_file
    layers = M.Sequential(linear(), linear())
    state_dict = {"0.weight": weight, "1.weight": weight}
    with copy_in_background(state_dict.values()) as copies:
        load_state_dict(layers, state_dict, copies=copies)
    layers[0].weight[:, :] = 1
    assert_same_array(layers[1].weight.numpy(), values)


def test_an_array_that_is_not_contiguous_is_copied_as_it_is(in_file):
    transposed = in_file[2].T
    layer = linear()
    with copy_in_background([transposed]) as copies:
        load_state_dict(layer, {"weight": transposed}, copies=copies)
    assert_same_array(layer.weight.numpy(), transposed)


def test_what_is_not_used_is_only_dropped(in_file):
    weight, _, values = in_file
    other = np.ones((SIDE, SIDE), np.float32)
    layer = linear()
    with copy_in_background([weight, other, np.ones(3, np.float32)]) as copies:
        load_state_dict(layer, {"weight": other}, copies=copies)
    assert (layer.weight.numpy() == 1).all()
    with copy_in_background([]) as copies:
        load_state_dict(layer, {"weight": values}, copies=copies)
    assert_same_array(layer.weight.numpy(), values)

"""The error of a fusion of plain arrays is what running the branches says, and a wrong kernel is found."""

from __future__ import annotations

import numpy as np
import pytest

import repvgg_zoo
from repvgg_zoo.reparam.fusion import block_bound, fuse_state_dict, fusion_errors
from repvgg_zoo.reparam.to_deploy import find_blocks


def arrays(dtype="float32", **changed):
    """A small network's, whose BN statistics are not those of a new one."""
    state = repvgg_zoo.create("RepVGG_N0", **changed).state_dict()
    random = np.random.RandomState(0)
    for key, value in state.items():
        if value.ndim == 1 and not key.startswith("linear"):
            state[key] = random.uniform(0.5, 2.0, value.shape)
    return {key: value.astype(dtype) for key, value in state.items()}


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(
    ("dtype", "least", "most"), [("float64", 0, 1e-14), ("float32", 1e-9, 1e-6), ("float16", 1e-5, 1e-2)]
)
def test_the_error_of_a_fusion_is_the_rounding_of_the_dtype(groups, dtype, least, most):
    # The bounds are the dtype's precision (2e-16, 6e-8, 5e-4) with room for sums over a few hundred products.
    train = arrays(dtype, groups=groups)
    errors = fusion_errors(train, fuse_state_dict(train))
    assert len(errors) == 9 and all(least <= error <= most for error in errors.values()), errors


def test_each_block_of_the_network_has_its_error():
    network = repvgg_zoo.create("RepVGG_N0")
    state = network.state_dict()
    assert list(fusion_errors(state, fuse_state_dict(state))) == list(find_blocks(network))


@pytest.mark.parametrize("key", ["weight", "bias"])
def test_a_fused_tensor_that_is_slightly_wrong_is_found_in_its_block(key):
    train = arrays()
    fused = fuse_state_dict(train)
    fused[f"stage2.1.rbr_reparam.{key}"] = fused[f"stage2.1.rbr_reparam.{key}"] * np.float32(1.01)
    errors = fusion_errors(train, fused)
    assert max(errors, key=errors.get) == "stage2.1" and errors["stage2.1"] > 1e-4
    assert all(error <= block_bound(fused) for block, error in errors.items() if block != "stage2.1")


def test_the_bound_is_that_of_the_coarsest_dtype():
    assert block_bound(arrays("float32")) == 1e-5 and block_bound(arrays("float16")) == 1e-2
    assert block_bound({**arrays("float32"), "x": np.zeros(1, "float16")}) == 1e-2

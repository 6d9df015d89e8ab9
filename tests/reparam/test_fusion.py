"""fuse_state_dict takes whole blocks or none: a wrong branch would leave no trace in the fused kernel."""

from __future__ import annotations

import numpy as np
import pytest

from repvgg_zoo.errors import EquivalenceError
from repvgg_zoo.models import RepVGG, RepVGGplus
from repvgg_zoo.registry.specs import SESpec
from repvgg_zoo.reparam.fusion import BN_TENSORS, BRANCHES, IDENTITY, fuse_state_dict

from ..networks import randomised

TINY = {"num_blocks": (1, 3, 4, 1), "width_multiplier": (0.25, 0.25, 0.25, 0.25), "num_classes": 10, "groups": 2}


@pytest.fixture(scope="module")
def arrays():
    return randomised(RepVGG(**TINY)).state_dict()


@pytest.mark.parametrize("key", BRANCHES + IDENTITY)
def test_a_branch_that_lacks_a_tensor_is_refused(arrays, key):
    name = f"stage2.1.{key}"
    with pytest.raises(EquivalenceError) as caught:
        fuse_state_dict({other: value for other, value in arrays.items() if other != name})
    assert caught.value.actual == [f"{name} is missing"]


def test_an_identity_branch_that_is_missing_altogether_is_refused(arrays):
    with pytest.raises(EquivalenceError) as caught:
        fuse_state_dict({key: value for key, value in arrays.items() if not key.startswith("stage3.2.rbr_identity")})
    assert caught.value.actual == [f"stage3.2.rbr_identity.{name} is missing" for name in BN_TENSORS]


@pytest.mark.parametrize("block", ["stage0", "stage1.0", "stage2.0"])
def test_an_identity_branch_where_none_belongs_is_refused(arrays, block):
    channels = arrays[f"{block}.rbr_dense.bn.weight"].size
    extra = {f"{block}.rbr_identity.{name}": np.ones(channels, np.float32) for name in BN_TENSORS}
    with pytest.raises(EquivalenceError, match="has no identity branch") as caught:
        fuse_state_dict({**arrays, **extra})
    assert all(any(problem.startswith(key) for problem in caught.value.actual) for key in extra)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("rbr_dense.conv.weight", ()),
        ("rbr_dense.conv.weight", (32,)),
        ("rbr_dense.conv.weight", (32, 32, 1, 1)),
        ("rbr_dense.conv.weight", (2, 16, 16, 0, 0)),
        ("rbr_dense.bn.weight", ()),
        ("rbr_dense.bn.bias", (1,)),
        ("rbr_dense.bn.running_mean", (31,)),
        ("rbr_dense.bn.running_var", (4, 8)),
        ("rbr_dense.bn.running_var", (1, 32, 1)),
        ("rbr_dense.bn.running_var", (32, 1, 1, 1)),
        ("rbr_1x1.conv.weight", (32, 32, 3, 3)),
        ("rbr_1x1.conv.weight", (32, 1, 1, 1)),
        ("rbr_1x1.bn.weight", (32, 2)),
        ("rbr_identity.weight", (1,)),
        ("rbr_identity.running_var", (64,)),
    ],
)
def test_a_tensor_of_another_shape_is_refused_and_named(arrays, key, shape):
    name = f"stage2.1.{key}"
    assert arrays["stage2.1.rbr_identity.weight"].shape == (32,)
    with pytest.raises(EquivalenceError, match="shape") as caught:
        fuse_state_dict({**arrays, name: np.ones(shape, np.float32)})
    assert [problem for problem in caught.value.actual if problem.startswith(f"{name} of shape {shape}")]


def test_both_shapes_of_a_bn_tensor_fuse_to_the_same_numbers(arrays):
    held = {key: value.reshape(1, -1, 1, 1) if ".bn." in key else value for key, value in arrays.items()}
    expected = fuse_state_dict(arrays)
    for key, value in fuse_state_dict(held).items():
        np.testing.assert_array_equal(value, expected[key], err_msg=key)


def test_the_second_half_of_stage_3_begins_with_an_identity_branch():
    arrays = randomised(RepVGGplus((1, 1, 4, 1), (0.25,) * 4, se=SESpec("after_relu", 4), num_classes=10)).state_dict()
    fuse_state_dict(arrays)
    with pytest.raises(EquivalenceError, match=r"stage3_second\.blocks\.0\.rbr_identity\.weight is missing"):
        fuse_state_dict({key: value for key, value in arrays.items() if "stage3_second.blocks.0.rbr_id" not in key})

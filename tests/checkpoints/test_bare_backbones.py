"""A backbone without a head is loaded where none is needed or a new one was asked for; else the error says what to do.

The kind of fault: weights that are complete for what they are used for are refused, or the error leaves one alone.
"""

from __future__ import annotations

import numpy as np
import pytest

import repvgg_zoo
from repvgg_zoo.checkpoints.layouts import EMBEDDED_PREFIXES, LAYOUTS, to_publisher_key
from repvgg_zoo.errors import StateError

from ..networks import randomised

SMALL = {"num_blocks": (1, 1, 2, 1), "width_multiplier": (0.125,) * 4}
FULL = {
    form: randomised(repvgg_zoo.create("RepVGG_N0", deploy=form == "deploy", **SMALL)).state_dict()
    for form in ("train", "deploy")
}
PLUS = randomised(repvgg_zoo.create("RepVGGplus_L2pse", num_classes=10, **SMALL)).state_dict()


def trunk(state):
    return {key: array for key, array in state.items() if not key.startswith("linear.") and "_aux." not in key}


def as_mmcls(state):
    names = {key: to_publisher_key(LAYOUTS["openmmlab"], key) for key in trunk(state)}
    return {names[key].replace("backbone.", "", 1): array for key, array in trunk(state).items()}


def as_timm_features(state):
    names = {key: to_publisher_key(LAYOUTS["timm"], key) for key in trunk(state)}
    return {names[key].replace("stages.", "stages_", 1): array for key, array in trunk(state).items()}


BARE = {
    "ours": trunk,
    "mmcls": as_mmcls,
    "timm, features_only": as_timm_features,
    "a segmenter": lambda state: {
        **{f"net.backbone.{key}": array for key, array in trunk(state).items()},
        "aux.0.weight": np.ones((3, 3), np.float32),
    },
}


@pytest.mark.parametrize("form", FULL)
@pytest.mark.parametrize("what", BARE)
def test_a_bare_backbone_is_loaded_where_no_head_is_needed_or_a_new_one_is_asked_for(what, form):
    weights, options = BARE[what](FULL[form]), {**SMALL, "deploy": form == "deploy"}
    for more in ({"features_only": True}, {"num_classes": 0}, {"num_classes": 7}):
        network = repvgg_zoo.create("RepVGG_N0", checkpoint=weights, **options, **more)
        state = network.state_dict()
        for key, array in trunk(FULL[form]).items():
            assert np.array_equal(state[key].ravel(), array.ravel()), key
    assert state["linear.weight"].shape == (7, 64)
    assert np.abs(state["linear.weight"]).max() > 0, "initialized, not zero"


@pytest.mark.parametrize("what", BARE)
def test_without_either_the_error_says_what_to_do(what):
    with pytest.raises(StateError, match=r"linear\.bias") as caught:
        repvgg_zoo.create("RepVGG_N0", checkpoint=BARE[what](FULL["train"]), **SMALL)
    assert set(caught.value.missing) == {"linear.weight", "linear.bias"}
    assert "num_classes=" in caught.value.hint and "features_only=True" in caught.value.hint


def test_a_backbone_that_is_compiled_by_itself_is_an_error_that_says_what_to_do():
    state = repvgg_zoo.create("RepVGG_N0", deploy=True).state_dict()
    with pytest.raises(StateError) as caught:
        repvgg_zoo.compile(trunk(state))
    assert "features_only=True" in caught.value.hint
    features = repvgg_zoo.create("RepVGG_N0", checkpoint=trunk(state), deploy=True, features_only=True)
    assert set(repvgg_zoo.compile(features)(np.zeros((1, 1, 32, 32), np.float32))) == {
        info.name for info in features.feature_info
    }


def test_a_trunk_that_is_incomplete_is_an_error_whatever_is_asked_for():
    weights = {key: array for key, array in trunk(FULL["train"]).items() if key != "stage1.0.rbr_1x1.bn.bias"}
    for more in ({}, {"features_only": True}, {"num_classes": 7}):
        with pytest.raises(StateError) as caught:
            repvgg_zoo.create("RepVGG_N0", checkpoint=weights, **SMALL, **more)
        assert "stage1.0.rbr_1x1.bn.bias" in caught.value.missing
        assert "num_classes" not in caught.value.hint


def test_the_first_stages_are_enough_for_their_features():
    weights = {key: array for key, array in trunk(FULL["train"]).items() if not key.startswith(("stage3", "stage4"))}
    network = repvgg_zoo.create("RepVGG_N0", checkpoint=weights, features_only=True, out_indices=(0, 2), **SMALL)
    assert "stage3" not in dict(network.named_children())


def test_a_repvggplus_without_its_auxiliary_heads_gets_new_ones():
    network = repvgg_zoo.create("RepVGGplus_L2pse", checkpoint=trunk(PLUS), num_classes=5, **SMALL)
    state = network.state_dict()
    heads = [key for key in state if "_aux." in key or key.startswith("linear.")]
    assert all(np.abs(state[key]).max() > 0 for key in heads if key.endswith("weight")), "initialized, not zero"
    assert np.array_equal(state["stage2.blocks.0.rbr_1x1.conv.weight"], PLUS["stage2.blocks.0.rbr_1x1.conv.weight"])
    with pytest.raises(StateError) as caught:
        repvgg_zoo.create("RepVGGplus_L2pse", checkpoint=trunk(PLUS), **SMALL)
    assert "num_classes=" in caught.value.hint


def test_the_names_of_embedded_blocks_are_those_of_a_layout():
    assert set(EMBEDDED_PREFIXES) <= set(LAYOUTS)

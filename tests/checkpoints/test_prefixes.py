"""A RepVGG is found in a state dict whatever comes before its keys, in their middle, or beside them.

The kind of fault: keys that trainers and wrappers changed, and networks that have a RepVGG as a part, are refused,
although all weights are there; or weights are taken although it is not clear that they are the right ones.
"""

from __future__ import annotations

import numpy as np
import pytest

from repvgg_zoo.checkpoints import load_checkpoint, save_checkpoint
from repvgg_zoo.checkpoints.layouts import LAYOUTS
from repvgg_zoo.checkpoints.load import canonicalize
from repvgg_zoo.errors import LayoutError
from tests.arrays import assert_same_array

from .publishers import PUBLISHERS, SMALL, entries, numbered

VARIANT = SMALL["g2"]
CANONICAL, STATE = numbered(entries("official", VARIANT, "train", classes=10), "official")
TRUNK = {key: array for key, array in STATE.items() if not key.startswith("linear.")}
HEAD = {key: array for key, array in STATE.items() if key.startswith("linear.")}
AVERAGED = {key: array + 1 for key, array in STATE.items()}
CRITERION = {"criterion.weight": np.ones(10, np.float32)}


def read(tree, **options):
    return canonicalize(tree, format="torch", path="file", **options)


def prefixed(prefix, state, only=""):
    return {f"{prefix}{key}" if key.startswith(only) else key: array for key, array in state.items()}


def inside(state, old, new):
    return {key.replace(old, new): array for key, array in state.items()}


def as_layers(state):
    return inside(state, "stage", "layer")


def assert_all_loaded(checkpoint, expected=CANONICAL):
    assert set(checkpoint.state_dict) == set(expected)
    for key, array in expected.items():
        assert_same_array(checkpoint.state_dict[key], array, key)


# What a published file's keys became, in a trainer that has only this network.
CHANGED_KEYS = {
    "a prefix that is not in any list": prefixed("my_net.", STATE),
    "student": prefixed("student.", STATE),
    "encoder": prefixed("encoder.", STATE),
    "three prefixes": prefixed("trainer.student.model.", STATE),
    "a prefix of the trunk alone": {**prefixed("backbone.", TRUNK), **HEAD},
    "a prefix of some stages": prefixed("model.", STATE, only="stage3"),
    "DataParallel around one stage": inside(STATE, "stage1.", "stage1.module."),
    "DataParallel around some keys": prefixed("module.", STATE, only="stage1"),
    "torch.compile of every block": inside(STATE, ".rbr_dense", "._orig_mod.rbr_dense"),
    "FSDP": prefixed("_fsdp_wrapped_module.", inside(STATE, "stage2.", "stage2._fsdp_wrapped_module.")),
    "activation checkpointing": inside(STATE, "stage3.0.", "stage3.0._checkpoint_wrapped_module."),
    "Lightning and DDP and compile": prefixed("module.model._orig_mod.", STATE),
    "backbone and fc": {**prefixed("backbone.", TRUNK), **inside(HEAD, "linear", "fc")},
    "backbone and head.fc": {**prefixed("backbone.", TRUNK), **inside(HEAD, "linear", "head.fc")},
    "backbone and head.fc in a model": {**prefixed("m.backbone.", TRUNK), **inside(HEAD, "linear", "m.head.fc")},
    "a head called classifier": {**TRUNK, **inside(HEAD, "linear", "classifier")},
}


@pytest.mark.parametrize("how", CHANGED_KEYS)
def test_keys_that_a_trainer_or_a_wrapper_changed_are_found(how):
    checkpoint = read(CHANGED_KEYS[how])
    assert_all_loaded(checkpoint)
    assert (checkpoint.layout, checkpoint.report.skipped) == ("official", ())


@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("publisher", PUBLISHERS)
def test_any_prefix_and_any_stranger_leave_every_publishers_layout_what_it_is(publisher, form):
    rows = entries(publisher, SMALL["se"], form, classes=10)
    canonical, state = numbered(rows, publisher)
    format = "paddle" if publisher == "paddleclas" else "megengine" if LAYOUTS[publisher].megengine_shapes else "torch"
    tree = {**prefixed("lit.net.", state), **CRITERION}
    checkpoint = canonicalize(tree, format=format, path="file")
    assert checkpoint.layout == publisher
    assert_all_loaded(checkpoint, canonical)


STRANGERS = {
    "a criterion": CRITERION,
    "a counter of averages": {"n_averaged": np.array(5)},
    "counters": {"steps": np.array([3], np.int64), "initialized": np.array(True)},
    "a queue": {"queue": np.zeros((8, 4), np.float32), "queue_ptr": np.zeros(1, np.int64)},
    "another head of other features": {"head.fc.weight": np.ones((5, 3)), "head.fc.bias": np.ones(5)},
    "a neck with stages": {"neck.stages.0.0.conv.weight": np.ones((3, 3, 1, 1))},
    "a ViT teacher": {"teacher.blocks.0.attn.qkv.weight": np.ones((3, 3))},
    "a long key": {"k" * 5000: np.ones(3)},
}


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
@pytest.mark.parametrize("what", STRANGERS)
def test_strangers_beside_complete_weights_are_reported(what, prefix):
    checkpoint = read({"state_dict": {**prefixed(prefix, STATE), **STRANGERS[what]}})
    assert_all_loaded(checkpoint)
    assert dict(checkpoint.report.skipped) == {f"state_dict.{key}": "not of the RepVGG" for key in STRANGERS[what]}


@pytest.mark.parametrize(
    "lost",
    [
        "stage1.1.rbr_identity.running_var",
        "stage0.rbr_dense.conv.weight",
        "stage4.0.rbr_1x1.bn.weight",
        "linear.bias",
    ],
)
def test_strangers_beside_incomplete_weights_are_an_error_that_names_both(lost):
    tree = {**prefixed("model.", {key: array for key, array in STATE.items() if key != lost}), **CRITERION}
    with pytest.raises(LayoutError, match=r"criterion\.weight") as caught:
        read(tree)
    assert lost in caught.value.message
    assert caught.value.actual[-1] == "criterion.weight"


@pytest.mark.parametrize("lost", ["stage0.", "stage2.", "stage3.1."])
def test_a_whole_block_or_stage_that_is_missing_is_noticed(lost):
    tree = {**{key: array for key, array in STATE.items() if not key.startswith(lost)}, **CRITERION}
    with pytest.raises(LayoutError, match=f"missing, such as {lost}"):
        read(tree)


@pytest.mark.parametrize(
    "intruder", ["stage1.0.rbr_5x5.conv.weight", "stage1.downsample.weight", "stage0.attention.weight"]
)
def test_a_stranger_in_a_stage_makes_it_another_network(intruder):
    tree = {**STATE, intruder: np.ones((4, 4, 5, 5), np.float32)}
    with pytest.raises(LayoutError, match=f"closest layout, official: {intruder}"):
        read(tree)
    with pytest.raises(LayoutError, match=f"of no RepVGG: x.{intruder}"):
        read(prefixed("x.", tree), prefix="x.")


# Networks that have a RepVGG as a part -----------------------------------------------------------------------

DETECTOR = {"neck.fpn.0.conv.weight": np.ones((3, 3, 1, 1)), "bbox_head.fc_cls.weight": np.ones((80, 3))}


def test_a_teacher_beside_the_student_must_be_chosen():
    tree = {**prefixed("student.", STATE), **prefixed("teacher.", AVERAGED)}
    with pytest.raises(LayoutError, match=r"holds 2 RepVGGs, below the prefixes 'student\.', 'teacher\.'") as caught:
        read(tree)
    assert caught.value.actual == ["student.", "teacher."]
    assert "prefix=" in caught.value.hint
    checkpoint = read(tree, prefix="student.")
    assert_all_loaded(checkpoint)
    assert dict(checkpoint.report.skipped)["teacher.linear.bias"] == "of the RepVGG below 'teacher.'"
    assert np.array_equal(read(tree, prefix="teacher").state_dict["linear.bias"], AVERAGED["linear.bias"])


def test_a_state_dict_with_several_networks_is_not_passed_over_for_an_averaged_one():
    tree = {"state_dict": {**prefixed("student.", STATE), **prefixed("teacher.", AVERAGED)}, "ema": STATE}
    with pytest.raises(LayoutError, match="holds 2 RepVGGs"):
        read(tree)
    assert_all_loaded(read(tree, prefix="student."))
    assert_all_loaded(read(tree, state="ema"))


@pytest.mark.parametrize("names", [("student", "teacher"), ("nets.a", "nets.b")])
def test_a_teacher_in_a_state_dict_of_its_own_must_be_chosen_too(names):
    tree = {"net": {"conv.weight": np.ones(3)}}
    for name, state in zip(names, (STATE, AVERAGED)):
        *above, last = name.split(".")
        part = tree
        for key in above:
            part = part.setdefault(key, {})
        part[last] = state
    with pytest.raises(LayoutError, match=f"several RepVGGs, such as '{names[0]}' and '{names[1]}'") as caught:
        read(tree)
    assert "state=" in caught.value.hint
    assert_all_loaded(read(tree, state=names[0]))


def test_the_moments_of_an_optimizer_are_not_taken_for_another_network():
    optimizer = {"state": {"exp_avg": AVERAGED, "exp_avg_sq": AVERAGED}}
    assert_all_loaded(read({"weights": STATE, "optimizer": optimizer}))


@pytest.mark.parametrize("prefix", ["ema.", "model_ema.module.", "ema_model."])
def test_plain_weights_come_before_averaged_ones_in_one_state_dict_too(prefix):
    tree = {**prefixed(prefix, AVERAGED), **prefixed("model.", STATE)}
    assert_all_loaded(read(tree))
    averaged = read(tree, prefix=prefix)
    assert np.array_equal(averaged.state_dict["linear.bias"], AVERAGED["linear.bias"])


def test_the_report_says_where_the_network_was():
    report = read({"nets": {"a": {**prefixed("module.lit.", STATE), **CRITERION}}}).report
    assert (report.state, report.prefix) == ("nets.a", "lit.")
    assert (read(STATE).report.state, read(STATE).report.prefix) == ("", "")


def test_weights_that_are_left_aside_are_logged_unless_a_part_was_asked_for(caplog):
    tree = {**prefixed("backbone.", STATE), **CRITERION, "steps": np.array(3)}
    read(tree)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == "file: 1 array is not of the network and not loaded: criterion.weight"
    caplog.clear()
    read(tree, prefix="backbone.")
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


def test_a_wrapped_copy_beside_the_network_is_another_network():
    with pytest.raises(LayoutError, match="holds 2 RepVGGs"):
        read({**STATE, **prefixed("module.", AVERAGED)})


@pytest.mark.parametrize("prefix", ["backbone.", "backbone", "module.backbone."])
@pytest.mark.parametrize("wrapper", ["", "module."])
def test_the_backbone_of_a_detector_is_taken_by_its_prefix(prefix, wrapper):
    tree = {"state_dict": prefixed(wrapper, {**prefixed("backbone.", TRUNK), **DETECTOR}), "meta": {}}
    checkpoint = read(tree, prefix=prefix)
    assert_all_loaded(checkpoint, {key: array for key, array in CANONICAL.items() if not key.startswith("linear.")})
    assert {key for key, _ in checkpoint.report.skipped} == {
        "meta",
        *(f"state_dict.{wrapper}{key}" for key in DETECTOR),
    }


def test_an_unknown_prefix_is_an_error_with_those_that_were_found():
    tree = {**prefixed("detector.backbone.", TRUNK), **DETECTOR}
    with pytest.raises(LayoutError, match=r"prefix 'backbone\.'; blocks of one are below 'detector\.backbone\.'") as e:
        read(tree, prefix="backbone.")
    assert e.value.expected == ["detector.backbone."]
    with pytest.raises(LayoutError, match=r"no RepVGG below the prefix 'backbone\.' or any other"):
        read(DETECTOR, prefix="backbone.")


OPENMMLAB = numbered(entries("openmmlab", VARIANT, "train", classes=10), "openmmlab")[1]
TIMM = numbered(entries("timm", VARIANT, "train", classes=10), "timm")[1]
FEATURES_ONLY = inside(TIMM, "stages.", "stages_")
PARTS = {
    "an mmdetection file": ("openmmlab", {**OPENMMLAB, **DETECTOR}),
    "a backbone of mmcls": ("openmmlab", inside(OPENMMLAB, "backbone.", "")),
    "a backbone of timm, features_only": ("timm", FEATURES_ONLY),
    "mmdetection with a backbone of timm": (
        "timm",
        prefixed("backbone.timm_model.", FEATURES_ONLY),
    ),
    "the official PSPNet": ("official", {**as_layers(TRUNK), "ppm.features.0.1.weight": np.ones((3, 3, 1, 1))}),
    "6DRepNet": ("official", {**as_layers(TRUNK), "linear_reg.weight": np.ones((6, 3)), "linear_reg.bias": np.ones(6)}),
}


@pytest.mark.parametrize("what", PARTS)
def test_the_blocks_of_a_larger_network_or_of_a_bare_backbone_are_found(what):
    layout, tree = PARTS[what]
    checkpoint = read({key: array for key, array in tree.items() if "head.fc." not in key or "bbox" in key})
    assert checkpoint.layout == layout
    assert_all_loaded(checkpoint, {key: array for key, array in CANONICAL.items() if not key.startswith("linear.")})


def test_a_backbone_without_its_last_stages_is_complete_as_far_as_it_goes():
    tree = {**prefixed("backbone.", {k: v for k, v in TRUNK.items() if not k.startswith("stage4")}), **DETECTOR}
    assert not any(key.startswith("stage4") for key in read(tree).state_dict)


def test_the_part_of_a_file_is_a_checkpoint_like_any_other(tmp_path):
    save_checkpoint(tmp_path / "net.safetensors", prefixed("backbone.", STATE))
    checkpoint = load_checkpoint(tmp_path / "net.safetensors", prefix="backbone.")
    save_checkpoint(tmp_path / "part.safetensors", checkpoint)
    assert_all_loaded(load_checkpoint(tmp_path / "part.safetensors"))
    with pytest.raises(LayoutError) as caught:
        load_checkpoint(tmp_path / "net.safetensors", prefix="neck.")
    assert caught.value.path == str(tmp_path / "net.safetensors")


def test_many_networks_and_many_keys_do_not_take_long():
    names = [f"{a}.{'p.' * 180}stage1.{b}.rbr_dense.bn.bias" for a in range(40) for b in range(100)]
    with pytest.raises(LayoutError):  # in a second; without the limits, in minutes
        read({name: np.zeros(1, np.float32) for name in names})

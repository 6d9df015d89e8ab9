"""Every publisher's layout becomes the canonical one, exactly, and a file that does not is refused with its reasons."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repvgg_zoo.checkpoints.layouts import (
    LAYOUTS,
    Layout,
    group_count,
    to_canonical_array,
    to_canonical_keys,
    to_publisher_key,
)
from repvgg_zoo.checkpoints.load import canonicalize
from repvgg_zoo.checkpoints.state_dict import detect_form
from repvgg_zoo.errors import LayoutError
from repvgg_zoo.models import RepVGG, RepVGGplus
from repvgg_zoo.registry.specs import SESpec
from tests.arrays import assert_same_array

from .publishers import PUBLISHERS, SMALL, VARIANTS, Variant, entries, numbered, weightless

FORMS = ("train", "deploy")
FORMAT = {"canonical": "megengine", "basecls": "megengine", "asthestarsfalll": "megengine", "paddleclas": "paddle"}
# RepVGGplus is the official authors' alone.
CASES = [
    (publisher, name)
    for publisher in PUBLISHERS
    for name in VARIANTS
    if not VARIANTS[name].plus or publisher in ("canonical", "official")
]
SMALL_CASES = [
    (publisher, name)
    for publisher in PUBLISHERS
    for name in SMALL
    if not SMALL[name].plus or publisher in ("canonical", "official")
]


def read(tree, publisher, **options):
    return canonicalize(tree, format=FORMAT.get(publisher, "torch"), path="file", **options)


def shapes(arrays):
    return {key: array.shape for key, array in arrays.items()}


def canonical_shapes(rows):
    return {row.canonical: row.canonical_shape for row in rows}


def expected_layout(publisher: str, variant: Variant) -> str:
    return "official_plus" if publisher == "official" and variant.plus else publisher


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("publisher", "name"), CASES)
def test_keys_and_shapes_of_every_variant_become_canonical(publisher, name, form):
    rows = entries(publisher, VARIANTS[name], form)
    checkpoint = read(weightless(rows), publisher)
    assert {key: array.shape for key, array in checkpoint.state_dict.items()} == {
        r.canonical: r.canonical_shape for r in rows
    }
    assert (checkpoint.form, checkpoint.layout) == (form, expected_layout(publisher, VARIANTS[name]))
    assert checkpoint.report.skipped == ()
    assert set(checkpoint.report.loaded) == {row.canonical for row in rows}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("publisher", "name"), SMALL_CASES)
def test_every_number_lands_in_its_place(publisher, name, form):
    rows = entries(publisher, SMALL[name], form, classes=10)
    canonical, published = numbered(rows, publisher)
    checkpoint = read(published, publisher)
    assert list(checkpoint.state_dict) == list(canonical)
    for key, array in canonical.items():
        assert_same_array(checkpoint.state_dict[key], array, key)
    changed = {row.canonical for row in rows if row.canonical_shape != row.publisher_shape}
    assert set(checkpoint.report.reshaped) | set(checkpoint.report.transposed) == changed
    assert checkpoint.report.transposed == (("linear.weight",) if publisher == "paddleclas" else ())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", VARIANTS)
def test_the_canonical_keys_are_those_of_the_networks(name, form):
    full = VARIANTS[name]
    # An eighth of the width has the same keys, and shapes that tell as much.
    variant = Variant(full.depths, tuple(w / 8 for w in full.widths), full.groups, full.reduction, full.plus)
    se = variant.reduction and SESpec("after_relu" if variant.plus else "before_relu", variant.reduction)
    options = {"se": se or None, "deploy": form == "deploy", "init_weights": False}
    if variant.plus:
        network = RepVGGplus(variant.depths, variant.widths, **options)
    else:
        network = RepVGG(variant.depths, variant.widths, groups=variant.groups, **options)
    rows = entries("canonical", variant, form)
    assert {key: array.shape for key, array in network.state_dict().items()} == {
        r.canonical: r.canonical_shape for r in rows
    }


@pytest.mark.parametrize("publisher", PUBLISHERS)
@pytest.mark.parametrize("name", ["plain", "g4", "se"])
def test_a_layout_passed_by_name_reads_the_same_as_the_detected_one(publisher, name):
    rows = entries(publisher, SMALL[name], "train", classes=10)
    canonical, published = numbered(rows, publisher)
    checkpoint = read(published, publisher, layout=LAYOUTS[publisher])
    assert checkpoint.layout == publisher
    for key, array in canonical.items():
        np.testing.assert_array_equal(checkpoint.state_dict[key], array, err_msg=key)


def test_only_the_format_tells_a_deploy_file_of_paddle():
    canonical, published = numbered(entries("paddleclas", SMALL["plain"], "deploy", classes=10), "paddleclas")
    assert read(published, "paddleclas").state_dict["linear.weight"].shape == canonical["linear.weight"].shape
    assert read(published, "official").layout == "official"


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS.values() if layout.name != "canonical"])
def test_keys_survive_the_round_trip_through_a_layout(layout):
    keys = [
        f"{place.replace('#', '12')}.{module}.{tensor}"
        for place in layout.block_prefixes
        for module in layout.module_names
        for tensor in layout.tensor_names
    ]
    published = [to_publisher_key(layout, key) for key in keys]
    assert None not in published
    assert len(set(published)) == len(keys)
    assert list(to_canonical_keys(layout, published)) == keys


def test_a_layout_of_your_own_is_a_few_tables():
    timm = LAYOUTS["timm"]
    module_names = {**timm.module_names, "rbr_dense.conv": "conv3.kernel"}
    mine = Layout("mine", timm.block_prefixes, module_names, timm.head_names)
    canonical, published = numbered(entries("timm", SMALL["g2"], "train"), "timm")
    payload = {key.replace("conv_kxk.conv.", "conv3.kernel."): array for key, array in published.items()}
    checkpoint = read(payload, "timm", layout=mine)
    assert checkpoint.layout == "mine"
    assert shapes(checkpoint.state_dict) == shapes(canonical)


# Shapes ------------------------------------------------------------------------------------------------------


@given(groups=st.sampled_from([1, 2, 4, 8]), outs=st.integers(1, 4), ins=st.integers(1, 4), k=st.sampled_from([1, 3]))
def test_grouping_a_kernel_reorders_nothing(groups, outs, ins, k):
    torch = np.arange(groups * outs * ins * k * k).reshape(groups * outs, ins, k, k)
    canonical = to_canonical_array(
        LAYOUTS["official"], "stage1.1.rbr_dense.conv.weight", torch, in_channels=groups * ins
    )
    assert canonical.shape == ((groups, outs, ins, k, k) if groups > 1 else torch.shape)
    np.testing.assert_array_equal(canonical.ravel(), torch.ravel())
    for group in range(groups if groups > 1 else 0):
        np.testing.assert_array_equal(canonical[group], torch[group * outs : (group + 1) * outs])


@pytest.mark.parametrize(
    ("shape", "in_channels", "groups"),
    [
        ((8, 8, 3, 3), 8, 1),
        ((8, 2, 3, 3), 8, 4),
        ((8, 4, 1, 1), 8, 2),
        ((16, 8, 3, 3), 8, 1),
        ((8, 3, 3, 3), 8, 1),  # no multiple
        ((9, 4, 3, 3), 8, 1),  # output channels do not fall into two groups
        ((8, 0, 3, 3), 8, 1),
        ((8, 16, 3, 3), 8, 1),
        ((8, 2, 3, 3), 0, 1),
    ],
)
def test_groups_follow_from_the_channels_that_come_in(shape, in_channels, groups):
    assert group_count(shape, in_channels) == groups


@pytest.mark.parametrize("publisher", ["canonical", "basecls", "official"])
def test_bn_as_megengine_holds_it_in_memory_is_read_too(publisher):
    canonical, published = numbered(entries(publisher, SMALL["g2"], "train"), publisher)
    for key in [key for key in published if ".bn." in key or ".rbr_identity." in key]:
        published[key] = published[key].reshape(1, -1, 1, 1)
    checkpoint = read(published, publisher)
    for key, array in canonical.items():
        assert_same_array(checkpoint.state_dict[key], array, key)


def test_se_with_one_channel_between_is_not_taken_for_a_vector():
    variant = Variant((1, 1, 1, 1), (0.25, 0.25, 0.25, 0.25), reduction=16)
    rows = entries("official", variant, "train")
    checkpoint = read(weightless(rows), "official")
    assert checkpoint.state_dict["stage0.se.down.weight"].shape == (1, 16, 1, 1)
    assert checkpoint.state_dict["stage0.se.down.bias"].shape == (1, 1, 1, 1)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_dtype_of_the_file_is_kept(dtype):
    tree = {key: array.astype(dtype) for key, array in weightless(entries("timm", SMALL["g2"], "train")).items()}
    assert {array.dtype for array in read(tree, "timm").state_dict.values()} == {np.dtype(dtype)}


def test_reading_copies_nothing_but_a_transposed_head():
    _, published = numbered(entries("official", SMALL["g4"], "deploy"), "official")
    checkpoint = read(published, "official")
    for row in entries("official", SMALL["g4"], "deploy"):
        assert np.shares_memory(checkpoint.state_dict[row.canonical], published[row.publisher_key]), row.canonical


# Wrappers, prefixes, and what is left aside ------------------------------------------------------------------

STATE = weightless(entries("official", SMALL["g2"], "train"))
INCOMPLETE = {key: array for key, array in STATE.items() if key != "stage1.0.rbr_1x1.bn.bias"}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state},
        lambda state: {"model": state},
        lambda state: {"ema": state},
        lambda state: {"state_dict_ema": state},
        lambda state: {"model": {"state_dict": state}, "epoch": 3},
        lambda state: {"state_dict": state, "state_dict_ema": {}, "optimizer": {"state": {}}, "arch": "A0"},
    ],
)
def test_the_state_dict_is_found_in_a_trainers_file(wrap):
    checkpoint = read(wrap(STATE), "official")
    assert len(checkpoint.state_dict) == len(STATE)


def test_entries_beside_the_state_dict_are_reported():
    checkpoint = read({"model": {"state_dict": STATE, "best": {}}, "epoch": 3, "state_dict_ema": {}}, "official")
    assert dict(checkpoint.report.skipped) == {
        "epoch": "beside model",
        "state_dict_ema": "beside model",
        "model.best": "beside model.state_dict",
    }


def test_a_dict_that_holds_itself_ends_in_an_error():
    tree = {}
    tree["model"] = tree
    with pytest.raises(LayoutError, match="no arrays"):
        canonicalize(tree, format="megengine", path="x")


@pytest.mark.parametrize("prefix", ["module.", "module.model.", "_orig_mod.", "backbone.", "model.module.backbone."])
@pytest.mark.parametrize("publisher", PUBLISHERS)
def test_a_prefix_of_all_keys_is_removed(publisher, prefix):
    rows = entries(publisher, SMALL["g2"], "train")
    tree = {f"{prefix}{key}": array for key, array in weightless(rows).items()}
    assert set(read(tree, publisher).state_dict) == {row.canonical for row in rows}


def test_counters_and_helpers_are_skipped_and_reported():
    helpers = {
        "stage0.rbr_dense.bn.num_batches_tracked": np.array(5),
        "stage1.1.id_tensor": np.zeros((4, 4, 3, 3), np.float32),
        "stage1.1.bn_identity.weight": np.zeros(4, np.float32),
        "total_ops": np.zeros(1),
        "stage0.total_params": np.zeros(1),
    }
    checkpoint = read({**STATE, **helpers, "epoch": 5}, "official")
    assert set(checkpoint.state_dict) == set(STATE)
    assert dict(checkpoint.report.skipped) == {**dict.fromkeys(helpers, "a counter or helper"), "epoch": "not an array"}


# What is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "no arrays"),
        ([STATE], "holds a list, not a dict of arrays"),
        (np.zeros(3), "holds a ndarray, not"),
        ({"weights": {}}, "the file holds no arrays by name, only weights"),
        ({"epoch": 1}, "no arrays"),
        (
            {"conv1.weight": np.zeros(3), "fc.bias": np.zeros(3)},
            "no key is in layout official_plus or .*: conv1.weight, fc.bias",
        ),
        (
            {**INCOMPLETE, "neck.weight": np.zeros(3)},
            r"1 of [0-9]+ keys are not in the closest layout, official: neck\.weight; 1 are missing, such as stage1\.0",
        ),
        ({**STATE, "linear.weight": np.zeros((3, 3), np.int8)}, r"not floating point: linear\.weight \(int8\)"),
        ({"linear.weight": np.zeros((3, 3)), "linear.bias": np.zeros(3)}, "has no RepVGG block"),
    ],
)
def test_a_file_without_a_repvgg_is_refused_with_what_it_holds(tree, message):
    with pytest.raises(LayoutError, match=message) as caught:
        read(tree, "official")
    assert caught.value.hint


def test_a_wrong_layout_is_refused_with_the_keys_that_it_lacks():
    with pytest.raises(LayoutError, match="no key is in layout timm: stage0"):
        read(STATE, "official", layout=LAYOUTS["timm"])


def test_many_unknown_keys_are_cut_in_the_message_but_not_in_the_data():
    strangers = {f"neck.{i}.weight": np.zeros(1) for i in range(30)}
    with pytest.raises(LayoutError, match="and 20 more") as caught:
        read({**INCOMPLETE, **strangers}, "official")
    assert caught.value.actual == list(strangers)


# Forms -------------------------------------------------------------------------------------------------------

FULL = [f"rbr_{branch}.conv.weight" for branch in ("dense", "1x1")]
FULL += [f"rbr_{b}.bn.{t}" for b in ("dense", "1x1") for t in ("weight", "bias", "running_mean", "running_var")]
IDENTITY = [f"rbr_identity.{t}" for t in ("weight", "bias", "running_mean", "running_var")]
FUSED = ["rbr_reparam.weight", "rbr_reparam.bias"]


def of_blocks(**blocks):
    return {f"{b.replace('_', '.', 1)}.{t}": np.zeros(1) for b, tensors in blocks.items() for t in tensors}


@pytest.mark.parametrize(
    ("arrays", "form", "dropped"),
    [
        (of_blocks(stage0=FULL, stage1_1=FULL + IDENTITY), "train", []),
        (of_blocks(stage0=FUSED, stage1_1=FUSED), "deploy", []),
        (of_blocks(stage0=FULL + FUSED), "train", [f"stage0.{t}" for t in FUSED]),
        (of_blocks(stage0=FULL + FUSED, stage1_1=FULL + IDENTITY), "train", [f"stage0.{t}" for t in FUSED]),
        # Without its identity, a block that must have one has lost a branch; the first block of a stage has none.
        (of_blocks(stage1_1=FULL + FUSED), "deploy", [f"stage1.1.{t}" for t in FULL]),
        (of_blocks(stage1_0=FULL + FUSED), "train", [f"stage1.0.{t}" for t in FUSED]),
        (of_blocks(stage1_1=FULL + IDENTITY + FUSED), "train", [f"stage1.1.{t}" for t in FUSED]),
        (of_blocks(stage0=FULL[:-1] + FUSED), "deploy", [f"stage0.{t}" for t in FULL[:-1]]),
        (of_blocks(stage0=FULL[:-1] + FUSED[:1]), "train", ["stage0.rbr_reparam.weight"]),
        (of_blocks(stage0=FULL[:3]), "train", []),
        (of_blocks(stage0=FUSED[:1]), "deploy", []),
    ],
)
def test_the_form_of_a_file_and_its_redundant_tensors(arrays, form, dropped):
    found, redundant = detect_form(arrays)
    assert (found, sorted(redundant)) == (form, sorted(dropped))


def test_blocks_of_different_forms_are_named():
    arrays = of_blocks(stage0=FULL, stage1_0=FUSED, stage1_1=FUSED)
    with pytest.raises(
        LayoutError, match=r"have branches \(stage0\), others are fused \(stage1\.0, stage1\.1\)"
    ) as caught:
        detect_form(arrays)
    assert caught.value.actual == {"train": ["stage0"], "deploy": ["stage1.0", "stage1.1"]}


@pytest.mark.parametrize("publisher", ["paddleclas", "basecls"])
def test_branches_beside_the_fused_convolution_are_used_and_reported(publisher):
    rows = entries(publisher, SMALL["se"], "train")
    fused = [row for row in entries(publisher, SMALL["se"], "deploy") if "rbr_reparam" in row.canonical]
    checkpoint = read(weightless(rows + fused), publisher)
    assert checkpoint.form == "train"
    assert set(checkpoint.state_dict) == {row.canonical for row in rows}
    assert {key for key, why in checkpoint.report.skipped if "branches are in the file" in why} == {
        r.publisher_key for r in fused
    }


def test_auxiliary_heads_in_a_deploy_file_are_skipped():
    rows = entries("official", SMALL["plus"], "deploy")
    heads = [row for row in entries("official", SMALL["plus"], "train") if "_aux." in row.canonical]
    checkpoint = read(weightless(rows + heads), "official")
    assert (checkpoint.form, checkpoint.layout) == ("deploy", "official_plus")
    assert set(checkpoint.state_dict) == {row.canonical for row in rows}
    assert {key for key, _ in checkpoint.report.skipped} == {row.publisher_key for row in heads}


@pytest.mark.parametrize(
    "key", ["\x1b[2Jstage1", "stage1\n0", "k" * 100_000, f"stage1.{'1' * 100_000}.rbr_dense.conv.weight"]
)
def test_a_strange_key_neither_reaches_the_terminal_nor_takes_long(key):
    with pytest.raises(LayoutError) as caught:
        read({**INCOMPLETE, key: np.zeros(3)}, "official")
    assert len(str(caught.value)) < 1000
    assert caught.value.message.isprintable()
    assert caught.value.actual == [key]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"module." * 100_000 + "x": np.zeros(3)}, "no key is in layout"),
        ({f"stage1.{i % 999}.rbr_dense.x{i}.weight": np.zeros(3) for i in range(50_000)}, "has 50000 arrays"),
    ],
    ids=["a prefix often repeated", "many keys"],
)
def test_keys_made_to_take_long_do_not(tree, message):
    with pytest.raises(LayoutError, match=message):  # without the limits, in minutes
        read(tree, "official")

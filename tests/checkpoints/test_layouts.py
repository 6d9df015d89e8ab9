"""Every publisher's layout becomes the native one, exactly, and a file that does not is refused with its reasons."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repvgg_zoo.checkpoints.layouts import LAYOUTS, Layout, group_count, native_array, native_key, published_key
from repvgg_zoo.checkpoints.load import find_form, find_state, interpret
from repvgg_zoo.errors import LayoutError
from repvgg_zoo.models import RepVGG, RepVGGplus
from repvgg_zoo.registry.spec import SESpec

from .publishers import PUBLISHERS, SMALL, VARIANTS, Variant, entries, numbered, weightless

FORMS = ("train", "deploy")
FORMAT = {"native": "megengine", "basecls": "megengine", "asthestarsfalll": "megengine", "paddleclas": "paddle"}
# RepVGGplus is the official authors' alone.
CASES = [
    (publisher, name)
    for publisher in PUBLISHERS
    for name in VARIANTS
    if not VARIANTS[name].plus or publisher in ("native", "official")
]
SMALL_CASES = [
    (publisher, name)
    for publisher in PUBLISHERS
    for name in SMALL
    if not SMALL[name].plus or publisher in ("native", "official")
]


def read(tree, publisher, **options):
    return interpret(tree, format=FORMAT.get(publisher, "torch"), path="file", **options)


def expected_layout(publisher: str, variant: Variant) -> str:
    return "official_plus" if publisher == "official" and variant.plus else publisher


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("publisher", "name"), CASES)
def test_keys_and_shapes_of_every_variant_become_native(publisher, name, form):
    rows = entries(publisher, VARIANTS[name], form)
    checkpoint = read(weightless(rows), publisher)
    assert {key: array.shape for key, array in checkpoint.arrays.items()} == {r.native: r.native_shape for r in rows}
    assert (checkpoint.form, checkpoint.layout) == (form, expected_layout(publisher, VARIANTS[name]))
    assert checkpoint.report.skipped == ()
    assert set(checkpoint.report.loaded) == {row.native for row in rows}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("publisher", "name"), SMALL_CASES)
def test_every_number_lands_in_its_place(publisher, name, form):
    rows = entries(publisher, SMALL[name], form, classes=10)
    native, theirs = numbered(rows, publisher)
    checkpoint = read(theirs, publisher)
    assert list(checkpoint.arrays) == list(native)
    for key, array in native.items():
        np.testing.assert_array_equal(checkpoint.arrays[key], array, err_msg=key, strict=True)
    changed = {row.native for row in rows if row.native_shape != row.their_shape}
    assert set(checkpoint.report.reshaped) | set(checkpoint.report.transposed) == changed
    assert checkpoint.report.transposed == (("linear.weight",) if publisher == "paddleclas" else ())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", VARIANTS)
def test_the_native_keys_are_those_of_the_networks(name, form):
    full = VARIANTS[name]
    # An eighth of the width has the same keys, and shapes that tell as much.
    variant = Variant(full.depths, tuple(w / 8 for w in full.widths), full.groups, full.reduction, full.plus)
    se = variant.reduction and SESpec("after_relu" if variant.plus else "before_relu", variant.reduction)
    options = {"se": se or None, "deploy": form == "deploy", "init_weights": False}
    if variant.plus:
        network = RepVGGplus(variant.depths, variant.widths, **options)
    else:
        network = RepVGG(variant.depths, variant.widths, groups=variant.groups, **options)
    rows = entries("native", variant, form)
    assert {key: array.shape for key, array in network.state_dict().items()} == {r.native: r.native_shape for r in rows}

"""A file of arrays is recognized as the variant whose shape it has."""

from __future__ import annotations

import pytest

import repvgg_zoo
from repvgg_zoo.checkpoints.identify import architecture_signature, identify_variant, state_dict_signature
from repvgg_zoo.registry.specs import SESpec


@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, {}),
        ({"groups": 2}, {"groups": 2}),
        ({"se": SESpec("before_relu", 16)}, {"has_se": True}),
        ({"se": SESpec("after_relu", 16)}, {"has_se": True}),
        ({"num_blocks": (2, 2, 4, 1)}, {"blocks": (2, 2, 4, 1)}),
    ],
)
def test_the_signature_of_a_variant_is_that_of_its_arrays(changed, expected, deploy):
    arrays = repvgg_zoo.create("RepVGG_N0", deploy=deploy, **changed).state_dict()
    names = ("builder", "blocks", "widths", "groups", "has_se")
    usual = dict(zip(names, architecture_signature(repvgg_zoo.model_info("RepVGG_N0").architecture)))
    assert dict(zip(names, state_dict_signature(arrays))) == {**usual, **expected}


@pytest.mark.parametrize("deploy", [False, True])
def test_a_repvggplus_is_distinguished_from_a_repvgg(deploy):
    small = {"num_blocks": (1, 2, 4, 1), "width_multiplier": (0.25, 0.25, 0.25, 0.25)}
    arrays = repvgg_zoo.create("RepVGGplus_L2pse", deploy=deploy, **small).state_dict()
    assert state_dict_signature(arrays) == ("repvggplus", (1, 2, 4, 1), (16, 32, 64, 128), 1, True)


@pytest.mark.parametrize("deploy", [False, True])
def test_a_file_is_identified_as_its_variant(tmp_path, deploy):
    repvgg_zoo.save_checkpoint(tmp_path / "x.safetensors", repvgg_zoo.create("RepVGG_A0", deploy=deploy))
    assert identify_variant(repvgg_zoo.load_checkpoint(tmp_path / "x.safetensors")).name == "RepVGG_A0"


def test_no_two_variants_have_the_same_shape():
    shapes = [architecture_signature(repvgg_zoo.model_info(name).architecture) for name in repvgg_zoo.list_models()]
    assert len(set(shapes)) == len(shapes)

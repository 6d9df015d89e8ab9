"""output_stride: larger feature maps for dense prediction, from the weights of the usual network.

The kind of fault: a dilated network has other tensors than the published ones, other maps than it says, or values that
are not those that its weights stand for.
"""

from __future__ import annotations

import numpy as np
import pytest
from megengine import Tensor

import repvgg_zoo
from repvgg_zoo.errors import ArgumentError
from repvgg_zoo.models import RepVGG, RepVGGplus
from repvgg_zoo.models.stages import stage_geometries
from repvgg_zoo.registry.specs import SESpec

from ..networks import randomised

# Stages 2 and 3 are equally wide, and so are stages 3 and 4: a stage's first block might get an identity branch.
TINY = {"num_blocks": (1, 2, 3, 2), "width_multiplier": (0.25, 0.25, 0.125, 0.0625), "num_classes": 10}
IMAGES = Tensor(np.random.RandomState(0).randn(2, 3, 64, 96).astype(np.float32))
BUILD = {
    "RepVGG": lambda **options: RepVGG(**TINY, groups=2, **options),
    "RepVGGplus": lambda **options: RepVGGplus(**TINY, se=SESpec("after_relu", 4), **options),
}
every_network = pytest.mark.parametrize("build", BUILD.values(), ids=BUILD)


def test_the_strides_that_are_left_out_double_the_dilation_of_what_follows():
    usual = [(2, 1, 1)] * 5
    assert list(stage_geometries()) == usual
    assert list(stage_geometries(16)) == [*usual[:4], (1, 1, 2)]
    assert list(stage_geometries(8)) == [*usual[:3], (1, 1, 2), (1, 2, 4)]


@every_network
@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("deploy", [False, True])
def test_the_larger_maps_have_the_pixels_of_the_usual_ones(build, output_stride, deploy):
    usual = randomised(build(features_only=True))
    usual.eval()
    usual = repvgg_zoo.to_deploy(usual) if deploy else usual
    dilated = build(features_only=True, output_stride=output_stride, deploy=deploy)
    dilated.load_state_dict(usual.state_dict())
    dilated.eval()
    # SE sees the mean of the whole map, which is another one for a larger map.
    for network in (usual, dilated):
        for block in (part for part in network.modules() if getattr(part, "post_se", None) is not None):
            block.post_se = None
    expected, actual = usual(IMAGES), dilated(IMAGES)
    for info in dilated.feature_info:
        larger, smaller = actual[info.name].numpy(), expected[info.name].numpy()
        assert larger.shape == (2, info.channels, 64 // info.reduction, 96 // info.reduction)
        step = larger.shape[2] // smaller.shape[2]
        assert np.abs(larger[:, :, ::step, ::step] - smaller).max() <= 1e-5 * np.abs(smaller).max()
    assert dilated.feature_info[-1].reduction == output_stride


@every_network
@pytest.mark.parametrize("output_stride", [8, 16])
def test_both_forms_of_a_dilated_network_agree(build, output_stride):
    network = randomised(build(output_stride=output_stride))
    network.eval()
    report = repvgg_zoo.compare_forms(network, IMAGES)
    assert report.end_to_end.relative <= 1e-5
    deployed, fresh = repvgg_zoo.to_deploy(network), build(output_stride=output_stride, deploy=True)
    fresh.load_state_dict(deployed.state_dict())
    fresh.eval()
    assert np.array_equal(fresh(IMAGES).numpy(), deployed(IMAGES).numpy())


@pytest.mark.parametrize("deploy", [False, True])
def test_create_loads_published_weights_into_a_dilated_backbone(deploy):
    options = {"pretrained": True, "features_only": True, "out_indices": (2, 4), "deploy": deploy}
    backbone = repvgg_zoo.create("RepVGG_N0", output_stride=8, **options)
    assert [info.reduction for info in backbone.feature_info] == [8, 8]
    image = Tensor(np.random.RandomState(0).randn(1, 1, 32, 32).astype(np.float32))
    usual, larger = (
        network(image)["stage4"].numpy() for network in (repvgg_zoo.create("RepVGG_N0", **options), backbone)
    )
    assert larger.shape[2:] == (4, 4)
    assert np.abs(larger[:, :, ::4, ::4] - usual).max() <= 1e-4 * np.abs(usual).max()


@pytest.mark.parametrize("value", [4, 64, 0, None, True, "8", 8.0, 8.5, [8]])
def test_another_output_stride_is_an_error(value):
    with pytest.raises(ArgumentError, match="output_stride is") as caught:
        repvgg_zoo.create("RepVGG_N0", output_stride=value)
    assert caught.value.hint == "pass 8, 16 or 32"

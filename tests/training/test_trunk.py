"""forward_features: the same features and gradients as MegEngine's own operators give."""

from __future__ import annotations

import numpy as np
import pytest
from megengine import Tensor
from megengine.autodiff import GradManager

from repvgg_zoo.errors import ArgumentError
from repvgg_zoo.training.structure import structure_of
from repvgg_zoo.training.trunk import forward_features
from tests.inference.small_networks import images, small


def test_blocks_are_in_the_order_of_computation():
    names = list(structure_of(small(num_blocks=[1, 1, 11, 1])).blocks)
    assert names[3:6] == ["stage3.0", "stage3.1", "stage3.2"]
    assert names[-2:] == ["stage3.10", "stage4.0"]


@pytest.mark.parametrize("bn", ["frozen", "train"])
def test_frozen_stages_get_no_gradient_and_keep_their_statistics(bn):
    network = small()
    before = {name: tensor.numpy().copy() for name, tensor in network.named_buffers()}
    gradients = GradManager().attach(list(network.parameters()))
    with gradients:
        features = forward_features(network, Tensor(images(2, 3, 32)), bn=bn, freeze_until="stage2")
        gradients.backward(features.sum())
    trained = {name[: len("stage0")] for name, parameter in network.named_parameters() if parameter.grad is not None}
    updated = {
        name[: len("stage0")] for name, tensor in network.named_buffers() if (tensor.numpy() != before[name]).any()
    }
    assert trained == {"stage3", "stage4"}
    assert updated == (set() if bn == "frozen" else trained)
    assert features.shape == (2, network.linear.in_features)


@pytest.mark.parametrize("options", [{"bn": "fixed"}, {"freeze_until": "stage5"}, {"freeze_until": "2"}])
def test_options_that_do_not_exist_are_named(options):
    with pytest.raises(ArgumentError, match=next(iter(options))):
        forward_features(small(), Tensor(np.zeros((1, 3, 32, 32), np.float32)), **options)

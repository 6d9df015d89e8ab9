"""Every number that the registry states of a network is that of the network as built."""

from __future__ import annotations

import gc

import pytest

from repvgg_zoo.models.build import BUILDERS
from repvgg_zoo.registry.load import shipped_registry

from ..networks import count_macs, count_params

STRIDE = 32


@pytest.mark.parametrize("deploy", [False, True], ids=["train", "deploy"])
@pytest.mark.parametrize("model", shipped_registry().models, ids=lambda model: model.name)
def test_parameters_and_macs_are_those_of_the_built_network(model, deploy):
    architecture = model.architecture
    network = BUILDERS[architecture.builder](
        architecture,
        num_classes=architecture.num_classes,
        in_chans=architecture.in_chans,
        deploy=deploy,
        init_weights=False,
    )
    form = "deploy" if deploy else "train"
    assert count_params(network) == getattr(model.params, form)
    # Counted on one pixel of the last stage: each convolution has (size / 32) squared times as many positions.
    head = architecture.num_classes * network.linear.in_features
    convolutions = count_macs(network, STRIDE) - head
    assert convolutions * (architecture.image_size // STRIDE) ** 2 + head == getattr(model.macs, form)
    del network
    gc.collect()

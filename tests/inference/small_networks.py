"""Networks of few blocks, images for them, and what MegEngine computes."""

from __future__ import annotations

import copy

import megengine.functional as F
import megengine.module as M
import numpy as np
import pytest
from megengine import Tensor

import repvgg_zoo
from repvgg_zoo.models import RepVGGBlock
from tests.networks import randomised

# float32 rounding through a network of these depths is about 1e-6 of the output's scale, with winograd up to 6e-6.
BOUND = 1e-5

# For tests of networks that the kernels cannot compute.
eagerly = pytest.mark.filterwarnings("ignore:.*eager mode")


def small(name="RepVGG_A0", **options):
    sizes = {"num_blocks": [1, 2, 2, 1], "width_multiplier": [0.25, 0.25, 0.25, 0.25]}
    return randomised(repvgg_zoo.create(name, **{**sizes, **options}))


def images(count, channels, size, seed=1):
    height, width = size if isinstance(size, tuple) else (size, size)
    return np.random.RandomState(seed).standard_normal((count, channels, height, width)).astype(np.float32)


def eager(network, x):
    twin = copy.deepcopy(network)
    twin.eval()
    output = twin(Tensor(x))
    return {key: value.numpy() for key, value in output.items()} if isinstance(output, dict) else output.numpy()


def distance(reference, output):
    assert reference.shape == output.shape
    return np.abs(reference - output).max() / np.abs(reference).max()


class Backbone(M.Module):
    """A user's own network around blocks of ours."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.first = RepVGGBlock(3, 8, stride=2)
        self.second = RepVGGBlock(8, 8)
        self._scale = lambda x: x * factor  # code that no digest of weights sees

    def forward(self, x):
        x = self.first(x)
        return [x, self._scale(F.mean(self.second(x), axis=[2, 3]))]


class Nested(M.Module):
    def __init__(self):
        super().__init__()
        self.block = RepVGGBlock(3, 8)

    def forward(self, x):
        return {"maps": [self.block(x)]}

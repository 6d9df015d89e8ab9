"""cost: the figures of both forms, computed from an architecture and measured on a network, are the same.

The kind of fault: a figure that a user works out by hand for a registry file is wrong, and nobody notices.
"""

from __future__ import annotations

import subprocess
import sys

import megengine.module as M
import pytest

import repvgg_zoo
from repvgg_zoo.errors import ArgumentError, UnknownModelError
from repvgg_zoo.models import RepVGGBlock
from repvgg_zoo.registry.load import shipped_registry
from repvgg_zoo.registry.specs import Architecture, Cost, SESpec

from .networks import count_macs, count_params

SMALL = {"num_blocks": (1, 2, 3, 1), "width_multiplier": (0.25, 0.5, 0.25, 0.125), "image_size": 40}
ARCHITECTURES = {
    "plain": Architecture(**SMALL),
    "one channel, seven classes": Architecture(**SMALL, in_chans=1, num_classes=7),
    "groups": Architecture((2, 4, 3, 1), (0.25, 0.25, 0.125, 0.125), groups=4, num_classes=10),
    "SE before ReLU": Architecture(**SMALL, se=SESpec("before_relu", 4)),
    "SE after ReLU": Architecture(**SMALL, se=SESpec("after_relu", 16)),
    "RepVGGplus": Architecture(**SMALL, builder="repvggplus", num_classes=3),
    "RepVGGplus with SE": Architecture(**SMALL, builder="repvggplus", se=SESpec("after_relu", 4), num_classes=5),
}


@pytest.mark.parametrize("model", shipped_registry().models, ids=lambda model: model.name)
def test_the_computed_figures_are_those_of_the_registry(model):
    result = repvgg_zoo.cost(model)
    assert (result.params, result.macs) == (model.params, model.macs)
    assert result == repvgg_zoo.cost(model.name) == repvgg_zoo.cost(model.architecture)


@pytest.mark.parametrize("size", [40, (33, 47)])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_computed_figures_are_those_measured_on_a_network_in_either_form(kind, size):
    architecture = ARCHITECTURES[kind]
    computed = repvgg_zoo.cost(architecture, image_size=size)
    fields = {name: getattr(architecture, name) for name in ("num_blocks", "width_multiplier", "groups", "se")}
    name = "RepVGGplus_L2pse" if architecture.builder == "repvggplus" else "RepVGG_A0"
    options = {"num_classes": architecture.num_classes, "in_chans": architecture.in_chans, **fields}
    if name == "RepVGGplus_L2pse":
        del options["groups"]
    for deploy in (False, True):
        network = repvgg_zoo.create(name, deploy=deploy, **options)
        measured = repvgg_zoo.cost(network, image_size=size)
        assert (measured.params, measured.macs) == (computed.params, computed.macs)
        assert sorted(layer for layer in measured.layers if any(layer.macs)) == sorted(
            layer for layer in computed.layers if any(layer.macs)
        )
        form = "deploy" if deploy else "train"
        assert getattr(measured.params, form) == count_params(network)
        if size == 40:
            assert getattr(measured.macs, form) == count_macs(network, size)


def test_the_layers_add_up_and_have_the_names_of_the_state_dict():
    result = repvgg_zoo.cost("RepVGG_A0")
    assert [layer.name for layer in result.layers[:3]] == ["stage0", "stage1.0", "stage1.1"]
    assert result.layers[-1].name == "linear" and result.image_size == (224, 224)
    for form in ("train", "deploy"):
        assert sum(getattr(layer.macs, form) for layer in result.layers) == getattr(result.macs, form)
        assert sum(getattr(layer.params, form) for layer in result.layers) == getattr(result.params, form)


def test_a_file_has_the_cost_of_the_network_in_it(tmp_path):
    network = repvgg_zoo.create("RepVGG_N0", width_multiplier=(0.25, 0.25, 0.125, 0.125), num_classes=3, deploy=True)
    repvgg_zoo.save_checkpoint(tmp_path / "mine.pkl", network, layout="official")
    result = repvgg_zoo.cost(tmp_path / "mine.pkl", image_size=32)
    expected = repvgg_zoo.cost(network, image_size=32)
    assert (result.params, result.macs) == (expected.params, expected.macs)
    assert repvgg_zoo.cost(str(repvgg_zoo.fetch("RepVGG_N0"))) == repvgg_zoo.cost("RepVGG_N0")


def test_a_network_inside_of_another_one_is_counted_with_it():
    class Segmenter(M.Module):
        def __init__(self):
            super().__init__()
            self.trunk = M.Sequential(RepVGGBlock(3, 8, stride=2), RepVGGBlock(8, 8))
            self.head = M.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.head(self.trunk(x))

    network = Segmenter()
    result = repvgg_zoo.cost(network, image_size=(10, 12))
    assert result.macs == Cost(30 * (10 * 24 + 10 * 64 + 16), 30 * (9 * 24 + 9 * 64 + 16))
    assert result.params.train == count_params(network)
    assert result.params.deploy == count_params(repvgg_zoo.to_deploy(network))
    assert network.training


def test_names_and_specs_need_no_megengine():
    code = "import repvgg_zoo, sys; repvgg_zoo.cost('B1g2', image_size=320); assert 'megengine' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


PLAIN = ARCHITECTURES["plain"]
INVALID = [
    (5, {}, "not int"),
    (None, {}, "not NoneType"),
    (b"RepVGG_A0", {}, "not bytes"),
    (["RepVGG_A0"], {}, "not list"),
    ("RepVGG_A0", {"image_size": "224"}, "image_size is '224'"),
    ("RepVGG_A0", {"image_size": 0}, "image_size is 0"),
    ("RepVGG_A0", {"image_size": 2.5}, "image_size is 2.5"),
    ("RepVGG_A0", {"image_size": True}, "image_size is True"),
    ("RepVGG_A0", {"image_size": (1, 2, 3)}, r"image_size is \(1, 2, 3\)"),
    (PLAIN._replace(groups=3), {}, "which 3 groups do not divide"),
    (PLAIN._replace(num_blocks=(1, 2, 3)), {}, "architecture.num_blocks"),
    (PLAIN._replace(num_blocks=5), {}, "architecture.num_blocks"),
    (PLAIN._replace(width_multiplier=("a",) * 4), {}, "architecture.width_multiplier"),
    (PLAIN._replace(num_classes="7"), {}, "architecture.num_classes"),
    (PLAIN._replace(width_multiplier=(60,) * 4), {}, "larger than any real one"),
    (PLAIN._replace(builder="resnet"), {}, "architecture.builder is 'resnet'"),
    (PLAIN._replace(builder=7), {}, "architecture.builder"),
    (PLAIN._replace(se=4), {}, "architecture.se"),
    (PLAIN._replace(se=SESpec("before_relu", 0)), {}, "architecture.se.reduction"),
]


@pytest.mark.parametrize(("model", "options", "message"), INVALID)
def test_what_has_no_cost_is_an_argument_error(model, options, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        repvgg_zoo.cost(model, **options)
    assert caught.value.hint


def test_errors_of_names_and_networks_are_ours():
    with pytest.raises(UnknownModelError):
        repvgg_zoo.cost("resnet50")
    with pytest.raises(ArgumentError, match="image_size is needed"):
        repvgg_zoo.cost(M.Conv2d(3, 4, 3))
    with pytest.raises(ArgumentError, match="cannot run on an image of 1 x 1"):
        repvgg_zoo.cost(M.Conv2d(3, 4, 3), image_size=1)
    with pytest.raises(ArgumentError, match="no convolution"):
        repvgg_zoo.cost(M.ReLU(), image_size=8)

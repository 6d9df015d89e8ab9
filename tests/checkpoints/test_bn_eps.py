"""BN eps: a network whose BN layers have another eps than 1e-5 keeps it, whatever is done with the network.

The kind: one layer, some or all of them, in any place, with any eps; saved and loaded, fused in NumPy and as a Module,
compiled, published in a registry, or told to create() for a file that cannot say it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Callable, Dict

import megengine.module as M
import numpy as np
import pytest
from megengine import Tensor

import repvgg_zoo
from repvgg_zoo.checkpoints import load_checkpoint, save_checkpoint
from repvgg_zoo.errors import ArgumentError, RegistryError
from repvgg_zoo.registry.parser import parse_registry
from repvgg_zoo.reparam.fusion import fuse, fuse_state_dict, fusion_errors

from ..networks import randomised
from ..registry.sample import SAMPLE
from ..test_weights import REGISTRY

TINY: Dict[str, Any] = {"num_blocks": (1, 2, 2, 1), "width_multiplier": (0.25,) * 4, "groups": 2, "num_classes": 10}
IMAGE = np.random.RandomState(0).standard_normal((2, 3, 32, 32)).astype(np.float32)


def tiny(eps_of_layer: Callable[[int], float]) -> M.Module:
    """A trained network with small variances, beside which an eps matters, in eval mode."""
    network = randomised(repvgg_zoo.create("RepVGG_A0", **TINY))
    layers = [layer for layer in network.modules() if isinstance(layer, M.BatchNorm2d)]
    for index, layer in enumerate(layers):
        layer.running_var[...] = layer.running_var.numpy() * 0.01
        layer.weight[...] = layer.weight.numpy() * 0.1
        layer.eps = eps_of_layer(index)
    network.eval()
    return network


def outputs(network: Any) -> Any:
    return network(Tensor(IMAGE)).numpy()


NETWORKS = {
    "all layers have 1e-3": lambda index: 1e-3,
    "every layer has another eps": lambda index: 1e-5 * 2 ** (index % 12),
    "one layer has 0.1": lambda index: 0.1 if index == 1 else 1e-5,
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    return tiny(NETWORKS[request.param])


@pytest.fixture(scope="module")
def path(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("eps") / "net.safetensors"
    save_checkpoint(path, network)
    return path


def test_eps_matters_in_these_networks(network):
    plain = tiny(lambda index: 1e-5)
    assert np.abs(outputs(plain) - outputs(network)).max() > 1e-3 * np.abs(outputs(plain)).max()


@pytest.mark.parametrize("layout", ["canonical", "timm"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pkl"])
def test_a_saved_network_comes_back_with_its_eps(network, tmp_path, suffix, layout):
    path = tmp_path / f"net{suffix}"
    save_checkpoint(path, network, layout=layout)
    again = repvgg_zoo.create("RepVGG_A0", checkpoint=path)
    np.testing.assert_array_equal(outputs(again), outputs(network))
    save_checkpoint(path, again)
    assert load_checkpoint(path).metadata.bn_eps == load_checkpoint(path).metadata.bn_eps != {}


def test_every_way_to_the_deploy_form_uses_the_eps_of_each_layer(network, path):
    checkpoint = load_checkpoint(path)
    deployed = {
        "to_deploy": repvgg_zoo.to_deploy(network),
        "create": repvgg_zoo.create("RepVGG_A0", checkpoint=path, deploy=True),
        "fuse": repvgg_zoo.create("RepVGG_A0", checkpoint=fuse(checkpoint), deploy=True),
    }
    expected = outputs(network)
    scale = np.abs(expected).max()
    for way, other in deployed.items():
        assert np.abs(outputs(other) - expected).max() < 1e-5 * scale, way
    with repvgg_zoo.compile(network, image_size=32) as compiled:
        assert np.abs(compiled(IMAGE) - expected).max() < 1e-4 * scale
    assert repvgg_zoo.compare_forms(network, IMAGE).end_to_end.relative < 1e-5


def test_the_error_of_a_fusion_is_measured_with_the_eps_of_each_layer(path):
    checkpoint = load_checkpoint(path)
    fused = fuse_state_dict(checkpoint.state_dict, checkpoint.metadata.bn_eps)
    assert max(fusion_errors(checkpoint.state_dict, fused, checkpoint.metadata.bn_eps).values()) < 1e-6
    assert fuse(checkpoint).metadata.bn_eps == {}


# Files that cannot say it ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A network whose eps is 1e-3, and its file as a program writes it that knows nothing of ours."""
    network = tiny(lambda index: 1e-3)
    path = tmp_path_factory.mktemp("foreign") / "net.safetensors"
    save_checkpoint(path, network.state_dict(), layout="timm")
    return network, path


@pytest.mark.parametrize("deploy", [False, True])
def test_bn_eps_says_what_a_file_from_elsewhere_cannot(foreign, deploy):
    network, path = foreign
    expected = outputs(network)
    architecture = {**TINY, "num_classes": None}
    with_eps = repvgg_zoo.create("RepVGG_A0", checkpoint=path, bn_eps=1e-3, deploy=deploy, **architecture)
    assert np.abs(outputs(with_eps) - expected).max() < 1e-5 * np.abs(expected).max()
    plain = repvgg_zoo.create("RepVGG_A0", checkpoint=path, deploy=deploy, **architecture)
    assert np.abs(outputs(plain) - expected).max() > 1e-3 * np.abs(expected).max()


def test_bn_eps_of_a_network_with_random_weights_is_that_of_all_its_layers():
    network = repvgg_zoo.create("RepVGG_A0", bn_eps=np.float32(1e-3), **TINY)
    assert {layer.eps for layer in network.modules() if isinstance(layer, M.BatchNorm2d)} == {float(np.float32(1e-3))}


@pytest.mark.parametrize("eps", [0, -1e-5, 1.5, "1e-5", True, float("nan"), [1e-5]])
def test_a_bn_eps_that_cannot_be_one_is_refused(eps):
    with pytest.raises(ArgumentError, match="bn_eps is ") as caught:
        repvgg_zoo.create("RepVGG_A0", bn_eps=eps)
    assert caught.value.hint


def test_bn_eps_is_refused_for_deploy_weights_which_have_no_bn(path):
    deploy = fuse(load_checkpoint(path))
    with pytest.raises(ArgumentError, match="holds deploy weights") as caught:
        repvgg_zoo.create("RepVGG_A0", checkpoint=deploy, deploy=True, bn_eps=1e-3)
    assert "leave bn_eps out" in caught.value.hint


# The registry ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deploy", [False, True])
def test_a_registry_says_the_eps_of_a_published_file(foreign, tmp_path, monkeypatch, deploy):
    network, path = foreign
    monkeypatch.setenv("REPVGG_ZOO_HOME", str(tmp_path / "cache"))
    (tmp_path / "t.safetensors").write_bytes(Path(path).read_bytes())
    text = REGISTRY % hashlib.sha256(Path(path).read_bytes()).hexdigest()
    (tmp_path / "zoo.yaml").write_text(
        text.replace("        layout: timm\n", "        layout: timm\n        bn_eps: 1e-3\n")
    )
    repvgg_zoo.register(tmp_path / "zoo.yaml")
    try:
        for _ in range(2):  # the second time from the derived cache
            published = repvgg_zoo.create("test/RepVGG_T", pretrained=True, deploy=deploy)
            assert np.abs(outputs(published) - outputs(network)).max() < 1e-5 * np.abs(outputs(network)).max()
    finally:
        repvgg_zoo.unregister(tmp_path / "zoo.yaml")


@pytest.mark.parametrize("eps", ["0", "-1e-5", "2", "small", "true"])
def test_an_eps_in_a_registry_that_cannot_be_one_is_an_error_with_its_line(eps):
    text = SAMPLE.replace("        top1: 71.5\n", f"        top1: 71.5\n        bn_eps: {eps}\n")
    with pytest.raises(RegistryError, match=r"bn_eps|number") as caught:
        parse_registry(text.encode())
    assert caught.value.line == text[: text.index("bn_eps")].count("\n") + 1
